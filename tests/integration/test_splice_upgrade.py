"""Another version of the programs takes over, newer or older, while thousands of messages are under way.

The other version is compiled from the same source with another ABI number and another layout of `splice_state`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import install, libbpf, tcx
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.install import pin_root
from spliceway.bpf.loaded import of_cgroup
from spliceway.bpf.loader import load
from spliceway.bpf.types import SpliceState
from support.kernel import KernelNode
from support.node import pod_manifest
from support.remembered import remember_programs
from support.stampedload import Program, StampedLoad

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

EVERY_STEP = bool(os.environ.get("SPLICEWAY_UPGRADE_EVERY_STEP"))
CONNECTIONS = int(os.environ.get("SPLICEWAY_UPGRADE_CONNECTIONS", "200"))
PORT = 23000
OURS: dict[str, str] = {}
OTHER = {"ABI_VERSION": "1003", "TEST_STATE_PADDING": "4"}
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
"""
WITHDRAWN = POLICY.replace("role: client", "role: nobody")


class UpgradedNode(KernelNode):
    """`KernelNode` whose datapath gives way to one of another version."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.stash = testbed.node.info.bpffs / "stash"
        self._open = True
        remember_programs(self.stash)
        super().__init__(testbed.node, max_connections=max(8192, 64 * CONNECTIONS))

    def close(self) -> None:
        try:
            if not self._open:
                self.become(OURS)
            super().close()
        finally:
            vars(install)["load"] = load
            shutil.rmtree(self.stash, ignore_errors=True)

    def start(self) -> None:
        """What an agent does at its start, once the datapath is open."""
        self.run(self.datapath.set_endpoints(self.endpoints))
        table = self.apply(POLICY)
        self.run(self.datapath.set_listeners(dict.fromkeys(table.rule_sets, PORT)))

    def leave(self) -> None:
        """The agent ends: nobody puts hooks back any more, or takes what another one pins for left over."""
        if self._open:
            self.run(self.datapath.close())
            self._open = False

    def become(self, version: Mapping[str, str]) -> None:
        """An agent with these programs takes over."""
        self.leave()
        self.datapath = self.run(Datapath.open(self.settings, test_defines=version))
        self._open = True
        self.start()

    def root(self, version: Mapping[str, str]) -> Path:
        return pin_root(self.settings, *([version["ABI_VERSION"]] if version else []))

    def draining(self) -> tuple[str, ...]:
        """What another version has left, as it is now."""
        self.run(self.datapath._drain.look())
        return self.datapath.status().draining

    def spliced(self) -> int:
        """How many connections are, by the programs that are live now."""
        return [one.state for one in self.datapath.socks()].count(SpliceState.SPLICED)

    def assert_one_of_each(self, root: Path | None = None) -> None:
        """No version has left a second program anywhere; links are those of `root`, or of the datapath that is open."""
        settings = self.settings
        for cgroup in (settings.pods_cgroup, settings.proxy_cgroup):
            assert len(of_cgroup(cgroup, libbpf.BPF_CGROUP_SOCK_OPS, effective=False)) == 1
        linked, hooked = (list((settings.bpffs / "spliceway").glob(f"v*/{name}/*")) for name in ("links", "tcx"))
        assert {path.parent.parent for path in linked} == {root or self.datapath._maps.root}
        assert {path.parent.parent for path in hooked} == ({linked[0].parent.parent} if tcx.supported() else set())


@pytest.fixture(scope="module")
def node() -> Iterator[UpgradedNode]:
    manifests = [pod_manifest(name, {"role": name}) for name in ("client", "server")]
    with Testbed.up(manifests) as testbed, UpgradedNode(testbed) as made:
        made.start()
        yield made


def test_connections_go_on_and_are_judged_while_the_old_version_drains(node: UpgradedNode) -> None:
    with StampedLoad(node.testbed, CONNECTIONS, 32, (PORT,)) as stamped:
        old = stamped.connect()
        assert node.spliced() == 2 * CONNECTIONS
        fresh: list[Program] = []
        thread = threading.Thread(target=lambda: fresh.append(stamped.connect(4 * CONNECTIONS)))
        thread.start()
        node.become(OTHER)
        thread.join()
        assert fresh, "a connection failed while the programs were replaced"
        changed = time.monotonic_ns()
        count = node.spliced()
        newest = stamped.connect()
        assert node.spliced() == count + 2 * CONNECTIONS
        (left,) = node.draining()
        assert left.startswith(f"{node.root(OURS).name}: ")
        node.assert_one_of_each()

        node.apply(WITHDRAWN)
        acknowledged = time.monotonic_ns()
        for client, connections in ((old, CONNECTIONS), (fresh[0], 4 * CONNECTIONS), (newest, CONNECTIONS)):
            assert client.line() == {"ended": connections}
        report = stamped.reports()
    assert report["how"]["client ECONNRESET"] == 6 * CONNECTIONS, report
    assert all(changed < report["newest"][leg] <= acknowledged for leg in ("client", "server")), report
    assert report["messages"]["server"] > 6 * CONNECTIONS
    assert node.draining() == ()
    assert not node.root(OURS).exists()
    node.apply(POLICY)


def test_back_to_the_older_one_and_forth_again_before_either_has_drained(node: UpgradedNode) -> None:
    with StampedLoad(node.testbed, CONNECTIONS, 32, (PORT,)) as stamped:
        if not node.root(OTHER).exists():
            node.become(OTHER)
        first = stamped.connect()
        node.become(OURS)
        second = stamped.connect()
        assert node.draining() == (f"{node.root(OTHER).name}: {2 * CONNECTIONS} connections",)
        node.become(OTHER)
        changed = time.monotonic_ns()
        assert node.spliced() == 2 * CONNECTIONS, "the first version's states are not its own any more"
        assert node.draining() == (f"{node.root(OURS).name}: {2 * CONNECTIONS} connections",)
        node.assert_one_of_each()
        node.apply(POLICY + "\n")
        stamped.connect(10)
        node.apply(WITHDRAWN)
        acknowledged = time.monotonic_ns()
        for client in (first, second):
            assert client.line() == {"ended": CONNECTIONS}
        report = stamped.reports()
    assert report["how"]["client ECONNRESET"] == 2 * CONNECTIONS + 10, report
    assert all(changed < report["newest"][leg] <= acknowledged for leg in ("client", "server")), report
    assert node.draining() == ()
    node.apply(POLICY)


def test_what_could_not_be_withdrawn_any_more_is_ended(node: UpgradedNode) -> None:
    """A map by which connections are judged has another layout: the old programs would go by the old one for ever."""
    with StampedLoad(node.testbed, CONNECTIONS, 32, (PORT,)) as stamped:
        client = stamped.connect()
        layout = node.datapath._maps.root / "layout" / "policy"
        layout.unlink()
        layout.symlink_to("another")
        shutil.rmtree(node.stash)  # compiled anew: what is remembered has the map that can't be shared
        node.become(OURS if node.root(OTHER).exists() else OTHER)
        assert client.line() == {"ended": CONNECTIONS}
        stamped.connect()
        stamped.reports()
    assert node.draining() == ()


@pytest.mark.row(9)
def test_other_programs_of_the_same_version_take_over_in_place(node: UpgradedNode) -> None:
    """Sockets that were spliced before keep the program that they have, which goes on with the same maps."""
    with StampedLoad(node.testbed, CONNECTIONS, 32, (PORT,)) as stamped:
        client = stamped.connect()
        node.become({**(OTHER if node.root(OTHER).exists() else OURS), "TEST_VARIANT": "1"})
        changed = time.monotonic_ns()
        assert node.spliced() == 2 * CONNECTIONS
        stamped.connect()
        assert node.spliced() == 4 * CONNECTIONS
        assert node.draining() == ()
        node.assert_one_of_each()
        node.apply(WITHDRAWN)
        acknowledged = time.monotonic_ns()
        assert client.line() == {"ended": CONNECTIONS}
        report = stamped.reports()
    assert changed < report["newest"]["client"] <= acknowledged
    assert report["how"]["client ECONNRESET"] == 2 * CONNECTIONS, report
    node.apply(POLICY)


_TESTS = Path(__file__).parents[1]


class DyingAgents:
    """See `dyingagent.py`."""

    def __init__(self, node: UpgradedNode) -> None:
        self._node = node
        settings = msgspec.json.encode(node.settings, enc_hook=str).decode()
        command = [sys.executable, "-m", "support.dyingagent", settings, str(node.stash)]
        sources = os.pathsep.join(filter(None, (str(_TESTS), os.environ.get("PYTHONPATH"))))
        self._process = node.node.spawn_on_node(
            command, env={"PYTHONPATH": sources}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def open(self, *, kill: int) -> list[str]:
        """Open a datapath of the other version, killed before that step; the steps that it took."""
        self._node.leave()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"defines": OTHER, "kill": kill}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["killed"] == bool(kill)
        steps: list[str] = answer["steps"]
        return steps

    def __enter__(self) -> DyingAgents:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)


def test_an_agent_that_dies_at_any_step_leaves_nothing_in_the_way(node: UpgradedNode) -> None:
    """The next one, of either version, adopts or removes what it has left, and no connection notices."""
    node.become(OTHER)
    node.become(OURS)
    assert node.draining() == ()
    with StampedLoad(node.testbed, 20, 20, (PORT,)) as stamped, DyingAgents(node) as agents:
        stamped.connect()
        steps = agents.open(kill=0)
        node.become(OURS)
        assert node.draining() == ()
        kinds = [number for number, step in enumerate(steps) if EVERY_STEP or step not in steps[:number]]
        for count, number in enumerate(kinds):
            taken = agents.open(kill=number + 1)
            assert taken == steps[:number]
            if count % 2:
                agents.open(kill=0)
                node.assert_one_of_each(node.root(OTHER))
            node.become(OURS)
            node.assert_one_of_each()
            assert node.draining() == ()
            assert sorted(path.name for path in node.root(OURS).parent.glob("v*")) == [node.root(OURS).name]
        changed = time.monotonic_ns()
        stamped.connect(10)
        report = stamped.reports()
    assert not [how for how in report["how"] if "client" in how], report
    assert report["newest"]["client"] > changed
    print(f"killed before {len(kinds)} of {len(steps)} steps")
