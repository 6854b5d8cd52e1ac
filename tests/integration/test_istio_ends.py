"""How connections between applications and their sidecars end when something is held back, or one side is hostile."""

from __future__ import annotations

import socket
import struct

import pytest

from spliceway.agent.testbed import netns
from spliceway.bpf import diag
from spliceway.bpf.types import Leg
from support.istio.bed import SidecarBed
from support.splicebed import PATIENCE
from support.spliceread import drain, exactly, numbered
from support.waiting import until

pytest.register_assert_rewrite("integration.test_splice_hostile_pods")

from integration import test_splice_hostile_pods as hostile  # noqa: E402

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


@pytest.fixture
def bed(sidecars: SidecarBed) -> SidecarBed:
    """Two pods with sidecars."""
    return sidecars


test_a_reset_behind_what_waits_is_told = hostile.test_a_reset_behind_what_waits_is_told
test_one_socket_for_many_connections_leaves_no_entry = hostile.test_one_socket_for_many_connections_leaves_no_entry
test_row_17_no_ulp_before_the_send_is_over_that_left = hostile.test_row_17_no_ulp_before_the_send_is_over_that_left
test_transmit_timestamps = hostile.test_transmit_timestamps_that_nobody_fetches_hold_nothing_back


def test_send_buffers_for_what_is_held_back_have_a_budget(bed: SidecarBed, version: int) -> None:
    """Of what a sidecar accepted: what it dials waits for seconds before the kernel sends again for the fourth time."""
    hostile.test_send_buffers_for_what_is_held_back_have_a_budget(bed, Leg.DOWNSTREAM, version)


def test_an_application_that_paused_for_too_long_is_told(bed: SidecarBed, leg: Leg, version: int) -> None:
    """The sidecar has closed, and the pod's kernel has given up what the application did not read."""
    pod = bed.testbed.pod("client" if leg is Leg.DOWNSTREAM else "server")
    netns.call(pod.netns, lambda: netns.sysctl("ipv4/tcp_orphan_retries", 1))
    with bed.limited(hostile.LIMITS), bed.spliced(leg, version) as pair:
        port = pair.proxy.getsockname()[1] if leg is Leg.UPSTREAM else pair.proxy.getpeername()[1]
        sent = hostile._behind(pair)
        pair.proxy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        pair.proxy.close()

        def is_gone() -> bool:
            there = netns.call(pod.netns, diag.tcp_sockets)
            ours = [one for one in there if (one.local_port if leg is Leg.UPSTREAM else one.remote_port) == port]
            return all(one.state == 6 for one in ours)  # TCP_TIME_WAIT

        until(is_gone, 30)
        bed.node.run(bed.node.datapath.measure())
        spliced = pair.known.from_proxy_bytes
        assert exactly(pair.pod, spliced) == numbered(spliced)  # no byte of it is lost
        assert spliced < sent
        bed.node.run(bed.node.datapath.measure())
        pair.pod.settimeout(PATIENCE)
        assert drain(pair.pod).end == "ConnectionAbortedError"
