"""Documents to objects: the one entry for policies and for the objects that they are about.

A document is refused whole, with a PolicyError that names the field; the other documents of a file are not touched by
that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from spliceway.policy.documents import Document, Limits, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.istio.hbone import AUTHORIZATION
from spliceway.policy.model import Object, object_key
from spliceway.policy.parse_admin import (
    parse_admin_network_policy,
    parse_baseline_policy,
    parse_cluster_network_policy,
)
from spliceway.policy.parse_authorization import parse_authorization_policy
from spliceway.policy.parse_authorization_source import IstioNames
from spliceway.policy.parse_network_policy import parse_network_policy
from spliceway.policy.parse_objects import parse_namespace, parse_node, parse_pod
from spliceway.policy.parse_policy import parse_cilium_policy, parse_clusterwide_policy
from spliceway.policy.parse_references import parse_cidr_group, parse_secret
from spliceway.policy.parse_services import parse_service
from spliceway.policy.parse_slices import parse_endpoint_slice

#: Which reader a document's apiVersion and kind have.
READERS: Mapping[tuple[str, str], Callable[[Fields, Where], Object]] = MappingProxyType(
    {
        ("v1", "Namespace"): parse_namespace,
        ("v1", "Pod"): parse_pod,
        ("v1", "Node"): parse_node,
        ("v1", "Service"): parse_service,
        ("v1", "Secret"): parse_secret,
        ("discovery.k8s.io/v1", "EndpointSlice"): parse_endpoint_slice,
        ("cilium.io/v2", "CiliumNetworkPolicy"): parse_cilium_policy,
        ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"): parse_clusterwide_policy,
        ("networking.k8s.io/v1", "NetworkPolicy"): parse_network_policy,
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): parse_cluster_network_policy,
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"): parse_admin_network_policy,
        ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"): parse_baseline_policy,
        ("security.istio.io/v1", "AuthorizationPolicy"): parse_authorization_policy,
        ("security.istio.io/v1beta1", "AuthorizationPolicy"): parse_authorization_policy,
        ("cilium.io/v2", "CiliumCIDRGroup"): parse_cidr_group,
        ("cilium.io/v2alpha1", "CiliumCIDRGroup"): parse_cidr_group,
    }
)
_KINDS = tuple(dict.fromkeys(kind for _, kind in READERS))


class Parsed(msgspec.Struct, frozen=True):
    """What a file holds: the objects of its good documents and the errors of the others."""

    objects: tuple[Object, ...]
    errors: tuple[PolicyError, ...]


def parse_document(document: Document, istio: IstioNames | None = None) -> tuple[Object, ...]:
    """Objects of one document: one, or several for a `List`. Raises PolicyError; then none of them counts.

    `istio`: what the mesh calls itself, None: as it does by default.
    """
    where = Where(document.file, f"document {document.index} (line {document.line})")
    return _parse(document.content, where, istio, in_list=False)


def parse_item(content: object, where: Where) -> tuple[Object, ...]:
    """What one item of a `List` is, which is none itself; `where` is its place. Raises PolicyError."""
    return _parse(content, where, None, in_list=True)


def parse_text(text: str, file: str, limits: Limits | None = None, istio: IstioNames | None = None) -> Parsed:
    """Objects and errors of a file. When the text is not YAML, that is the only error and there are no objects.

    Two documents that name the same object are an error of the second.
    """
    try:
        documents = load_documents(text, file, limits)
    except PolicyError as error:
        return Parsed((), (error,))
    found: dict[tuple[str, str], Object] = {}
    errors: list[PolicyError] = []
    for document in documents:
        try:
            for item in parse_document(document, istio):
                kind, name = object_key(item)
                if (kind, name) in found:
                    raise PolicyError(file, f"{kind} {name}", "metadata.name", "appears twice in this file")
                found[kind, name] = item
        except PolicyError as error:
            errors.append(error)
    return Parsed(tuple(found.values()), tuple(errors))


def _parse(content: object, where: Where, istio: IstioNames | None, *, in_list: bool) -> tuple[Object, ...]:
    if not isinstance(content, dict):
        where.refuse("must be a mapping")  # without the text: it may be what is left of a Secret
    fields = Fields(content, where)
    kind: str = fields.need("kind", str)
    version: str = fields.need("apiVersion", str)
    if kind == "List" and version == "v1" and not in_list:
        fields.ignore("metadata")
        items = fields.need("items", list)
        fields.done()
        place = Where(where.file, where.document, "items")
        found: dict[tuple[str, str], Object] = {}
        for index, item in enumerate(items):
            for entry in _parse(item, place.item(index), istio, in_list=True):
                key = object_key(entry)
                if key in found:
                    place.item(index).refuse(f"{key[0]} {key[1]} appears twice in this list")
                found[key] = entry
        return tuple(found.values())
    if kind == "PeerAuthentication":
        where.at("kind").refuse(f"{kind} is read by `policy istio translate` alone: it says nothing of the wire")
    if kind not in _KINDS:
        where.at("kind").refuse(f"unsupported kind {shown(kind)} (supported: {', '.join((*_KINDS, 'List'))})")
    if (version, kind) not in READERS:
        versions = ", ".join(known for known, name in READERS if name == kind)
        where.at("apiVersion").refuse(f"unsupported version {shown(version)} of {kind} (supported: {versions})")
    if kind == AUTHORIZATION:
        return (parse_authorization_policy(fields, where, istio),)
    return (READERS[version, kind](fields, where),)
