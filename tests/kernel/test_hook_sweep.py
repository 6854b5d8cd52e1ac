"""What another version has attached in ways that this one does not know: it goes, but not before ours is everywhere."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from msgspec.structs import replace
from pyroute2 import AsyncIPRoute

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.hookorder import Place
from spliceway.bpf.types import LocalEndpoint
from support.deniedserver import DENY, denied_testbed, somebody_else
from support.foreign import BOTH, KIND, Foreigner, needs_tcx
from support.kernel import KernelNode
from support.packetstream import PacketStream
from support.proxypod import until

pytestmark = pytest.mark.kernel

#: What no endpoint can have: one address of a family is its own.
TWO = (ip_address("10.244.9.9"), ip_address("10.244.9.10"))


class NewerNode(KernelNode):
    """A node where everything to and from `server` is denied, by a version whose pins are of another kind."""

    def __init__(self, testbed: Testbed, how: str = "auto") -> None:
        super().__init__(testbed.node, tcx=how)
        self.apply(DENY)

    def __enter__(self) -> NewerNode:
        return self

    def forget(self) -> None:
        """End, and leave no endpoint that the next one could know: as if the map had another layout for it."""
        self.run(self.datapath.close())
        root = self.datapath._maps.root
        (root / "maps" / "endpoints").unlink()
        (root / "digest").unlink()

    def give_way(self, kind: str, suffix: str = "") -> Path:
        """End, and have all links of the endpoints pinned below `kind` in a root of another version, which is returned.

        The next one loads its programs anew, as one of another version has others: one can't be at a hook twice.
        """
        self.run(self.datapath.close())
        root = self.datapath._maps.root
        theirs = root.with_name("v1003")
        (theirs / kind).mkdir(parents=True)
        for pin in (root / "tcx").glob("*_pod"):
            pin.rename(theirs / kind / f"{pin.name}{suffix}")
        (root / "digest").unlink()
        return theirs

    def open(self, how: str = "auto") -> None:
        """An agent begins, and has looked at what others have left."""
        self.settings = replace(self.settings, tcx=how)
        self.datapath = self.run(Datapath.open(self.settings))
        self.run(self.datapath._watch.stop())
        self.run(self.datapath._drain.look())

    def attach(self) -> None:
        """It knows its endpoints by now, and has looked again."""
        self.run(self.datapath.set_endpoints(self.endpoints))
        self.apply(DENY)
        self.run(self.datapath._drain.look())

    def attach_and_fail(self, endpoints: Sequence[LocalEndpoint]) -> None:
        """Not all of these can be attached, now and whenever it is tried again."""
        for _ in range(2):
            with pytest.raises(DatapathError, match=r"endpoint default/"):
                self.run(self.datapath.set_endpoints(endpoints))
        self.run(self.datapath._drain.look())

    def attach_all_but(self, device: str) -> None:
        """It knows its endpoints, and what it knows of the one with this device makes no sense."""
        (one,) = (each for each in self.endpoints if each.interface == device)
        self.attach_and_fail([*(set(self.endpoints) - {one}), replace(one, addresses=TWO)])


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with denied_testbed() as made:
        yield made


@pytest.fixture
def other(testbed: Testbed) -> Iterator[Foreigner]:
    yield from somebody_else(testbed)


@needs_tcx
def test_pins_of_another_kind_stay_until_ours_are_everywhere(testbed: Testbed, other: Foreigner) -> None:
    device = testbed.pod("server").interface
    with NewerNode(testbed) as node, PacketStream(testbed, "outside", "server") as stream:
        arrived = stream.stops()
        theirs = node.give_way("unheard-of")
        node.open()
        assert other.at(device, "egress") == ["tcx to_pod"]
        assert theirs.exists()
        assert stream.stops() == arrived
        node.attach()
        assert not theirs.exists()
        until(lambda: other.at(device, "egress") == ["tcx to_pod"])  # a link ends a moment after its pin
        assert stream.stops() == arrived
        node.apply()  # nothing is denied any more: what is there does let packets through
        stream.flows()


@needs_tcx
def test_programs_that_it_does_not_know_go_once_its_own_are_there(testbed: Testbed, other: Foreigner) -> None:
    device = testbed.pod("server").interface
    with NewerNode(testbed) as node, PacketStream(testbed, "outside", "server") as stream:
        arrived = stream.stops()
        theirs = node.give_way("tcx", "-newer")
        node.open()
        assert (other.at(device, "egress"), stream.stops()) == (["tcx to_pod"], arrived)
        node.attach()
        assert other.at(device, "egress") == ["tcx to_pod"]
        assert stream.stops() == arrived
        assert not theirs.exists()
        assert not list((node.datapath._maps.root / "tcx").glob("*-newer"))
        node.apply()
        stream.flows()


@needs_tcx
def test_programs_that_it_does_not_know_go_when_their_pod_becomes_known(testbed: Testbed, other: Foreigner) -> None:
    """Later than all others: until then they are all that its device has."""
    device = testbed.pod("server").interface
    with NewerNode(testbed) as node, PacketStream(testbed, "outside", "server") as stream:
        arrived = stream.stops()
        node.give_way("tcx", "-newer")
        node.open()
        node.run(node.datapath.set_endpoints([]))
        assert (other.at(device, "egress"), stream.stops()) == (["tcx to_pod"], arrived)
        assert list((node.datapath._maps.root / "tcx").glob("*-newer"))
        node.attach()
        assert other.at(device, "egress") == ["tcx to_pod"]
        assert not list((node.datapath._maps.root / "tcx").glob("*-newer"))
        assert stream.stops() == arrived


@needs_tcx
@pytest.mark.parametrize(("kind", "suffix"), [("unheard-of", ""), ("tcx", ""), ("tcx", "-newer")])
def test_an_endpoint_that_can_not_be_attached_keeps_what_it_has(
    testbed: Testbed, other: Foreigner, kind: str, suffix: str
) -> None:
    device = testbed.pod("server").interface
    with NewerNode(testbed) as node, PacketStream(testbed, "outside", "server") as stream:
        arrived = stream.stops()
        theirs = node.give_way(kind, suffix)
        node.open()
        node.attach_all_but(device)
        assert theirs.exists()
        (told,) = node.datapath.status().draining
        assert told.startswith("v1003: ")
        assert device in told
        assert (other.at(device, "egress"), stream.stops()) == (["tcx to_pod"], arrived)
        node.attach()
        assert not theirs.exists()
        assert node.datapath.status().draining == ()
        until(lambda: other.at(device, "egress") == ["tcx to_pod"])
        assert stream.stops() == arrived


@pytest.mark.parametrize("how", BOTH)
def test_an_endpoint_that_has_nothing_of_theirs_does_not_keep_it(testbed: Testbed, how: str) -> None:
    """One has no device at all, the other's never had a program."""
    with NewerNode(testbed, how) as node:
        link = ["ip", "link"]
        assert node.node.run_on_node([*link, "add", "bare0", "type", "veth", "peer", "name", "bare1"]).returncode == 0
        theirs = node.give_way("tcx")
        node.open(how)
        gone = replace(node.endpoints[0], name="default/gone", interface="nowhere0", addresses=TWO[:1])
        bare = replace(gone, name="default/bare", interface="bare0", addresses=TWO)
        try:
            node.attach_and_fail([*node.endpoints, gone, bare])
        finally:
            assert node.node.run_on_node([*link, "delete", "bare0"]).returncode == 0
        assert not theirs.exists()
        assert node.datapath.status().draining == ()


