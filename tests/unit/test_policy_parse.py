"""What is accepted, and what it comes to mean."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from spliceway.policy.documents import load_documents
from spliceway.policy.labels import Operator, Requirement
from spliceway.policy.model import NetworkPolicy, Node, Peers, Pod, PortRange
from spliceway.policy.parse import parse_text
from spliceway.policy.verdict import Direction, Protocol

HEAD = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: web
  namespace: shop
  uid: 1-2-3
  annotations: {a: b}
  creationTimestamp: 2024-01-01T00:00:00Z
  managedFields: [{x: 1}]
"""


def policy(body: str) -> NetworkPolicy:
    parsed = parse_text(HEAD + body, "p.yaml")
    assert not parsed.errors
    (found,) = parsed.objects
    assert isinstance(found, NetworkPolicy)
    return found


def rule(body: str) -> Peers | None:
    return policy(f"spec: {{endpointSelector: {{}}, ingress: [{body}]}}").specs[0].rules[0].peers


NAMESPACE = Requirement("k8s", "io.kubernetes.pod.namespace", Operator.IN, ("shop",))


def test_a_real_object() -> None:
    found = policy(
        """
spec:
  description: what it is for
  endpointSelector: {matchLabels: {"k8s:app": web}}
  labels: [{key: a, value: b, source: k8s}]
  ingress:
  - fromEndpoints:
    - matchLabels: {app: front}
    toPorts:
    - ports: [{port: "80", protocol: tcp}, {port: 8080, endPort: 8090}]
status: {conditions: []}
"""
    )
    assert found.title == "CiliumNetworkPolicy shop/web"
    (spec,) = found.specs
    assert spec.subject.requirements == (Requirement("k8s", "app", Operator.IN, ("web",)), NAMESPACE)
    assert spec.description == "what it is for"
    assert spec.default_deny == spec.applies == (True, False)
    (entry,) = spec.rules[0].to_ports
    assert entry.ports == (PortRange(Protocol.TCP, 80, 80), PortRange(Protocol.ANY, 8080, 8090))
    assert (entry.path, entry.http, spec.rules[0].direction) == ("spec.ingress[0].toPorts[0]", None, Direction.INGRESS)


def test_spec_and_specs_add_up() -> None:
    found = policy("spec: {endpointSelector: {}, egress: [{}]}\nspecs: [{endpointSelector: {}, ingressDeny: [{}]}]\n")
    assert [spec.path for spec in found.specs] == ["spec", "specs[0]"]
    assert [spec.rules[0].path for spec in found.specs] == ["spec.egress[0]", "specs[0].ingressDeny[0]"]
    assert [spec.default_deny for spec in found.specs] == [(False, True), (True, False)]


@pytest.mark.parametrize(
    ("body", "default_deny", "applies"),
    [
        ("ingress: []", (False, False), (False, False)),
        ("ingress: [{}]", (True, False), (True, False)),
        ("ingress: [], enableDefaultDeny: {ingress: true}", (True, False), (True, False)),
        ("ingress: [{}], enableDefaultDeny: {ingress: false}", (False, False), (True, False)),
        ("ingress: [{}], enableDefaultDeny: {egress: true}", (True, True), (True, True)),
        ("egressDeny: [{}]", (False, True), (False, True)),
        ("ingress: null, egress: [{}]", (False, True), (False, True)),
    ],
)
def test_default_deny(body: str, default_deny: tuple[bool, bool], applies: tuple[bool, bool]) -> None:
    (spec,) = policy(f"spec: {{endpointSelector: {{}}, {body}}}").specs
    assert (spec.default_deny, spec.applies) == (default_deny, applies)


def test_absent_and_empty_lists_of_peers() -> None:
    assert rule("{}") is None
    assert rule("{fromEndpoints: null}") is None
    assert rule("{fromEndpoints: []}") == Peers()
    assert rule("{fromEndpoints: [], fromCIDR: [10.0.0.0/8]}") == Peers()
    assert rule("{fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]}") == Peers()


