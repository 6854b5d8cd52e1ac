"""The node-local DNS cache as a pod of the cluster's DNS."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from spliceway.agent.nodelocaldns import NodeLocalDns
from spliceway.policy.model import ContainerPort, Pod, Service
from spliceway.policy.verdict import Protocol

KEY = ("Pod", "kube-system/kube-dns:node-local")
LINK_LOCAL, CLUSTER_IP, CLUSTER_IP6 = map(ip_address, ("169.254.20.10", "10.96.0.10", "fd00:96::10"))
DNS = Service("kube-system", "kube-dns", {"k8s-app": "kube-dns"}, cluster_ips=(CLUSTER_IP, CLUSTER_IP6))
OTHER = Service("kube-system", "coredns", {"app": "coredns"}, cluster_ips=(ip_address("10.96.0.11"),))
PORTS = (ContainerPort("dns", Protocol.UDP, 53),)


def server(name: str, **labels: str) -> Pod:
    labels = {"k8s-app": "kube-dns", **labels}
    return Pod("kube-system", name, labels, (ip_address("10.240.1.9"),), service_account="coredns", ports=PORTS)


def objects(*items: Any) -> dict[tuple[str, str], Any]:
    return {(type(item).__name__, item.key): item for item in items}


def test_it_has_what_all_pods_of_the_service_have() -> None:
    dns = NodeLocalDns()
    changes = objects(DNS, server("one", tier="a", hash="1"), server("two", tier="a", hash="2"), OTHER)
    dns.complete(changes, {CLUSTER_IP, LINK_LOCAL, CLUSTER_IP6})
    found = changes[KEY]
    assert found.labels == {"k8s-app": "kube-dns", "tier": "a"}
    assert found.addresses == (CLUSTER_IP, LINK_LOCAL, CLUSTER_IP6)
    assert (found.key, found.service_account, found.ports, found.node) == (KEY[1], "coredns", PORTS, "")
    again = objects(server("two", tier="a", hash="3"))
    dns.complete(again, {CLUSTER_IP, LINK_LOCAL, CLUSTER_IP6})
    assert KEY not in again, "nothing of it is new"
    dns.complete(again, ())
    assert again[KEY] is None, "it has gone from the node"


def test_the_service_is_that_of_its_address() -> None:
    dns, changes = NodeLocalDns(), objects(DNS, OTHER)
    dns.complete(changes, {LINK_LOCAL, ip_address("10.96.0.11")})
    assert changes[KEY].labels == {"app": "coredns"}
    dns.complete(changes, {LINK_LOCAL})
    assert changes[KEY].labels == {"k8s-app": "kube-dns"}, "by name, where kube-proxy has the ClusterIP (IPVS)"


def test_without_a_service_it_has_the_usual_label() -> None:
    dns, changes = NodeLocalDns(), objects(server("one", tier="a"))
    dns.complete(changes, {LINK_LOCAL})
    assert changes[KEY].labels == {"k8s-app": "kube-dns", "tier": "a"}


def test_services_and_pods_of_others_have_no_part_in_it() -> None:
    dns = NodeLocalDns()
    thief = Service("shop", "kube-dns", {"app": "thief"}, cluster_ips=(CLUSTER_IP,))
    changes = objects(thief, Pod("shop", "one", {"k8s-app": "kube-dns", "tier": "x"}))
    dns.complete(changes, {CLUSTER_IP})
    assert changes[KEY].labels == {"k8s-app": "kube-dns"}
