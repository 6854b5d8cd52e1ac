"""Our programs at the interfaces: by TCX and as filters, in front of others, watched, and never not there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from pyroute2 import AsyncIPRoute
from structlog.testing import capture_logs

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf, loaded, tcx
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.hookorder import ROUNDS, Place
from spliceway.bpf.hookwatch import INTERVAL
from spliceway.bpf.install import pin_root
from spliceway.bpf.standin import stand_in
from support.deniedserver import DENY, denied_testbed, somebody_else
from support.foreign import ACCEPT, BOTH, KIND, Foreigner, needs_tcx
from support.kernel import KernelNode
from support.packetstream import PacketStream

pytestmark = pytest.mark.kernel
SIDES = (("ingress", "from_pod"), ("egress", "to_pod"))


class HookedNode(KernelNode):
    """A node where everything to and from `server` is denied, watched or not."""

    def __init__(self, testbed: Testbed, how: str, *, watched: bool = False) -> None:
        super().__init__(testbed.node, tcx=how)
        self.testbed, self.kind = testbed, KIND[how]
        self.device = testbed.pod("server").interface
        self.begin(watched=watched)

    def begin(self, *, watched: bool) -> None:
        self.apply(DENY)
        if not watched:  # the test looks itself
            self.run(self.datapath._watch.stop())

    def become(self, how: str, **options: Any) -> None:
        """Another agent takes over."""
        self.run(self.datapath.close())
        self.kind = KIND[how]
        self.settings = msgspec.structs.replace(self.settings, tcx=how)
        self.datapath = self.run(Datapath.open(self.settings, **options))
        self.run(self.datapath.set_endpoints(self.endpoints))
        self.begin(watched=False)

    def look(self) -> None:
        self.run(self.datapath._watch.look())

    @property
    def hooks(self) -> Any:
        return self.datapath.status().hooks

    def hook_problems(self) -> list[str]:
        return list(self.datapath._watch.problems)

    def place(self, side: str) -> Place:
        return Place(self.ifindex("default/server"), dict(SIDES)[side])

    def take_off(self, side: str) -> None:
        """As somebody would who does not know whose it is."""
        if self.kind == "tcx":
            place = self.place(side)
            libbpf.detach_pinned_link(self.datapath._maps.root / "tcx" / f"{place.ifindex}-{place.program}")
        else:
            self.node.run_on_node(["tc", "qdisc", "del", "dev", self.device, "clsact"])


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with denied_testbed() as made:
        yield made


@pytest.fixture
def other(testbed: Testbed) -> Iterator[Foreigner]:
    yield from somebody_else(testbed)


@pytest.mark.parametrize("how", BOTH)
def test_ours_is_there_first_and_nothing_is_left_of_it(testbed: Testbed, other: Foreigner, how: str) -> None:
    device = testbed.pod("server").interface
    if how == "auto":
        for side, _ in SIDES:
            other.link(device, side)
    with HookedNode(testbed, how) as node:
        for side, program in SIDES:
            theirs = ["tcx other_prog"] if how == "auto" else []
            assert other.at(device, side) == [f"{node.kind} {program}", *theirs]
            pinned = loaded.pinned_id(pin_root(node.settings) / "programs" / program)
            assert pinned == ("prog", other.program_ids(device, side)[0])
        assert other.at("eth0", "ingress") == [f"{node.kind} from_network"]
        assert other.at("eth0", "egress") == [f"{node.kind} to_network"]
        node.look()
        assert (node.hooks.kind, node.hooks.watched, node.hooks.last) == (node.kind, 7, "")
        assert node.hook_problems() == []
    for side, _ in SIDES:
        assert other.at(device, side) == (["tcx other_prog"] if how == "auto" else [])
    assert other.at("eth0", "ingress") == other.at("eth0", "egress") == []


@needs_tcx
def test_one_agent_after_the_other_without_a_gap(testbed: Testbed, other: Foreigner) -> None:
    """By filter, by TCX, by filter; the same programs, new ones, and those of another version."""
    with PacketStream(testbed, "outside", "server") as inward, PacketStream(testbed, "server", "outside") as outward:
        inward.flows()
        outward.flows()
        with HookedNode(testbed, "off") as node:
            arrived = inward.stops(), outward.stops()
            for how, defines in (
                *(("auto", {}), ("auto", {}), ("off", {}), ("auto", {})),
                *(("auto", {"ABI_VERSION": "1003"}), ("off", {}), ("auto", {"ABI_VERSION": "1003"}), ("auto", {})),
            ):
                node.become(how, test_defines=defines)
                for side, program in SIDES:
                    assert other.at(node.device, side) == [f"{KIND[how]} {program}"]
                node.run(node.datapath._drain.look())
                assert [root.name for root in (node.settings.bpffs / "spliceway").glob("v*")] == [
                    node.datapath._maps.root.name
                ]
            assert (inward.arrived(), outward.arrived()) == arrived
        inward.flows()
        outward.flows()


@needs_tcx
def test_a_link_stays_the_same_and_gets_new_programs(testbed: Testbed) -> None:
    with HookedNode(testbed, "auto") as node:

        def links() -> list[tcx.Attachment]:
            types = {"ingress": tcx.INGRESS, "egress": tcx.EGRESS}
            index = node.ifindex("default/server")
            return [one for side, _ in SIDES for one in node.loop.call(tcx.query, index, types[side])]

        before = links()
        node.become("auto", test_defines={"ABI_VERSION": "1003"})
        after = links()
        assert [one.link for one in after] == [one.link for one in before]
        assert not {one.program for one in after} & {one.program for one in before}


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_what_is_taken_off_is_put_back_in_seconds(testbed: Testbed, other: Foreigner, how: str, side: str) -> None:
    with HookedNode(testbed, how, watched=True) as node:
        before = other.at(node.device, side)
        begin = time.monotonic()
        node.take_off(side)
        wanted = 1 if how == "auto" else 2  # with the clsact both filters go
        while node.hooks.put_back < wanted:
            assert time.monotonic() - begin < 3 * INTERVAL, node.hooks
            time.sleep(0.01)
        if how == "off":  # the kernel told of it
            assert time.monotonic() - begin < INTERVAL / 2
        assert other.at(node.device, side) == before
        assert node.hooks.missing == 0
        assert "was taken off and is attached again" in node.hooks.last
        assert f"of {node.device}" in node.hooks.last


@pytest.mark.parametrize("how", BOTH)
def test_somebody_who_comes_in_front_is_overtaken(testbed: Testbed, other: Foreigner, how: str) -> None:
    """While packets flow: nothing gets through as ours changes its place, though one behind it accepts everything."""
    with (
        HookedNode(testbed, how) as node,
        PacketStream(testbed, "outside", "server") as stream,
        Foreigner(testbed.node.info.netns, ACCEPT, name="accepts") as last,
    ):
        arrived = stream.stops()
        for side, program in SIDES:
            mine, theirs, behind = (f"{node.kind} {name}" for name in (program, "other_prog", "accepts"))
            if how == "auto":
                last.link(node.device, side, tcx.AFTER)
                other.link(node.device, side)
            else:
                last.filter(node.device, side, priority=2)
                other.filter(node.device, side)
            assert other.at(node.device, side) == [theirs, mine, behind]
            node.look()
            assert other.at(node.device, side) == [mine, theirs, behind]
            assert f"{program} at {side} of {node.device} stood behind other_prog ({node.kind}, program id" in (
                node.hooks.last
            )
        for turn in range(2, ROUNDS + 1):
            if how == "auto":
                other.unlink()
                other.link(node.device, "egress")
            else:
                other.filter(node.device, "egress", handle=turn)
            node.look()
            assert other.at(node.device, "egress")[0] == f"{node.kind} to_pod"
        assert (node.hooks.moved, node.hooks.behind, node.hook_problems()) == (ROUNDS + 1, 0, [])
        assert stream.arrived() == arrived
        node.apply()  # nothing is denied any more: the packets were there all the time
        stream.flows()
        if how == "off":
            node.take_off("both")  # with theirs


@pytest.mark.parametrize("how", BOTH)
def test_one_that_accepts_in_front_of_ours_is_a_hole_until_ours_is_first(testbed: Testbed, how: str) -> None:
    with HookedNode(testbed, how) as node, PacketStream(testbed, "outside", "server") as stream:
        stream.stops()
        with Foreigner(testbed.node.info.netns, ACCEPT) as accepting:
            (accepting.link if how == "auto" else accepting.filter)(node.device, "egress")
            stream.flows()
            node.look()
            stream.stops()
            if how == "off":
                node.take_off("egress")  # with theirs


@pytest.mark.parametrize("how", BOTH)
def test_two_that_want_to_be_first_do_not_fight_for_ever(testbed: Testbed, other: Foreigner, how: str) -> None:
    with HookedNode(testbed, how) as node:
        for turn in range(ROUNDS + 2):
            if how == "auto":
                other.unlink()
                other.link(node.device, "ingress")
            else:
                other.filter(node.device, "ingress", handle=turn + 1)
            node.look()
        assert (node.hooks.moved, node.hooks.behind) == (ROUNDS, 1)
        (told,) = node.hook_problems()
        assert f"from_pod at ingress of {node.device} stands behind other_prog ({node.kind}, program id" in told
        assert "gave up" in told
        assert told in node.datapath.status().problems
        if how == "auto":
            other.unlink()
        else:
            node.take_off("ingress")
        node.look()
        assert (node.hooks.behind, node.hook_problems()) == (0, [])


@pytest.mark.parametrize("how", BOTH)
def test_what_can_not_be_put_back_is_told_until_it_can(testbed: Testbed, other: Foreigner, how: str) -> None:
    with HookedNode(testbed, how) as node:
        pin = node.datapath._maps.root / "programs" / "to_pod"
        aside = pin.with_name("aside")
        node.take_off("egress")
        pin.rename(aside)
        with capture_logs() as logged:
            node.look()
            node.look()
        assert node.hooks.missing == 1
        (told,) = node.hook_problems()
        assert f"to_pod at egress of {node.device} is not attached, its packets are not judged: open {pin}" in told
        assert [each["problem"] for each in logged if each["log_level"] == "error"] == [told]
        aside.rename(pin)
        node.look()
        assert (node.hooks.missing, node.hook_problems()) == (0, [])
        assert other.at(node.device, "egress") == [f"{node.kind} to_pod"]


@needs_tcx
def test_tcx_in_front_of_filters_can_only_be_told(testbed: Testbed, other: Foreigner) -> None:
    with HookedNode(testbed, "off") as node:
        other.link(node.device, "egress")
        node.look()
        (told,) = node.hook_problems()
        assert "to_pod at egress" in told
        assert "set datapath.tcx to auto" in told
        assert (node.hooks.moved, node.hooks.behind) == (0, 1)
        node.become("auto")
        assert other.at(node.device, "egress") == ["tcx to_pod", "tcx other_prog"]
        node.look()
        assert node.hook_problems() == []


@needs_tcx
def test_what_an_agent_leaves_that_dies_in_between_is_put_in_order(testbed: Testbed, other: Foreigner) -> None:
    """Between filter and link, each way."""
    with HookedNode(testbed, "auto") as node:
        place = node.place("egress")

        async def filter_too() -> None:
            async with AsyncIPRoute() as ipr:
                await node.datapath._hooks._attach_filter(ipr, place)

        node.run(filter_too())
        node.take_off("egress")
        assert other.at(node.device, "egress") == ["clsact to_pod"]
        node.become("auto")
        assert other.at(node.device, "egress") == ["tcx to_pod"]
        node.run(filter_too())
        node.become("off")
        assert other.at(node.device, "egress") == ["clsact to_pod"]
        assert not list((node.datapath._maps.root / "tcx").glob(f"{place.ifindex}-*"))


@needs_tcx
@pytest.mark.parametrize("last_step", ["stand-in", "detached", "updated"])
def test_who_dies_on_the_way_to_the_front_leaves_no_hole(testbed: Testbed, other: Foreigner, last_step: str) -> None:
    with HookedNode(testbed, "auto") as node, PacketStream(testbed, "outside", "server") as stream:
        arrived = stream.stops()
        place, root = node.place("egress"), node.datapath._maps.root
        pin = root / "tcx" / f"{place.ifindex}-{place.program}"
        program = libbpf.open_pin(root / "programs" / place.program)
        with stand_in(program) as standing:
            link = node.loop.call(tcx.create_link, standing, place.ifindex, tcx.EGRESS)
            libbpf.pin(link, pin.with_name(f"{pin.name}-moving"))
            if last_step != "stand-in":
                tcx.take_off(pin)
            if last_step == "updated":
                libbpf.update_link(link, program)
            os.close(link)
        os.close(program)
        assert stream.stops() == arrived
        node.become("auto")
        assert other.at(node.device, "egress") == ["tcx to_pod"]
        assert [path.name for path in sorted(pin.parent.glob(f"{place.ifindex}-*"))] == [
            f"{place.ifindex}-from_pod",
            pin.name,
        ]
        assert stream.arrived() == arrived
        node.apply()  # nothing is denied any more: what is there does let packets through
        stream.flows()


@needs_tcx
def test_pins_go_with_their_interfaces_and_only_with_them(testbed: Testbed, other: Foreigner) -> None:
    node_info = testbed.node
    node_info.run_on_node(["ip", "link", "add", "passing", "type", "veth", "peer", "name", "by"])
    with HookedNode(testbed, "auto") as node:
        pins = node.datapath._maps.root / "tcx"
        index = other.index("passing")

        async def put() -> None:
            async with AsyncIPRoute() as ipr:
                await node.datapath._hooks.put(ipr, Place(index, "from_pod"), "passing")

        node.run(put())
        assert (pins / f"{index}-from_pod").exists()
        # A pod that is known no more keeps its programs as long as it runs, also with the next agent.
        node.endpoints = [one for one in node.endpoints if one.name != "default/server"]
        node.become("auto")
        assert other.at(node.device, "egress") == ["tcx to_pod"]
        assert other.at("passing", "ingress") == ["tcx from_pod"]
        assert node.hooks.watched == 10  # what leaves by either end of the pair is judged, too
        node_info.run_on_node(["ip", "link", "del", "passing"])
        node.look()
        assert not (pins / f"{index}-from_pod").exists()
        assert (node.hooks.watched, node.hooks.put_back, node.hook_problems()) == (7, 0, [])


@pytest.mark.parametrize("how", BOTH)
def test_at_a_former_uplink_only_what_leaves_is_judged(testbed: Testbed, other: Foreigner, how: str) -> None:
    testbed.node.run_on_node(["ip", "link", "add", "was-uplink", "type", "veth", "peer", "name", "nobodys"])
    try:
        first = KernelNode(testbed.node, devices=("was-uplink", "eth0"), tcx=how)
        first.run(first.datapath.close())
        first.loop.stop()
        assert other.at("was-uplink", "ingress") == [f"{KIND[how]} from_network"]
        assert other.at("was-uplink", "egress") == [f"{KIND[how]} to_network"]
        with HookedNode(testbed, how):
            assert other.at("was-uplink", "ingress") == []
            assert other.at("was-uplink", "egress") == [f"{KIND[how]} to_network"]
            assert other.at("eth0", "ingress") == [f"{KIND[how]} from_network"]
    finally:
        testbed.node.run_on_node(["ip", "link", "del", "was-uplink"])


def test_a_filter_of_another_kind_at_our_priority_is_named(testbed: Testbed) -> None:
    device = testbed.pod("server").interface
    theirs = ("prio", "1", "protocol", "ip", "u32", "match", "u32", "0", "0", "classid", "1:1")
    testbed.node.run_on_node(["tc", "qdisc", "add", "dev", device, "clsact"]).check_returncode()
    testbed.node.run_on_node(["tc", "filter", "add", "dev", device, "ingress", *theirs]).check_returncode()
    try:
        with pytest.raises(DatapathError, match="a filter of kind u32 has priority 1 there"):
            HookedNode(testbed, "off")
    finally:
        testbed.node.run_on_node(["tc", "qdisc", "del", "dev", device, "clsact"])
