"""Every field counts in the table of cases: were it ignored, a case would fail.

For each field of each kind, as `support.documents` lists them, the field is taken out of all documents of that kind
(or, where it must be there, gets another value), and the cases run through the interpreter: at least one must not get
what it expects. A field that no document of the table has is a failure too.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest

from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.model import Cluster, Object
from spliceway.policy.parse import parse_document
from support.cases import POD_CIDRS, Case, CaseFile, load_case_files
from support.documents import FULL, Path, at, places

FILES = load_case_files()
Field = tuple[str, ...]

#: What both kinds of Cilium share is one field.
FAMILY = {"CiliumClusterwideNetworkPolicy": "CiliumNetworkPolicy"}
#: Keys under which the keys are the user's own.
OWN_KEYS = ("matchLabels", "labels", "data", "stringData")
#: Fields without a part in verdicts (docs/policy.md).
NO_PART = (
    r"\w+ (apiVersion|kind)",
    r"\w*Policy metadata\.labels.*",
    r"CiliumNetworkPolicy spec\.(labels.*|description)",
    r"(\w*ClusterNetwork|\w*AdminNetwork)Policy spec\.(ingress|egress)\.\[\]\.name",
    r"Pod spec\.(containers|initContainers)\.\[\]\.name",
    r"Service (spec\.(?!type$|selector).*|status.*)",  # load balancing
    r"EndpointSlice (ports.*|endpoints\.\[\]\.(nodeName|zone|hints.*|targetRef.*))",  # likewise
    r"(Pod|EndpointSlice|BaselineAdminNetworkPolicy) metadata\.name",  # they are who they are by it
)


def family(document: dict[str, Any]) -> str:
    return FAMILY.get(document["kind"], str(document["kind"]))


def field_of(path: Path, kind: str) -> Field:
    """A place without indexes and without keys that are the user's own."""
    found = []
    for index, key in enumerate(path):
        above = path[index - 1] if index else ""
        own = above in OWN_KEYS or (kind == "Service" and path[:index] == ("spec", "selector"))
        found.append("[]" if isinstance(key, int) else "*" if own else key)
    return tuple(found)


def flat(documents: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document["kind"] == "List":
            yield from flat(document["items"])
        else:
            yield document


DOCUMENTS = {file.name: list(flat(file.documents)) for file in FILES}
FIELDS = sorted(
    {
        (family(document), field_of(path, document["kind"]))
        for document in FULL.values()
        for path in places(document)
        if not any(
            re.fullmatch(pattern, f"{family(document)} {'.'.join(field_of(path, document['kind']))}")
            for pattern in NO_PART
        )
    }
)


HAVE: set[tuple[str, Field]] = set()
CONTAINERS: set[tuple[str, Field]] = set()
for _document in (document for documents in DOCUMENTS.values() for document in documents):
    for _path in places(_document):
        _field = family(_document), field_of(_path, _document["kind"])
        HAVE.add(_field)
        if isinstance(at(_document, _path), dict | list):
            CONTAINERS.add(_field)


def parse(document: dict[str, Any]) -> list[Object]:
    return list(parse_document(Document("x.yaml", 1, 1, document)))


PARSED = {name: [parse(document) for document in documents] for name, documents in DOCUMENTS.items()}


def another(kind: str, key: str, value: Any) -> Any:
    """Another value that is as valid as this one."""
    swaps = {
        "In": "NotIn",
        "NotIn": "In",
        "Exists": "DoesNotExist",
        "DoesNotExist": "Exists",
        "TCP": "SCTP",
        "UDP": "SCTP",
        "SCTP": "UDP",
        "Accept": "Deny",
        "Allow": "Deny",
        "Deny": "Accept" if kind == "ClusterNetworkPolicy" else "Allow",
        "Pass": "Deny",
        "Admin": "Baseline",
        "Baseline": "Admin",
        "InternalIP": "Hostname",
        "IPv4": "FQDN",
        "IPv6": "FQDN",
        "Ingress": "Egress",
        "Egress": "Ingress",
        "DENY": "AUDIT",
        "true": "false",
        "source.namespace": "source.serviceAccount",
        "destination.port": "destination.port",  # there is no other whose values are ports
    }
    if isinstance(value, str) and value in swaps:
        return swaps[value]
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f:.]+/\d+", value):
        return "192.0.2.0/24" if "." in value else "2001:db8:ffff::/48"
    if isinstance(value, str) and re.fullmatch(r"\d+\.[\d.]+|[0-9a-f]*:[0-9a-f:]+", value):
        return "192.0.2.1" if "." in value else "2001:db8:ffff::1"
    if key == "priority":
        return 1000 - value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return str(int(value) + 1) if value.isdigit() else f"{value}x"
    return {} if isinstance(value, dict) else []