@pytest.mark.parametrize("how", BOTH)
def test_a_device_that_has_gone_is_no_pods_any_more(testbed: Testbed, how: str) -> None:
    """Its index may be another's."""
    with NewerNode(testbed, how) as node:
        link = ["ip", "link"]
        node.run(node.datapath._devices.stop())  # it would make this device the network's
        assert node.node.run_on_node([*link, "add", "gone0", "type", "veth", "peer", "name", "gone1"]).returncode == 0
        index = node.loop.call(socket.if_nametoindex, "gone0")

        async def attach() -> None:
            async with AsyncIPRoute() as ipr:
                await node.datapath._hooks.put(ipr, Place(index, "to_pod"), "gone0")

        node.run(attach())
        node.run(node.datapath.close())
        node.open(how)
        assert index in node.datapath._hooks.of_pods
        assert node.node.run_on_node([*link, "delete", "gone0"]).returncode == 0
        node.run(node.datapath._watch.look())
        assert index not in node.datapath._hooks.of_pods
        node.attach()


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("before", BOTH)
def test_what_pods_have_stays_where_no_endpoint_is_known(
    testbed: Testbed, other: Foreigner, before: str, how: str
) -> None:
    """Their devices are none of the node's, although the maps say of none that it is an endpoint's."""
    device = testbed.pod("server").interface
    with NewerNode(testbed, before) as node, PacketStream(testbed, "outside", "server") as stream:
        arrived = stream.stops()
        node.forget()
        node.open(how)
        assert not node.datapath.knows_endpoints()
        node.run(node.datapath._devices.look())
        assert other.at(device, "ingress") == [f"{KIND[before]} from_pod"]
        assert other.at(device, "egress") == [f"{KIND[before]} to_pod"]
        assert stream.stops() == arrived
        # Nobody knows this pod any more, which may still run: it keeps programs, by which nothing passes.
        node.run(node.datapath.set_endpoints([]))
        node.run(node.datapath._devices.look())
        assert other.at(device, "egress") == [f"{KIND[how]} to_pod"]
        assert stream.stops() == arrived
        node.attach()
        node.apply()
        stream.flows()
