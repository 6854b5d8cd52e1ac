"""The agent's policies for ambient pods: closed as long as one is there, and warnings that name pod, rule and mend."""

from __future__ import annotations

import pytest

from spliceway.agent.hostaddresses import PROBES, OwnNode
from spliceway.agent.inventory import Inventory
from spliceway.agent.manifests import Key
from spliceway.agent.sources.events import FileChanged, FileRemoved
from spliceway.policy.istio.hbone import closed
from spliceway.policy.model import NetworkPolicy, Node, Object
from support.agent import pod

AMBIENT_POD = pod("a", "10.0.0.1").replace("annotations: {", "annotations: {ambient.istio.io/redirection: enabled, ")
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}\n"
POLICY = ("CiliumNetworkPolicy", "default/p")


def policy(rules: str, name: str = "p") -> str:
    return (
        f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\n"
        f"spec: {{endpointSelector: {{}}, {rules}}}\n"
    )


def ports(number: str) -> str:
    return f"toPorts: [{{ports: [{{port: '{number}', protocol: TCP}}]}}]"


DENY = policy(f"ingressDeny: [{{fromEntities: [cluster], {ports('22')}}}]")


def specs(inventory: Inventory) -> int | None:
    """Of the policy, in what changed; None: it did not."""
    found = inventory.changes().get(POLICY)
    return len(found.specs) if isinstance(found, NetworkPolicy) else None


def test_policies_are_closed_as_long_as_a_pod_needs_it() -> None:
    inventory = Inventory("node1")
    inventory.feed((FileChanged("p", DENY), FileChanged("a", pod("a", "10.0.0.1"))))
    assert specs(inventory) == 1
    inventory.feed((FileChanged("a", AMBIENT_POD),))
    assert specs(inventory) == 4, "the policy has not changed, what it means has"
    inventory.feed((FileChanged("b", pod("b", "10.0.0.2")),))
    assert specs(inventory) is None
    inventory.feed((FileChanged("p", DENY.replace("22", "23")),))
    assert specs(inventory) == 4
    inventory.feed((FileRemoved("a"),))
    assert specs(inventory) == 1
    assert inventory.hbone.warnings() == ()
    inventory.feed((FileChanged("n", NAMESPACE),))
    assert specs(inventory) == 4
    inventory.feed((FileRemoved("p"),))
    assert POLICY in inventory.changes()
    assert inventory.hbone.warnings() == ()


def test_pods_of_other_nodes_close_nothing_here() -> None:
    inventory = Inventory("node2")
    inventory.feed((FileChanged("p", DENY), FileChanged("a", AMBIENT_POD)))
    assert specs(inventory) == 1
    assert inventory.hbone.warnings() == ()


def test_the_inventory_itself_has_what_was_written() -> None:
    inventory = Inventory("node1")
    inventory.feed((FileChanged("p", DENY), FileChanged("a", AMBIENT_POD)))
    given = inventory.changes()[POLICY]
    written = inventory.cluster.policies[POLICY]
    assert isinstance(given, NetworkPolicy)
    assert len(written.specs) == 1
    assert given == closed(written)


def warned(*policies: str, namespace: str = "") -> list[str]:
    inventory = Inventory("node1")
    files = [FileChanged("a", AMBIENT_POD), *(FileChanged(f"p{n}", one) for n, one in enumerate(policies))]
    inventory.feed((*files, *([FileChanged("n", namespace)] if namespace else [])))
    inventory.changes()
    return list(inventory.hbone.warnings())


