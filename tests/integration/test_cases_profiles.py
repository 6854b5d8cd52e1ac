"""The whole table of cases on nodes that are built like real ones: real packets, real requests, and what arrives.

`make profiles` takes every profile; here there is one of each kind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec
import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command
from spliceway.policy.verdict import Reason
from support.casebed import CaseBed, case_bed
from support.caseears import Arrival, first_packet
from support.casenode import CaseNode
from support.caserequests import requests
from support.caserounds import Numbers, hidden, packets, without_programs
from support.cases import CaseFile, load_case_files
from support.generated import generated_files
from support.kernelcases import connections
from support.profiled import DEVICES, PROFILES

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

_EVERY = os.environ.get("SPLICEWAY_PROFILES") == "all"
#: Those that are least alike; CI takes the first two.
_KINDS = ("l3-drop", "vxlan", "bridge-nftables", "calico-like-drop", "aws-like")
_SAMPLE = int(os.environ.get("SPLICEWAY_SAMPLE", "1")) > 1
CHOSEN = [*PROFILES, *DEVICES] if _EVERY else list(_KINDS[:2] if _SAMPLE else _KINDS)
#: With every profile, policies that a generator made are asked as well.
FILES = [*load_case_files(), *(generated_files(8, 2, 60) if _EVERY else ())]


class Site:
    """A testbed with the datapath and the proxy on its first node. `bare`: what went wrong before they were there."""

    def __init__(self, bed: CaseBed) -> None:
        self.bed, self.numbers = bed, Numbers()
        self.bare = without_programs(bed, self.numbers, FILES)
        self.packets = self.requests = 0
        self.node = CaseNode(bed)


@pytest.fixture(scope="module", params=CHOSEN)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    begin = time.monotonic()
    with case_bed((PROFILES | DEVICES)[request.param], FILES) as bed:
        made = Site(bed)
        with made.node:
            yield made
    seconds = time.monotonic() - begin
    print(f"\n{request.param}: {made.packets} packets, {made.requests} requests, {seconds:.0f} s")


def test_without_our_programs_all_arrives(site: Site) -> None:
    """But what the profile's own rules forbid: so it is policy that what is denied does not arrive."""
    assert site.bare == [], "\n".join(site.bare)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_table(site: Site, file: CaseFile) -> None:
    """Verdict, reason and rule as the table says, and only what may arrive does."""
    table = site.node.load(file)
    sent, wrong = packets(site.bed, site.node, site.numbers, file, table)
    site.packets += sent
    asked, more = requests(site.bed, site.node, file, table)
    site.requests += asked
    assert sent
    assert wrong + more == [], "\n".join(wrong + more)


def test_what_does_not_agree_is_told(site: Site) -> None:
    """One file without its policies: each denial of the table is missed, in the records and on the wires."""
    file = next(one for one in FILES if one.name == "networkpolicy.yaml")
    open_to_all = msgspec.structs.replace(file, cluster=msgspec.structs.replace(file.cluster, policies={}))
    _, wrong = packets(site.bed, site.node, site.numbers, file, site.node.load(open_to_all))
    denied = [case for case in connections(file).values() if case.expect.verdict == "deny"]
    seen = [case for case in denied if not hidden(site.bed, case)]
    assert len(seen) > 100
    for case in seen:
        told = [text for text in wrong if text.startswith(f"{case.id}: ")]
        assert len(told) >= 2, told
        assert any(text.endswith(": arrived") for text in told), told


@pytest.mark.parametrize("version", [4, 6])
def test_an_unknown_pod_of_the_bridge_is_no_neighbour(site: Site, version: int) -> None:
    """Nobody has checked who it is: what it says of its station is dropped. In the other tests its station is known."""
    if not site.bed.profile.bridged:
        pytest.skip("pods are no neighbours on this profile")
    file = next(one for one in FILES if one.name == "peers.yaml")
    site.node.load(file)
    way = f"entity unmanaged{'' if version == 4 else ' over IPv6'}"
    case = next(one for one in connections(file).values() if one.name == way and one.source.version == version)
    place = site.bed.home(case.source).netns
    netns.call(place, lambda: command("ip", "neigh", "del", str(case.destination), "dev", "eth0"))
    since, number = len(site.node.flows), site.numbers()
    try:
        site.bed.send(case.source, first_packet(case, number))
        told = site.node.wait_flows(since, lambda flows: any(one.source == case.destination for one in flows))
        assert {one.reason for one in told if one.source == case.destination} == {Reason.SPOOFED_SOURCE}
        site.bed.ears.listen()
        assert Arrival(case.destination, case.protocol, number) not in site.bed.ears.arrived
    finally:
        site.bed.introduce()
