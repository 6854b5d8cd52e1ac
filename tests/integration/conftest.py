"""What the tests of the splice share: one bed, and for each test plain veths and RPS, IPv4 and IPv6, both legs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spliceway.bpf.types import Leg
from support.istio.bed import SidecarBed, sidecar_bed
from support.splicebed import SpliceBed, Veths, splice_bed
from support.torture import Bench, bench


@pytest.fixture(scope="session")
def _splice_bed() -> Iterator[SpliceBed]:
    with splice_bed() as made:
        yield made


@pytest.fixture(params=["plain", "rps"])
def veths(request: pytest.FixtureRequest) -> Veths:
    """Whether packets are handled on another CPU than the one that sent them."""
    chosen: Veths = request.param
    return chosen


@pytest.fixture
def bed(_splice_bed: SpliceBed, veths: Veths) -> Iterator[SpliceBed]:
    """A node on which both legs are spliced."""
    _splice_bed.set_veths(veths)
    yield _splice_bed
    _splice_bed.release()


@pytest.fixture(scope="module")
def _sidecar_bed() -> Iterator[SidecarBed]:
    with sidecar_bed() as made:
        yield made


@pytest.fixture
def sidecars(_sidecar_bed: SidecarBed, request: pytest.FixtureRequest) -> Iterator[SidecarBed]:
    """Two pods with sidecars; a module that has tests of others run on it makes it their `bed`."""
    _sidecar_bed.set_veths(request.getfixturevalue("veths") if "veths" in request.fixturenames else "plain")
    yield _sidecar_bed
    _sidecar_bed.release()


@pytest.fixture(scope="module")
def _rack() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def rack(_rack: Bench) -> Bench:
    """A client, the embedded proxy's relay and a server, for each test from the beginning."""
    _rack.begin()
    return _rack


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def version(request: pytest.FixtureRequest) -> int:
    """Of IP."""
    chosen: int = request.param
    return chosen


@pytest.fixture(params=[Leg.DOWNSTREAM, Leg.UPSTREAM], ids=["downstream", "upstream"])
def leg(request: pytest.FixtureRequest) -> Leg:
    """Between client and proxy, or between proxy and server."""
    chosen: Leg = request.param
    return chosen


@pytest.fixture(params=[True, False], ids=["to-pod", "to-proxy"])
def to_pod(request: pytest.FixtureRequest) -> bool:
    """The direction of the bytes."""
    chosen: bool = request.param
    return chosen
