"""Rules for Services in the shapes that kube-proxy gives them, for iptables-restore and for nft. Pure.

The chains, their order, marks and matches are those of Kubernetes 1.33 (`pkg/proxy/iptables`, `pkg/proxy/nftables`), as
far as they meet pods' traffic: no session affinity, no source ranges, no health checks.
"""

from __future__ import annotations

import hashlib
from base64 import b32encode
from collections.abc import Iterable, Sequence

import msgspec

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.plan import CLUSTER_PREFIXES, IPAddress

MASQUERADE_MARK = 0x4000


class Backend(msgspec.Struct, frozen=True):
    """Where a Service's port leads to."""

    address: IPAddress
    port: int


class ServicePort(msgspec.Struct, frozen=True):
    """One TCP port of a Service in one family. `node_port` 0: none; `local`: externalTrafficPolicy Local.

    `local_backends`: those on the node that the rules are for; they count for `local` only. `external_ip`: one of
    spec.externalIPs, or the load balancer's.
    """

    name: str  # «namespace/name:port»
    cluster_ip: IPAddress
    port: int
    backends: tuple[Backend, ...]
    node_port: int = 0
    local: bool = False
    local_backends: tuple[Backend, ...] = ()
    external_ip: IPAddress | None = None

    @property
    def external(self) -> bool:
        """Whether it has an address that is dialled from outside."""
        return bool(self.node_port or self.external_ip)


def chain(prefix: str, *parts: object) -> str:
    """«KUBE-SVC-» and 16 characters of a digest, as kube-proxy makes its names."""
    digest = hashlib.sha256("".join(map(str, parts)).encode()).digest()
    return prefix + b32encode(digest).decode()[:16]


