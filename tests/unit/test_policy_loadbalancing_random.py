"""Random edits of Services, EndpointSlices and Nodes: load balancing is what the oracle works out from scratch."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from spliceway.policy.lbmodel import Frontend, FrontendState
from spliceway.policy.loadbalancing import LoadBalancing
from spliceway.policy.model import Node, Object, object_key
from spliceway.policy.servicemodel import Endpoint, EndpointSlice, Ingress, Service, ServicePort, SlicePort
from spliceway.policy.verdict import Protocol
from support.oracle_services import expected

NODES = ("node1", "node2")
ZONES = ("a", "b")
#: Few, so that Services want the same ones.
FRONTENDS = {
    4: [ip_address(f"10.96.0.{last}") for last in (9, 10, 11)],
    6: [ip_address(f"fd00:96::{last}") for last in (9, 10, 11)],
}
BACKENDS = {
    4: [ip_address(f"10.1.0.{last}") for last in (9, 10, 100)],
    6: [ip_address(f"fd00:1::{last}") for last in (9, 10)],
}
LABELS: tuple[dict[str, str], ...] = (
    *({},) * 20,
    {"service.kubernetes.io/service-proxy-name": ""},
    {"service.kubernetes.io/headless": "x"},
)

some = st.sampled_from
# Most Services and slices have to do with each other: otherwise hardly a frontend had a backend.
namespaces = some(("one",) * 5 + ("two",))
names = some(("a", "a", "b"))
port_names = some(("",) * 4 + ("web",))
protocols = some((Protocol.TCP,) * 5 + (Protocol.UDP,))
any_frontend = some([*FRONTENDS[4], *FRONTENDS[6]])
rarely = some((False, False, False, True))
hints = some(((), ("a",), ("b",), ("a", "b"), ("a",), ("b",)))
node_hints = some(((), ("node1",), ("node2",), ("node1", "node2"), ("node1",), ("node2",)))


@st.composite
def services(draw: st.DrawFn) -> Service:
    """A Service as a parser lets it pass."""
    families = draw(some(((4,), (4,), (4,), (4, 6), (6,), (6, 4), ())))
    ports: dict[tuple[Protocol, int], ServicePort] = {}
    for name in draw(st.lists(port_names, min_size=1, max_size=2, unique=True)):
        protocol, number = draw(protocols), draw(some((53, 80)))
        ports.setdefault((protocol, number), ServicePort(name, protocol, number, number))
    return Service(
        draw(namespaces),
        draw(names),
        labels=draw(some(LABELS)),
        type=draw(some(("ClusterIP",) * 4 + ("LoadBalancer",) * 4 + ("ExternalName",))),
        cluster_ips=tuple(draw(some(FRONTENDS[family])) for family in families),
        external_ips=tuple(draw(st.lists(any_frontend, max_size=2, unique=True))),
        ingress=tuple(draw(st.lists(st.builds(Ingress, any_frontend, rarely), max_size=2, unique=True))),
        source_ranges=draw(some(((), (), (ip_network("10.0.0.0/8"),), (ip_network("fd00::/8"),)))),
        ports=tuple(ports.values()),
        internal_local=draw(rarely),
        external_local=draw(rarely),
        affinity_seconds=draw(some((0, 0, 60))),
        created=draw(some(("", "2025-01-01T00:00:00Z", "2025-06-01T00:00:00Z"))),
    )


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    """An EndpointSlice as a parser lets it pass."""
    family = draw(some((4, 4, 4, 6)))
    # Mostly all have hints of a sort, or none: otherwise hints would hardly ever count.
    with_zones, with_nodes = draw(some(((False, False), (True, False), (False, True), (True, True))))
    all_ready = draw(st.booleans())
    ends = draw(
        st.lists(
            st.builds(
                Endpoint,
                some([*((one,) for one in BACKENDS[family]), tuple(BACKENDS[family]), ()]),
                ready=st.just(True) if all_ready else st.booleans(),
                serving=some((True, True, False)),
                terminating=st.booleans(),
                node=some(("", *NODES)),
                zones=hints if with_zones else st.just(()),
                nodes=node_hints if with_nodes else st.just(()),
            ),
            min_size=1,
            max_size=3,
        )
    )
    ports = draw(
        st.lists(
            st.builds(SlicePort, port_names, protocols, some((80, 80, 80, 80, 8080, None))),
            min_size=1,
            max_size=2,
            unique_by=lambda port: port.name,
        )
    )
    return EndpointSlice(
        draw(namespaces),
        draw(some(("s1", "s2", "s3"))),
        draw(names),
        tuple(ends),
        family=family,
        ports=tuple(ports),
        headless=draw(some((False,) * 9 + (True,))),
    )


nodes = st.builds(
    lambda name, labels: Node(name, labels=labels),
    some(("node1", "node1", "node2")),
    some(({}, *({"topology.kubernetes.io/zone": zone} for zone in ZONES))),
)
objects = st.one_of(services(), services(), slices(), slices(), slices(), nodes)


class Edits(RuleBasedStateMachine):
    """One change after the other, some of them of several objects."""

    def __init__(self) -> None:
        super().__init__()
        self.balancing = LoadBalancing(NODES[0])
        self.objects: dict[tuple[str, str], Object] = {}
        self.frontends: dict[Frontend, FrontendState] = {}

    @rule(items=st.lists(objects, min_size=1, max_size=4))
    def put(self, items: list[Object]) -> None:
        """Objects come, or change."""
        self._apply({object_key(item): item for item in items})

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Objects go; some were not there."""
        known = [*sorted(self.objects), ("Service", "one/none"), ("EndpointSlice", "one/none"), ("Node", "none")]
        self._apply(dict.fromkeys(data.draw(st.lists(some(known), min_size=1, max_size=2, unique=True))))

    @rule(data=st.data(), item=objects)
    def exchange(self, data: st.DataObject, item: Object) -> None:
        """One comes while another goes."""
        gone = dict.fromkeys(data.draw(st.lists(some(sorted(self.objects)), max_size=1)) if self.objects else [])
        self._apply({**gone, object_key(item): item})

    def _apply(self, changes: dict[tuple[str, str], Object | None]) -> None:
        before = dict(self.frontends)
        changed = self.balancing.apply(changes)
        for key, item in changes.items():
            self.objects.pop(key, None)
            if item is not None:
                self.objects[key] = item
        for frontend, state in changed.items():
            assert before.get(frontend) != state
            self.frontends.pop(frontend, None)
            if state is not None:
                self.frontends[frontend] = state
        assert self.balancing.apply(changes) == {}

    @invariant()
    def as_from_scratch(self) -> None:
        """What the changes add up to, what is given out, and what the oracle says are one."""
        found = expected(self.objects.values(), NODES[0])
        balance = self.balancing.balance
        assert dict(balance.frontends) == found.frontends == self.frontends
        contested = {
            one: [(loser.service, loser.kind) for loser in losers] for one, losers in balance.conflicts.items()
        }
        assert contested == found.contested
        assert balance.without_backends == sum(not state.backends for state in found.frontends.values())
        assert balance.services == sum(kind == "Service" for kind, _ in self.objects)


Edits.TestCase.settings = settings(max_examples=200, stateful_step_count=20)
TestEdits = Edits.TestCase
