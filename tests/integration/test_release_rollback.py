"""An agent of another release takes over a node with traffic on it, and the first one takes it back.

The other release is a copy of the sources with another ABI number and another layout of the splices' states: nothing
of these is shared, as after a real change. SPLICEWAY_OTHER_RELEASE names a commit that is tried as well
(`make rollback`): whole agents with their proxies and programs, each of its own code. One that knows no TCX takes over
from filters, as docs/operations.md says.

Requests are judged by the load; what kernel rules deny is sent as thousands of datagrams a second, none of which may
arrive.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.proxyprocess import start_time
from spliceway.agent.state import STATE_VERSION
from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.agent.testbed.errors import TestbedError
from spliceway.bpf.abi import ABI_VERSION
from support.attack import Site, attacked_site
from support.load import Result
from support.node import http_status
from support.packetstream import PacketStream
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
PARTS = ("agent", "policy", "bpf", "xds", "proxy")
COPY = "a copy"
RELEASES = [COPY, *filter(None, [os.environ.get("SPLICEWAY_OTHER_RELEASE")])]


@pytest.fixture(scope="module", params=RELEASES)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of the other release."""
    directory = tmp_path_factory.mktemp("release")
    if request.param == COPY:
        for part in PARTS:
            shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        bpf = directory / "bpf/spliceway/bpf"
        replace(bpf / "c/abi.h", rf"(#define ABI_VERSION) {ABI_VERSION}$", r"\1 1003")
        # In the text of the struct, by which versions know whether they may share a map.
        padding = r"^#ifdef TEST_STATE_PADDING\n(.*)\[TEST_STATE_PADDING\];\n#endif$"
        replace(bpf / "c/spliceabi.h", padding, r"\1[4];")
        replace(bpf / "abi.py", rf"^ABI_VERSION = {ABI_VERSION}$", "ABI_VERSION = 1003")
        # The proxy's code is another one, too: it has to hand over.
        replace(directory / "proxy/spliceway/proxy/errors.py", r"\Z", "\n# another release\n")
    else:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", request.param, *PARTS], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return directory


def replace(file: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, file.read_text(), flags=re.M)
    assert count, f"{file} has no {pattern}"
    file.write_text(text)


@pytest.fixture
def site() -> Iterator[Site]:
    with attacked_site(agent=False) as built:
        yield built


@pytest.fixture
def denied(site: Site) -> Iterator[tuple[PacketStream, ...]]:
    """What kernel rules deny, from a pod and from outside. While there is no agent it arrives."""
    with (
        PacketStream(site.testbed, "intruder", "backend") as near,
        PacketStream(site.testbed, "outside", "backend", port=9098) as far,
    ):
        for stream in (near, far):
            stream.flows()
        yield near, far


def start(site: Site, sources: Path, **datapath: str) -> None:
    """An agent of that release, with a cache of its own for its programs, and these settings of its datapath."""
    path = os.pathsep.join(str(sources / part) for part in PARTS)
    # A release may be older than the kill switch, and would refuse the section.
    overrides: dict[str, Any] = {"proxy": {"limits": {"drain": 10}}, "killSwitch": None, "datapath": datapath}
    # Beside the load, each compiles its programs and has its self-test.
    site.agent = start_agent(site.node, overrides, timeout=600.0, wrap=("env", f"PYTHONPATH={path}"))


def give_way(site: Site, to: Path, *, killed: bool) -> None:
    """The agent of this release ends, for one of another."""
    if not (to / "bpf/spliceway/bpf/tcx.py").exists():
        # It would take off links before it attaches its filters: so there are filters before it comes.
        assert site.control.stop() == 0
        start(site, ROOT, tcx="off")
        assert status(site)["datapath"]["hooks"]["kind"] == "clsact"
    if killed:
        site.control.kill()
    else:
        assert site.control.stop() == 0


def status(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.control.client.get("status")
    return found


def layout_of_states(site: Site) -> Path:
    """What the version that is live says of the map of splices' states, in a word."""
    return (site.node.info.bpffs / f"spliceway/v{status(site)['datapath']['abi']}/layout/splices").readlink()


def assert_judges(site: Site) -> None:
    for version in (4, 6):
        for path, expected in (("/articles/1", 200), ("/private", 403)):
            found = http_status(site.testbed, "frontend", "api", path, version=version)
            assert found == expected, (version, path)


def assert_right(result: Result, *, flawless: bool) -> None:
    """Where maps by which connections are judged have changed, connections are ended, but none is judged wrongly."""
    if flawless:
        result.assert_flawless(100)
    told = "\n".join((str(result.outcomes), *result.samples))
    assert set(result.outcomes) <= {"ok", "reset", "eof", "truncated", "unanswered", "unavailable"}, told
    assert result.ok > 100


def test_there_and_back_with_traffic(
    site: Site, other: Path, denied: tuple[PacketStream, ...], request: pytest.FixtureRequest
) -> None:
    flawless = COPY in request.node.name
    start(site, other)
    before = status(site)
    assert before["datapath"]["abi"] != ABI_VERSION
    layout = layout_of_states(site) if flawless else None
    assert_judges(site)
    numbers = json.loads((site.node.info.state / "state.json").read_text())["numbering"]
    with (
        site.load(requests=100_000, pause=0.02) as held,
        site.load(fresh=True, connections=2, pause=0.02) as fresh,
    ):
        arrived = [stream.stops() for stream in denied]
        pids = [before["proxy"]["process"]["pid"]]
        for sources, killed in ((ROOT, False), (other, False), (ROOT, True), (other, True), (ROOT, False)):
            give_way(site, sources, killed=killed)
            start(site, sources)
            found = status(site)
            assert (found["datapath"]["abi"] == ABI_VERSION) is (sources == ROOT)
            assert found["datapath"]["problems"] == []
            if flawless:
                assert (layout_of_states(site) == layout) is (sources == other)
            assert_judges(site)
            # Each has its own proxy, which has taken over.
            until(lambda: status(site)["proxy"]["process"]["pid"] not in pids)
            pids.append(status(site)["proxy"]["process"]["pid"])
            until(lambda: start_time(pids[-2]) is None)
            assert json.loads((site.node.info.state / "state.json").read_text())["numbering"] == numbers
            assert [stream.arrived() for stream in denied] == arrived
            for version, (one, two) in product((4, 6), (("frontend", "outside"), ("outside", "frontend"))):
                assert http_status(site.testbed, one, two, version=version) == 200, (one, version)
        for load in (held, fresh):
            assert_right(load.stop(), flawless=flawless)
    until(lambda: status(site)["datapath"]["draining"] == [])
    roots = sorted(path.name for path in (site.node.info.bpffs / "spliceway").glob("v*"))
    assert roots == [f"v{ABI_VERSION}"]


def test_a_state_that_it_does_not_know_is_refused_and_all_stays_in_force(site: Site, other: Path) -> None:
    """An older release comes after one that has changed what the state file means."""
    start(site, ROOT)
    pid = status(site)["proxy"]["process"]["pid"]
    assert site.control.stop() == 0
    file = site.node.info.state / "state.json"
    newer = {**json.loads(file.read_text()), "version": STATE_VERSION + 1}
    file.write_text(json.dumps(newer))
    written = file.read_bytes()
    with site.load(requests=100_000) as held, site.load(fresh=True, connections=3) as fresh:
        with pytest.raises(TestbedError, match=rf"has version {STATE_VERSION + 1}, this agent reads up to"):
            start(site, other)
        assert_judges(site)
        held.stop().assert_flawless(20)
        fresh.stop().assert_flawless(20)
    assert start_time(pid) is not None
    assert file.read_bytes() == written
