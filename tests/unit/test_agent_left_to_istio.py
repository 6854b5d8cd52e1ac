"""What leaves the inventory of policies that leave HTTP rules to Istio, as pods and policies come, change and go."""

from __future__ import annotations

import itertools
import json
from ipaddress import ip_address
from random import Random
from typing import Any

import msgspec
import pytest
from test_authorization_pure import KEY, REFUSED, VERSION, held, world
from test_policy_engine import check_delta, meaning

from spliceway.agent.authorization.aims import aim, leaving
from spliceway.agent.authorization.objects import made
from spliceway.agent.authorization.saying import conditions, unasked
from spliceway.agent.authorization.told import Figures
from spliceway.agent.cli.istiotext import istio_line
from spliceway.agent.inventory import Inventory
from spliceway.agent.istioviews import IstioViews, Setting, istio_status
from spliceway.agent.lefttoistio import Left
from spliceway.agent.policystatus.ledger import version_of
from spliceway.agent.sources.events import FileChanged, FileRemoved
from spliceway.agent.sources.kubernetes.objects import Reader
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.compile import compile_table
from spliceway.policy.engine import Engine, Options
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.istio.hbone import closed_cluster
from spliceway.policy.istio.left import cluster_on_the_wire, on_the_wire
from spliceway.policy.istio.rollout import bridge as bridge_of
from spliceway.policy.istio.rollout import bridge_policy
from spliceway.policy.istio.translate import translate
from spliceway.policy.labels import SIDECAR_KEY
from spliceway.policy.model import NetworkPolicy, Pod
from spliceway.policy.numbering import Numbering
from spliceway.policy.verdict import Protocol
from support.istiopolicies import CLUSTER, STRICT, allow, read
from support.leftpods import ANNOTATION, PLAIN, asking, injected, plain, policy

Doc = dict[str, Any]
POLICY = ("CiliumNetworkPolicy", "shop/p")
HIDDEN = ("REDIRECT", "*", "9000")
API = {"app": "api"}
CLIENT = plain("client", 200)


def changed(name: str, document: Doc) -> FileChanged:
    return FileChanged(name, json.dumps(document))


def inventory_of(**documents: Doc) -> Inventory:
    made = Inventory("node1")
    made.feed(tuple(changed(name, one) for name, one in documents.items()))
    return made


def specs(inventory: Inventory) -> int | None:
    """Of the policy, in what changed; None: it did not."""
    found = inventory.changes().get(POLICY)
    return len(found.specs) if isinstance(found, NetworkPolicy) else None


def left(inventory: Inventory) -> Left:
    """What is left where all pods are wired."""
    found = inventory.cluster.pods.values()
    return inventory.left.found(LocalEndpoint(one.key, "veth", msgspec.UNSET, one.addresses) for one in found)  # type: ignore[arg-type]


def test_a_policy_is_another_as_soon_as_a_pod_is() -> None:
    inventory = inventory_of(p=asking("80"), a=plain("api", 1))
    assert specs(inventory) == 1
    inventory.feed((changed("a", injected("api", 1)),))
    assert specs(inventory) == 2, "the policy has not changed, what it means has"
    inventory.feed((changed("b", injected("more", 2, labels=API)),))
    assert specs(inventory) is None
    inventory.feed((changed("b", injected("more", 2, labels=API, arguments=HIDDEN)),))
    assert specs(inventory) == 2, "both see port 80"
    inventory.feed((changed("p", asking("80", "9000")),))
    assert specs(inventory) == 3
    inventory.feed((changed("p", asking("80", "9000", left=False)),))
    assert specs(inventory) == 1
    inventory.feed((changed("p", asking("80")), FileRemoved("a"), FileRemoved("b")))
    assert specs(inventory) == 1
    inventory.feed((FileRemoved("p"),))
    assert POLICY in inventory.changes()
    inventory.feed((changed("a", injected("api", 1)),))
    assert POLICY not in inventory.changes()


