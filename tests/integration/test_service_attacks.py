"""What a pod with rules for egress may try with addresses that Services are dialled by."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import msgspec
import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict
from support.profiled import PROFILES
from support.serviceegress import (
    ALLOWED,
    POLICIES,
    UNSERVED,
    Site,
    cluster_ip,
    container,
    egress_site,
    external_ip,
    listening,
    translated,
)
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

#: The world may reach `client`, which may reach `plain`.
OPEN = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: client}}
  ingress: [{fromEntities: [world]}]
  egress: [{toEndpoints: [{matchLabels: {role: plain}}]}]
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with egress_site(PROFILES["l3-iptables"]) as made:
        yield made


@pytest.mark.parametrize("address", ["255.255.255.255", "224.0.0.1", "169.254.1.1"])
def test_what_reaches_many(site: Site, address: str) -> None:
    """Sockets get such packets without being looked for: no hook would judge them behind a translation."""

    def datagrams() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.settimeout(0.5)
        return made

    place, to = site.bed.node.info.netns, (address, 8125)
    with netns.call(place, datagrams) as there, netns.call(site.bed.pod("client").netns, datagrams) as here:
        there.bind(("0.0.0.0", 8125))
        site.node.run(site.node.datapath.set_service_addresses({ip_address(address): True}))
        try:
            before = site.node.flows_seen()
            here.sendto(b"x", to)
            with pytest.raises(TimeoutError):
                there.recv(10)
        finally:
            site.node.run(site.node.datapath.set_service_addresses({ip_address(address): False}))
    assert {hook for hook, _, _ in site.verdicts(before, 8125)} == {Hook.FROM_POD}


def test_both_ends_open_at_once(site: Site) -> None:
    """Netfilter knows the ends of what was refused: what the refused server sends is an answer to it, a SYN, too."""
    site.node.apply(OPEN)
    try:
        pod, far = site.bed.pod("client"), site.bed.pod("farother")
        service, own = cluster_ip(UNSERVED, 4), 47998

        def made(port: int) -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", port))
            sock.settimeout(2)
            return sock

        with (
            translated(site, 4, f"{service} tcp dport 7070 dnat to {far.address(4)}:7070"),
            netns.call(pod.netns, lambda: made(own)) as here,
            netns.call(far.netns, lambda: made(7070)) as there,
        ):
            here.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                here.connect((service, 7070))
            time.sleep(0.3)
            with pytest.raises(TimeoutError):
                there.connect((str(pod.address(4)), own))
    finally:
        site.node.apply(POLICIES)


def test_what_is_masqueraded_is_recorded_once(site: Site) -> None:
    """In audit, too: nobody else says what would be denied."""
    cluster = msgspec.structs.replace(site.node.cluster, audit=True)
    site.node.apply(POLICIES, cluster=cluster)
    try:
        before = site.node.flows_seen()
        assert site.asks("client", external_ip(84, 4)) == ALLOWED
        site.node.flows_seen()
        told = [one for one in site.node.flows[before:] if one.reason is Reason.DEFAULT_DENY]
        assert [(one.hook, one.verdict) for one in told] == [(Hook.TO_POD, Verdict.ALLOW)] * 2
    finally:
        site.node.apply(POLICIES)


def test_a_device_whose_hook_stays_empty() -> None:
    """Then packets leave unseen: Services' own addresses are judged as well, and the place is a problem."""
    with egress_site(PROFILES["l3-iptables"], tcx="off") as site, container(site, bridge=False) as addresses:
        place = site.bed.node.info.netns
        site.node.run(site.node.datapath._devices.look())
        listener = netns.call(place.parent / f"{place.name}-container", lambda: listening(9083))
        service = cluster_ip(UNSERVED, 4)

        def holds() -> bool:
            return any("Services' own addresses" in one for one in site.node.datapath.status().problems)

        try:
            with translated(site, 4, f"{service} tcp dport 80 dnat to {addresses[4]}:9083"):
                before = site.node.flows_seen()
                with pytest.raises(TimeoutError):
                    site.connected("client", service)
                assert {hook for hook, _, _ in site.verdicts(before, 9083)} == {Hook.TO_NETWORK}
                # What stands there now takes filters for packets that come in, and none for those that leave.
                netns.call(place, lambda: command("tc", "qdisc", "del", "dev", "vethc", "clsact"))
                netns.call(place, lambda: command("tc", "qdisc", "add", "dev", "vethc", "ingress"))
                until(holds, 12.0)
                before = site.node.flows_seen()
                with pytest.raises(TimeoutError):
                    site.connected("client", service)
                assert {hook for hook, _, _ in site.verdicts(before, 80)} == {Hook.FROM_POD}
                assert any("to_network at egress of vethc" in one for one in site.node.datapath.status().problems)
        finally:
            listener.close()