def iptables_rules(services: Iterable[ServicePort], version: int, *, first: bool = True) -> str:
    """Input of `iptables-restore --noflush` (version 6: `ip6tables-restore`). `first`: nothing of it is there yet."""
    ours = [one for one in services if one.cluster_ip.version == version]
    chains = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"]
    hooks = [
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    ]
    rules = [
        *(hooks if first else []),
        f"-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} -j RETURN",
        f"-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK:#x}",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        f"-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK:#x}",
    ]
    refused = []
    for one in ours:
        where = f"-d {one.cluster_ip}/{one.cluster_ip.max_prefixlen} -p tcp -m tcp --dport {one.port}"
        if not one.backends:
            refused.append(f"-A KUBE-SERVICES {where} -j REJECT")
            continue
        more, made = _service_chains(one, where)
        chains += more
        rules += made
    rules.append("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    table = [line for line in _FILTER if first or not line.startswith(_HOOKED)]
    return "\n".join(
        [*table, *refused, "COMMIT", "*nat", *(f":{name} - [0:0]" for name in chains), *rules, "COMMIT", ""]
    )


_HOOKED = ("-A INPUT", "-A FORWARD", "-A OUTPUT")
_FILTER = (
    "*filter",
    ":KUBE-SERVICES - [0:0]",
    ":KUBE-EXTERNAL-SERVICES - [0:0]",
    ":KUBE-FORWARD - [0:0]",
    ":KUBE-NODEPORTS - [0:0]",
    ":KUBE-PROXY-FIREWALL - [0:0]",
    "-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
    "-A INPUT -j KUBE-NODEPORTS",
    "-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES",
    "-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
    '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
    "-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES",
    "-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES",
    "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
    "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES",
    "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    f"-A KUBE-FORWARD -m mark --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} -j ACCEPT",
    "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)


def _service_chains(one: ServicePort, where: str) -> tuple[list[str], list[str]]:
    """Names of a Service's own chains, and all rules for it."""
    cluster = _cluster(one.cluster_ip.version)
    service = chain("KUBE-SVC-", one.name)
    chains = [service, *dict.fromkeys(_endpoint(one, backend) for backend in one.backends)]
    rules = [
        f"-A KUBE-SERVICES {where} -j {service}",
        f"-A {service} ! -s {cluster} {where} -j KUBE-MARK-MASQ",
        *_choice(service, one, one.backends),
    ]
    for backend in one.backends:
        endpoint = _endpoint(one, backend)
        rules.append(f"-A {endpoint} -s {backend.address}/{backend.address.max_prefixlen} -j KUBE-MARK-MASQ")
        rules.append(f"-A {endpoint} -p tcp -m tcp -j DNAT --to-destination {_text(backend)}")
    if one.external:
        external = chain("KUBE-EXT-", one.name)
        chains.append(external)
        if one.node_port:
            rules.append(f"-A KUBE-NODEPORTS -p tcp -m tcp --dport {one.node_port} -j {external}")
        if one.external_ip:
            there = f"{one.external_ip}/{one.external_ip.max_prefixlen}"
            rules.append(f"-A KUBE-SERVICES -d {there} -p tcp -m tcp --dport {one.port} -j {external}")
        if one.local:
            here = chain("KUBE-SVL-", one.name)
            chains.append(here)
            rules += [
                f"-A {external} -s {cluster} -j {service}",
                f"-A {external} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
                f"-A {external} -m addrtype --src-type LOCAL -j {service}",
                f"-A {external} -j {here}",
                *_choice(here, one, one.local_backends),
            ]
        else:
            rules += [f"-A {external} -j KUBE-MARK-MASQ", f"-A {external} -j {service}"]
    return chains, rules


def _choice(name: str, one: ServicePort, backends: Sequence[Backend]) -> list[str]:
    """One of the backends by chance: 1/n, 1/(n-1) … and the last one for certain."""
    found = []
    for left, backend in zip(range(len(backends), 0, -1), backends, strict=True):
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        found.append(f"-A {name} {chance}-j {_endpoint(one, backend)}")
    return found


def nftables_rules(services: Iterable[ServicePort], version: int) -> str:
    """Input of `nft -f -`: the table kube-proxy of one family, made anew. Raises TestbedError: two want one address."""
    ours = [one for one in services if one.cluster_ip.version == version]
    _check_addresses(ours)
    ip = "ip" if version == 4 else "ip6"
    there = [one for one in ours if one.backends]
    chains, portals, ports = [], [], []
    for one in there:
        name = chain("service-", one.name)
        chains += _nft_chains(one, name, ip)
        portals.append(f"{one.cluster_ip} . tcp . {one.port} : goto {name}")
        if one.node_port:
            ports.append(f"tcp . {one.node_port} : goto {chain('external-', one.name)}")
        if one.external_ip:
            portals.append(f"{one.external_ip} . tcp . {one.port} : goto {chain('external-', one.name)}")
    refused = [f"{one.cluster_ip} . tcp . {one.port} : goto reject-chain" for one in ours if not one.backends]
    kind = f"ipv{version}_addr . inet_proto . inet_service : verdict"
    local = "127.0.0.0/8" if version == 4 else "::1"
    return f"""
add table {ip} kube-proxy
delete table {ip} kube-proxy
table {ip} kube-proxy {{
  map service-ips {{ type {kind}; {_elements(portals)} }}
  map no-endpoint-services {{ type {kind}; {_elements(refused)} }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; {_elements(ports)} }}
  chain reject-chain {{ reject; }}
  chain mark-for-masquerade {{ mark set mark or {MASQUERADE_MARK:#x}; }}
  chain masquerading {{
    mark and {MASQUERADE_MARK:#x} == 0 return
    mark set mark xor {MASQUERADE_MARK:#x}
    masquerade fully-random
  }}
{chr(10).join(chains)}
  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local {ip} daddr != {local} meta l4proto . th dport vmap @service-nodeports
  }}
  chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain filter-forward {{ type filter hook forward priority -110; ct state new jump service-endpoints-check; }}
  chain filter-output {{ type filter hook output priority -110; ct state new jump service-endpoints-check; }}
  chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
}}
"""


def _check_addresses(services: Iterable[ServicePort]) -> None:
    """A map of nftables has one element for an address and port."""
    taken: dict[tuple[object, int], str] = {}
    for one in services:
        wanted: list[tuple[object, int]] = [(one.cluster_ip, one.port)]
        wanted += [(one.external_ip, one.port)] if one.external_ip else []
        wanted += [("every node", one.node_port)] if one.node_port else []
        for address, port in wanted:
            whose, other = one.name.rpartition(":")[0], taken.setdefault((address, port), one.name)
            if other != one.name:
                both = f"Services {other.rpartition(':')[0]} and {whose}"
                raise TestbedError(f"{both} both have {address}, TCP port {port}: --kube-proxy nftables can't do that")


def _nft_chains(one: ServicePort, name: str, ip: str) -> list[str]:
    cluster = _cluster(one.cluster_ip.version)
    found = []
    for backend in one.backends:
        found.append(
            f"  chain {_nft_endpoint(one, backend)} {{ {ip} saddr {backend.address} jump mark-for-masquerade; "
            f"meta l4proto tcp dnat to {_text(backend)}; }}"
        )
    found.append(
        f"  chain {name} {{ {ip} daddr {one.cluster_ip} tcp dport {one.port} {ip} saddr != {cluster} "
        f"jump mark-for-masquerade; {_nft_choice(one, one.backends)}; }}"
    )
    if one.external and one.local:
        here = _nft_choice(one, one.local_backends) if one.local_backends else "drop"
        found.append(
            f"  chain {chain('external-', one.name)} {{ {ip} saddr {cluster} goto {name}; "
            f"fib saddr type local jump mark-for-masquerade; fib saddr type local goto {name}; {here}; }}"
        )
    elif one.external:
        found.append(f"  chain {chain('external-', one.name)} {{ jump mark-for-masquerade; goto {name}; }}")
    return found


def _nft_choice(one: ServicePort, backends: Sequence[Backend]) -> str:
    slots = ", ".join(f"{slot} : goto {_nft_endpoint(one, backend)}" for slot, backend in enumerate(backends))
    return f"numgen random mod {len(backends)} vmap {{ {slots} }}"


def _nft_endpoint(one: ServicePort, backend: Backend) -> str:
    return chain("endpoint-", one.name, _text(backend))


def _elements(found: Sequence[str]) -> str:
    return f"elements = {{ {', '.join(found)} }}" if found else ""


def _endpoint(one: ServicePort, backend: Backend) -> str:
    return chain("KUBE-SEP-", one.name, _text(backend))


def _text(backend: Backend) -> str:
    version = backend.address.version
    return f"[{backend.address}]:{backend.port}" if version == 6 else f"{backend.address}:{backend.port}"


def _cluster(version: int) -> str:
    return str(CLUSTER_PREFIXES[0 if version == 4 else 1])
