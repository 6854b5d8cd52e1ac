"""`spliceway policy istio`: what of policy only Istio's proxies can enforce, as Istio's own policies."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spliceway.agent.cli.common import Group, RootNamespaceOption, TrustDomainOption

if TYPE_CHECKING:
    from spliceway.policy.errors import PolicyError
    from spliceway.policy.istio.mesh import Mesh
    from spliceway.policy.model import Cluster

app = typer.Typer(cls=Group, help="Policy under Istio's mTLS.", no_args_is_help=True)


class Normalization(StrEnum):
    """meshConfig.pathNormalization.normalization of the mesh."""

    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


class Ambiguous(StrEnum):
    """What of requests that two servers can read differently."""

    DENY = "deny"
    REFUSE = "refuse"
    PASS = "pass"


@app.callback()
def group() -> None:
    """Policy under Istio's mTLS."""


@app.command("translate")
def translate(
    paths: Annotated[
        list[Path], typer.Argument(exists=True, metavar="PATH", help="Files, or directories of YAML or JSON files.")
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON object: policies, refused, notes.")] = False,
    trust_domain: TrustDomainOption = "cluster.local",
    root_namespace: RootNamespaceOption = "istio-system",
    path_normalization: Annotated[
        Normalization, typer.Option(help="meshConfig.pathNormalization of the mesh, which is not read.")
    ] = Normalization.BASE,
    ambiguous: Annotated[
        Ambiguous,
        typer.Option(
            help="deny: EnvoyFilters come with the policies, by which such requests match no HTTP rule. refuse: no "
            "EnvoyFilters, rules in which it matters are refused. pass: Istio may pass `;`, `%25`, headers sent twice."
        ),
    ] = Ambiguous.DENY,
    without_own_node: Annotated[
        bool,
        typer.Option(
            "--without-own-node", help="Where plaintext is let in: without Cilium's rule that its node may reach a pod."
        ),
    ] = False,
) -> None:
    """HTTP rules of CiliumNetworkPolicies as Istio's policies: the same verdicts, or a reason why not.

    Reads all policies about the workloads, and what `kubectl get namespaces,pods,nodes,services,endpointslices,
    peerauthentications,authorizationpolicies -A -o yaml` prints; writes YAML for `kubectl apply`. Exit status 1 when
    anything is refused; the policies of other workloads are printed all the same, unless a document can't be read.
    """
    from spliceway.agent.cli.render import emit_json
    from spliceway.policy.istio import httprules
    from spliceway.policy.istio import translate as istio

    cluster, mesh, refused, earlier = read_mesh(paths, root_namespace)
    how = httprules.Meaning(httprules.Normalization(path_normalization.value), httprules.Ambiguous(ambiguous.value))
    # A document that can't be read may be a deny rule, or a PeerAuthentication that lets plaintext in.
    found = istio.Translation((), tuple(refused), ())
    if not refused:
        found = istio.translate(cluster, mesh, istio.Options(trust_domain, how, without_own_node))
    documents = found.documents()
    notes = (*found.notes, *([] if found.refusals else _left_over(documents, earlier)))
    if not documents and not notes and not found.refusals:
        why = "no policy here has HTTP rules of ingress that are enforced" if cluster.policies else "no policy is here"
        notes = (f"{why}: there is nothing to translate",)
    if json:
        told = [
            {"file": error.file, "policy": error.document, "field": error.field, "reason": error.reason}
            for error in found.refusals
        ]
        emit_json({"policies": documents, "refused": told, "notes": list(notes)})
    else:
        _write(documents)
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        for refusal in found.refusals:
            typer.echo(f"refused: {refusal}", err=True)
    if found.refusals:
        raise typer.Exit(1)


def read_mesh(
    paths: Iterable[Path], root_namespace: str
) -> tuple[Cluster, Mesh, list[PolicyError], list[tuple[str, str]]]:
    """Everything that these files and directories say, and what is refused. Raises SourceError.

    Last, namespaces and names of AuthorizationPolicies of an earlier translation that no agent looks after.
    """
    from spliceway.agent.authorization.objects import EMITTED_LABEL
    from spliceway.agent.cli.evaluate import MAX_FILE, MAX_VALUES, texts
    from spliceway.policy.documents import Limits, load_documents
    from spliceway.policy.errors import PolicyError
    from spliceway.policy.istio.mesh import Mesh, Read, read_document
    from spliceway.policy.model import Cluster, Object, object_key

    objects: dict[tuple[str, str], Object] = {}
    reads: list[Read] = []
    refused: list[PolicyError] = []
    for file, text in texts(paths):
        if isinstance(text, PolicyError):
            refused.append(text)
            continue
        try:
            documents = load_documents(text, file, Limits(MAX_FILE, MAX_VALUES))
        except PolicyError as error:
            refused.append(error)
            continue
        for document in documents:
            try:
                read = read_document(document)
            except PolicyError as error:
                refused.append(error)
                continue
            reads.append(read)
            for item in read.objects:
                kind, name = key = object_key(item)
                if key in objects:
                    refused.append(PolicyError(file, f"{kind} {name}", "", f"is already in {objects[key].file}"))
                else:
                    objects[key] = item
    mesh = Mesh(
        tuple(one for read in reads for one in read.authentications),
        tuple(one for read in reads for one in read.foreign),
        {key: told for read in reads for key, told in read.annotations.items()},
        root_namespace,
    )
    earlier = [
        (namespace, name)
        for read in reads
        for namespace, name, labels in read.earlier
        if EMITTED_LABEL not in labels.items()
    ]
    return Cluster().with_objects(objects.values()), mesh, refused, earlier


def _left_over(documents: Iterable[dict[str, Any]], earlier: Iterable[tuple[str, str]]) -> Iterable[str]:
    """What was applied before and would stay when these are: what it allows is allowed still."""
    now = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in documents}
    for namespace, name in earlier:
        if (namespace, name) not in now:
            yield (
                f"AuthorizationPolicy {namespace}/{name}: is of an earlier translation, and no more of this one: what "
                "it allows is allowed until you delete it"
            )


def _write(documents: list[dict[str, object]]) -> None:
    import sys

    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    yaml.dump_all(documents, sys.stdout, dumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=True)