def mutant(document: dict[str, Any], field: Field, how: str) -> dict[str, Any] | None:
    """The document without the field, or with another value of it; None when it has none."""
    hits = [path for path in places(document) if field_of(path, document["kind"]) == field]
    changed = copy.deepcopy(document)
    for path in reversed(hits):
        above = at(changed, path[:-1])
        if how == "drop":
            del above[path[-1]]
        else:
            above[path[-1]] = another(document["kind"], str(path[-1]), above[path[-1]])
    return changed if hits else None


class Mutated(NamedTuple):
    """The clusters of the files in which a mutation changed what a document means, and what became of documents."""

    clusters: list[tuple[CaseFile, Cluster]]
    unchanged: bool  # a document was accepted, and means the same


def mutate(kind: str, field: Field, how: str) -> Mutated:
    """Every file with the mutation; documents that are refused with it stay as they are."""
    found, unchanged = [], False
    for file in FILES:
        objects, changed = [], False
        for document, parsed in zip(DOCUMENTS[file.name], PARSED[file.name], strict=True):
            other = mutant(document, field, how) if family(document) == kind else None
            if other is not None:
                with contextlib.suppress(PolicyError):
                    before, parsed = parsed, parse(other)
                    changed, unchanged = changed or parsed != before, unchanged or parsed == before
            objects += parsed
        if changed:
            found.append((file, Cluster(pod_cidrs=POD_CIDRS).with_objects(objects)))
    return Mutated(found, unchanged)


def fails(cluster: Cluster, case: Case) -> bool:
    """Whether the interpreter says something else than the case expects."""
    found = evaluate(cluster, Connection(case.source, case.destination, case.protocol, case.port), case.request)
    expect, http = case.expect, case.expect.http
    if (found.verdict.label, found.reason.label, str(found.rule or "")) != (
        expect.verdict,
        expect.reason,
        expect.rule or "",
    ):
        return True
    if http is None or found.http is None:
        return found.http is not None or http is not None
    said = found.http.status, found.http.reason.label, str(found.http_rule or "")
    return said != (http.status, http.reason, http.rule or "")


def test_without_mutation_nothing_fails() -> None:
    for file in FILES:
        cluster = Cluster(pod_cidrs=POD_CIDRS).with_objects(o for found in PARSED[file.name] for o in found)
        assert not any(fails(cluster, case) for case in file.cases)


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind} {'.'.join(field)}" for kind, field in FIELDS])
def test_a_case_fails_without(kind: str, field: Field) -> None:
    assert (kind, field) in HAVE, "no document has it"
    unchanged = False
    for how in ("drop", "other"):
        mutated = mutate(kind, field, how)
        if any(fails(cluster, case) for file, cluster in mutated.clusters for case in file.cases):
            return
        assert not mutated.clusters, "no case needs it"
        unchanged = unchanged or mutated.unchanged
    # A document without it is refused, and its parts are fields of their own.
    assert (kind, field) in CONTAINERS, "no document can have another value"
    assert not unchanged, "it is ignored"
