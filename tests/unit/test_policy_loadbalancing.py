"""Where Services lead on a node: kube-proxy's rules one by one, who has a frontend, and what a change costs."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from spliceway.policy.lbmodel import Backend, Frontend, FrontendState, Loser
from spliceway.policy.loadbalancing import LoadBalancing
from spliceway.policy.model import Object, object_key
from spliceway.policy.parse import parse_text
from spliceway.policy.verdict import Protocol

NODE = "node1"


def objects(*texts: str) -> dict[tuple[str, str], Object | None]:
    parsed = parse_text("\n---\n".join(texts), "test.yaml")
    assert [str(error) for error in parsed.errors] == []
    return {object_key(item): item for item in parsed.objects}


def service(
    spec: str = "",
    *,
    name: str = "web",
    ip: str = "10.96.0.10",
    ports: str = "{port: 80}",
    meta: str = "",
    ingress: str = "",
) -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{namespace: shop, name: {name}{meta}}}
spec: {{clusterIP: "{ip}", ports: [{ports}], {spec}}}
status: {{loadBalancer: {{ingress: [{ingress}]}}}}
"""


def endpoints(
    *ends: str, of: str = "web", name: str = "", ports: str = "{port: 8080}", family: str = "IPv4", labels: str = ""
) -> str:
    listed = ", ".join(end if end.startswith("{") else f"{{addresses: ['{end}']}}" for end in ends)
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: shop, name: {name or of}-1, labels: {{kubernetes.io/service-name: {of}{labels}}}}}
addressType: {family}
ports: [{ports}]
endpoints: [{listed}]
"""


def end(address: str, conditions: str = "", *, node: str = "", zones: str = "", nodes: str = "") -> str:
    """An endpoint; `zones` and `nodes` are names of hints, with spaces between."""
    lists = [", ".join(f"{{name: {name}}}" for name in names.split()) for names in (zones, nodes)]
    hints = f"{{forZones: [{lists[0]}], forNodes: [{lists[1]}]}}"
    return f"{{addresses: ['{address}'], conditions: {{{conditions}}}, nodeName: '{node}', hints: {hints}}}"


def node(name: str = NODE, zone: str = "a") -> str:
    return (
        f"{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}}}"
    )


def frontend(address: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> Frontend:
    return Frontend(ip_address(address), port, protocol)


def lead(*texts: str) -> dict[str, list[str]]:
    """Frontends and their backends as text: «10.96.0.10:80/TCP» → [«10.1.0.1:8080», …]."""
    balancing = LoadBalancing(NODE)
    changed = balancing.apply(objects(*texts))
    assert dict(changed) == dict(balancing.balance.frontends)
    return shown(balancing.balance.frontends)


def shown(frontends: Mapping[Frontend, FrontendState]) -> dict[str, list[str]]:
    return {str(one): list(map(str, state.backends)) for one, state in frontends.items()}


DOWN = "ready: false"
DRAINING = "ready: false, serving: true, terminating: true"
GONE = "ready: false, serving: false, terminating: true"


def test_a_cluster_ip_leads_to_its_ready_endpoints() -> None:
    balancing = LoadBalancing(NODE)
    changed = balancing.apply(
        objects(
            service("sessionAffinity: ClientIP", ports="{name: http, port: 80}"),
            endpoints("10.1.0.10", "10.1.0.9", end("10.1.0.1", DOWN), ports="{name: http, port: 8080}"),
        )
    )
    # By number: 10.1.0.9 is before 10.1.0.10.
    backends = (Backend(ip_address("10.1.0.9"), 8080), Backend(ip_address("10.1.0.10"), 8080))
    assert changed == {frontend("10.96.0.10"): FrontendState("shop/web", "http", "ClusterIP", backends, 10800)}


def test_families_go_by_the_frontend() -> None:
    found = lead(
        service("clusterIPs: [10.96.0.10, 'fd00:96::10'], externalIPs: ['2001:db8::1', 198.51.100.1]"),
        endpoints("10.1.0.1"),
        endpoints("fd00:1::1", name="six", family="IPv6"),
    )
    assert found == {
        "10.96.0.10:80/TCP": ["10.1.0.1:8080"],
        "198.51.100.1:80/TCP": ["10.1.0.1:8080"],
        "[2001:db8::1]:80/TCP": ["[fd00:1::1]:8080"],
        "[fd00:96::10]:80/TCP": ["[fd00:1::1]:8080"],
    }


def test_an_external_address_needs_a_cluster_ip_of_its_version() -> None:
    text = service("externalIPs: ['2001:db8::1']", ingress="{ip: '2001:db8::2'}")
    assert lead(text, endpoints("10.1.0.1")) == {"10.96.0.10:80/TCP": ["10.1.0.1:8080"]}
    balancing = LoadBalancing(NODE)
    balancing.apply(objects(text))
    assert balancing.balance.left_out["shop/web"] == (
        "2001:db8::2: the Service has no cluster IP of IPv6",
        "2001:db8::1: the Service has no cluster IP of IPv6",
    )


def test_ports_are_found_by_name_and_protocol() -> None:
    found = lead(
        service(ports="{name: dns, port: 53, protocol: UDP}, {name: web, port: 80}, {name: odd, port: 81}"),
        endpoints("10.1.0.1", ports="{name: dns, port: 5353, protocol: UDP}, {name: web, port: 80}, {name: odd}"),
        endpoints("10.1.0.2", name="b", ports="{name: dns, port: 5353}, {name: web, port: 8080}"),
        endpoints("10.1.0.3", name="c", ports=""),
    )
    assert found == {
        "10.96.0.10:53/UDP": ["10.1.0.1:5353"],
        "10.96.0.10:80/TCP": ["10.1.0.1:80", "10.1.0.2:8080"],
        "10.96.0.10:81/TCP": [],  # a port without a number is every port
    }


@pytest.mark.parametrize(
    "spec",
    [
        service(ip="None"),
        service(ip=""),
        service("type: ExternalName, externalName: a.example"),
        service(meta=", labels: {service.kubernetes.io/service-proxy-name: other}"),
        service(meta=", labels: {service.kubernetes.io/service-proxy-name: ''}"),
        service(meta=", labels: {service.kubernetes.io/headless: ''}"),
    ],
)
def test_what_has_no_frontends(spec: str) -> None:
    assert lead(spec, endpoints("10.1.0.1")) == {}


def test_slices_that_do_not_count() -> None:
    found = lead(
        service(),
        endpoints("10.1.0.1", labels=", service.kubernetes.io/headless: ''"),
        endpoints("10.1.0.2", of="other"),
        endpoints("a.example", name="names", family="FQDN"),
    )
    assert found == {"10.96.0.10:80/TCP": []}


def test_an_endpoint_in_several_slices_is_one_and_its_first_address_counts() -> None:
    slices = (
        endpoints("10.1.0.1", "{addresses: [10.1.0.2, 10.1.0.3]}"),
        endpoints(end("10.1.0.1", DOWN), end("10.1.0.4", DOWN, node="node2"), name="x"),
        endpoints(end("10.1.0.4", node=NODE), name="y"),
        endpoints(end("10.1.0.4", DOWN), name="z"),
    )
    found = lead(service(), *slices)
    assert found == lead(*reversed(slices), service())
    # The first slice by name says whether it is ready, but what is of this node goes before.
    assert found == {"10.96.0.10:80/TCP": ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.4:8080"]}


@pytest.mark.parametrize(
    ("ends", "chosen"),
    [
        ((end("10.1.0.1"), end("10.1.0.2", DRAINING)), ["10.1.0.1"]),
        ((end("10.1.0.1", DOWN), end("10.1.0.2", DRAINING)), ["10.1.0.2"]),  # KEP-1669
        ((end("10.1.0.1", DOWN), end("10.1.0.2", GONE)), []),
        ((end("10.1.0.1", "ready: false, serving: true"),), []),  # it serves, but does not end
        ((end("10.1.0.1", "ready: false, terminating: true"),), ["10.1.0.1"]),  # unknown serving is serving
        ((end("10.1.0.1", "ready: true, terminating: true"),), ["10.1.0.1"]),  # publishNotReadyAddresses
    ],
)
def test_endpoints_that_terminate(ends: tuple[str, ...], chosen: list[str]) -> None:
    assert lead(service(), endpoints(*ends)) == {"10.96.0.10:80/TCP": [f"{one}:8080" for one in chosen]}


@pytest.mark.parametrize(
    ("ends", "chosen"),
    [
        ((end("10.1.0.1", node=NODE), end("10.1.0.2", node="node2")), ["10.1.0.1"]),
        ((end("10.1.0.2", node="node2"), end("10.1.0.3")), []),  # nobody else's, also when there is none here
        ((end("10.1.0.1", DRAINING, node=NODE), end("10.1.0.2", node="node2")), ["10.1.0.1"]),
        ((end("10.1.0.1", DRAINING, node=NODE), end("10.1.0.2", node=NODE)), ["10.1.0.2"]),
        ((end("10.1.0.1", GONE, node=NODE), end("10.1.0.2", node="node2")), []),
        # Hints have no part in it.
        ((end("10.1.0.1", node=NODE, zones="b"), end("10.1.0.2", node=NODE, zones="a")), ["10.1.0.1", "10.1.0.2"]),
    ],
)
def test_internal_traffic_policy_local(ends: tuple[str, ...], chosen: list[str]) -> None:
    text = service("internalTrafficPolicy: Local, externalIPs: [198.51.100.1]")
    found = lead(text, endpoints(*ends), node())
    assert found["10.96.0.10:80/TCP"] == [f"{one}:8080" for one in chosen]
    # It is about the cluster IP only.
    assert found["198.51.100.1:80/TCP"]


def test_external_traffic_policy_is_not_for_pods() -> None:
    """Pods dial external addresses as if a load balancer answered: with the endpoints of all nodes."""
    text = service("type: LoadBalancer, externalTrafficPolicy: Local", ingress="{ip: 192.0.2.1}")
    found = lead(text, endpoints(end("10.1.0.2", node="node2")))
    assert found == {"10.96.0.10:80/TCP": ["10.1.0.2:8080"], "192.0.2.1:80/TCP": ["10.1.0.2:8080"]}


@pytest.mark.parametrize(
    ("ends", "chosen"),
    [
        ((end("10.1.0.1", zones="a"), end("10.1.0.2", zones="b")), "1"),
        ((end("10.1.0.1", zones="a b"), end("10.1.0.2", zones="b")), "1"),
        ((end("10.1.0.1", zones="a"), end("10.1.0.2")), "12"),  # one has none
        ((end("10.1.0.1", zones="c"), end("10.1.0.2", zones="b")), "12"),  # none for this zone
        ((end("10.1.0.1", zones="a"), end("10.1.0.2", DOWN)), "1"),  # only ready ones need them
        ((end("10.1.0.1", DOWN, zones="a"), end("10.1.0.2", zones="b")), "2"),
        ((end("10.1.0.1", DRAINING, zones="a"), end("10.1.0.2", DRAINING, zones="b")), "12"),
        ((end("10.1.0.1", nodes="node1"), end("10.1.0.2", nodes="node2")), "1"),
        ((end("10.1.0.1", nodes="node1"), end("10.1.0.2")), "12"),
        ((end("10.1.0.1", nodes="node3"), end("10.1.0.2", nodes="node2")), "12"),
        # The node goes before the zone, and where it has none the zone counts.
        ((end("10.1.0.1", zones="a", nodes="node2"), end("10.1.0.2", zones="b", nodes="node1")), "2"),
        ((end("10.1.0.1", zones="a", nodes="node2"), end("10.1.0.2", zones="b", nodes="node3")), "1"),
    ],
)
def test_hints(ends: tuple[str, ...], chosen: str) -> None:
    found = lead(service("trafficDistribution: PreferSameNode"), endpoints(*ends), node())
    assert found == {"10.96.0.10:80/TCP": [f"10.1.0.{one}:8080" for one in chosen]}


def test_addresses_of_load_balancers() -> None:
    ingress = "{ip: 192.0.2.1}, {ip: 192.0.2.2, ipMode: Proxy}, {hostname: lb.example}"
    found = lead(service("type: LoadBalancer", ingress=ingress), endpoints("10.1.0.1"))
    assert found.keys() == {"10.96.0.10:80/TCP", "192.0.2.1:80/TCP"}
    # Who may dial is asked by source address, so that no pod may go round it; of each IP version by itself.
    text = service(
        "type: LoadBalancer, clusterIPs: [10.96.0.10, 'fd00:96::10'], loadBalancerSourceRanges: [10.0.0.0/8]",
        ingress=ingress + ", {ip: '2001:db8::1'}",
    )
    assert lead(text).keys() == {"10.96.0.10:80/TCP", "[fd00:96::10]:80/TCP", "[2001:db8::1]:80/TCP"}
    balancing = LoadBalancing(NODE)
    balancing.apply(objects(text))
    assert balancing.balance.left_out["shop/web"] == (
        "192.0.2.1: loadBalancerSourceRanges says who may dial it",
        "192.0.2.2: ipMode Proxy, the load balancer answers itself",
    )


def test_who_has_a_frontend_that_several_want() -> None:
    shared = frontend("198.51.100.1")
    old, young = ", creationTimestamp: '2025-01-01T00:00:00Z'", ", creationTimestamp: '2025-06-01T00:00:00Z'"

    def wants(name: str, last: int, meta: str = "") -> str:
        return service("externalIPs: [198.51.100.1]", name=name, ip=f"10.96.0.{last}", meta=meta)

    balancing = LoadBalancing(NODE)

    def apply(*texts: str) -> tuple[str, list[str]]:
        changed = balancing.apply(objects(*texts))
        balance = balancing.balance
        state = balance.frontends[shared]
        assert shared not in changed or changed[shared] == state
        return f"{state.service} {state.kind}", [one.service for one in balance.conflicts.get(shared, ())]

    assert apply(wants("d", 1)) == ("shop/d ExternalIP", [])
    # By name, where nothing says how old they are.
    assert apply(wants("c", 2), wants("e", 3)) == ("shop/c ExternalIP", ["shop/d", "shop/e"])
    assert apply(wants("z", 4, young)) == ("shop/z ExternalIP", ["shop/c", "shop/d", "shop/e"])
    assert apply(wants("y", 5, old)) == ("shop/y ExternalIP", ["shop/z", "shop/c", "shop/d", "shop/e"])
    # A cluster IP and an address that a load balancer was given are not taken away by asking for them.
    assert apply(service(name="lb", ip="10.96.0.6", ingress="{ip: 198.51.100.1}"))[0] == "shop/lb LoadBalancer"
    assert apply(service(name="own", ip="198.51.100.1"))[0] == "shop/own ClusterIP"
    assert balancing.balance.conflicts[shared][0] == Loser("shop/lb", "", "LoadBalancer")
    gone = [("Service", f"shop/{name}") for name in ("own", "lb", "y", "z", "c", "e")]
    changed = balancing.apply(dict.fromkeys(gone))
    assert changed[shared] == FrontendState("shop/d", "", "ExternalIP", (), 0)
    assert dict(balancing.balance.conflicts) == {}
    # Another port is another frontend.
    balancing.apply(objects(service("externalIPs: [198.51.100.1]", name="p", ip="10.96.0.7", ports="{port: 81}")))
    assert dict(balancing.balance.conflicts) == {}


def test_one_service_with_one_address_in_two_ways_is_no_conflict() -> None:
    text = service("internalTrafficPolicy: Local, externalIPs: [10.96.0.10, 192.0.2.1]", ingress="{ip: 192.0.2.1}")
    balancing = LoadBalancing(NODE)
    changed = balancing.apply(objects(text, endpoints(end("10.1.0.2", node="node2"))))
    assert {str(one): state.kind for one, state in changed.items() if state} == {
        "10.96.0.10:80/TCP": "ClusterIP",
        "192.0.2.1:80/TCP": "LoadBalancer",
    }
    assert dict(balancing.balance.conflicts) == {}


def test_changes_are_what_changed() -> None:
    balancing = LoadBalancing(NODE)
    first = objects(
        service(), endpoints("10.1.0.1"), service(name="db", ip="10.96.0.11"), endpoints("10.1.0.9", of="db")
    )
    assert len(balancing.apply(first)) == 2
    assert balancing.apply(first) == {}
    assert balancing.apply({("Service", "shop/none"): None, ("EndpointSlice", "shop/none"): None}) == {}
    before = balancing.balance
    # Where it is, or what it stands for, changes nothing here.
    assert balancing.apply(objects(endpoints(end("10.1.0.1", node="node2")))) == {}
    changed = balancing.apply(objects(endpoints("10.1.0.1", "10.1.0.2")))
    assert shown({one: state for one, state in changed.items() if state}) == {
        "10.96.0.10:80/TCP": ["10.1.0.1:8080", "10.1.0.2:8080"]
    }
    # A slice that goes over to another Service changes both.
    changed = balancing.apply(objects(endpoints("10.1.0.1", "10.1.0.2", of="db", name="web")))
    assert shown({one: state for one, state in changed.items() if state}) == {
        "10.96.0.10:80/TCP": [],
        "10.96.0.11:80/TCP": ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.9:8080"],
    }
    assert balancing.balance.without_backends == 1
    assert balancing.apply({("Service", "shop/web"): None}) == {frontend("10.96.0.10"): None}
    assert (balancing.balance.services, balancing.balance.without_backends) == (1, 0)
    # What was given out stays as it was.
    assert shown(before.frontends) == {"10.96.0.10:80/TCP": ["10.1.0.1:8080"], "10.96.0.11:80/TCP": ["10.1.0.9:8080"]}


def test_slices_may_come_before_their_service_and_stay_after_it() -> None:
    balancing = LoadBalancing(NODE)
    assert balancing.apply(objects(endpoints("10.1.0.1"))) == {}
    for _ in range(2):
        assert shown({one: state for one, state in balancing.apply(objects(service())).items() if state}) == {
            "10.96.0.10:80/TCP": ["10.1.0.1:8080"]
        }
        assert balancing.apply({("Service", "shop/web"): None}) == {frontend("10.96.0.10"): None}


def test_the_order_of_backends_does_not_depend_on_others() -> None:
    balancing = LoadBalancing(NODE)
    ends = [f"10.1.{number % 7}.{number}" for number in range(1, 60)]
    balancing.apply(objects(service(), endpoints(*ends)))
    before = balancing.balance.frontends[frontend("10.96.0.10")].backends
    balancing.apply(objects(endpoints(*reversed(ends[10:])), endpoints("10.1.3.200", name="more")))
    after = balancing.balance.frontends[frontend("10.96.0.10")].backends
    assert len(after) == 50
    stayed = set(before) & set(after)
    assert [one for one in before if one in stayed] == [one for one in after if one in stayed]


def test_a_change_costs_what_its_service_costs() -> None:
    balancing = LoadBalancing(NODE)
    many = [
        text
        for number in range(300)
        for text in (
            service(name=f"s{number}", ip=f"10.96.{number >> 8}.{number & 255}"),
            endpoints(*(f"10.1.{number & 255}.{last}" for last in range(1, 4)), of=f"s{number}", name=f"s{number}"),
        )
    ]
    many.append(endpoints(end("10.2.0.1", zones="a"), end("10.2.0.2", zones="b"), of="s7", name="hinted"))
    assert len(balancing.apply(objects(*many, node()))) == 300

    def work(changes: Mapping[tuple[str, str], Object | None]) -> tuple[int, int]:
        services, looked = balancing.work.services, balancing.work.endpoints
        balancing.apply(changes)
        return balancing.work.services - services, balancing.work.endpoints - looked

    assert work(objects(endpoints("10.1.200.1", of="s9", name="more"))) == (1, 4)
    assert work(objects(endpoints("10.1.200.2", of="s9", name="more"))) == (1, 4)
    assert work(objects(service(name="s9", ip="10.96.9.9"))) == (1, 4)
    assert work(objects(*many[:20], node())) == (1, 4)  # all as they were, but s9
    # Of a node only the zone counts, and only where hints name zones.
    assert work(objects(node("node2", "b"))) == (0, 0)
    assert work(objects(node(zone="b"))) == (1, 5)
    assert work({("Node", NODE): None}) == (1, 5)
    assert work({("EndpointSlice", "shop/hinted-1"): None}) == (1, 3)
    assert work(objects(node())) == (0, 0)


def test_a_zone_that_comes_late_counts() -> None:
    balancing = LoadBalancing(NODE)
    balancing.apply(objects(service(), endpoints(end("10.1.0.1", zones="a"), end("10.1.0.2", zones="b"))))

    def now() -> list[str]:
        return shown(balancing.balance.frontends)["10.96.0.10:80/TCP"]

    assert now() == ["10.1.0.1:8080", "10.1.0.2:8080"]
    balancing.apply(objects(node(zone="b")))
    assert now() == ["10.1.0.2:8080"]
    balancing.apply(objects(node(zone="a")))
    assert now() == ["10.1.0.1:8080"]
    balancing.apply({("Node", NODE): None})
    assert now() == ["10.1.0.1:8080", "10.1.0.2:8080"]
