"""Services between documents and kernel: what goes leaves before policy forgets it, what comes waits until it knows."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from spliceway.agent.servicesync import ServiceSync, leaving, missing
from spliceway.bpf.errors import DatapathError, KernelRefusedError, MapFullError
from spliceway.bpf.services import Applied, FrontendRow
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.loadbalancing import Changes
from spliceway.policy.verdict import Protocol
from support.agent import MemoryDatapath, run

WEB = Frontend(ip_address("10.96.0.10"), 80, Protocol.TCP)
DNS = Frontend(ip_address("fd00:96::53"), 53, Protocol.UDP)
SCTP = Frontend(ip_address("10.96.0.10"), 80, Protocol.SCTP)


def state(*numbers: int, version: int = 4, affinity: int = 0) -> FrontendState:
    prefix = "10.240.1." if version == 4 else "fd00::"
    return FrontendState(
        "default/web", "", "ClusterIP", tuple(Backend(ip_address(f"{prefix}{one}"), 80) for one in numbers), affinity
    )


def nobody(_address: object) -> bool:
    return False


def everybody(_address: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("before", "wanted", "known", "expected"),
    [
        (state(1, 2), state(2, 3), nobody, state(2)),
        (state(1), state(1, 2), nobody, "nothing"),
        (state(1), state(1, affinity=5), nobody, "nothing"),
        (state(1, 2), state(), everybody, state()),
        (state(1, 2), None, everybody, None),
        (state(1, 2), state(3), nobody, state()),
        (state(1, 2), state(3), everybody, "nothing"),
        (state(1, 2), state(3), lambda address: str(address) == "10.240.1.2", state(2)),
        (state(1, 2), state(2, 3), everybody, state(2)),
    ],
)
def test_what_goes_at_once(
    before: FrontendState, wanted: FrontendState | None, known: object, expected: object
) -> None:
    found = leaving({WEB: before}, {WEB: wanted}, known)  # type: ignore[arg-type]
    assert found == ({} if expected == "nothing" else {WEB: expected})


def test_a_frontend_that_comes_has_nothing_to_leave() -> None:
    assert leaving({}, {WEB: state(1), DNS: None}, nobody) == {}


def test_what_is_missing() -> None:
    assert missing({}, {WEB: state(1), SCTP: state(1)}) == {WEB: state(1)}
    assert missing({WEB: state(1), DNS: state(1, version=6)}, {WEB: state(1)}) == {DNS: None}
    assert missing({WEB: state(1)}, {WEB: state(2)}) == {WEB: state(2)}


class Kernel(MemoryDatapath):
    """One that refuses when it is told to, and then has written half or nothing."""

    def __init__(self) -> None:
        super().__init__([])
        self.refuse: DatapathError | None = None
        self.writes_half = False
        self.reads = 0

    async def held_services(self) -> list[FrontendRow]:
        self.reads += 1
        return await super().held_services()

    async def set_services(self, changes: Changes) -> Applied:
        if self.refuse is not None:
            if self.writes_half:
                await super().set_services(dict(list(changes.items())[: len(changes) // 2]))
            raise self.refuse
        return await super().set_services(changes)


@pytest.mark.parametrize("writes_half", [False, True])
def test_nothing_is_lost_when_the_kernel_refuses(writes_half: bool) -> None:
    async def body() -> None:
        kernel, wanted = Kernel(), {WEB: state(1), DNS: state(1, version=6)}
        sync = ServiceSync(kernel, lambda: wanted)
        sync.want(wanted)
        kernel.refuse, kernel.writes_half = KernelRefusedError("bpf", 1), writes_half
        with pytest.raises(KernelRefusedError):
            await sync.join()
        wanted = {WEB: state(2)}
        sync.want({WEB: state(2), DNS: None})
        kernel.refuse = None
        await sync.join()
        assert kernel.services == wanted
        assert sync.failures == 1

    run(body)


class Small(Kernel):
    """One with room for so many frontends and backends, and a frontend that it never takes."""

    def __init__(self, frontends: int, backends: int, bad: Frontend | None = None) -> None:
        super().__init__()
        self.frontends, self.backends, self.bad = frontends, backends, bad

    async def set_services(self, changes: Changes) -> Applied:
        if self.bad in changes:
            raise DatapathError(f"frontend {self.bad}: bad")
        then = {**self.services, **changes}
        states = [state for state in then.values() if state is not None]
        if len(states) > self.frontends:
            raise MapFullError("lb_frontends", len(states), len(states), self.frontends)
        if (need := sum(len(state.backends) for state in states)) > self.backends:
            raise MapFullError("lb_backends", need, need, self.backends)
        return await super().set_services(changes)


def frontend(number: int) -> Frontend:
    return Frontend(ip_address(f"10.96.1.{number}"), 80, Protocol.TCP)


def test_what_has_no_room_does_not_keep_others_from_changing() -> None:
    async def body() -> None:
        kernel, wanted = Small(10, 20), {frontend(number): state(1) for number in range(10)}
        sync = ServiceSync(kernel, lambda: wanted)
        sync.want(wanted)
        await sync.join()
        assert kernel.services == wanted
        more = {
            **{frontend(number): state(2) for number in range(5)},  # others
            frontend(9): state(*range(1, 40)),  # too many
            **{frontend(number): state(1) for number in range(20, 30)},  # too many frontends
        }
        wanted = {**wanted, **more}
        sync.want(more)
        await sync.leave(everybody)
        with pytest.raises(
            DatapathError,
            match=r"stay as they were: 11 \(10\.96\.1\.\d+:80/TCP[^)]*, …\): map lb_.*raise datapath\.max",
        ):
            await sync.join()
        assert kernel.services == {frontend(n): state(2) if n < 5 else state(1) for n in range(10)}
        assert (kernel.reads, sync.failures) == (1, 1)
        kernel.frontends = kernel.backends = 100
        await sync.join()
        assert kernel.services == wanted

    run(body)


def test_a_frontend_without_backends_takes_no_room_of_one_that_has_some() -> None:
    async def body() -> None:
        kernel = Small(3, 20)
        wanted = {frontend(number): state(*([1] if number > 2 else [])) for number in range(6)}
        sync = ServiceSync(kernel, lambda: wanted)
        sync.want(wanted)
        with pytest.raises(DatapathError, match=r"stay as they were: 3 \(10\.96\.1\.0:80/TCP"):
            await sync.join()
        assert kernel.services.keys() == {frontend(3), frontend(4), frontend(5)}

    run(body)


def test_it_is_pending_until_all_is_in_the_kernel() -> None:
    """Right after a start nothing has failed yet, and nothing is there."""

    async def body() -> None:
        kernel, wanted = Small(1, 20), {frontend(1): state(1), frontend(2): state(1)}
        sync = ServiceSync(kernel, lambda: wanted)
        assert sync.is_pending
        await sync.leave(everybody)
        assert sync.is_pending
        with pytest.raises(DatapathError):
            await sync.join()
        assert sync.is_pending
        kernel.frontends = 2
        await sync.join()
        assert not sync.is_pending
        sync.want({frontend(2): None})
        assert sync.is_pending

    run(body)


def test_a_bad_frontend_is_left_alone() -> None:
    async def body() -> None:
        kernel, wanted = Small(10, 20, bad=frontend(3)), {frontend(number): state(1) for number in range(8)}
        sync = ServiceSync(kernel, lambda: wanted)
        sync.want(wanted)
        with pytest.raises(
            DatapathError, match=r"stay as they were: 1 \(10\.96\.1\.3:80/TCP[^)]*\): frontend 10\.96\.1\.3:80/TCP: bad"
        ):
            await sync.join()
        assert kernel.services.keys() == wanted.keys() - {frontend(3)}

    run(body)


def test_what_an_earlier_agent_left_goes() -> None:
    async def body() -> None:
        kernel = Kernel()
        kernel.services = {WEB: state(1, 2), DNS: state(7, version=6)}
        sync = ServiceSync(kernel, lambda: {WEB: state(2, 3)})
        sync.want({WEB: state(2, 3)})
        await sync.leave(nobody)
        assert kernel.services == {WEB: state(2)}
        await sync.join()
        assert kernel.services == {WEB: state(2, 3)}
        changes = sync.changes
        await sync.leave(nobody)
        await sync.join()
        assert sync.changes == changes

    run(body)


def test_what_the_node_serves_is_left_to_it() -> None:
    """The node-local DNS cache: its addresses come and go, and so do changes of the Services behind them."""

    async def body() -> None:
        kernel = Kernel()
        kernel.services = {DNS: state(7, version=6)}  # left by an earlier agent
        wanted = {WEB: state(1), DNS: state(8, version=6)}
        sync = ServiceSync(kernel, lambda: wanted)

        async def bring() -> None:
            await sync.leave(nobody)
            await sync.join()

        sync.serve(frozenset({DNS.address}))
        await bring()
        assert kernel.services == {WEB: state(1)}
        wanted[DNS] = state(9, version=6)
        sync.want({DNS: wanted[DNS]})
        await bring()
        assert kernel.services == {WEB: state(1)}, "also when it changes"
        sync.serve(frozenset({WEB.address}))
        await bring()
        assert kernel.services == {DNS: state(9, version=6)}
        sync.serve(frozenset())
        await bring()
        assert kernel.services == wanted

    run(body)
