"""Services between documents and kernel: what goes leaves before policy forgets it, what comes waits until it knows."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from spliceway.agent.servicesync import ServiceSync, leaving, missing
from spliceway.bpf.errors import DatapathError, KernelRefusedError, MapFullError
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
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

    async def held_services(self) -> list:  # type: ignore[type-arg]
        self.reads += 1
        return await super().held_services()

    async def set_services(self, changes):  # type: ignore[no-untyped-def]
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


def test_a_full_map_is_not_read_again() -> None:
    async def body() -> None:
        kernel = Kernel()
        sync = ServiceSync(kernel, lambda: {WEB: state(1)})
        sync.want({WEB: state(1)})
        kernel.refuse = MapFullError("lb_frontends", 2, 2, 1)
        for _ in range(3):
            with pytest.raises(MapFullError, match=r"raise datapath\.maxFrontends"):
                await sync.join()
        kernel.refuse = None
        await sync.join()
        assert (kernel.reads, kernel.services) == (1, {WEB: state(1)})

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
