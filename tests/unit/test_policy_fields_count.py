"""Every field counts: without it, or with another value, a document means something else, or is refused.

The exceptions are what docs/policy.md calls ignored, and only that.
"""

from __future__ import annotations

import re
from pathlib import Path as File
from typing import Any

import msgspec
import pytest

from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import NetworkPolicy, Object
from spliceway.policy.parse import READERS, parse_document
from support.documents import FULL, Path, at, places, replaced, without, written

ROOT = File(__file__).resolve().parents[2]

#: Fields that are checked or read, and have no part in what the object means (docs/policy.md).
NO_PART = (
    r"\w*Policy .* metadata\.labels.*",
    r"Cilium\w*Policy .* spec\.(labels.*|description)",
    r"\w*ClusterNetworkPolicy .* spec\.(ingress|egress)\[0\]\.name",
    r"(Baseline)?AdminNetworkPolicy .* spec\.(ingress|egress)\[0\]\.name",
    r"Pod a spec\.(containers|initContainers)\[0\]\.name",
    r"Pod a status\.podIP",  # beside podIPs
    r"Node a spec\.podCIDR",  # beside podCIDRs
)
#: Fields that have the value here that they have anyway.
DEFAULTS = (
    r"Pod a status\.phase",
    r"Service a spec\.(type|clusterIP)",  # clusterIPs has it, too
    r"EndpointSlice a endpoints\[0\]\.conditions.*",
    r"EndpointSlice a endpoints\[1\]\.conditions\.serving",
)
#: Fields for which only one value fits the rest of the document.
NO_OTHER = (
    r"Cilium\w*Policy a spec\.ingress\[0\]\.toPorts\[0\]\.ports\[\d\]\.protocol",  # HTTP rules need TCP
    r"BaselineAdminNetworkPolicy default metadata\.name",
    r"AuthorizationPolicy a spec\.rules\[1\]\.when\[1\]\.key",  # a port is no client
    r"EndpointSlice a addressType",
    r"Service a spec\.(clusterIP|clusterIPs\[0\]|ipFamilies\[\d\])",  # they must fit each other
)
#: Another valid value for scalars, by the key they stand at; others get a letter or one more.
OTHER: dict[str, Any] = {
    "spliceway.io/enforcement": "enforce",
    "key": "another",
    "protocol": "SCTP",
    "family": "IPv4",
    "mismatch": "REPLACE",
    "method": "POST",
    "action": "Deny",
    "tier": "Admin",
    "phase": "Succeeded",
    "restartPolicy": "Never",
    "cidr": "0.0.0.0/0",
    "fromCIDR": "203.0.113.0/24",
    "toCIDR": "203.0.113.0/24",
    "except": "10.3.0.0/16",
    "networks": "203.0.113.0/24",
    "externalCIDRs": "198.51.100.0/24",
    "podCIDRs": "10.9.0.0/24",
    "podCIDR": "10.9.0.0/24",
    "ip": "10.0.0.9",
    "podIP": "10.0.0.9",
    "address": "10.0.0.9",
    "addresses": "10.0.0.9",
    "fromEntities": "none",
    "toEntities": "none",
    "token": "eHl6",
    "type": 9,
    "end": 6000,
    "start": 4000,
    "externalIPs": "198.51.100.2",
    "loadBalancerSourceRanges": "203.0.113.0/25",
    "internalTrafficPolicy": "Cluster",
    "externalTrafficPolicy": "Cluster",
    "sessionAffinity": "None",
    "ipMode": "VIP",
}
#: Where the value of OTHER is what stands there, or does not fit.
OTHER_AT: dict[str, Any] = {
    "metadata.annotations.istio.io/dry-run": "false",
    "spec.action": "AUDIT",
    "spec.rules[0].from[1].source.ipBlocks[0]": "10.0.0.0/9",
    "spec.rules[0].from[1].source.notIpBlocks[0]": "10.2.0.0/16",
    "spec.rules[0].to[2].operation.paths[0]": "/b/*",
    "spec.rules[1].when[0].key": "source.serviceAccount",
    "spec.type": "ExternalName",
    "spec.clusterIP": "10.96.0.11",
    "spec.clusterIPs[0]": "10.96.0.11",
    "spec.clusterIPs[1]": "fd00:96::11",
    "spec.ipFamilies[0]": "IPv6",
    "spec.ipFamilies[1]": "IPv4",
    "addressType": "IPv6",
    "status.addresses[0].type": "Hostname",
    "status.addresses[1].type": "Hostname",
    "spec.policyTypes[0]": "Ingress",
}


def parse(document: dict[str, Any]) -> Object:
    (found,) = parse_document(Document("x.yaml", 1, 1, document))
    return found


def meaning(found: Object) -> Object:
    """The object without its description, which is for people."""
    if not isinstance(found, NetworkPolicy):
        return found
    specs = tuple(msgspec.structs.replace(spec, description="") for spec in found.specs)
    return msgspec.structs.replace(found, specs=specs)


def among(patterns: tuple[str, ...], title: str, path: Path) -> bool:
    return any(re.fullmatch(pattern, f"{title} {written(path)}") for pattern in patterns)


PLACES = [(title, path) for title, document in FULL.items() for path in places(document)]
INSIDE = [(title, path) for title, path in PLACES if path[0] not in ("kind", "apiVersion")]
SCALARS = [(title, path) for title, path in INSIDE if not isinstance(at(FULL[title], path), dict | list)]


def test_every_kind_is_here() -> None:
    assert {kind for _, kind in READERS} == {title.split()[0] for title in FULL}
    for document in FULL.values():
        parse(document)


@pytest.mark.parametrize(("title", "path"), INSIDE, ids=[f"{title} {written(path)}" for title, path in INSIDE])
def test_without_it(title: str, path: Path) -> None:
    before = meaning(parse(FULL[title]))
    try:
        after = meaning(parse(without(FULL[title], path)))
    except PolicyError:
        return  # it must be there, or something else needs it
    assert (after == before) == (among(NO_PART, title, path) or among(DEFAULTS, title, path))


@pytest.mark.parametrize(("title", "path"), SCALARS, ids=[f"{title} {written(path)}" for title, path in SCALARS])
def test_with_another_value(title: str, path: Path) -> None:
    before = meaning(parse(FULL[title]))
    changed = replaced(FULL[title], path, another(path, at(FULL[title], path)))
    if among(NO_OTHER, title, path):
        with pytest.raises(PolicyError):
            parse(changed)
        return
    assert (meaning(parse(changed)) == before) == among(NO_PART, title, path)


#: What else an operator may be, with the same values.
OPPOSITE = {"In": "NotIn", "NotIn": "In", "Exists": "DoesNotExist", "DoesNotExist": "Exists"}


def another(path: Path, value: Any) -> Any:
    """Another value that is as valid."""
    key = next(key for key in reversed(path) if isinstance(key, str))
    text = written(path)
    if text in OTHER_AT:
        return OTHER_AT[text]
    if key in OTHER:
        assert OTHER[key] != value
        return OTHER[key]
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str() if value.isdigit():
            return str(int(value) + 1)
        case _:
            return OPPOSITE.get(value, f"{value}x")


def test_the_documentation_names_every_field() -> None:
    text = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[A-Za-z0-9]+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    keys = {
        path[-1]
        for title, path in INSIDE
        if ("Policy" in title or "CIDRGroup" in title) and path[-2:-1] not in (("matchLabels",), ("annotations",))
    }
    names = {key for key in keys if isinstance(key, str)}
    assert len(names) > 80
    assert names - words == {"annotations", "l"}
