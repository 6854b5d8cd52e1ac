"""The table of cases in a mesh: every pod has a sidecar and a service account of its own, mTLS is STRICT everywhere.

For each TCP connection and request to a pod with HTTP rules: what the interpreter says of the server's end, and
whether the pod's policies are translated, or why not.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from spliceway.policy.documents import Document
from spliceway.policy.evaluate import Connection, evaluate_half
from spliceway.policy.evaluate_facts import Facts, find_pod
from spliceway.policy.evaluate_http import rule_set
from spliceway.policy.evaluate_tiers import Half
from spliceway.policy.http import HttpDecision, decide
from spliceway.policy.istio.httprules import Ambiguous, Meaning, Normalization
from spliceway.policy.istio.mesh import Mesh, read_document
from spliceway.policy.istio.peers import account
from spliceway.policy.istio.translate import Options, Translation, translate
from spliceway.policy.model import Cluster, Pod
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support.cases import POD_CIDRS, Case, CaseFile, ExpectHttp
from support.envoycases import difference

ROOT_NAMESPACE = "istio-system"
#: Whose certificate comes from an address that is no pod's: a machine outside the cluster that is in the mesh.
OUTSIDE = "cluster.local/ns/outside/sa/machine"
STRICT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "default", "namespace": ROOT_NAMESPACE},
    "spec": {"mtls": {"mode": "STRICT"}},
}


class Way(NamedTuple):
    """A mesh, and how its policies are made."""

    normalization: Normalization
    ambiguous: Ambiguous


#: As docs/istio-policy.md counts: what comes without options first.
WAYS = (
    Way(Normalization.BASE, Ambiguous.DENY),
    Way(Normalization.BASE, Ambiguous.REFUSE),
    Way(Normalization.DECODE_AND_MERGE_SLASHES, Ambiguous.PASS),
)

#: Reasons for refusals: words that stand in them.
REASONS = (
    ("a part of the path is left open", ("with path normalization", "what two servers can read")),
    (
        "an expression without counterpart",
        ("repeats without end", "has no counterpart\n", "` has no counterpart", "between two"),
    ),
    ("a header (it may be there twice)", ("one that is there twice",)),
    ("the value of a Secret", ("of a Secret",)),
    ("an action on mismatch", ("mismatch ",)),
    ("peers that certificates don't tell apart", ("apart (pod",)),
    ("default deny off", ("default deny",)),
    ("other tiers", ("its tier has no counterpart",)),
    ("a selector of workloads that is no matchLabels", ("endpointSelector",)),
    ("a range of ports, or ports by name", ("ports ", "port ")),
    ("the own node, other nodes, unmanaged addresses", ("node", "unmanaged")),
)


class MeshFile(msgspec.Struct, frozen=True):
    """A file of cases in the mesh, and what its policies become."""

    name: str
    cluster: Cluster
    mesh: Mesh
    translation: Translation
    cases: tuple[Case, ...]

    def documents(self) -> list[dict[str, Any]]:
        """AuthorizationPolicies and EnvoyFilters."""
        return self.translation.documents()


class Asked(msgspec.Struct, frozen=True):
    """A case, its ends, and what the interpreter says. `refused`: why the server's policies are not translated.

    `read`: paths are read by an EnvoyFilter of ours there.
    """

    file: MeshFile
    case: Case
    server: Pod
    client: Pod | None
    half: Half
    http: HttpDecision | None
    refused: str
    read: bool = False

    @property
    def principal(self) -> str:
        """Who the client's certificate is for."""
        if self.client is None:
            return OUTSIDE
        namespace, name = account(self.client)
        return f"cluster.local/ns/{namespace}/sa/{name}"

    @property
    def passes(self) -> bool:
        """Whether the interpreter lets it pass."""
        if self.half.verdict is Verdict.REDIRECT:
            return self.http is not None and self.http.verdict is Verdict.ALLOW
        return self.half.verdict is Verdict.ALLOW


