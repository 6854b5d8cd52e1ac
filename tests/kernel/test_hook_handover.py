"""A device becomes a pod's: the program for what leaves the node gives its place to the pod's, and nobody waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf
from spliceway.bpf.hookorder import Place
from support.foreign import BOTH, KIND, Foreigner, needs_tcx
from support.kernel import KernelNode
from support.node import pod_manifest

pytestmark = pytest.mark.kernel
DEVICE = "new-pod"


class PairNode(KernelNode):
    """A node with a veth pair of which nothing is known."""

    def __init__(self, testbed: Testbed, how: str) -> None:
        super().__init__(testbed.node, tcx=how)
        self.run(self.datapath._watch.stop())
        testbed.node.run_on_node(["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "its-pod"])
        self.run(self.datapath._devices.look())
        self.index = self.loop.call(socket.if_nametoindex, DEVICE)

    def pin(self, program: str) -> Path:
        """Of a link at the device."""
        return self.datapath._maps.root / "tcx" / f"{self.index}-{program}"

    def link(self, program: str) -> int:
        """The number of the link that is pinned so."""
        descriptor = libbpf.open_pin(self.pin(program))
        try:
            return libbpf.link_id(descriptor)
        finally:
            os.close(descriptor)

    def put(self) -> None:
        """The device is a pod's from now on."""

        async def work() -> None:
            async with AsyncIPRoute() as ipr:
                await self.datapath._hooks.put(ipr, Place(self.index, "to_pod"), DEVICE)

        self.run(work())

    def leave(self) -> None:
        """What it had as one of the node's goes."""

        async def work() -> None:
            async with AsyncIPRoute() as ipr:
                await self.datapath._devices.leave(ipr, self.index)

        self.run(work())

    def belong(self) -> set[str]:
        """Programs that belong at the device."""
        return {place.program for place in self.datapath._hooks.places if place.ifindex == self.index}


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("idle")]) as made:
        yield made


@pytest.fixture
def other(testbed: Testbed) -> Iterator[Foreigner]:
    with Foreigner(testbed.node.info.netns) as made:
        yield made
    testbed.node.run_on_node(["ip", "link", "del", DEVICE])


@pytest.mark.parametrize("how", BOTH)
def test_the_pods_program_takes_its_place(testbed: Testbed, other: Foreigner, how: str) -> None:
    with PairNode(testbed, how) as node:
        assert other.at(DEVICE, "egress") == [f"{KIND[how]} to_network"]
        link = node.link("to_network") if how == "auto" else 0
        node.put()
        assert other.at(DEVICE, "egress") == [f"{KIND[how]} to_pod"]
        assert node.belong() == {"to_pod"}  # so that nobody finds the other one missing
        if how == "auto":
            assert (node.link("to_pod"), node.pin("to_network").exists()) == (link, False)
        node.leave()
        node.run(node.datapath._watch.look())
        assert other.at(DEVICE, "egress") == [f"{KIND[how]} to_pod"]
        assert node.datapath.status().hooks.put_back == 0
        node.put()  # again is nothing new
        assert other.at(DEVICE, "egress") == [f"{KIND[how]} to_pod"]


@needs_tcx
def test_behind_another_one_it_is_not_worth_having(testbed: Testbed, other: Foreigner) -> None:
    with PairNode(testbed, "auto") as node:
        other.link(DEVICE, "egress")
        assert other.at(DEVICE, "egress") == ["tcx other_prog", "tcx to_network"]
        node.put()
        assert other.at(DEVICE, "egress") == ["tcx to_pod", "tcx other_prog", "tcx to_network"]
        assert node.belong() == {"to_pod", "to_network"}
        node.leave()
        assert other.at(DEVICE, "egress") == ["tcx to_pod", "tcx other_prog"]


@needs_tcx
def test_who_dies_in_between_leaves_a_link_that_is_set_right(testbed: Testbed, other: Foreigner) -> None:
    with PairNode(testbed, "auto") as node:
        link = node.link("to_network")
        node.pin("to_network").rename(node.pin("to_pod"))
        node.put()
        assert other.at(DEVICE, "egress") == ["tcx to_pod"]
        assert node.link("to_pod") == link
        node.leave()
        assert other.at(DEVICE, "egress") == ["tcx to_pod"]