def test_no_policy_is_another_that_is_not_about_the_pod() -> None:
    other = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop", "labels": {"team": "red"}}}
    inventory = inventory_of(p=asking("80"), q=asking("80", name="q", app="web"), a=injected("api", 1), n=other)
    inventory.changes()

    def changes(*events: FileChanged | FileRemoved) -> set[str]:
        inventory.feed(events)
        return {name for kind, name in inventory.changes() if kind == POLICY[0]}

    assert changes(changed("b", injected("b", 2, labels={"app": "web"}, arguments=HIDDEN))) == {"shop/q"}
    assert changes(changed("c", injected("c", 3, labels={"app": "web"}, arguments=HIDDEN))) == set()
    assert changes(changed("b", injected("b", 2, labels=API, arguments=HIDDEN))) == {"shop/p"}
    assert changes(FileRemoved("c")) == {"shop/q"}, "nobody there has that mark any more"
    assert changes(changed("d", injected("d", 4, labels={"app": "third"}, arguments=("REDIRECT", "80", "")))) == set()
    # What a policy is about may be said by labels of the namespace.
    chosen = {"app": "api", "k8s:io.cilium.k8s.namespace.labels.team": "blue"}
    blue = asking("80", name="n")
    blue["spec"]["endpointSelector"] = {"matchLabels": chosen}
    assert changes(changed("blue", blue)) == {"shop/n"}
    assert specs(inventory) is None
    other["metadata"]["labels"]["team"] = "blue"  # type: ignore[index]
    assert changes(changed("n", other)) == {"shop/n"}
    assert changes(FileRemoved("n")) == {"shop/n"}
    # A label that is of no interest to it, and a pod that goes while one like it stays.
    assert changes(changed("a", injected("api", 1, labels={**API, "x": "y"}))) == set()
    assert changes(FileRemoved("b")) == {"shop/p"}


def test_pods_of_other_nodes_change_nothing_here() -> None:
    inventory = inventory_of(p=asking("80"), a=injected("api", 1, node="far"))
    assert specs(inventory) == 1
    assert left(inventory) == Left()
    assert inventory.warnings() == ()


