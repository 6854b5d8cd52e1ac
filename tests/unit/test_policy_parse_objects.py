"""Objects that policies are about: named ports of pods, labels of nodes, Services, slices, CIDR groups, Secrets."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from spliceway.policy.model import (
    CidrGroup,
    Cluster,
    ContainerPort,
    EndpointSlice,
    Node,
    Object,
    Pod,
    Secret,
    Service,
    object_key,
)
from spliceway.policy.parse import parse_text
from spliceway.policy.verdict import Protocol


def parse(text: str) -> Object:
    parsed = parse_text(text, "o.yaml")
    assert [str(error) for error in parsed.errors] == []
    (found,) = parsed.objects
    return found


def test_named_ports_of_a_pod() -> None:
    pod = parse(
        """
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
  - name: web
    ports:
    - {name: web, containerPort: 8080}
    - {name: web, containerPort: 8081, protocol: UDP}
    - {containerPort: 9}
  - {name: none}
  - name: more
    ports: [{name: web, containerPort: 80, hostPort: 80}, {name: admin, containerPort: 9000, protocol: SCTP}]
  initContainers:
  - {name: sidecar, restartPolicy: Always, ports: [{name: mesh, containerPort: 15001}]}
  - {name: setup, ports: [{name: gone, containerPort: 1}]}
"""
    )
    assert isinstance(pod, Pod)
    # An init container that ends listens nowhere (Kubernetes, «Sidecar Containers»).
    assert pod.ports == (
        ContainerPort("admin", Protocol.SCTP, 9000),
        ContainerPort("mesh", Protocol.TCP, 15001),
        ContainerPort("web", Protocol.TCP, 80),
        ContainerPort("web", Protocol.TCP, 8080),
        ContainerPort("web", Protocol.UDP, 8081),
    )


def test_labels_of_a_node() -> None:
    node = parse("{apiVersion: v1, kind: Node, metadata: {name: n, labels: {topology.kubernetes.io/zone: a}}}")
    assert isinstance(node, Node)
    assert node.labels == {"topology.kubernetes.io/zone": "a"}


@pytest.mark.parametrize(
    ("spec", "selector"),
    [
        ("selector: {app: db}, clusterIP: None, ports: [{port: 5432, targetPort: sql}]", {"app": "db"}),
        ("selector: {app: db}, type: LoadBalancer", {"app": "db"}),
        ("ports: [{port: 443}]", None),
        ("selector: {}", None),
        # Kubernetes, Service spec: the selector is «ignored if type is ExternalName».
        ("selector: {app: db}, type: ExternalName, externalName: db.example", None),
    ],
)
def test_services(spec: str, selector: dict[str, str] | None) -> None:
    found = parse(f"{{apiVersion: v1, kind: Service, metadata: {{name: db, labels: {{a: b}}}}, spec: {{{spec}}}}}")
    assert isinstance(found, Service)
    assert (found.selector, found.labels) == (selector, {"a": "b"})
    assert object_key(found) == ("Service", "default/db")


def test_what_endpoint_slices_mean_for_policies() -> None:
    found = parse(
        """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x, namespace: bank, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{port: 5432}]
endpoints:
- {addresses: [192.0.2.1, 192.0.2.2], conditions: {ready: true}, nodeName: n}
- {addresses: [192.0.2.3]}
- {addresses: [192.0.2.4], conditions: {ready: false}}
- {addresses: [192.0.2.5], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [192.0.2.6], conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [192.0.2.1], conditions: {}}
"""
    )
    assert isinstance(found, EndpointSlice)
    assert (found.key, found.service) == ("bank/db-x", "db")
    # Ready or unknown gets traffic, and what still serves while it terminates (EndpointSlice API, «Conditions»).
    assert found.addresses == tuple(ip_address(f"192.0.2.{last}") for last in (1, 2, 3, 5))
    names = parse(
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: x}, addressType: FQDN, "
        "endpoints: [{addresses: [db.example]}]}"
    )
    assert names == EndpointSlice("default", "x", "", (), "o.yaml", family=0)


@pytest.mark.parametrize("version", ["v2", "v2alpha1"])
def test_cidr_groups(version: str) -> None:
    found = parse(
        f"{{apiVersion: cilium.io/{version}, kind: CiliumCIDRGroup, metadata: {{name: partners, labels: {{a: b}}}}, "
        "spec: {externalCIDRs: [203.0.113.0/24, 'fd00::1/64', 203.0.113.0/24]}, status: {}}"
    )
    cidrs = (ip_network("203.0.113.0/24"), ip_network("fd00::/64"))
    assert found == CidrGroup("partners", cidrs, {"a": "b"}, "o.yaml")


def test_secrets_are_read_and_never_shown() -> None:
    found = parse(
        """
apiVersion: v1
kind: Secret
type: Opaque
metadata: {name: keys, namespace: shop, annotations: {kubectl.kubernetes.io/last-applied-configuration: hush}}
data: {token: aHVz
    aA==, other: aQ==, none: null}
