"""What the fields of Services and EndpointSlices come to mean, and what of them is refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from spliceway.policy.parse import parse_text
from spliceway.policy.servicemodel import Endpoint, EndpointSlice, Ingress, Service, ServicePort, SlicePort
from spliceway.policy.verdict import Protocol

FOUR, SIX = ip_address("10.96.0.10"), ip_address("fd00:96::10")


def service(spec: str, *, meta: str = "", status: str = "{}") -> Service:
    text = f"{{apiVersion: v1, kind: Service, metadata: {{name: a{meta}}}, spec: {{{spec}}}, status: {status}}}"
    parsed = parse_text(text, "o.yaml")
    assert [str(error) for error in parsed.errors] == []
    (found,) = parsed.objects
    assert isinstance(found, Service)
    return found


def endpoint_slice(rest: str, *, labels: str = "") -> EndpointSlice:
    text = (
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, "
        f"metadata: {{name: a, labels: {{{labels}}}}}, addressType: IPv4, {rest}}}"
    )
    parsed = parse_text(text, "o.yaml")
    assert [str(error) for error in parsed.errors] == []
    (found,) = parsed.objects
    assert isinstance(found, EndpointSlice)
    return found


def test_a_service_as_an_api_server_has_it() -> None:
    parsed = parse_text(
        """
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  uid: 0fc0c5e1
  creationTimestamp: "2025-03-01T10:00:00Z"
  annotations: {a/b: c}
  labels: {app: web}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: true
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  externalIPs: [198.51.100.1, 198.51.100.1]
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  loadBalancerSourceRanges: [" 203.0.113.0/24 "]
  ports:
  - {name: http, port: 80, protocol: TCP, targetPort: web, nodePort: 30080, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP}
  - {name: sctp, port: 80, protocol: SCTP, targetPort: 8080}
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  trafficDistribution: PreferSameNode
status:
  conditions: []
  loadBalancer:
    ingress:
    - {ip: 192.0.2.1, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}
    - {ip: 192.0.2.2, ipMode: Proxy}
    - {ip: "2001:db8::1"}
    - {hostname: lb.example}
""",
        "o.yaml",
    )
    assert parsed.errors == ()
    assert parsed.objects == (
        Service(
            "shop",
            "web",
            {"app": "web"},
            {"app": "web"},
            "o.yaml",
            type="LoadBalancer",
            cluster_ips=(FOUR, SIX),
            families=(4, 6),
            external_ips=(ip_address("198.51.100.1"),),
            ingress=(
                Ingress(ip_address("192.0.2.1")),
                Ingress(ip_address("192.0.2.2"), proxied=True),
                Ingress(ip_address("2001:db8::1")),
            ),
            source_ranges=(ip_network("203.0.113.0/24"),),
            ports=(
                ServicePort("http", Protocol.TCP, 80, "web", 30080),
                ServicePort("dns", Protocol.UDP, 53, 53),
                ServicePort("sctp", Protocol.SCTP, 80, 8080),
            ),
            external_local=True,
            affinity_seconds=60,
            distribution="PreferSameNode",
            created="2025-03-01T10:00:00Z",
        ),
    )


def test_defaults_and_what_has_no_cluster_ip() -> None:
    assert service("") == Service("default", "a", None, {}, "o.yaml")
    assert service("clusterIP: '', clusterIPs: []") == service("")
    for written in ("clusterIP: None", "clusterIP: None, clusterIPs: [None], ipFamilies: [IPv4]", "clusterIPs: [None]"):
        assert service(written).headless
        assert service(written).cluster_ips == ()
    assert service("clusterIPs: [10.96.0.10]").cluster_ips == service("clusterIP: 10.96.0.10").cluster_ips == (FOUR,)
    assert not service("clusterIP: 10.96.0.10").headless
    # Three hours, as the API server fills it in; without affinity it means nothing.
    assert service("sessionAffinity: ClientIP").affinity_seconds == 10800
    assert (
        service("sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}").affinity_seconds == 0
    )
    assert service("type: ExternalName, externalName: db.example").external_name == "db.example"
    assert service("publishNotReadyAddresses: true").publish_not_ready
    assert service("internalTrafficPolicy: Local").internal_local


@pytest.mark.parametrize("written", ["null", "'yesterday'", "5", "'2025-03-01T10:00:00+01:00'"])
def test_a_time_that_no_api_server_writes_is_no_age(written: str) -> None:
    assert service("", meta=f", creationTimestamp: {written}").created == ""


def test_an_endpoint_slice_as_an_api_server_has_it() -> None:
    found = endpoint_slice(
        """ports: [{name: http, port: 8080, protocol: TCP, appProtocol: http}, {name: all, port: null}, {port: 53}],
