"""Namespaces, Pods and Nodes (v1). Real ones have many fields; only those that verdicts depend on are read."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from spliceway.policy.fields import DNS_LABEL, DNS_SUBDOMAIN, Fields, Where, shown
from spliceway.policy.model import IPAddress, Namespace, Node, Pod
from spliceway.policy.parse_selector import check_label_key, check_label_value
from spliceway.policy.table import IPNetwork

#: What ObjectMeta may hold besides name, namespace and labels (Kubernetes API reference, ObjectMeta).
_META = (
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
#: Phases in which a pod has no address of its own any more: it may already be another pod's.
_FINISHED = ("Succeeded", "Failed")


class Metadata:
    """Name, namespace and labels of an object, and the place of its errors from here on."""

    __slots__ = ("labels", "name", "namespace", "where")

    def __init__(self, fields: Fields, where: Where, kind: str, *, namespaced: bool = True) -> None:
        inner = Fields(fields.need("metadata", dict), where.at("metadata"))
        self.name = inner.need_name("name", DNS_SUBDOMAIN if kind != "Namespace" else DNS_LABEL)
        self.namespace = ""
        if namespaced:
            given = inner.raw("namespace")
            self.namespace = "default"
            if given is not None:
                self.namespace = Fields({"namespace": given}, inner.where).need_name("namespace", DNS_LABEL)
        title = f"{kind} {self.namespace}/{self.name}" if namespaced else f"{kind} {self.name}"
        self.where = Where(where.file, title, where.field)
        inner.where = self.where.at("metadata")
        self.labels = _labels(inner.take("labels", dict, {}), inner.where.at("labels"))
        inner.ignore(*_META)
        inner.done()


def parse_namespace(fields: Fields, where: Where) -> Namespace:
    """A Namespace: name and labels."""
    meta = Metadata(fields, where, "Namespace", namespaced=False)
    return Namespace(meta.name, meta.labels, where.file)


def parse_pod(fields: Fields, where: Where) -> Pod:
    """A Pod: labels, spec.nodeName, spec.hostNetwork, spec.serviceAccountName, status.podIPs or podIP.

    A pod that has finished keeps its last addresses in its status; they are not its own any more and are left out.
    """
    meta = Metadata(fields, where, "Pod")
    where = meta.where
    spec = Fields(fields.take("spec", dict, {}), where.at("spec"))
    status = Fields(fields.take("status", dict, {}), where.at("status"))
    addresses = []
    if status.take("phase", str, "") not in _FINISHED:
        addresses = _pod_addresses(status)
    return Pod(
        meta.namespace,
        meta.name,
        meta.labels,
        tuple(dict.fromkeys(addresses)),
        spec.take("nodeName", str, ""),
        spec.take("hostNetwork", bool, False),
        spec.take("serviceAccountName", str, ""),
        where.file,
    )


def parse_node(fields: Fields, where: Where) -> Node:
    """A Node: the IP addresses of status.addresses, and spec.podCIDRs or podCIDR."""
    meta = Metadata(fields, where, "Node", namespaced=False)
    where = meta.where
    spec = Fields(fields.take("spec", dict, {}), where.at("spec"))
    status = Fields(fields.take("status", dict, {}), where.at("status"))
    addresses = []
    for place, item in status.where.at("addresses").items(status.take("addresses", list, []), dict):
        entry = Fields(item, place)
        if entry.need("type", str) in ("InternalIP", "ExternalIP"):
            addresses.append(parse_address(entry.need("address", str), place.at("address")))
    cidrs = spec.take("podCIDRs", list, [])
    where_cidrs = spec.where.at("podCIDRs")
    found = [parse_network(item, place) for place, item in where_cidrs.items(cidrs, str)]
    if not found and (one := spec.take("podCIDR", str, "")):
        found = [parse_network(one, spec.where.at("podCIDR"))]
    return Node(meta.name, tuple(dict.fromkeys(addresses)), tuple(found), where.file)


def parse_address(text: str, where: Where) -> IPAddress:
    """An IP address. IPv4 inside IPv6 and zones are refused: packets never look like that."""
    try:
        found = ip_address(text)
    except ValueError:
        where.refuse(f"{shown(text)} is not an IP address")
    if isinstance(found, IPv6Address) and (found.ipv4_mapped is not None or found.scope_id is not None):
        where.refuse(f"{shown(text)} is not an address of packets (IPv4-mapped or with a zone)")
    return found


def parse_network(text: str, where: Where) -> IPNetwork:
    """A prefix in CIDR notation, the host bits cleared (as Cilium and net.ParseCIDR do). Netmasks are refused."""
    address, slash, bits = text.partition("/")
    if not slash:
        where.refuse(f"{shown(text)} is not a CIDR (no prefix length)")
    base = parse_address(address, where)
    if not (bits.isascii() and bits.isdigit()) or (len(bits) > 1 and bits[0] == "0") or int(bits) > base.max_prefixlen:
        where.refuse(f"{shown(text)} is not a CIDR (prefix length 0 to {base.max_prefixlen})")
    return ip_network((base, int(bits)), strict=False)


def _pod_addresses(status: Fields) -> list[IPAddress]:
    addresses = [
        parse_address(Fields(item, place).need("ip", str), place.at("ip"))
        for place, item in status.where.at("podIPs").items(status.take("podIPs", list, []), dict)
    ]
    one = status.take("podIP", str, "")
    if one and not addresses:
        addresses.append(parse_address(one, status.where.at("podIP")))
    return addresses


def _labels(value: Mapping[str, Any], where: Where) -> dict[str, str]:
    for key, text in value.items():
        check_label_key(key, where.at(shown(key)))
        check_label_value(where.at(key).typed(text, str), where.at(key))
    return dict(value)