stringData: {other: plain}
"""
    )
    # The API server writes stringData over data.
    assert found == Secret("shop", "keys", {"token": b"hush", "other": b"plain", "none": b""}, "o.yaml")
    assert "hush" not in repr(found)
    assert "plain" not in repr(found)


@pytest.mark.parametrize("data", ["data: {token: 'hush!'}", "data: {token: [hush]}", "stringData: {token: {hush: 1}}"])
def test_errors_about_secrets_do_not_show_them(data: str) -> None:
    parsed = parse_text(f"{{apiVersion: v1, kind: Secret, metadata: {{name: keys}}, {data}}}", "o.yaml")
    (error,) = parsed.errors
    assert str(error).startswith(f"o.yaml: Secret default/keys: {data.split(':')[0]}.token: ")
    assert "hush" not in str(error)


@pytest.mark.parametrize(
    "written",
    [
        "data: hush",
        "data: [hush]",
        "stringData: hush",
        "stringData: {token: *hush}",
        "stringData: {token: !hush x}",
        "stringData: {token: !hush {a: 1}}",
    ],
)
def test_a_secret_that_is_misshaped_is_not_shown_either(written: str) -> None:
    """Without quotes `*` and `!` begin an alias and a tag: it may be a password that was meant."""
    (error,) = parse_text(f"apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\n{written}\n", "o.yaml").errors
    assert "hush" not in str(error)


@pytest.mark.parametrize("text", ["hush", "- hush"])
def test_a_document_that_is_no_mapping_is_not_shown(text: str) -> None:
    (error,) = parse_text(text, "o.yaml").errors
    assert str(error) == "o.yaml: document 1 (line 1): must be a mapping"


@pytest.mark.parametrize("name", ["a\\nk8s:role=admin", "Upper", "a b", "a" * 254])
def test_a_service_account_is_a_name(name: str) -> None:
    """It becomes a label of the identity, and must not look like several."""
    text = f'{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {{serviceAccountName: "{name}"}}}}'
    (error,) = parse_text(text, "o.yaml").errors
    assert str(error).startswith("o.yaml: Pod default/a: spec.serviceAccountName: ")
    assert "is not a valid name" in str(error)


POD = "{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {{containers: [{{ports: [{}]}}]}}}}"
SLICE = "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: a}}, {}}}"
PORT = "Pod default/a: spec.containers[0].ports[0]"
NAMES = "at most 15 lower-case letters, digits and «-», one letter at least"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (POD.format("{name: web}"), f"{PORT}.containerPort: is missing"),
        (POD.format("{name: web, containerPort: 0}"), f"{PORT}.containerPort: 0 is not a port (1 to 65535)"),
        (POD.format("{name: WEB, containerPort: 1}"), f"{PORT}.name: WEB is not a port name ({NAMES})"),
        (POD.format("{name: '80', containerPort: 1}"), f"{PORT}.name: 80 is not a port name ({NAMES})"),
        (
            POD.format("{name: web, containerPort: 1, protocol: tcp}"),
            f"{PORT}.protocol: tcp is not a protocol (TCP, UDP, SCTP)",
        ),
        (SLICE.format("endpoints: []"), "EndpointSlice default/a: addressType: is missing"),
        (
            SLICE.format("addressType: IPv5"),
            "EndpointSlice default/a: addressType: IPv5 is not an address type (IPv4, IPv6, FQDN)",
        ),
        (
            SLICE.format("addressType: IPv6, endpoints: [{addresses: [192.0.2.1]}]"),
            "EndpointSlice default/a: endpoints[0].addresses[0]: 192.0.2.1 is not an IPv6 address",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {app: 1}}}",
            "Service default/a: spec.selector.app: must be a string, is an integer (1)",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: Other}}",
            "Service default/a: spec.type: Other is not a type (ClusterIP, NodePort, LoadBalancer, ExternalName)",
        ),
        (
            "{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: a}, spec: {externalCIDRs: [10.0.0.1]}}",
            "CiliumCIDRGroup a: spec.externalCIDRs[0]: 10.0.0.1 is not a CIDR (no prefix length)",
        ),
        (
            "{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: a}, spec: {externalCidrs: []}}",
            "CiliumCIDRGroup a: spec.externalCIDRs: is missing",
        ),
        (
            "{apiVersion: cilium.io/v1, kind: CiliumCIDRGroup, metadata: {name: a}}",
            "document 1 (line 1): apiVersion: unsupported version cilium.io/v1 of CiliumCIDRGroup "
            "(supported: cilium.io/v2, cilium.io/v2alpha1)",
        ),
    ],
)
def test_refused(text: str, message: str) -> None:
    parsed = parse_text(text, "o.yaml")
    assert [str(error) for error in parsed.errors] == [f"o.yaml: {message}"]


def test_every_kind_has_its_place_in_a_cluster() -> None:
    text = "\n---\n".join(
        f"{{apiVersion: {version}, kind: {kind}, metadata: {{name: a}}, {rest}}}"
        for version, kind, rest in (
            ("v1", "Service", "spec: {}"),
            ("discovery.k8s.io/v1", "EndpointSlice", "addressType: IPv4"),
            ("cilium.io/v2", "CiliumCIDRGroup", "spec: {externalCIDRs: []}"),
            ("v1", "Secret", "data: {}"),
        )
    )
    cluster = Cluster().with_objects(parse_text(text, "o.yaml").objects)
    assert [list(part) for part in (cluster.services, cluster.slices, cluster.cidr_groups, cluster.secrets)] == [
        ["default/a"],
        ["default/a"],
        ["a"],
        ["default/a"],
    ]