def mesh_file(file: CaseFile, way: Way) -> MeshFile:
    """A file of cases with sidecars everywhere."""
    return in_mesh(file.name, file.documents, file.cases, way)


def in_mesh(name: str, documents: Iterable[Any], cases: tuple[Case, ...], way: Way) -> MeshFile:
    """Documents of a cluster with sidecars everywhere, translated."""
    contents = [copy.deepcopy(one) for one in documents]
    for content in contents:
        for item in content["items"] if content["kind"] == "List" else [content]:
            if item["kind"] == "Pod":
                item.setdefault("spec", {}).setdefault("serviceAccountName", item["metadata"]["name"])
                item["metadata"].setdefault("annotations", {})["sidecar.istio.io/status"] = "{}"
    reads = [read_document(Document(name, index + 1, 1, content)) for index, content in enumerate([*contents, STRICT])]
    cluster = Cluster(pod_cidrs=POD_CIDRS).with_objects(item for read in reads for item in read.objects)
    mesh = Mesh(
        tuple(one for read in reads for one in read.authentications),
        tuple(one for read in reads for one in read.foreign),
        {key: told for read in reads for key, told in read.annotations.items()},
        ROOT_NAMESPACE,
    )
    options = Options(meaning=Meaning(*way))
    return MeshFile(name, cluster, mesh, translate(cluster, mesh, options), cases)


def asked(file: MeshFile) -> Iterator[Asked]:
    """Every connection and request over TCP to a pod that HTTP rules are about, and no AuthorizationPolicy."""
    facts = Facts(file.cluster)
    for case in file.cases:
        server = find_pod(facts, case.destination)
        if case.protocol != Protocol.TCP or server is None or not has_http(file.cluster, server):
            continue
        if case.source == case.destination or is_authorized(file.mesh, server):
            continue
        client = find_pod(facts, case.source)
        connection = Connection(case.source, case.destination, case.protocol, case.port)
        half = evaluate_half(file.cluster, server, Direction.INGRESS, connection)
        http = None
        if half.verdict is Verdict.REDIRECT:
            if case.request is None:
                continue  # the requests of the same connection say more
            rules, names = rule_set(file.cluster, None, half)
            http = decide(case.request, rules, names)
        refused = [error.reason for error in file.translation.refused.get(server.key, ())]
        yield Asked(
            file, case, server, client, half, http, refused[0] if refused else "", _reads(file, server, case.port)
        )


def _reads(file: MeshFile, server: Pod, port: int) -> bool:
    return any(
        (one.read is None or port in one.read)
        and one.namespace in (server.namespace, ROOT_NAMESPACE)
        and dict(one.match_labels).items() <= server.labels.items()
        for one in file.translation.filters
    )


def has_http(cluster: Cluster, pod: Pod) -> bool:
    """Whether any policy has HTTP rules for ingress of a pod."""
    labels = cluster.labels_of(pod)
    return any(
        entry.http
        for policy in cluster.policies.values()
        if not policy.audit
        for spec in policy.specs
        if spec.subject.matches(labels)
        for rule in spec.rules
        if rule.direction is Direction.INGRESS
        for entry in rule.to_ports
    )


def is_authorized(mesh: Mesh, pod: Pod) -> bool:
    """Whether AuthorizationPolicies of somebody else's are about a pod: then nothing is translated for it."""
    return any(
        one.namespace in (ROOT_NAMESPACE, pod.namespace) and one.match_labels.items() <= pod.labels.items()
        for one in mesh.foreign
    )


def reason_of(refused: str) -> str:
    """Which of REASONS a refusal is. Raises LookupError."""
    for name, words in REASONS:
        if any(word in refused for word in words):
            return name
    raise LookupError(refused)