@pytest.mark.parametrize(
    ("selector", "scoped"),
    [
        ("{}", True),
        ("{matchLabels: {app: a}}", True),
        ("{matchLabels: {'any:app': a}}", True),
        ("{matchLabels: {io.kubernetes.pod.namespace: bank}}", False),
        ("{matchLabels: {'k8s:io.kubernetes.pod.namespace': bank}}", False),
        ("{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}", False),
        ("{matchLabels: {io.cilium.k8s.namespace.labels.team: red}}", False),
        ("{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.example.com/team': red}}", False),
        ("{matchLabels: {'reserved:host': ''}}", False),
        ("{matchLabels: {reserved.host: ''}}", False),
        ("{matchLabels: {'k8s:reserved.host': ''}}", True),
    ],
)
def test_scope_of_selectors(selector: str, scoped: bool) -> None:
    peers = rule(f"{{fromEndpoints: [{selector}]}}")
    assert peers is not None
    assert (NAMESPACE in peers.endpoints[0].requirements) == scoped


def test_cidrs() -> None:
    peers = rule("{fromCIDR: [10.1.2.3/8, 192.0.2.1, 'fd00::1', 'FD00:0::/64']}")
    assert peers is not None
    # Host bits are cleared, as Cilium and the API server do; an address alone is itself.
    assert [str(peer.cidr) for peer in peers.cidrs] == ["10.0.0.0/8", "192.0.2.1/32", "fd00::1/128", "fd00::/64"]


def test_port_zero_is_every_port() -> None:
    found = policy("spec: {endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '0', protocol: UDP}]}]}]}")
    assert found.specs[0].rules[0].to_ports[0].ports == (PortRange(Protocol.UDP, 0, 65535),)
    found = policy("spec: {endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '53', endPort: 0}]}]}]}")
    assert found.specs[0].rules[0].to_ports[0].ports == (PortRange(Protocol.ANY, 53, 53),)


def test_a_list_names_rules_as_the_object_would() -> None:
    text = """
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b}}}
- apiVersion: cilium.io/v2
  kind: CiliumNetworkPolicy
  metadata: {name: web}
  specs: [{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: "1"}]}]}]}]
"""
    parsed = parse_text(text, "p.yaml")
    assert not parsed.errors
    found = parsed.objects[1]
    assert isinstance(found, NetworkPolicy)
    assert found.specs[0].path == "specs[0]"
    assert found.specs[0].rules[0].to_ports[0].path == "specs[0].ingress[0].toPorts[0]"


def test_pods_and_nodes() -> None:
    text = """
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {x: "1"}}
spec: {nodeName: n, containers: [{name: c, image: d}], serviceAccountName: robot}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}, {ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec: {nodeName: n, hostNetwork: true}
status: {phase: Succeeded, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: new}
---
apiVersion: v1
kind: Node
metadata: {name: n}
spec: {podCIDR: 10.0.0.0/24}
status:
  addresses:
  - {type: InternalIP, address: 172.30.0.1}
  - {type: Hostname, address: n}
  - {type: ExternalIP, address: "fd01::1"}
"""
    parsed = parse_text(text, "p.yaml")
    assert not parsed.errors
    pod, done, new, node = parsed.objects
    assert isinstance(pod, Pod)
    assert isinstance(done, Pod)
    assert isinstance(node, Node)
    assert (pod.key, pod.node, pod.service_account) == ("default/a", "n", "robot")
    assert pod.addresses == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert (done.addresses, done.host_network) == ((), True)
    assert new.name == "new"
    assert node.addresses == (ip_address("172.30.0.1"), ip_address("fd01::1"))
    assert node.pod_cidrs == (ip_network("10.0.0.0/24"),)


def test_yaml_values_are_those_of_json() -> None:
    text = """
a: 1
b: "1"
c: 'yes'
d: yes
e: ~
f: 1.5
g: 2024-01-01
h: 0x1F
i: |
  text
j: [&x {k: v}, *x, *x]
k: 1e3
l: .inf
m: -7
n: 123456789012345678901234567890
o: !!str 5
"""
    (document,) = load_documents(text, "x")
    assert document.content == {
        "a": 1,
        "b": "1",
        "c": "yes",
        "d": True,
        "e": None,
        "f": 1.5,
        "g": "2024-01-01",
        "h": 31,
        "i": "text\n",
        "j": [{"k": "v"}] * 3,
        "k": 1000.0,
        "l": ".inf",
        "m": -7,
        "n": 123456789012345678901234567890.0,
        "o": "5",
    }
    assert [(d.index, d.line) for d in load_documents("---\n---\na: 1\n--- # two\nb: 2\n...\n", "x")] == [
        (2, 2),
        (3, 4),
    ]
    assert load_documents("", "x") == load_documents("# nothing\n---\n", "x") == []
