"""AuthorizationPolicies as input, with conditions: what they mean here is what they mean in Envoy behind Istio.

Random policies are read for a pod without a sidecar, and are made Envoy's filters as Istio makes them; clients are
pods with certificates, some of them with addresses that policies name.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from spliceway.policy.documents import Document
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import HttpRequest
from spliceway.policy.model import Cluster, IPAddress
from spliceway.policy.verdict import Verdict
from support.authorizationrandom import Maker
from support.cases import cluster_of
from support.istiobed import IstioBed, Place
from support.istiorbac import applying, filters
from support.oracle_istio import Request

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

Doc = dict[str, Any]
SEEDS, ASKED = range(15), 12
#: Each is met in as many worlds.
KEYS = ("source.ip", "source.namespace", "source.principal", "source.serviceAccount", "destination.port")
PORTS = (80, 81, 82)


class Client(NamedTuple):
    """A pod and its service account."""

    namespace: str
    account: str
    addresses: tuple[str, str]


CLIENTS = (
    Client("shop", "front", ("10.240.1.81", "fd00:240:1::81")),
    Client("bank", "teller", ("10.1.2.3", "fd00:1:2::3")),
    Client("bank", "default", ("10.1.1.3", "fd00:1:1::3")),
    Client("ops", "teller", ("172.30.0.2", "fd00:30::2")),
)


class World(NamedTuple):
    """Policies about one server, and what the interpreter knows of them."""

    server: tuple[str, str]
    policies: list[Doc]
    cluster: Cluster


def pod(namespace: str, name: str, account: str, addresses: tuple[str, str]) -> Doc:
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    spec = {"nodeName": "node2", "serviceAccountName": account}
    status = {"podIPs": [{"ip": one} for one in addresses]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def world(seed: int) -> World:
    maker = Maker(seed + 1000)
    while True:  # policies that are about the server, and have such a condition
        policies = [maker.authorization(f"a{number}") for number in range(maker.random.choice((1, 2, 3)))]
        about = applying(policies, "shop", {"app": "server"}, "istio-system")
        conditions = [one for each in about for rule in each["spec"].get("rules", []) for one in rule.get("when", [])]
        if KEYS[seed % len(KEYS)] in {one["key"] for one in conditions}:
            break
    server = f"10.240.9.{seed + 1}", f"fd00:240:9::{seed + 1:x}"
    pods = [pod(one.namespace, f"{one.namespace}-{one.account}", one.account, one.addresses) for one in CLIENTS]
    objects = [*pods, pod("shop", "server", "server", server), *policies]
    documents = [Document("random", index, 1, one) for index, one in enumerate(objects)]
    return World(server, policies, cluster_of(documents))


def passes(cluster: Cluster, source: IPAddress, place: Place, request: Request) -> bool:
    head = HttpRequest.of(request.method, request.path, [("Host", request.host)])
    found = evaluate(cluster, Connection(source, place.address, 6, place.port), head)
    if found.verdict is Verdict.REDIRECT:
        return found.http is not None and found.http.verdict is Verdict.ALLOW
    return found.verdict is Verdict.ALLOW


def test_conditions_mean_what_they_mean_to_istio(tmp_path: Path) -> None:
    worlds = [world(seed) for seed in SEEDS]
    chains = {}
    for one in worlds:
        made = filters(applying(one.policies, "shop", {"app": "server"}, "istio-system"))
        chains |= {Place(ip_address(address), port): made for address in one.server for port in PORTS}
    addresses = [ip_address(text) for one in (*CLIENTS, *worlds) for text in _addresses(one)]
    seen: Counter[tuple[bool, int]] = Counter()
    with IstioBed(tmp_path, addresses) as bed, bed.serving(chains, "BASE"):
        for seed, one in zip(SEEDS, worlds, strict=True):
            random, maker = Random(seed), Maker(seed)
            for _ in range(ASKED):
                client, family = random.choice(CLIENTS), random.choice((0, 1))
                source = ip_address(client.addresses[family])
                place = Place(ip_address(one.server[family]), random.choice(PORTS))
                request = maker.request()
                if "[" in request.path:  # no path of HTTP's: refused here in any case
                    continue
                raw = f"{request.method} {request.path} HTTP/1.1\r\nHost: {request.host}\r\nContent-Length: 0\r\n\r\n"
                principal = f"cluster.local/ns/{client.namespace}/sa/{client.account}"
                status = bed.ask(source, place, principal, raw.encode())
                expected = passes(one.cluster, source, place, request)
                told = f"{client} to port {place.port}: {request}\n{one.policies}"
                assert status == (200 if expected else 403), told
                seen[expected, source.version] += 1
    assert len(seen) == 4
    assert min(seen.values()) >= 15


def _addresses(one: Client | World) -> tuple[str, str]:
    return one.addresses if isinstance(one, Client) else one.server
