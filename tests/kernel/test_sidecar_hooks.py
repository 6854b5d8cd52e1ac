"""Our program at the loopback device of a pod with a sidecar: what somebody takes off is put back, and told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf, sidecars, tcx
from spliceway.bpf.errors import KernelRefusedError
from support.foreign import BOTH, KIND, Foreigner
from support.kernel import KernelNode
from support.node import pod_manifest
from support.waiting import until

pytestmark = pytest.mark.kernel

POD, UID = "default/meshed", 1337


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("meshed"), pod_manifest("plain")]) as made:
        yield made


class Meshed(KernelNode):
    """A node with one pod that has a sidecar, not watched: the test says when to look."""

    def __init__(self, testbed: Testbed, how: str) -> None:
        super().__init__(testbed.node, sidecars=True)
        self.pod, self.how = testbed.pod(POD), how
        with_sidecar = [msgspec.structs.replace(one, sidecar=UID) if one.name == POD else one for one in self.endpoints]
        self.run(self.datapath._watch.stop())
        self.run(self.datapath.set_endpoints(with_sidecar))

    @property
    def pin(self) -> Path:
        (found,) = (self.datapath._maps.root / sidecars.LINKS).iterdir()
        return found

    def look(self) -> None:
        self.run(self.datapath._watch.look())

    def take_off(self) -> None:
        if self.how == "auto":
            libbpf.detach_pinned_link(self.pin)
        else:
            assert self.no_clsact() == 0

    def no_clsact(self) -> int:
        """Remove it from the pod's loopback, with all filters; the exit status."""
        remove = ["tc", "qdisc", "del", "dev", "lo", "clsact"]
        return netns.call(self.pod.netns, lambda: subprocess.run(remove, capture_output=True, check=False).returncode)

    def known(self) -> bool:
        """Whether the kernel's programs know the pod's sidecar."""
        return bool(list(self.datapath._maps.sidecar_pods.keys()))


@pytest.fixture(params=BOTH)
def node(request: pytest.FixtureRequest, testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meshed]:
    if request.param == "off":  # as on kernels before 6.6
        monkeypatch.setattr(sidecars.tcx, "supported", lambda: False)
    monkeypatch.setattr(sidecars, "PAUSE", 0.0)
    with Meshed(testbed, request.param) as made:
        yield made
        made.no_clsact()  # it goes with the pod, which stays here


@pytest.fixture
def there(testbed: Testbed) -> Iterator[Foreigner]:
    with Foreigner(testbed.pod(POD).netns) as made:
        yield made


def test_what_is_taken_off_is_put_back_and_told(node: Meshed, there: Foreigner) -> None:
    ours = [f"{KIND[node.how]} sidecar_lo"]
    before = node.datapath.status().hooks
    node.look()
    assert (there.at("lo", "egress"), node.datapath.status().hooks) == (ours, before)
    node.take_off()
    assert there.at("lo", "egress") == []
    node.look()
    assert there.at("lo", "egress") == ours
    hooks = node.datapath.status().hooks
    assert (hooks.watched, hooks.missing, hooks.put_back) == (before.watched, 0, before.put_back + 1)
    assert hooks.last == f"sidecar_lo at egress of lo in pod {POD} was taken off and is attached again"
    assert hooks.last_time > before.last_time
    assert node.known()
    assert not [one for one in node.datapath.status().problems if "sidecar_lo" in one]
    node.look()
    assert node.datapath.status().hooks == hooks


def test_what_can_not_be_put_back_is_told_and_nothing_is_spliced_there(
    node: Meshed, there: Foreigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise KernelRefusedError("attach", 1, "not today")

    assert node.known()
    with monkeypatch.context() as refusing:
        refusing.setattr(sidecars, "_link", refused)
        refusing.setattr(sidecars, "_filter", refused)
        node.take_off()
        for _ in range(2):
            node.look()
            (problem,) = [one for one in node.datapath.status().problems if "sidecar_lo" in one]
            assert problem.startswith(f"sidecar_lo at egress of lo in pod {POD} is not attached")
            assert node.datapath.status().hooks.missing == 1
            assert not node.known()
        node.run(node.datapath.set_endpoints([one.endpoint for one in node.datapath._attached.values()]))
        assert not node.known()
    node.look()
    assert there.at("lo", "egress") == [f"{KIND[node.how]} sidecar_lo"]
    assert node.known()
    assert node.datapath.status().hooks.missing == 0
    assert not [one for one in node.datapath.status().problems if "sidecar_lo" in one]


def test_what_could_not_be_looked_at_for_a_while_is_spliced_again(
    node: Meshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there all the time."""

    def refused(*_: Any) -> None:
        raise KernelRefusedError("open the link", 24)

    before = node.datapath.status().hooks
    with monkeypatch.context() as refusing:
        refusing.setattr(sidecars, "_is_linked", refused)
        refusing.setattr(sidecars, "filters", refused)
        node.look()
    assert not node.known()
    node.look()
    assert node.known()
    assert node.datapath._sidecars.lost == ()
    assert node.datapath.status().hooks == before


def test_a_pod_that_has_gone_is_no_trouble(node: Meshed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its end and the change that forgets it."""
    (one,) = node.datapath._sidecars._hooked.values()
    gone = one._replace(endpoint=msgspec.structs.replace(one.endpoint, netns=Path("/run/netns/none-such")))
    monkeypatch.setitem(node.datapath._sidecars._hooked, one.netns_cookie, gone)
    node.take_off()
    node.look()
    assert node.datapath._sidecars.lost == ()
    assert node.datapath.status().hooks.missing == 0


@pytest.mark.parametrize("node", BOTH[:1], indirect=True)  # a filter has no pin
def test_a_pin_that_somebody_has_removed_is_made_anew(node: Meshed, there: Foreigner) -> None:
    assert tcx.supported()
    node.pin.unlink()
    # Nobody else holds the link; the kernel lets go of it a moment after its inode has gone.
    until(lambda: there.at("lo", "egress") == [])
    node.look()
    assert there.at("lo", "egress") == ["tcx sidecar_lo"]
    assert node.pin.exists()


def test_a_pod_that_is_forgotten_while_somebody_asks_is_no_trouble(node: Meshed) -> None:
    """Who is lost is told from another thread than the one that forgets."""
    node.datapath._sidecars._lost[1] = "its link could not be made"
    assert node.datapath.status().problems is not None
    assert node.datapath._sidecars.lost == ()
