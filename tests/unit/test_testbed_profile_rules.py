"""What a testbed's nodes are given by their profile: names, kube-proxy's rules, and the Services that they are for."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from spliceway.agent.testbed import manifests
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.kubeproxy import Backend, ServicePort, iptables_rules, nftables_rules
from spliceway.agent.testbed.netfilter import calico_endpoints, node_rules
from spliceway.agent.testbed.plan import make_plan
from spliceway.agent.testbed.profiles import Profile, check
from spliceway.agent.testbed.services import Service, ports_on, services_of
from spliceway.agent.testbed.slices import slices_of
from spliceway.agent.testbed.tunnels import public_key
from spliceway.policy.documents import Document
from spliceway.policy.parse import parse_document
from spliceway.policy.servicemodel import EndpointSlice
from support.node import pod_manifest
from support.profiled import CLUSTER_IPS, PROFILES

BACKENDS = tuple(Backend(ip_address(f"10.240.1.{host}"), 8080) for host in (10, 11, 12))
WEB = ServicePort("default/web:80/4", CLUSTER_IPS[0], 80, BACKENDS, 30080)
EMPTY = ServicePort("default/empty:80/4", ip_address("10.96.0.99"), 80, ())
LOCAL = ServicePort("default/local:80/4", ip_address("10.96.0.81"), 80, BACKENDS, 30081, True, BACKENDS[:1])


def service(**spec: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "clusterIPs": list(map(str, CLUSTER_IPS)), **spec},
    }


def test_iptables_rules_have_kube_proxys_shape() -> None:
    lines = iptables_rules([WEB, EMPTY, LOCAL], 4).splitlines()
    assert "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT" in lines
    assert "-A KUBE-SERVICES -d 10.96.0.99/32 -p tcp -m tcp --dport 80 -j REJECT" in lines
    chances = [line.split("--probability ")[1][:6] for line in lines if "--probability" in line]
    assert chances == ["0.3333", "0.5000", "0.3333", "0.5000"], "and the last one for certain"
    assert sum("-j DNAT --to-destination 10.240.1.11:8080" in line for line in lines) == 2
    assert lines.index("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS") > max(
        number for number, line in enumerate(lines) if line.startswith("-A KUBE-SERVICES -d 10.96.0.8")
    )
    chains = {line[1:].split()[0] for line in lines if line.startswith(":")}
    jumps = {line.split(" -j ")[1].split()[0] for line in lines if " -j " in line}
    verdicts = {"ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "MASQUERADE", "DNAT"}
    assert jumps - chains == verdicts
    again = iptables_rules([WEB], 4, first=False)
    assert "-A PREROUTING" not in again, "its hooks are there already"
    assert "-A FORWARD" not in again


def test_rules_are_for_one_family() -> None:
    six = ServicePort("default/web:80/6", CLUSTER_IPS[1], 80, (Backend(ip_address("fd00:240:1::10"), 8080),))
    assert "--to-destination [fd00:240:1::10]:8080" in iptables_rules([WEB, six], 6)
    assert "10.96" not in iptables_rules([WEB, six], 6) + nftables_rules([WEB, six], 6)
    assert "dnat to [fd00:240:1::10]:8080" in nftables_rules([WEB, six], 6)
    assert "fd00" not in nftables_rules([six], 4).replace("fd00:240::/32", "")


def test_nftables_rules_name_only_what_they_define() -> None:
    text = nftables_rules([WEB, EMPTY, LOCAL], 4)
    defined = {line.split()[1] for line in text.splitlines() if line.strip().startswith("chain ")}
    words = text.replace(",", " ").replace(";", " ").split()
    named = {words[at + 1] for at, word in enumerate(words) if word in ("goto", "jump")}
    assert named <= defined, named - defined
    assert "10.96.0.99 . tcp . 80 : goto reject-chain" in text


def test_services_of_manifests() -> None:
    near = pod_manifest("near", {"app": "web"})
    far = pod_manifest("far", {"app": "web"})
    far["spec"]["nodeName"] = "node2"
    near["spec"]["nodeName"] = "node1"
    ports = [{"port": 80, "targetPort": 8080, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]
    plan = make_plan(manifests.load([near, far, service(ports=ports, externalTrafficPolicy="Local")]))
    (found,) = services_of(plan)
    assert found == Service("default/web", CLUSTER_IPS, 80, 8080, ("default/near", "default/far"), 30080, True)
    four, six = ports_on("node2", [found], plan.pods)
    assert [str(one.address) for one in four.backends] == ["10.240.1.10", "10.240.2.10"]
    assert [str(one.address) for one in four.local_backends] == ["10.240.2.10"]
    assert [str(one.address) for one in six.local_backends] == ["fd00:240:2::10"]
    named = make_plan(manifests.load([near, service(ports=[{"port": 80, "targetPort": "http"}])]))
    with pytest.raises(TestbedError, match=r"spec.ports\[0\].targetPort: 'http': a testbed's kube-proxy knows numbers"):
        services_of(named)
    with pytest.raises(TestbedError, match="Service a/b: no pod a/c is on a node"):
        ports_on("node1", [Service("a/b", CLUSTER_IPS, 80, 80, ("a/c",))], [])


def test_services_described_elsewhere_count_too(tmp_path: Path) -> None:
    """As below `--policies`; what the agent will refuse is nobody's Service."""
    plan = make_plan(manifests.load([pod_manifest("near", {"app": "web"})]))
    file = tmp_path / "services.yaml"
    bad = {**service(), "metadata": {"name": "bad", "namespace": "default"}, "spec": {"ports": [{"port": "x"}]}}
    file.write_text(manifests.dump([bad, service(ports=[{"port": 80}])]))
    (tmp_path / "broken.yaml").write_text("a: [")
    found = manifests.described([tmp_path / "broken.yaml", file])
    assert [one.name for one in found] == ["web"]
    assert [(one.name, one.pods) for one in services_of(plan, found)] == [("default/web", ("default/near",))]