endpoints: [
  {addresses: [10.1.0.1, 10.1.0.2], conditions: {ready: true, serving: true, terminating: false}, hostname: a,
   nodeName: n1, zone: z1, deprecatedTopology: {a: b},
   hints: {forZones: [{name: z2}, {name: z1}], forNodes: [{name: n1}]},
   targetRef: {kind: Pod, namespace: shop, name: web-1, uid: x}},
  {addresses: [10.1.0.3]},
  {addresses: [10.1.0.4], conditions: {ready: null, serving: null, terminating: null},
   targetRef: {kind: Node, name: n1}},
  {addresses: [10.1.0.5], conditions: {ready: false, serving: true, terminating: true}},
  {addresses: [10.1.0.6], conditions: {ready: false}}]""",
        labels="kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: x",
    )
    one, two, three, four, five, six = (ip_address(f"10.1.0.{last}") for last in range(1, 7))
    assert found == EndpointSlice(
        "default",
        "a",
        "web",
        (
            Endpoint((one, two), node="n1", zone="z1", zones=("z1", "z2"), nodes=("n1",), target="Pod shop/web-1"),
            Endpoint((three,)),
            Endpoint((four,), target="Node n1"),
            Endpoint((five,), ready=False, terminating=True),
            Endpoint((six,), ready=False),
        ),
        "o.yaml",
        4,
        (
            SlicePort("http", Protocol.TCP, 8080),
            SlicePort("all", Protocol.TCP, None),
            SlicePort("", Protocol.TCP, 53),
        ),
    )
    assert found.addresses == (one, two, three, four, five)  # of toServices
    assert endpoint_slice("endpoints: null", labels="service.kubernetes.io/headless: ''").headless


SERVICE = "{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {{{}}}}}"
SLICE = "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: a}}, addressType: IPv4, {}}}"
NO_ADDRESS = "is no address for a Service (unspecified, loopback, link-local, multicast or broadcast)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clusterIP: none", "clusterIP: none is not an IP address"),
        ("clusterIP: 10.96.0.10x, clusterIPs: [10.96.0.10]", "clusterIP: 10.96.0.10x is not an IP address"),
        ("clusterIP: 010.0.0.1", "clusterIP: 010.0.0.1 is not an IP address"),
        (
            "clusterIP: '::ffff:10.0.0.1'",
            "clusterIP: ::ffff:10.0.0.1 is not an address of packets (IPv4-mapped or with a zone)",
        ),
        ("clusterIP: 127.0.0.1", f"clusterIP: 127.0.0.1 {NO_ADDRESS}"),
        ("clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]", "clusterIPs[0]: 10.0.0.2 is not spec.clusterIP (10.0.0.1)"),
        ("clusterIP: None, clusterIPs: [10.0.0.2]", "clusterIPs[0]: 10.0.0.2 is not spec.clusterIP (None)"),
        ("clusterIPs: [10.0.0.1, None]", "clusterIPs: None must be alone: there are addresses beside it"),
        ("clusterIPs: [10.0.0.1, 10.0.0.2]", "clusterIPs[1]: 10.0.0.2 is a second address of IPv4"),
        ("clusterIPs: 10.0.0.1", "clusterIPs: must be a list, is a string (10.0.0.1)"),
        ("clusterIP: 10.0.0.1, ipFamilies: [IPv6]", "ipFamilies: does not fit spec.clusterIPs, which are of IPv4"),
        ("ipFamilies: [ipv4]", "ipFamilies[0]: ipv4 is not an IP family (IPv4, IPv6)"),
        ("externalIPs: [198.51.100.1, '::']", f"externalIPs[1]: :: {NO_ADDRESS}"),
        ("externalIPs: [169.254.1.1]", f"externalIPs[0]: 169.254.1.1 {NO_ADDRESS}"),
        ("externalIPs: ['ff02::1']", f"externalIPs[0]: ff02::1 {NO_ADDRESS}"),
        (
            "loadBalancerSourceRanges: [10.0.0.1]",
            "loadBalancerSourceRanges[0]: 10.0.0.1 is not a CIDR (no prefix length)",
        ),
        ("ports: [{name: a}]", "ports[0].port: is missing"),
        ("ports: [{port: 0}]", "ports[0].port: 0 is not a port (1 to 65535)"),
        ("ports: [{port: '80'}]", "ports[0].port: must be an integer, is a string (80)"),
        ("ports: [{port: 80, targetPort: 65536}]", "ports[0].targetPort: 65536 is not a port (1 to 65535)"),
        ("ports: [{port: 80, targetPort: true}]", "ports[0].targetPort: must be an integer, is true or false (True)"),
        (
            "ports: [{port: 80, targetPort: '8080'}]",
            "ports[0].targetPort: 8080 is not a port name "
            "(at most 15 lower-case letters, digits and «-», one letter at least)",
        ),
        ("ports: [{port: 80, nodePort: 65536}]", "ports[0].nodePort: 65536 is not a port (1 to 65535, or 0 for none)"),
        ("ports: [{port: 80, protocol: tcp}]", "ports[0].protocol: tcp is not a protocol (TCP, UDP, SCTP)"),
        ("ports: [{port: 80, name: A}]", "ports[0].name: A is not a port name (lower-case letters, digits and «-»)"),
        ("ports: [{port: 80, name: a}, {port: 81}]", "ports[1].name: is missing: of several ports each needs a name"),
        ("ports: [{port: 80, name: a}, {port: 81, name: a}]", "ports[1].name: a appears twice"),
        ("ports: [{port: 80, name: a}, {port: 80, name: b}]", "ports[1].port: 80 of TCP appears twice"),
        ("internalTrafficPolicy: local", "internalTrafficPolicy: local is not a traffic policy (Cluster, Local)"),
        ("externalTrafficPolicy: Any", "externalTrafficPolicy: Any is not a traffic policy (Cluster, Local)"),
        ("sessionAffinity: Cookie", "sessionAffinity: Cookie is not a session affinity (None, ClientIP)"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not from 1 to 86400 seconds",
        ),
        ("publishNotReadyAddresses: 'yes'", "publishNotReadyAddresses: must be true or false, is a string (yes)"),
    ],
)
def test_refused_services(spec: str, message: str) -> None:
    parsed = parse_text(SERVICE.format(spec), "o.yaml")
    assert [str(error) for error in parsed.errors] == [f"o.yaml: Service default/a: spec.{message}"]


@pytest.mark.parametrize(
    ("ingress", "message"),
    [
        ("{ip: lb.example}", "ip: lb.example is not an IP address"),
        ("{ip: 224.0.0.1}", f"ip: 224.0.0.1 {NO_ADDRESS}"),
        ("{ip: 192.0.2.1, ipMode: vip}", "ipMode: vip is not an IP mode (VIP, Proxy)"),
    ],
)
def test_refused_addresses_of_load_balancers(ingress: str, message: str) -> None:
    text = SERVICE.format("")[:-1] + f", status: {{loadBalancer: {{ingress: [{ingress}]}}}}}}"
    place = "status.loadBalancer.ingress[0]"
    assert [str(error) for error in parse_text(text, "o.yaml").errors] == [
        f"o.yaml: Service default/a: {place}.{message}"
    ]


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("endpoints: [{}]", "endpoints[0].addresses: is missing"),
        ("endpoints: [{addresses: [host.example]}]", "endpoints[0].addresses[0]: host.example is not an IP address"),
        ("endpoints: [{addresses: ['fd00::1']}]", "endpoints[0].addresses[0]: fd00::1 is not an IPv4 address"),
        (
            "endpoints: [{addresses: [10.0.0.1], conditions: {ready: 'true'}}]",
            "endpoints[0].conditions.ready: must be true or false, is a string (true)",
        ),
        (
            "endpoints: [{addresses: [10.0.0.1], nodeName: 5}]",
            "endpoints[0].nodeName: must be a string, is an integer (5)",
        ),
        (
            "endpoints: [{addresses: [10.0.0.1], hints: {forZones: [a]}}]",
            "endpoints[0].hints.forZones[0]: must be a mapping, is a string (a)",
        ),
        (
            "endpoints: [{addresses: [10.0.0.1], hints: {forNodes: [{name: ''}]}}]",
            "endpoints[0].hints.forNodes[0].name: is empty",
        ),
        ("ports: [{port: 70000}]", "ports[0].port: 70000 is not a port (1 to 65535)"),
        ("ports: [{port: 80}, {port: 81}]", "ports[1].name: '' appears twice"),
        ("ports: [{port: 80, protocol: ICMP}]", "ports[0].protocol: ICMP is not a protocol (TCP, UDP, SCTP)"),
    ],
)
def test_refused_slices(rest: str, message: str) -> None:
    parsed = parse_text(SLICE.format(rest), "o.yaml")
    assert [str(error) for error in parsed.errors] == [f"o.yaml: EndpointSlice default/a: {message}"]
