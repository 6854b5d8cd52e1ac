"""Which Services an end is of, after any history of changes."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from spliceway.agent.servicenames import ServiceNames
from spliceway.policy.lbmodel import CLUSTER_IP, Backend, Frontend, FrontendState
from spliceway.policy.verdict import Protocol

TCP = Protocol.TCP
FRONTENDS = [Frontend(ip_address(text), port, TCP) for text in ("10.96.0.1", "fd00:96::1") for port in (80, 443)]
BACKENDS = [Backend(ip_address(text), 8080) for text in ("10.240.1.1", "10.240.1.2", "fd00:240::1")]

states = st.none() | st.builds(
    FrontendState,
    service=st.sampled_from(["default/web", "default/api", "other/web"]),
    port_name=st.just(""),
    kind=st.just(CLUSTER_IP),
    backends=st.lists(st.sampled_from(BACKENDS), unique=True).map(tuple),
)


@given(st.lists(st.dictionaries(st.sampled_from(FRONTENDS), states), max_size=8))
def test_after_any_history_as_from_what_there_is(history: list[dict[Frontend, FrontendState | None]]) -> None:
    names, there = ServiceNames(), dict[Frontend, FrontendState]()
    for changes in history:
        names.update(changes)
        for frontend, state in changes.items():
            there.pop(frontend, None)
            if state is not None:
                there[frontend] = state
    for frontend in FRONTENDS:
        found = (there[frontend].service,) if frontend in there else ()
        assert names.of(frontend.address, frontend.port, TCP) == found
    for backend in BACKENDS:
        services = sorted({state.service for state in there.values() if backend in state.backends})
        assert names.of(backend.address, backend.port, TCP) == tuple(services)


def test_who_is_dialled_comes_before_who_answers() -> None:
    names = ServiceNames()
    both = Backend(FRONTENDS[0].address, FRONTENDS[0].port)
    names.update(
        {
            FRONTENDS[0]: FrontendState("default/dialled", "", CLUSTER_IP, ()),
            FRONTENDS[1]: FrontendState("default/answers", "", CLUSTER_IP, (both,)),
        }
    )
    assert names.of(both.address, both.port, TCP) == ("default/dialled",)
    assert names.of(both.address, both.port, Protocol.UDP) == ("default/answers",), "another frontend, if it were one"
    assert names.of(both.address, both.port, 1) == (), "ICMP has no ports"