def test_the_inventory_itself_has_what_was_written() -> None:
    inventory = inventory_of(p=asking("80"), a=injected("api", 1))
    inventory.changes()
    assert len(inventory.cluster.policies[POLICY].specs) == 1


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_changes_gives_what_a_compile_from_scratch_gives(seed: int) -> None:
    """The engine, fed by what leaves the inventory, beside what the interpreter is given."""
    random, inventory = Random(seed), inventory_of(c=CLIENT)
    engine = Engine(Options(node="node1"), Numbering())
    last = engine.apply(inventory.changes().values(), revision=1)  # type: ignore[arg-type]
    for revision in range(2, 14):
        name = random.choice("abpqr")
        document: Doc = {}
        if name in "ab" and random.random() < 0.8:
            arguments = random.choice((PLAIN, PLAIN, HIDDEN, ("REDIRECT", "80", ""), ("NONE", "*", ""), None))
            annotations = random.choice(({}, {}, {"ambient.istio.io/redirection": "enabled"}))
            labels = {"app": random.choice(("api", "api", "other"))}
            document = injected(name, ord(name), arguments=arguments, annotations=annotations, labels=labels)
        elif name == "r" and random.random() < 0.8:
            deny = {"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "81", "protocol": "TCP"}]}]}
            document = policy({"ingressDeny": [deny]}, "r", random.random() < 0.5)
        elif random.random() < 0.8:
            ports = random.sample(("80", "81", "9000", "web", "admin", "8000-9999"), 2)
            document = asking(*ports, name=name, left=random.random() < 0.7)
        inventory.feed((changed(name, document) if document else FileRemoved(name),))
        found = inventory.changes()
        new = engine.apply(
            [one for one in found.values() if one is not None],
            [key for key, one in found.items() if one is None],
            revision=revision,
        )
        check_delta(last, new)
        whole = cluster_on_the_wire(closed_cluster(inventory.cluster))
        assert meaning(new) == meaning(compile_table(whole, node="node1", numbering=Numbering(), revision=1))
        last = new
    # Marks of pods that a policy is not about make no difference.
    known = {mark for pod in whole.pods.values() if (mark := pod.labels.get(SIDECAR_KEY))}
    policies = {key: on_the_wire(one, known) for key, one in closed_cluster(inventory.cluster).policies.items()}
    wide = msgspec.structs.replace(whole, policies=policies)
    for address, port, number in itertools.product(("10.0.0.{}", "fd00::{}"), (80, 81, 9000, 8500), map(ord, "ab")):
        ends = ip_address(address.format(200)), ip_address(address.format(number))
        one, other = (evaluate(each, Connection(*ends, Protocol.TCP, port)) for each in (whole, wide))
        assert one.verdict is other.verdict


def test_what_is_left_is_counted() -> None:
    inventory = inventory_of(p=asking("80", "81"), q=asking("80", name="q", left=False), a=injected("api", 1))
    inventory.changes()
    assert left(inventory) == Left(1, 1)
    assert inventory.warnings() == ()
    inventory.feed((changed("b", injected("second", 2, labels={"app": "api"}, arguments=HIDDEN)),))
    inventory.changes()
    assert left(inventory) == Left(1, 2)
    inventory.feed((changed("p", asking("80", left=False)),))
    inventory.changes()
    assert left(inventory) == Left()


def test_what_is_left_counts_for_pods_as_they_are_wired() -> None:
    documents = {"a": injected("api", 1), "b": injected("b", 2, labels=API, families=(4,), dual_stack=False)}
    inventory = inventory_of(p=asking("80"), **documents)
    inventory.changes()
    first, second = (
        LocalEndpoint(name, "veth", msgspec.UNSET, addresses)  # type: ignore[arg-type]
        for name, addresses in (
            ("shop/api", (ip_address("10.0.0.1"), ip_address("fd00::1"))),
            ("shop/b", (ip_address("10.0.0.2"),)),
        )
    )
    assert inventory.left.found((first, second)) == Left(1, 2)
    # The runtime wires it anew: nobody may reach it yet.
    assert inventory.left.found((second,)) == Left(1, 1)
    assert inventory.left.found(()) == Left(0, 0)
    # An address that its status has not told: what Istio does with that family is not known.
    both = msgspec.structs.replace(second, addresses=(ip_address("10.0.0.2"), ip_address("fd00::2")))
    assert inventory.left.found((both,)) == Left(0, 0)


def test_pods_where_no_sidecar_asks_are_told() -> None:
    inventory = inventory_of(p=asking("80", "9000"), a=injected("api", 1), b=plain("b", 2, labels={"app": "api"}))
    inventory.changes()
    (text,) = inventory.warnings()
    assert text.startswith(
        "CiliumNetworkPolicy shop/p leaves its HTTP rules to Istio (spliceway.io/http-rules), but not"
    )
    assert "of shop/b: no sidecar" in text
    inventory.feed((changed("a", injected("api", 1, arguments=HIDDEN)),))
    inventory.changes()
    (text,) = inventory.warnings()
    assert "of shop/api, shop/b: no" in text
    assert left(inventory) == Left(1, 1), "port 80 is left all the same"
    many = {f"p{number}": asking("80", name=f"p{number}") for number in range(30)}
    inventory.feed(tuple(changed(name, one) for name, one in many.items()))
    inventory.changes()
    assert len(inventory.warnings()) == 21


def test_status_counts_and_warns_no_more() -> None:
    setting = Setting(enabled=True, splice="auto", socket_lb="off")
    where = ("shop/api", "veth", msgspec.UNSET, ())
    endpoint = LocalEndpoint(*where, mesh="sidecar", sidecar=1337)  # type: ignore[arg-type]
    for left, warned in ((True, 0), (False, 1)):
        inventory = inventory_of(p=asking("80", left=left), a=injected("api", 1), c=CLIENT)
        engine = Engine(Options(node="node1"), Numbering())
        table = engine.apply(filter(None, inventory.changes().values()), revision=1)
        found = IstioViews().warnings((endpoint,), setting, table)
        assert len(found) == warned
        assert all(f"{ANNOTATION}: istio" in text for text in found)
        line = istio_line(istio_status((endpoint,), setting, inventory.left.found((endpoint,))))
        assert line == ["1 pod: 1 sidecar; 1 accelerated" + ("; 1 HTTP rule of 1 pod left to Istio" if left else "")]


def test_what_an_api_server_says_of_own_pods_is_enough() -> None:
    document = injected("api", 1)
    document["spec"]["containers"][0]["args"] = ["--secret=x"]
    document["spec"]["containers"][0]["env"] = [{"name": "A", "value": "b"}]
    document["spec"]["containers"][-1]["env"].append({"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "x"}}})
    document["metadata"]["uid"] = "u"
    for node, seen in (("node1", True), ("far", False)):
        read = Reader("Pod", "v1", node).read(msgspec.json.encode(document))
        assert "secret" not in json.dumps(read.content)
        assert "HOST_IP" not in json.dumps(read.content)
        inventory = Inventory("node1")
        inventory.feed((read.event,))
        pod = inventory.changes()["Pod", "shop/api"]
        assert isinstance(pod, Pod)
        assert (SIDECAR_KEY in pod.labels) is seen


def test_what_an_api_server_says_of_who_writes_the_rules_counts() -> None:
    document = injected("api", 1)
    document["spec"]["initContainers"][0]["env"].append({"name": "DRY_RUN", "value": "true"})
    inventory = Inventory("node1")
    inventory.feed((Reader("Pod", "v1", "node1").read(msgspec.json.encode(document)).event,))
    pod = inventory.changes()["Pod", "shop/api"]
    assert isinstance(pod, Pod)
    assert SIDECAR_KEY not in pod.labels


def test_another_annotation_is_another_version_in_force() -> None:
    versions = {version_of(asking("80", left=left)).digest for left in (True, False)}
    assert len(versions) == 2


def test_nobody_asks_what_is_left_and_not_translated() -> None:
    refused = allow("{path: '/[0-9]+'}")
    pods = world(refused).parts[0].part.pods
    names = tuple(sorted(pod.key for pod in pods))
    # Where no sidecar shows the wire asks.
    for left, loud in (({KEY: pods}, True), ({KEY: ()}, False), ({}, False)):
        found = aim(msgspec.structs.replace(world(refused), left=left), {}, (), {})
        assert found.unasked == ({KEY: names} if loud else {})
        message = conditions(found, {}, {})[KEY].message
        assert ("nobody asks its HTTP rules" in message) is loud
    # As long as its last good translation is there, that is asked.
    old = {name: held(one.document) for name, one in aim(world(allow("{path: /a}")), {}, (), {}).wanted.items()}
    found = aim(msgspec.structs.replace(world(refused), left={KEY: pods}), old, (), {})
    assert found.kept
    assert not found.unasked
    assert "nobody" not in conditions(found, old, {})[KEY].message


#: Of the pods of `support.istiopolicies.CLUSTER` none shows a sidecar.
SHOWN = {"security.istio.io/tlsMode": "istio"}


def pods_with(*labels: Doc) -> str:
    """The cluster with these pods beside its own, of service accounts of their own."""
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"api{number}", "namespace": "shop", "labels": one},
            "spec": {"nodeName": "far", "serviceAccountName": f"api{number}"},
            "status": {"podIPs": [{"ip": f"10.240.1.{10 + number}"}, {"ip": f"fd00:240:1::1{number}"}]},
        }
        for number, one in enumerate(labels)
    ]
    return "\n---\n".join((CLUSTER, *map(json.dumps, pods)))