def test_what_is_denied_and_what_is_left_out_is_told_with_pod_rule_and_mend() -> None:
    (denied,) = warned(DENY)
    assert denied.startswith(
        "CiliumNetworkPolicy default/p: spec.ingressDeny[0] denies ports that HBONE hides, so port"
    )
    assert denied.endswith("AuthorizationPolicy [ambient: default/a]")
    wide = "toPorts: [{ports: [{port: '1024', endPort: 65535, protocol: TCP}]}]"
    (ranged,) = warned(policy(f"ingress: [{{fromEntities: [cluster], {wide}}}]"))
    assert "allow port 15008 as such from the same peers" in ranged


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (f"ingress: [{{fromEntities: [cluster], {ports('80')}}}]", "allow port 15008 from the same peers"),
        (f"ingress: [{{{ports('80')}}}]", "allow port 15008 from the same peers"),
        (f"egress: [{{toEntities: [cluster], {ports('80')}}}]", "allow port 15008 to the same peers"),
        (f"egress: [{{toEndpoints: [{{}}], {ports('80')}}}]", "allow port 15008 to the same peers"),
        (f"egress: [{{toCIDR: [192.0.2.0/24], {ports('80')}}}]", ""),  # no ambient pod is outside the cluster
        (
            "egress: [{toEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: kube-system}}], "
            f"{ports('53')}}}]",
            "",
        ),
        ("ingress: [{fromEntities: [cluster]}]", ""),
        (f"ingress: [{{fromEntities: [cluster], {ports('80')}}}, {{fromEntities: [cluster]}}]", ""),
        (f"ingress: [{{fromEntities: [cluster], {ports('80')}}}, {{fromEntities: [cluster], {ports('15008')}}}]", ""),
        (f"ingress: [{{fromEntities: [cluster], {ports('80')}}}, {{{ports('15008')}}}]", ""),
        (f"ingress: [{{fromEntities: [cluster], {ports('80')}}}], enableDefaultDeny: {{ingress: false}}", ""),
        ("ingress: [{fromEntities: [cluster], toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]", ""),
    ],
)
def test_rules_that_hbone_does_not_meet_are_told(rules: str, told: str) -> None:
    found = warned(policy(rules))
    assert [told in one for one in found] == ([True] if told else []), found


def test_another_policy_may_allow_it() -> None:
    narrow = policy(f"ingress: [{{fromEntities: [cluster], {ports('80')}}}]")
    assert len(warned(narrow)) == 1
    assert warned(narrow, policy(f"ingress: [{{fromEntities: [cluster], {ports('15008')}}}]", "hbone")) == []


def test_many_are_cut_short() -> None:
    many = [policy(f"ingressDeny: [{{fromEntities: [cluster], {ports(str(n))}}}]", f"p{n}") for n in range(1, 31)]
    found = warned(*many)
    assert len(found) == 21
    assert found[-1] == "10 more rules for ambient pods are like these"


@pytest.mark.parametrize("said", ["enabled", "pending"])
def test_nothing_of_an_ambient_pod_is_spliced(said: str) -> None:
    inventory = Inventory("node1")
    inventory.feed((FileChanged("a", AMBIENT_POD.replace("enabled", said)), FileChanged("b", pod("b", "10.0.0.2"))))
    assert {one.name: one.splice for one in inventory.endpoints} == {"default/a": False, "default/b": True}


def test_the_probes_addresses_are_the_hosts_as_long_as_a_pod_is_ambient() -> None:
    assert {str(one) for one in PROBES} == {"169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"}
    inventory, node = Inventory("node1"), OwnNode("node1")
    given: dict[Key, Object | None] = {}

    def has_them(*events: FileChanged | FileRemoved) -> bool:
        inventory.feed(events)
        changes = dict(inventory.changes())
        node.complete(changes, probes=inventory.hbone.ambient)
        given.update(changes)
        own = given["Node", "node1"]
        assert isinstance(own, Node)
        assert PROBES.isdisjoint(own.addresses) or set(own.addresses) >= PROBES
        return not PROBES.isdisjoint(own.addresses)

    assert not has_them(FileChanged("a", pod("a", "10.0.0.1")))
    assert has_them(FileChanged("a", AMBIENT_POD))
    assert has_them(FileChanged("b", pod("b", "10.0.0.2")))
    assert not has_them(FileChanged("a", pod("a", "10.0.0.1")))
    assert has_them(FileChanged("n", NAMESPACE))
