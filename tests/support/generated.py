"""Cases made by a generator: random documents and connections, with what the oracle says of them as expectation.

A seed makes the same cases everywhere. The documents keep within what `oracle` knows, without HTTP: hand-made cases
have that.
"""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address
from random import Random

from spliceway.policy.documents import Document
from spliceway.policy.verdict import Protocol
from support.cases import NODE, POD_CIDRS, Case, CaseFile, Expect, cluster_of
from support.generated_policies import NAMES, NUMBERS, PROTOCOLS, policies
from support.oracle import decide
from support.oracle_world import Doc, World

_NODES = {"node1": ("172.30.0.1", "fd00:30::1"), "node2": ("172.30.0.2", "fd00:30::2")}
_WORLD = ("10.1.1.1", "10.1.2.1", "10.9.9.9", "198.51.100.1", "2001:db8::1", "fd00:99::1", "10.240.2.99")
_SOURCE = "an oracle written from the specifications (tests/support/oracle.py)"


@cache
def generated_files(count: int, seed: int, connections: int) -> tuple[CaseFile, ...]:
    """So many random clusters, with so many cases each."""
    return tuple(_file(f"generated-{seed}-{index}", Random(f"{seed}/{index}"), connections) for index in range(count))


def _file(name: str, random: Random, connections: int) -> CaseFile:
    documents = [*_cluster(random), *policies(random)]
    cluster = cluster_of([Document(name, index + 1, 0, content) for index, content in enumerate(documents)])
    world = World(documents, tuple(map(str, POD_CIDRS)))
    cases: dict[tuple[str, str, str, int], Case] = {}
    while len(cases) < connections:
        ends = _ends(random, documents)
        protocol = random.choice((*PROTOCOLS, "TCP", "TCP", "UDP", "ICMP"))
        number = random.choice(NUMBERS) + random.choice((0, 0, 0, 1))
        if protocol == "ICMP":
            protocol, number = ("ICMP", 8 << 8) if ":" not in ends[0] else ("ICMPV6", 128 << 8)
        key = (*ends, protocol, min(number, 65535))
        verdict = decide(world, *key)
        if verdict.reason == "no-policy" and random.random() < 0.8:
            continue  # most say little
        paths = ("interpreter", "kernel") if _one_node(world, *ends) else ("interpreter",)
        cases[key] = Case(
            name,
            f"{key[2]} {key[3]} {ends[0]} to {ends[1]}",
            *ends,
            ip_address(ends[0]),
            ip_address(ends[1]),
            int(Protocol[key[2]]),
            key[3],
            Expect(*verdict),
            paths=paths,
            spec=(_SOURCE,),
        )
    return CaseFile(name, tuple(documents), cluster, tuple(cases.values()))


def _one_node(world: World, source: str, destination: str) -> bool:
    """Whether the node under test sees all that decides: every pod in it is its own, and one of the ends is a pod."""
    pods = [who.pod for who in (world.who(source), world.who(destination)) if who.pod is not None]
    return bool(pods) and all(pod["spec"]["nodeName"] == NODE for pod in pods)


def _ends(random: Random, documents: list[Doc]) -> tuple[str, str]:
    family = random.choice((4, 6))
    pods = [entry["ip"] for d in documents if d["kind"] == "Pod" for entry in d["status"]["podIPs"]]
    pods = [text for text in pods if ip_address(text).version == family]
    nodes = [addresses[family == 6] for addresses in _NODES.values()]
    others = [text for text in _WORLD if ip_address(text).version == family]
    pod = random.choice(pods)
    other = random.choice((random.choice([one for one in pods if one != pod]), random.choice([*nodes, *others])))
    return (pod, other) if random.random() < 0.4 else (other, pod)


def _cluster(random: Random) -> list[Doc]:
    documents: list[Doc] = []
    for name, labels in (("a", {"team": "red"}), ("b", {"team": "blue", "level": "gold"}), ("c", {})):
        documents.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    for (name, addresses), zone in zip(_NODES.items(), ("x", "y"), strict=True):
        status = {"addresses": [{"type": "InternalIP", "address": text} for text in addresses]}
        metadata = {"name": name, "labels": {"zone": zone}}
        documents.append({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status})
    for index in range(8):
        subnet = 1 if index < 6 else 2
        labels = {"app": random.choice("pqr")} | ({"tier": random.choice("uv")} if random.random() < 0.5 else {})
        ports: list[Doc] = []
        for name in NAMES:
            if random.random() < 0.6:
                protocol = {} if name == "http" else {"protocol": random.choice(("UDP", "TCP"))}
                ports.append({"name": name, "containerPort": random.choice(NUMBERS), **protocol})
        spec = {"nodeName": f"node{subnet}", "containers": [{"name": "main", "ports": ports}]}
        addresses = (f"10.240.{subnet}.{11 + index}", f"fd00:240:{subnet}::{11 + index}")
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"pod{index}", "namespace": "aaabbcab"[index], "labels": labels},
                "spec": spec,
                "status": {"podIPs": [{"ip": text} for text in addresses]},
            }
        )
    return documents
