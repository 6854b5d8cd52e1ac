"""Heads that nobody may take for a request: an answer that refuses, the end of the connection, nothing for the server.

Every case is sent whole, byte by byte, cut at every place that matters, and behind a request that is allowed.
"""

from __future__ import annotations

import pytest

from spliceway.policy.verdict import Reason, Verdict
from support.rawhttp import End, deliver, read_to_end
from support.torture import Bench, deliveries
from support.torturecases import DENIED, REFUSED, request

pytestmark = pytest.mark.kernel

BEHIND = request(line=b"GET /pub/behind HTTP/1.1")
_REASONS = {400: Reason.HTTP_MALFORMED, 431: Reason.HTTP_HEAD_TOO_LARGE}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_closed(rack: Bench, name: str) -> None:
    case = REFUSED[name]
    for how, pieces in deliveries(case.data):
        back = rack.exchange(*pieces)
        assert back.end is not End.OPEN, how
        assert [status in case.statuses for status in back.statuses] == [True], (how, back)
    assert rack.conversations() == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_follows_is_not_read(rack: Bench, name: str) -> None:
    case = REFUSED[name]
    back = rack.exchange(case.data + BEHIND * 3)
    assert back.end is not End.OPEN
    assert [status in case.statuses for status in back.statuses] == [True], back
    assert rack.conversations() == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_came_before_is_served(rack: Bench, name: str) -> None:
    case = REFUSED[name]
    back = rack.exchange(request() + case.data)
    assert back.end is not End.OPEN
    assert [status in (200, *case.statuses) for status in back.statuses] == [True, True], back
    assert [one.line for one in rack.requests()] == ["GET /pub/a"]


@pytest.mark.parametrize("status", _REASONS)
def test_refusals_have_a_record(rack: Bench, status: int) -> None:
    case = next(case for case in REFUSED.values() if case.statuses == (status,) and case.data.count(b"\r\n") > 1)
    with rack.connect() as connection:
        own = connection.getsockname()
        deliver(connection, [case.data], rack.receiver)
        read_to_end(connection)
    [record] = rack.relay.records_of(own)
    assert (record.verdict, record.reason, record.status) == (Verdict.DENY, _REASONS[status], status)
    assert (record.rule_set, record.rule, record.upstream_source, record.upstream_sent_bytes) == (1, 0, "", 0)


@pytest.mark.parametrize("name", DENIED)
def test_denied_and_kept(rack: Bench, name: str) -> None:
    for how, pieces in deliveries(DENIED[name]):
        back = rack.exchange(*pieces, BEHIND, half=True)
        assert back.statuses == [403, 200], (how, back)
        assert back.answers()[0].body == b"Access denied"
    assert {one.line for one in rack.requests()} == {"GET /pub/behind"}


@pytest.mark.parametrize(
    ("data", "reason", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), Reason.HTTP_TLS, 0),
        (b"\x16\x03\x03\x00\x05\x01", Reason.HTTP_TLS, 0),
        (b"\x16\x03\x01\x02\x00\x01\x00 \xfc\x03 \x03\n", Reason.HTTP_TLS, 0),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", Reason.HTTP_2, 505),
    ],
    ids=["TLS 1.0 record", "short TLS record", "TLS record with blanks", "HTTP/2 preface"],
)
def test_other_protocols_are_recognised(rack: Bench, data: bytes, reason: Reason, status: int) -> None:
    for how, pieces in deliveries(data):
        with rack.connect() as connection:
            own = connection.getsockname()
            deliver(connection, pieces, rack.receiver)
            back = read_to_end(connection)
        assert back.end is not End.OPEN, how
        assert back.statuses == [status] * bool(status), how
        # Of several bytes the later ones may meet the reset, and then it has been told.
        assert status or back.end is End.RESET or how != "whole", how
        [record] = rack.relay.records_of(own)
        assert (record.verdict, record.reason, record.status) == (Verdict.DENY, reason, status), how
        assert (record.method, record.path) == (("PRI", "*") if reason is Reason.HTTP_2 else ("", "")), how
    assert rack.conversations() == []


@pytest.mark.parametrize("version", [4, 6])
def test_both_address_families(rack: Bench, version: int) -> None:
    back = rack.exchange(request() + REFUSED["two Hosts"].data, version=version)
    assert back.statuses == [200, 400]