def as_own_envoy(one: Asked, way: Way, *, passes: bool) -> bool:
    """Whether Spliceway's own Envoy is known to answer so, though the interpreter does not."""
    if way.ambiguous is not Ambiguous.DENY or one.http is None or not one.read:
        return False
    expected = ExpectHttp(one.http.status, one.http.reason.label)
    asked = msgspec.structs.replace(one.case, expect=msgspec.structs.replace(one.case.expect, http=expected))
    why = difference(asked) or ""
    return why.startswith("laxer" if passes else "stricter")


def exception(one: Asked, way: Way, *, passes: bool) -> str:
    """Why Istio's answer may differ from ours (docs/istio-policy.md); empty: it may not."""
    if one.half.reason is Reason.HOST_ALLOWED:
        return "own node"
    if one.http is None or one.case.request is None:
        return ""
    path = one.case.request.path.partition(b"?")[0]
    # What is matched is what the server gets.
    resolved = one.http.reason is Reason.HTTP_AMBIGUOUS and re.search(rb"%2e|/\.\.?;", path, re.IGNORECASE)
    if passes and resolved and way.ambiguous is not Ambiguous.PASS:
        return "dots that Envoy resolves before any filter sees them"
    if way.ambiguous is Ambiguous.DENY:
        if passes:
            decoded = way.normalization is Normalization.DECODE_AND_MERGE_SLASHES and not one.read
            return "%2f, where the mesh decodes it" if decoded and b"%2f" in path.lower() else ""
        if not one.read and (_odd_slashes(path) or (way.normalization is Normalization.NONE and _odd_path(path))):
            return "a path that the mesh does not normalise, where some peers have no HTTP rules"
        return "" if one.read else _http_1_0(one)
    if one.http.reason in (Reason.HTTP_AMBIGUOUS, Reason.HTTP_MALFORMED):
        return "" if way.ambiguous is Ambiguous.REFUSE else "target that Spliceway refuses before rules"
    if any(len(one.case.request.values(name.lower())) > 1 for name, _ in one.case.request.headers):
        return "a header that is there twice"
    if way.normalization is Normalization.BASE and _odd_slashes(path):
        return "slashes that BASE does not merge"
    return _http_1_0(one)


def _http_1_0(one: Asked) -> str:
    assert one.case.request is not None
    return "HTTP/1.0, which Istio refuses" if one.case.request.version == "1.0" else ""


def _odd_slashes(path: bytes) -> bool:
    return b"//" in path.replace(b"\\", b"/")


def _odd_path(path: bytes) -> bool:
    return b"%" in path or b"\\" in path or any(segment in (b".", b"..") for segment in path.split(b"/"))


def reduced(file: CaseFile, way: Way) -> MeshFile:
    """The same without the HTTP rules that are refused for what they say themselves."""
    documents = [copy.deepcopy(one) for one in file.documents]
    while True:
        found = in_mesh(file.name, documents, file.cases, way)
        fields = {
            (error.document, error.field) for error in found.translation.refusals if ".rules.http[" in error.field
        }
        if not fields:
            return found
        _take_out(documents, fields)


def _take_out(documents: list[Any], fields: set[tuple[str, str]]) -> None:
    for content in documents:
        for item in content["items"] if content["kind"] == "List" else [content]:
            metadata = item["metadata"]
            key = metadata["name"]
            if item["kind"] != "CiliumClusterwideNetworkPolicy":
                key = f"{metadata.get('namespace', 'default')}/{key}"
            about = sorted(field for title, field in fields if title == f"{item['kind']} {key}")
            for field in sorted(about, key=lambda text: int(text.rpartition("[")[2][:-1]), reverse=True):
                _take(item, field)


def _take(item: Any, field: str) -> None:
    """Take one HTTP rule out; where it was the last one, a rule that no request matches is left."""
    parts = field.replace("]", "").replace("[", ".").split(".")
    place = item
    for part in parts[:-1]:
        place = place[int(part) if isinstance(place, list) else part]
    del place[int(parts[-1])]
    if not place:
        place.append({"path": "/nobody/asks/for/this"})
