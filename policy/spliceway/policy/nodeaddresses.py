"""Addresses of a node beyond its status: tunnels and bridges, by annotations of CNI plugins and by convention. Pure.

Connections of a node to pods of another one come from its tunnel's address, or its bridge's, more often than from the
address in its status. Sources: flannel pkg/subnet/kube/annotations.go (and flannel.1, which has the first address of
the node's range), Calico libcalico-go/lib/backend/k8s/resources/node.go, Cilium Documentation/network/concepts/ipam,
k3s and RKE2 (`internal-ip`), the host-local IPAM plugin (the gateway is the second address of the range).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from spliceway.policy.errors import PolicyError
from spliceway.policy.fields import Where, shown
from spliceway.policy.model import IPAddress
from spliceway.policy.parse_address import parse_address
from spliceway.policy.table import IPNetwork

#: Annotation → IP version that it must have, 0: both. A value is one address or several with commas, each with or
#: without a prefix length.
ANNOTATIONS: Mapping[str, int] = MappingProxyType(
    {
        "flannel.alpha.coreos.com/public-ip": 4,
        "flannel.alpha.coreos.com/public-ip-overwrite": 4,
        "flannel.alpha.coreos.com/public-ipv6": 6,
        "flannel.alpha.coreos.com/public-ipv6-overwrite": 6,
        "projectcalico.org/IPv4Address": 4,
        "projectcalico.org/IPv6Address": 6,
        "projectcalico.org/IPv4IPIPTunnelAddr": 4,
        "projectcalico.org/IPv4VXLANTunnelAddr": 4,
        "projectcalico.org/IPv6VXLANTunnelAddr": 6,
        "projectcalico.org/IPv4WireguardInterfaceAddr": 4,
        "projectcalico.org/IPv6WireguardInterfaceAddr": 6,
        "network.cilium.io/ipv4-cilium-host": 4,
        "network.cilium.io/ipv6-cilium-host": 6,
        "io.cilium.network.ipv4-cilium-host": 4,
        "io.cilium.network.ipv6-cilium-host": 6,
        "k3s.io/internal-ip": 0,
        "k3s.io/external-ip": 0,
        "rke2.io/internal-ip": 0,
        "rke2.io/external-ip": 0,
    }
)
#: A range with less room has no gateway of its own.
_LEAST_BITS = 2


def annotated(annotations: Any, where: Where) -> tuple[tuple[IPAddress, ...], tuple[PolicyError, ...]]:
    """Addresses that the annotations of a Node tell, and what is wrong with values that were passed over.

    `annotations` is `metadata.annotations` as it was read, `where` its place.
    """
    if not isinstance(annotations, Mapping):
        return (), () if annotations is None else (_error(where, "is not a mapping"),)
    found: dict[IPAddress, None] = {}
    errors: list[PolicyError] = []
    for name, version in ANNOTATIONS.items():
        value = annotations.get(name)
        if value in (None, ""):
            continue
        place = Where(where.file, where.document, f"{where.field}[{name}]")
        try:
            found.update(dict.fromkeys(_addresses(value, version, place)))
        except PolicyError as error:
            errors.append(error)
    return tuple(found), tuple(errors)


def conventional(pod_cidrs: tuple[IPNetwork, ...]) -> tuple[IPAddress, ...]:
    """What a node usually has of its pods' ranges: the first address (flannel's devices), the second (bridges)."""
    return tuple(
        address
        for cidr in pod_cidrs
        if cidr.max_prefixlen - cidr.prefixlen >= _LEAST_BITS
        for address in (cidr.network_address, cidr.network_address + 1)
    )


def _addresses(value: Any, version: int, where: Where) -> Iterator[IPAddress]:
    """All of a value, or an error and nothing of it."""
    found = []
    for text in where.typed(value, str).split(","):
        address = parse_address(text.strip().partition("/")[0], where)
        if version and address.version != version:
            where.refuse(f"{shown(text)} is not an IPv{version} address")
        if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
            where.refuse(f"{shown(text)} is no address by which others know a node")
        found.append(address)
    yield from found


def _error(where: Where, reason: str) -> PolicyError:
    return PolicyError(where.file, where.document, where.field, reason)