def test_nobody_asks_at_pods_that_only_the_refused_version_is_about() -> None:
    old = {name: held(one.document) for name, one in aim(world(allow("{path: /a}")), {}, (), {}).wanted.items()}
    wider = allow("{path: '/[0-9]+'}").replace("{app: api}", "{team: red}")
    red = {"team": "red"}
    unseen = {**SHOWN, **red, "app": "web"}
    cases: list[tuple[list[Doc], tuple[str, ...]]] = [
        ([{**unseen, "app": "api"}], ()),
        ([{**unseen, "app": "api"}, unseen], ("shop/api1",)),
        ([{**unseen, "app": "api"}, {**red, "app": "web"}], ()),  # no sidecar shows: the wire asks
        ([unseen, unseen], ("shop/api0", "shop/api1")),
    ]
    for labels, bare in cases:
        cluster, mesh = read(pods_with(*labels), STRICT, wider)
        found = translate(cluster, mesh)
        now = world(wider, cluster=pods_with(*labels))
        now = msgspec.structs.replace(now, left=leaving([KEY], cluster, mesh, found))
        goal = aim(now, old, (), {})
        assert goal.kept
        assert goal.unasked == ({KEY: bare} if bare else {})
        message = conditions(goal, old, {})[KEY].message
        assert ("nobody asks" in message) is bool(bare)
        if bare:
            assert f"in force); at {', '.join(bare)} nobody asks its HTTP rules" in message
            assert unasked(goal) == [f"CiliumNetworkPolicy shop/web at {len(bare)} of its pods"]
        # A bridge asks nobody, and a denial closes some of it only.
        for action, bridge in (("DENY", False), ("ALLOW", True)):
            shape = {
                name: msgspec.structs.replace(one.shape, action=action, bridge=bridge) for name, one in old.items()
            }
            others = {name: msgspec.structs.replace(one, shape=shape[name]) for name, one in old.items()}
            shown = tuple(sorted(pod.key for pod in now.left[KEY]))
            assert aim(now, others, (), {}).unasked == {KEY: shown}
    # Beside all that is to be there one that was left allows everything.
    (there,) = old.values()
    over = made(bridge_policy(bridge_of(there.shape), " ".join(KEY)), VERSION, bridge=True)
    now = world(REFUSED)
    now = msgspec.structs.replace(now, left={KEY: now.parts[0].part.pods})
    assert aim(now, old, (), {}).unasked == {}
    assert aim(now, old | {over.shape.key: held(over.document)}, (), {}).unasked == {KEY: ("shop/api",)}


def test_the_problem_names_policies() -> None:
    figures = Figures()
    assert figures.problem == ""
    figures.unasked = tuple(f"CiliumNetworkPolicy shop/p{number}" for number in range(7))
    assert "shop/p4 and 2 more: left to Istio (spliceway.io/http-rules)" in figures.problem
    figures.error = "no rights"
    assert figures.problem == "no rights"