def test_slices_as_the_controller_writes_them() -> None:
    near, far = pod_manifest("near", {"app": "web"}), pod_manifest("far", {"app": "web"})
    near["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": 8080}]
    far["spec"]["nodeName"], near["spec"]["nodeName"] = "node2", "node1"
    ports = [{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 53, "protocol": "UDP"}]
    plan = make_plan(manifests.load([near, far, pod_manifest("other"), service(ports=ports)]))
    made = slices_of(plan.policies, plan.pods)["default_web"]
    read = [one for each in made for one in parse_document(Document("made", 1, 0, each))]
    assert all(isinstance(one, EndpointSlice) for one in read)
    found = {
        (str(end.addresses[0]), end.node, tuple((port.name, port.port) for port in one.ports))
        for one in read
        if isinstance(one, EndpointSlice)
        for end in one.endpoints
    }
    assert found == {
        ("10.240.1.10", "node1", (("a", 8080), ("b", 53))),
        ("10.240.2.10", "node2", (("b", 53),)),
        ("fd00:240:1::10", "node1", (("a", 8080), ("b", 53))),
        ("fd00:240:2::10", "node2", (("b", 53),)),
    }
    own = {**made[0], "metadata": {**made[0]["metadata"], "name": "own"}}
    assert slices_of(manifests.load([service(ports=ports), own]), plan.pods) == {}


def test_two_services_with_one_address() -> None:
    outside = ip_address("203.0.113.1")
    both = [
        ServicePort(
            f"default/{name}:80/4", ip_address(own), 80, (Backend(ip_address("10.240.1.10"), 80),), external_ip=outside
        )
        for name, own in (("a", "10.96.0.1"), ("b", "10.96.0.2"))
    ]
    with pytest.raises(TestbedError, match=r"Services default/a and default/b both have 203\.0\.113\.1, TCP port 80"):
        nftables_rules(both, 4)


def test_interfaces_are_named_as_the_model_does() -> None:
    plan = make_plan(manifests.load([pod_manifest("web")]))
    names = {name: profile.interface_name(plan.pods[0]) for name, profile in PROFILES.items()}
    assert (names["l3"][:3], names["calico-like"][:4], names["aws-like"][:3]) == ("lxc", "cali", "eni")
    assert all(len(name) <= 15 for name in names.values())


def test_rules_of_a_node() -> None:
    (node,) = make_plan(manifests.load([pod_manifest("web")])).nodes
    assert node_rules(Profile(), node, 4) == ""
    careful = node_rules(Profile(drop=("INPUT", "FORWARD")), node, 6)
    assert ":INPUT DROP [0:0]" in careful
    assert "-A INPUT -p ipv6-icmp -j ACCEPT" in careful
    assert "-A FORWARD -d fd00:240::/32 -j ACCEPT" in careful, "a node without a CNI's rules forwards for its pods"
    assert ":OUTPUT" not in careful
    assert "MASQUERADE" in node_rules(Profile("bridge"), node, 4)
    assert calico_endpoints([], []).count("Unknown interface") == 2


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (Profile("bridge", tunnel="gre"), "profile: tunnel: is for the profile l3, and this is bridge"),
        (Profile("vxlan", big_tcp=True), "profile: big_tcp: is for the profile l3, and this is vxlan"),
        (Profile(uplink="rope"), "profile: uplink: 'rope' is none of plain, bond, bridge"),  # type: ignore[arg-type]
    ],
)
def test_devices_that_a_profile_can_not_have(profile: Profile, says: str) -> None:
    with pytest.raises(TestbedError, match=says):
        check(profile)


def test_keys_of_wireguard() -> None:
    """RFC 7748, section 5.2, the first round."""
    nine = bytes([9]) + bytes(31)
    assert public_key(nine).hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
