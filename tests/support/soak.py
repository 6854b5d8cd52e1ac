"""The soak on a node: load between two pods through its proxy, under turmoil; and what must not be left of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import abi
from spliceway.bpf.abi import CtFlag
from spliceway.bpf.maps import Maps
from spliceway.bpf.types import Leg
from support import sockettable
from support.node import pod_manifest
from support.soakplan import BOUND_PORTS, POLICY
from support.soakresults import ClientResult, Options, ServerResult
from support.turmoil import Turmoil

_TESTS = Path(__file__).resolve().parents[1]
PARALLEL = 48
#: Not spliced though nothing stood against it.
_MISSED = ("sent-first", "no-active", "map-full", "other-owner", "map-error")


class Figures(msgspec.Struct, frozen=True):
    """What can leak. Entries of maps, open descriptors and resident MiB of agent and proxy, sockets by namespace."""

    entries: dict[str, int]
    files: int
    resident: float
    sockets: dict[str, int]

    @property
    def left(self) -> dict[str, int]:
        """What of connections is there."""
        return {name: count for name, count in {**self.entries, **self.sockets}.items() if count}


class Soak:
    """A node with a client's and a server's pod."""

    def __init__(self, testbed: Testbed, proxy: ProxyKind, seed: int, *, pace: float) -> None:
        self.testbed, self.proxy, self.seed = testbed, proxy, seed
        self.node = testbed.node
        self.client, self.server = testbed.pod("client"), testbed.pod("server")
        self.turmoil = Turmoil(self.node, proxy, seed, pace=pace)
        (self.node.info.policies / "soak.yaml").write_text(POLICY)
        for place, fast_open in ((self.client.netns, 0x5), (self.node.info.netns, 0x603), (self.server.netns, 0x1)):
            netns.call(place, partial(_set_up, fast_open))
        self.turmoil.start_agent()
        self._server = self._start(self.server, "support.soakserver", str(seed), stdin=subprocess.PIPE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline().strip() == "ready"

    def _start(self, pod: Pod, module: str, argument: str, **options: Any) -> subprocess.Popen[str]:
        search = os.pathsep.join((str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])))
        argv = [sys.executable, "-m", module, argument]
        pipe = subprocess.PIPE
        return pod.spawn(argv, env={"PYTHONPATH": search}, stdout=pipe, stderr=pipe, text=True, **options)

    def load(self, first: int, last: int) -> ClientResult:
        """Connections `first` to `last`, while nothing or the turmoil goes on."""
        options = Options(
            self.seed,
            {version: str(self.server.address(version)) for version in (4, 6)},
            first,
            last,
            PARALLEL,
            envoy=self.proxy == "envoy",
        )
        with self._start(self.client, "support.soakclient", msgspec.json.encode(options).decode()) as process:
            try:
                out, err = process.communicate()
            finally:
                process.kill()
        assert process.returncode == 0, err[-3000:]
        return msgspec.json.decode(out, type=ClientResult)

    def finish(self) -> ServerResult:
        """End the server and return what it says."""
        out, err = self._server.communicate("", timeout=60)
        assert self._server.returncode == 0, err[-3000:]
        return msgspec.json.decode(out, type=ServerResult)

    def close(self) -> None:
        """End what runs."""
        if self._server.poll() is None:
            self._server.kill()
            self._server.communicate()
        if self.turmoil.agent is not None and self.turmoil.agent.process.poll() is None:
            self.turmoil.agent.kill()

    def counters(self) -> dict[str, Any]:
        """Of splicing, since the first programs."""
        found: dict[str, Any] = self.turmoil.status()["splice"]["counters"]
        return found

    def figures(self) -> Figures:
        """All that can leak, as it is now."""
        status = self.turmoil.status()
        pids = [status["pid"], status["proxy"]["process"]["pid"]]
        if self.proxy == "embedded":
            pids += self.turmoil.workers()
        places = {"node": self.node.info.netns, "client": self.client.netns, "server": self.server.netns}
        return Figures(
            self._entries(),
            sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
            sum(_resident(pid) for pid in pids),
            {name: _connections(place) for name, place in places.items()},
        )

    def _entries(self) -> dict[str, int]:
        maps = Maps(self.node.info.bpffs / "spliceway" / f"v{abi.ABI_VERSION}")
        try:
            alive = sum(_is_alive(abi.CtValue.from_buffer_copy(raw)) for _, raw in maps.conntrack.items())
            return {
                "splices": len(list(maps.splices.keys())),
                "socks": len(list(maps.socks.keys())),
                "conntrack": alive,
            }
        finally:
            maps.close()

    def settled(self, wait: float = 90.0) -> Figures:
        """Wait until no connection is left in any map or namespace, `wait` seconds at most."""
        deadline = time.monotonic() + wait
        while (found := self.figures()).left and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


def spliced_share(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Share of the eligible connections (both legs) that were spliced between two looks at the counters."""
    spliced = after["spliced"] - before["spliced"]
    missed = sum(after["byWhy"].get(why, 0) - before["byWhy"].get(why, 0) for why in _MISSED)
    return float(spliced / (spliced + missed))


@contextmanager
def soaked(proxy: ProxyKind, seed: int, *, pace: float) -> Iterator[Soak]:
    """A node that is ready for it, and taken down afterwards."""
    manifests = [pod_manifest("client", {"role": "client"}), pod_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as testbed:
        soak = Soak(testbed, proxy, seed, pace=pace)
        try:
            yield soak
        finally:
            soak.close()


def _is_alive(value: abi.CtValue) -> bool:
    """Whether a steered connection's entry says that it goes on; others are expired when they are met.

    A FIN that comes again when the entry has expired makes another one, of two packets, that the LRU takes one day.
    """
    both = CtFlag.FIN_IN | CtFlag.FIN_OUT
    closing = value.flags & CtFlag.RESET or value.flags & both == both
    return bool(value.leg != Leg.DIRECT and value.flags & CtFlag.REPLIED and not closing and value.packets > 3)


def _connections(place: Path) -> int:
    idle = (sockettable.LISTEN, sockettable.TIME_WAIT)
    return sum(one.state not in idle for one in sockettable.of_namespace(place))


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _set_up(fast_open: int) -> None:
    """Early data as the client's and the proxy's kernel must want it (tcp_fastopen in ip-sysctl.rst); ports to bind."""
    settings = Path("/proc/sys/net/ipv4")
    (settings / "tcp_fastopen").write_text(str(fast_open))
    (settings / "ip_local_reserved_ports").write_text(f"{BOUND_PORTS[0]}-{BOUND_PORTS[-1]}")
