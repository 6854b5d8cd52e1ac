"""The packets of the table of cases, and where its addresses live on a testbed."""

from __future__ import annotations

from ipaddress import ip_address

from support.casebed import layout
from support.caseears import PROTOCOLS, crc32c, first_packet, number_of
from support.caserounds import rounds
from support.cases import POD_CIDRS, load_case_files
from support.kernelcases import connections

FILES = load_case_files()
CASES = [case for file in FILES for case in connections(file).values()]


def test_each_address_lives_in_one_place() -> None:
    plan = layout(FILES)
    homes = [*plan.pods, plan.unmanaged, plan.strays, *plan.nodes.values(), plan.world]
    everyone = [address for home in homes for address in home]
    assert len(everyone) == len(set(everyone))
    assert {address for case in CASES for address in (case.source, case.destination)} <= set(everyone)


def test_whose_addresses_are_whose() -> None:
    plan = layout(FILES)
    assert {ip_address("10.240.1.31"), ip_address("fd00:240:1::31")} in map(set, plan.pods)
    assert all(sum(address in prefix for prefix in POD_CIDRS for address in pod) == len(pod) for pod in plan.pods)
    assert set(map(str, plan.unmanaged)) == {"10.240.1.99", "fd00:240:1::99"}
    assert {"10.240.2.99", "10.240.7.0", "fd00:240:7::1"} <= set(map(str, plan.strays))
    assert set(map(str, plan.nodes["node1"])) == {"172.30.0.1", "fd00:30::1"}
    assert {"172.30.0.2", "fd00:30::2", "172.30.0.22"} <= set(map(str, plan.nodes["node2"]))
    assert {"172.30.0.3", "203.0.113.44", "2001:db8::1"} <= set(map(str, plan.world))


def test_a_packet_is_known_again() -> None:
    for number, case in enumerate(CASES, 10_000):
        packet = first_packet(case, number)
        head = 20 if case.source.version == 4 else 40
        assert number_of(case.protocol, packet[head:]) == (number, False)
        assert case.protocol in PROTOCOLS[case.source.version] or case.expect.verdict == "deny"


def test_what_is_none_of_ours() -> None:
    for protocol in (1, 6, 17, 58, 132):
        assert number_of(protocol, b"") is None
        assert number_of(protocol, bytes(64)) is None


def test_the_checksum_of_sctp() -> None:
    assert crc32c(b"123456789") == 0xE306_9283  # RFC 3720's polynomial; the catalogue's check value of CRC-32C


def test_rounds_send_everything_once() -> None:
    found = list(rounds(CASES))
    assert sorted(case.id for batch in found for case in batch) == sorted(case.id for case in CASES)
    assert len(found) < 8
