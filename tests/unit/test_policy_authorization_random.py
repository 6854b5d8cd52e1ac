"""AuthorizationPolicies at random beside other policies: Istio's say, by the oracle, and that of the others, both.

What the others say is what the interpreter says without AuthorizationPolicies. Compared are connections that are no
HTTP, and requests, in the interpreter and in the compiled table.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

import pytest

from spliceway.policy.compile import compile_table
from spliceway.policy.documents import Document
from spliceway.policy.evaluate import Connection, Decision, evaluate
from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Direction, Verdict
from support.authorizationrandom import Maker
from support.cases import NODE, POD_CIDRS, cluster_of
from support.oracle_istio import Request, permits
from support.oracle_world import Ask, Doc, World

WORLDS, ASKED = 100, 12
SERVER, SERVER_ADDRESS = "shop/server", "10.240.1.80"
CLIENTS = ("10.240.1.81", "10.240.1.82", "10.240.2.83", "10.1.2.3", "10.1.1.3", "172.30.0.1", "172.30.0.2")
OWN_NODE = "172.30.0.1"
_POD_NAMES = (("shop", "front", CLIENTS[0]), ("bank", "teller", CLIENTS[1]), ("bank", "far", CLIENTS[2]))


def _cluster(contents: list[Doc]) -> Cluster:
    return cluster_of([Document("random", index, 1, one) for index, one in enumerate(contents)])


def _objects() -> list[Doc]:
    def pod(namespace: str, name: str, address: str, node: str) -> Doc:
        metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
        spec = {"nodeName": node, **({"serviceAccountName": name} if name != "far" else {})}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"podIP": address}}

    def node(name: str, address: str) -> Doc:
        status = {"addresses": [{"type": "InternalIP", "address": address}]}
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status}

    pods = [pod(*one, NODE if one[1] != "far" else "node2") for one in _POD_NAMES]
    nodes = [node(NODE, OWN_NODE), node("node2", "172.30.0.2")]
    return [*pods, pod("shop", "server", SERVER_ADDRESS, NODE), *nodes]


@pytest.mark.parametrize("seed", range(WORLDS))
def test_both_must_allow(seed: int) -> None:
    maker = Maker(seed)
    authorizations = [maker.authorization(f"a{number}") for number in range(maker.random.choice((1, 1, 2, 3)))]
    others = maker.others()
    rest = _cluster([*_objects(), *others])
    documents = [*_objects(), *others, *authorizations]
    cluster = _cluster(documents)
    world = World(documents, tuple(map(str, POD_CIDRS)))
    table = compile_table(cluster, node=NODE, numbering=Numbering(), revision=1)
    for _ in range(ASKED):
        source, port = maker.random.choice(CLIENTS), maker.random.choice((80, 81, 82))
        protocol = maker.random.choice((6, 6, 6, 6, 17))
        connection = Connection(ip_address(source), ip_address(SERVER_ADDRESS), protocol, port)
        for request in (None, maker.request(), maker.request(), maker.request()):
            expected = _passes(rest, connection, request) and _istio(world, connection, request)
            told = f"{connection} {request}: {others} {authorizations}"
            assert _passes(cluster, connection, request) is expected, told
            assert _compiled(table, connection, request) is expected, told
            SEEN[request is None, expected, bool(others)] += 1


SEEN: Counter[tuple[bool, bool, bool]] = Counter()


def test_the_generator_reaches_everything() -> None:
    assert len(SEEN) in (0, 8)  # 0: the worlds were asked in another process
    assert not SEEN or min(SEEN.values()) >= 30


def _istio(world: World, connection: Connection, request: Request | None) -> bool:
    """What the oracle says. What comes from the own node is asked by no HTTP rules, and needs no rule to allow it."""
    (pod,) = (one for one in world.of("Pod") if one["metadata"]["name"] == "server")
    peer, server = world.who(str(connection.source)), world.who(SERVER_ADDRESS)
    ask = Ask(pod, "ingress", peer, server, "TCP" if connection.protocol == 6 else "UDP", connection.port)
    if str(connection.source) != OWN_NODE:
        return permits(world, ask, request)
    plain = [one for one in world.of("AuthorizationPolicy") if one["spec"]["action"] == "DENY"]
    return permits(World([*_objects(), *map(_without_http, plain)], world.pod_ranges), ask, None)


def _without_http(policy: Doc) -> Doc:
    rules = []
    for rule in policy["spec"].get("rules", []):
        kept = [one for one in rule.get("to", []) if set(one["operation"]) <= {"ports", "notPorts"}]
        if kept or "to" not in rule:
            rules.append({**rule, "to": kept} if kept else rule)
    return {**policy, "spec": {**policy["spec"], "rules": rules}}


def _head(request: Request) -> HttpRequest:
    return HttpRequest.of(request.method, request.path, [("Host", request.host)])


def _passes(cluster: Cluster, connection: Connection, request: Request | None) -> bool:
    """Whether the interpreter lets the request, or (None) a connection without HTTP, pass."""
    found: Decision = evaluate(cluster, connection, _head(request) if request else None)
    if found.verdict is not Verdict.REDIRECT or request is None:
        return found.verdict is Verdict.ALLOW
    assert found.http is not None
    return found.http.verdict is Verdict.ALLOW


def _compiled(table: PolicyTable, connection: Connection, request: Request | None) -> bool:
    identity = identify(table.ipcache, connection.source)
    found = lookup(table, table.endpoints[SERVER], Direction.INGRESS, identity, connection.protocol, connection.port)
    if found.verdict is not Verdict.REDIRECT or request is None:
        return found.verdict is Verdict.ALLOW
    return decide(_head(request), table.rule_sets[found.rule_set]).verdict is Verdict.ALLOW
