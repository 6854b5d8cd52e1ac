"""From access log entries to HttpFlow. Pure.

Envoy's say what they say in the words of its filters; those of the embedded proxy (`spliceway.proxy.ads.entries`) have
verdict, reason and rules in metadata of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2

from spliceway.policy.verdict import Reason, Verdict
from spliceway.xds.accesslog.flow import HttpFlow, IPAddress
from spliceway.xds.resources.names import (
    AMBIGUOUS_PATH,
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    FILTER_POLICY,
    HEADERS_METADATA,
    MALFORMED_HOST,
    MALFORMED_TARGET,
    POLICY,
    PREFIXES,
    RBAC_METADATA,
    RESULT,
    SHADOW_POLICY,
    SHADOW_RESULT,
    TAG_CONNECTION,
    rule_of,
)

# What Envoy's response code details say when an RBAC filter refuses: the policy that matched, `none` for an allow list.
_DENIED = re.compile(r"rbac_access_denied_matched_policy\[(.*)\]")
_PROTOCOLS: dict[int, str] = {1: "HTTP/1.0", 2: "HTTP/1.1", 3: "HTTP/2", 4: "HTTP/3"}
_METHODS: dict[int, str] = {number: name for name, number in base_pb2.RequestMethod.items() if number}
_REASONS = {
    "none": Reason.HTTP_DENIED,
    AMBIGUOUS_PATH: Reason.HTTP_AMBIGUOUS,
    MALFORMED_TARGET: Reason.HTTP_MALFORMED,
    MALFORMED_HOST: Reason.HTTP_MALFORMED,
}
#: The last of the filters lets pass only what all before it have let pass.
_PASSED = PREFIXES[FILTER_ALSO] + RESULT
_RULES = tuple((PREFIXES[name] + POLICY, PREFIXES[name] + SHADOW_POLICY) for name in (FILTER_POLICY, FILTER_ALSO))
#: What would be refused without audit, in the order in which it would be noticed.
_AUDIT = (
    (PREFIXES[FILTER_AMBIGUOUS] + SHADOW_RESULT, Reason.HTTP_AMBIGUOUS),
    (PREFIXES[FILTER_POLICY] + SHADOW_RESULT, Reason.HTTP_DENIED),
    (PREFIXES[FILTER_ALSO] + SHADOW_RESULT, Reason.HTTP_DENIED),
)
#: Namespace of what the embedded proxy says, all of it strings.
_OWN = "spliceway"
_VERDICTS = {verdict.label: verdict for verdict in Verdict}
_LABELS = {reason.label: reason for reason in Reason}


class _Judged(NamedTuple):
    """What the rules made of a request."""

    verdict: Verdict
    reason: Reason
    rule: int
    client_rule: int
    mismatches: tuple[str, ...]
    nearest_miss: str = ""


def flow_of(entry: accesslog_pb2.HTTPAccessLogEntry) -> HttpFlow:
    """One entry as a flow."""
    common, request, response = entry.common_properties, entry.request, entry.response
    # Not downstream_remote_address: that one believes X-Forwarded-For.
    source, source_port = _socket(common.downstream_direct_remote_address)
    destination, destination_port = _socket(common.downstream_local_address)
    own = _strings(common, _OWN)
    judgement = _own_judgement(own) if own else _envoys_judgement(entry)
    upstream = _socket(common.upstream_local_address) if common.HasField("upstream_local_address") else None
    return HttpFlow(
        time=common.start_time.ToNanoseconds(),
        duration_ns=common.duration.ToNanoseconds(),
        source=source,
        source_port=source_port,
        destination=destination,
        destination_port=destination_port,
        protocol=_PROTOCOLS.get(entry.protocol_version, ""),
        method=own.get("method") or _METHODS.get(request.request_method, ""),
        authority=request.authority,
        path=request.path,
        status=response.response_code.value,
        verdict=judgement.verdict,
        reason=judgement.reason,
        rule_set=_number(common.route_name),
        rule=judgement.rule,
        client_rule=judgement.client_rule,
        nearest_miss=judgement.nearest_miss,
        mismatches=judgement.mismatches,
        details=response.response_code_details,
        flags=tuple(field.name for field, _ in common.response_flags.ListFields()),
        connection=_number(common.custom_tags.get(TAG_CONNECTION, "")),
        upstream_source=upstream,
        received_bytes=common.downstream_wire_bytes_received,
        sent_bytes=common.downstream_wire_bytes_sent,
        upstream_sent_bytes=common.upstream_wire_bytes_sent,
        upstream_received_bytes=common.upstream_wire_bytes_received,
    )


def judged(details: str, results: Mapping[str, str]) -> tuple[Verdict, Reason]:
    """Verdict and reason from Envoy's response code details and what the RBAC filters wrote down."""
    if found := _DENIED.fullmatch(details):
        return Verdict.DENY, _REASONS.get(found[1], Reason.HTTP_DENIED)
    if results.get(_PASSED) != "allowed":
        return Verdict.DENY, Reason.HTTP_MALFORMED
    return Verdict.ALLOW, next((reason for key, reason in _AUDIT if results.get(key) == "denied"), Reason.HTTP_ALLOWED)


def _envoys_judgement(entry: accesslog_pb2.HTTPAccessLogEntry) -> _Judged:
    results = _strings(entry.common_properties, RBAC_METADATA)
    verdict, reason = judged(entry.response.response_code_details, results)
    client_rule, rule = _rules(results) if reason is Reason.HTTP_ALLOWED else (0, 0)
    mismatches = ",".join(_strings(entry.common_properties, HEADERS_METADATA).values())
    return _Judged(verdict, reason, rule, client_rule, tuple(sorted(set(mismatches.split(",")))) if mismatches else ())


def _own_judgement(own: Mapping[str, str]) -> _Judged:
    """What the embedded proxy says. Labels of a newer one than this agent are unknown, and no error."""
    mismatches = own.get("mismatches", "")
    return _Judged(
        _VERDICTS.get(own.get("verdict", ""), Verdict.NONE),
        _LABELS.get(own.get("reason", ""), Reason.UNKNOWN),
        _number(own.get("rule", "")),
        _number(own.get("client_rule", "")),
        tuple(mismatches.split(",")) if mismatches else (),
        own.get("nearest_miss", ""),
    )


def _rules(results: Mapping[str, str]) -> tuple[int, int]:
    """The client's and the server's rule that let a request pass; the first is 0 unless both ends have rules.

    Of an end that is there for audit only it is the rule that would have let it pass.
    """
    first, second = (rule_of(results.get(key, "")) or rule_of(results.get(shadow, "")) for key, shadow in _RULES)
    return (first, second) if second else (0, first)


def _strings(common: accesslog_pb2.AccessLogCommon, namespace: str) -> dict[str, str]:
    held = common.metadata.filter_metadata.get(namespace)
    return {} if held is None else {key: value.string_value for key, value in held.fields.items()}


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _socket(address: address_pb2.Address) -> tuple[IPAddress, int]:
    socket = address.socket_address
    return _address(socket.address), socket.port_value


@lru_cache(maxsize=4096)
def _address(text: str) -> IPAddress:
    """An address as a value, `::` for none. Parsing is most of an entry's cost, and a node has few addresses."""
    ip = ip_address(text or "::")
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip
