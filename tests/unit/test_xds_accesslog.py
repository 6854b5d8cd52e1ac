"""Access log entries as flows, and the count of those that were lost."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2

from spliceway.policy.verdict import Reason, Verdict
from spliceway.xds.accesslog.entries import flow_of, judged
from spliceway.xds.accesslog.flow import FlowBudget, LossCounter
from spliceway.xds.resources.names import AMBIGUOUS_PATH, MALFORMED_HOST

PASSED = {"policy_enforced_engine_result": "allowed", "also_enforced_engine_result": "allowed"}


def entry(**common: object) -> accesslog_pb2.HTTPAccessLogEntry:
    return accesslog_pb2.HTTPAccessLogEntry(
        protocol_version="HTTP11",
        common_properties={
            "start_time": {"seconds": 1, "nanos": 2},
            "duration": {"nanos": 3},
            "downstream_remote_address": {"socket_address": {"address": "6.6.6.6", "port_value": 0}},
            "downstream_direct_remote_address": {"socket_address": {"address": "10.0.0.1", "port_value": 1111}},
            "downstream_local_address": {"socket_address": {"address": "::ffff:10.0.0.2", "port_value": 80}},
            "route_name": "7",
            **common,
        },
        request={"request_method": "GET", "authority": "api", "path": "/a"},
        response={"response_code": {"value": 200}, "response_code_details": "via_upstream"},
    )


def test_an_allowed_request() -> None:
    made = entry(
        custom_tags={"connection": "12"},
        upstream_local_address={"socket_address": {"address": "10.0.0.1", "port_value": 2222}},
        response_flags={"upstream_connection_termination": True},
        upstream_wire_bytes_sent=5,
    )
    made.common_properties.metadata.filter_metadata["envoy.filters.http.rbac"].update(
        {**PASSED, "policy_enforced_effective_policy_id": "00001/42", "also_enforced_effective_policy_id": "pass"}
    )
    flow = flow_of(made)
    assert (flow.time, flow.duration_ns, flow.protocol) == (1_000_000_002, 3, "HTTP/1.1")
    assert (flow.source, flow.source_port) == (ip_address("10.0.0.1"), 1111)  # not what X-Forwarded-For claims
    assert (flow.destination, flow.destination_port) == (ip_address("10.0.0.2"), 80)
    assert (flow.method, flow.authority, flow.path, flow.status) == ("GET", "api", "/a", 200)
    assert (flow.verdict, flow.reason, flow.rule_set, flow.rule) == (Verdict.ALLOW, Reason.HTTP_ALLOWED, 7, 42)
    assert flow.upstream_source == (ip_address("10.0.0.1"), 2222)
    assert (flow.connection, flow.flags, flow.upstream_sent_bytes) == (12, ("upstream_connection_termination",), 5)


def test_an_entry_with_next_to_nothing() -> None:
    flow = flow_of(accesslog_pb2.HTTPAccessLogEntry())
    assert (flow.verdict, flow.reason) == (Verdict.DENY, Reason.HTTP_MALFORMED)
    assert (flow.method, flow.protocol, flow.rule_set, flow.rule, flow.upstream_source) == ("", "", 0, 0, None)


DENIED = "rbac_access_denied_matched_policy"


@pytest.mark.parametrize(
    ("details", "results", "expected"),
    [
        ("via_upstream", PASSED, (Verdict.ALLOW, Reason.HTTP_ALLOWED)),
        ("upstream_reset_before_response_started{failure}", PASSED, (Verdict.ALLOW, Reason.HTTP_ALLOWED)),
        (f"{DENIED}[none]", {}, (Verdict.DENY, Reason.HTTP_DENIED)),
        (f"{DENIED}[none]", {"policy_shadow_engine_result": "allowed"}, (Verdict.DENY, Reason.HTTP_DENIED)),
        (f"{DENIED}[{AMBIGUOUS_PATH}]", {}, (Verdict.DENY, Reason.HTTP_AMBIGUOUS)),
        (f"{DENIED}[{MALFORMED_HOST}]", {}, (Verdict.DENY, Reason.HTTP_MALFORMED)),
        ("http1.codec_error", {}, (Verdict.DENY, Reason.HTTP_MALFORMED)),
        ("via_upstream", PASSED | {"policy_shadow_engine_result": "allowed"}, (Verdict.ALLOW, Reason.HTTP_ALLOWED)),
        ("via_upstream", PASSED | {"policy_shadow_engine_result": "denied"}, (Verdict.ALLOW, Reason.HTTP_DENIED)),
        ("via_upstream", PASSED | {"also_shadow_engine_result": "denied"}, (Verdict.ALLOW, Reason.HTTP_DENIED)),
        (
            "via_upstream",
            PASSED | {"ambiguous_shadow_engine_result": "denied", "policy_shadow_engine_result": "denied"},
            (Verdict.ALLOW, Reason.HTTP_AMBIGUOUS),
        ),
        # A filter that passed is not enough: only the last one lets a request through.
        ("no_details", {"policy_enforced_engine_result": "allowed"}, (Verdict.DENY, Reason.HTTP_MALFORMED)),
    ],
)
def test_verdicts(details: str, results: dict[str, str], expected: tuple[Verdict, Reason]) -> None:
    assert judged(details, results) == expected


@pytest.mark.parametrize(
    ("policy", "also", "expected"),
    [
        ("00000/7", "pass", (0, 7)),
        ("00000/7", "00001/8", (7, 8)),
        ("pass", "pass", (0, 0)),
        ("pass", "00001/8", (0, 8)),
    ],
)
def test_the_rule_is_the_servers_and_the_clients_stands_beside(
    policy: str, also: str, expected: tuple[int, int]
) -> None:
    made = entry()
    made.common_properties.metadata.filter_metadata["envoy.filters.http.rbac"].update(
        {
            **PASSED,
            "policy_enforced_effective_policy_id": policy,
            "also_enforced_effective_policy_id": also,
        }
    )
    flow = flow_of(made)
    assert (flow.client_rule, flow.rule) == expected


def test_losses_are_what_was_written_and_never_arrived() -> None:
    counter = LossCounter()
    assert counter.observe("a", 1000, 0) == 0  # before this agent
    assert counter.observe("a", 1010, 8) == 2
    assert counter.observe("a", 1010, 10) == 0  # they were only late
    assert counter.observe("a", 1020, 15) == 5
    assert counter.observe("b", 3, 17) == 6  # another Envoy: it wrote 3, 2 arrived
    assert counter.observe("b", 10, 20) == 10


def test_arrivals_beyond_what_was_written_are_no_gain() -> None:
    counter = LossCounter()
    counter.observe("a", 10, 0)
    assert counter.observe("a", 10, 5) == 0


def test_a_budget_is_spent_and_comes_back() -> None:
    budget = FlowBudget(10)
    assert [budget.take(100.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [budget.take(100.25) for _ in range(3)] == [True, True, False]
    assert [budget.take(900.0) for _ in range(11)] == [True] * 10 + [False]
