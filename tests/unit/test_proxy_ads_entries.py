"""A record becomes an entry, and the entry exactly its flow."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from hypothesis import given
from hypothesis import strategies as st

from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.ads import entries
from spliceway.proxy.ads.entries import entry_of
from spliceway.proxy.model import AccessRecord
from spliceway.xds.accesslog import entries as agents
from spliceway.xds.accesslog.entries import flow_of
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.resources.names import TAG_CONNECTION

FLAGS = [field.name for field in accesslog_pb2.ResponseFlags.DESCRIPTOR.fields if field.name != "unauthorized_details"]
PORTS = st.integers(0, 65535)
COUNTS = st.integers(0, 2**63)
#: Heads are Latin-1.
TEXTS = st.text(st.characters(max_codepoint=255), max_size=50)
# Not mapped: an IPv4 address in IPv6 is an IPv4 address in flows.
ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str)
)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
METHODS = st.sampled_from(["", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "get", "FOO"])


@st.composite
def records(draw: st.DrawFn) -> AccessRecord:
    upstream = draw(st.booleans())
    return AccessRecord(
        time=draw(st.integers(0, 2**62)),
        duration_ns=draw(st.integers(0, 2**50)),
        source=draw(ADDRESSES),
        source_port=draw(PORTS),
        destination=draw(ADDRESSES),
        destination_port=draw(PORTS),
        protocol=draw(st.sampled_from(["", "HTTP/1.0", "HTTP/1.1", "HTTP/2"])),
        method=draw(METHODS),
        authority=draw(TEXTS),
        path=draw(TEXTS),
        status=draw(st.integers(0, 599)),
        verdict=draw(st.sampled_from(Verdict)),
        reason=draw(st.sampled_from(Reason)),
        rule_set=draw(st.integers(0, 2**32 - 1)),
        rule=draw(st.integers(0, 2**32 - 1)),
        client_rule=draw(st.integers(0, 2**32 - 1)),
        nearest_miss=draw(TEXTS),
        mismatches=tuple(draw(st.lists(NAMES, max_size=4, unique=True))),
        details=draw(TEXTS),
        flags=tuple(sorted(draw(st.sets(st.sampled_from(FLAGS))), key=FLAGS.index)),
        connection=draw(st.integers(0, 2**63)),
        upstream_source=draw(ADDRESSES) if upstream else "",
        upstream_source_port=draw(PORTS) if upstream else 0,
        received_bytes=draw(COUNTS),
        sent_bytes=draw(COUNTS),
        upstream_sent_bytes=draw(COUNTS),
        upstream_received_bytes=draw(COUNTS),
    )


def flow_that_is(record: AccessRecord) -> HttpFlow:
    """The record, field by field."""
    upstream = (ip_address(record.upstream_source), record.upstream_source_port) if record.upstream_source else None
    values = {name: getattr(record, name) for name in record.__struct_fields__ if name != "upstream_source_port"}
    return HttpFlow(
        **{
            **values,
            "source": ip_address(record.source),
            "destination": ip_address(record.destination),
            "upstream_source": upstream,
            "verdict": Verdict(record.verdict),
            "reason": Reason(record.reason),
        }
    )


RECORD = AccessRecord(
    time=1_700_000_000_123_456_789,
    duration_ns=1_622_000,
    source="10.0.0.1",
    source_port=40000,
    destination="10.0.0.2",
    destination_port=80,
    protocol="HTTP/1.1",
    method="GET",
    authority="api",
    path="/articles/1",
    status=200,
    verdict=Verdict.ALLOW,
    reason=Reason.HTTP_ALLOWED,
    rule_set=7,
    rule=17,
)


def changed(**values: object) -> AccessRecord:
    return AccessRecord(**{**{name: getattr(RECORD, name) for name in RECORD.__struct_fields__}, **values})


def on_the_wire(record: AccessRecord) -> accesslog_pb2.HTTPAccessLogEntry:
    return accesslog_pb2.HTTPAccessLogEntry.FromString(entry_of(record).SerializeToString())


@given(record=records())
def test_a_flow_is_exactly_the_record(record: AccessRecord) -> None:
    assert flow_of(on_the_wire(record)) == flow_that_is(record)


def test_both_sides_use_the_same_names() -> None:
    assert (entries.METADATA, entries.TAG_CONNECTION) == (agents._OWN, TAG_CONNECTION)


@pytest.mark.parametrize(
    ("field", "longest"),
    [
        ("method", entries.LONGEST_METHOD),
        ("authority", entries.LONGEST_AUTHORITY),
        ("path", entries.LONGEST_PATH),
        ("details", entries.LONGEST_TEXT),
        ("nearest_miss", entries.LONGEST_TEXT),
    ],
)
def test_long_texts_are_cut(field: str, longest: int) -> None:
    text = "\xe9" * 70_000
    assert getattr(flow_of(on_the_wire(changed(**{field: text}))), field) == text[:longest]


def test_mismatches_are_cut_between_two_names() -> None:
    names = tuple(f"x-{number}" for number in range(1000))
    found = flow_of(on_the_wire(changed(mismatches=names))).mismatches
    assert 100 < len(found) < 400
    assert found == names[: len(found)]
    assert flow_of(on_the_wire(changed(mismatches=("x" * 5000,)))).mismatches == ()


def test_flags_that_envoy_does_not_have_are_left_out() -> None:
    flags = ("upstream_connection_failure", "own_flag", "unauthorized_details", "DESCRIPTOR")
    assert flow_of(on_the_wire(changed(flags=flags))).flags == ("upstream_connection_failure",)


def test_labels_of_a_newer_proxy_are_unknown_and_no_error() -> None:
    entry = entry_of(RECORD)
    fields = entry.common_properties.metadata.filter_metadata["spliceway"].fields
    fields["verdict"].string_value, fields["reason"].string_value = "defer", "http-new"
    fields["rule"].string_value, fields["client_rule"].string_value = "x", "9" * 5000
    fields["other"].number_value = 1
    flow = flow_of(entry)
    assert (flow.verdict, flow.reason, flow.rule, flow.client_rule) == (Verdict.NONE, Reason.UNKNOWN, 0, 0)


def test_numbers_that_this_proxy_does_not_know_are_no_error() -> None:
    flow = flow_of(on_the_wire(changed(verdict=99, reason=999)))
    assert (flow.verdict, flow.reason) == (Verdict.NONE, Reason.UNKNOWN)


@pytest.mark.parametrize("values", [{"path": "\ud800"}, {"status": -1}, {"source_port": -1}])
def test_what_no_entry_can_say_is_a_value_error(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        entry_of(changed(**values))
