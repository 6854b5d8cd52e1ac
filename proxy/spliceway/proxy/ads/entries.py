"""From access records to Envoy's access log entries. Pure.

What an entry has no field for stands in the metadata of the namespace `spliceway`, as strings. Texts are cut: a client
can send heads of 64 KiB, and there are many of them in a message.
"""

from __future__ import annotations

from functools import lru_cache

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from google.protobuf.descriptor import FieldDescriptor

from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.model import AccessRecord

#: Namespace of the metadata, and the custom tag that has the number of the connection.
METADATA, TAG_CONNECTION = "spliceway", "connection"
#: Characters that are kept.
LONGEST_METHOD, LONGEST_AUTHORITY, LONGEST_PATH, LONGEST_TEXT = 32, 512, 4096, 1024

_PROTOCOLS = {
    "HTTP/1.0": accesslog_pb2.HTTPAccessLogEntry.HTTP10,
    "HTTP/1.1": accesslog_pb2.HTTPAccessLogEntry.HTTP11,
    "HTTP/2": accesslog_pb2.HTTPAccessLogEntry.HTTP2,
}
_METHODS = {name: number for name, number in base_pb2.RequestMethod.items() if number}
_FLAGS = frozenset(
    field.name for field in accesslog_pb2.ResponseFlags.DESCRIPTOR.fields if field.type == FieldDescriptor.TYPE_BOOL
)
_VERDICTS = {int(verdict): verdict.label for verdict in Verdict}
_REASONS = {int(reason): reason.label for reason in Reason}


def entry_of(record: AccessRecord) -> accesslog_pb2.HTTPAccessLogEntry:
    """One record as an entry.

    Raises:
        ValueError: it has what no entry can say, such as half of a surrogate pair.
    """
    entry = accesslog_pb2.HTTPAccessLogEntry()
    common = entry.common_properties
    common.start_time.seconds, common.start_time.nanos = divmod(record.time, 1_000_000_000)
    common.duration.seconds, common.duration.nanos = divmod(record.duration_ns, 1_000_000_000)
    common.downstream_direct_remote_address.MergeFromString(_address(record.source, record.source_port))
    common.downstream_local_address.MergeFromString(_address(record.destination, record.destination_port))
    if record.upstream_source:
        common.upstream_local_address.MergeFromString(_address(record.upstream_source, record.upstream_source_port))
    if record.rule_set:
        common.route_name = str(record.rule_set)
    if record.connection:
        common.custom_tags[TAG_CONNECTION] = str(record.connection)
    for flag in record.flags:
        if flag in _FLAGS:
            setattr(common.response_flags, flag, True)
    common.downstream_wire_bytes_received = record.received_bytes
    common.downstream_wire_bytes_sent = record.sent_bytes
    common.upstream_wire_bytes_sent = record.upstream_sent_bytes
    common.upstream_wire_bytes_received = record.upstream_received_bytes
    entry.protocol_version = _PROTOCOLS.get(record.protocol, 0)
    if (method := _METHODS.get(record.method)) is not None:
        entry.request.request_method = method
    entry.request.authority = record.authority[:LONGEST_AUTHORITY]
    entry.request.path = record.path[:LONGEST_PATH]
    if record.status:
        entry.response.response_code.value = record.status
    entry.response.response_code_details = record.details[:LONGEST_TEXT]
    fields = common.metadata.filter_metadata[METADATA].fields
    fields["verdict"].string_value = _VERDICTS.get(record.verdict, "")
    fields["reason"].string_value = _REASONS.get(record.reason, "")
    if record.rule:
        fields["rule"].string_value = str(record.rule)
    if record.client_rule:
        fields["client_rule"].string_value = str(record.client_rule)
    if record.nearest_miss:
        fields["nearest_miss"].string_value = record.nearest_miss[:LONGEST_TEXT]
    if record.mismatches:
        fields["mismatches"].string_value = _joined(record.mismatches)
    if record.method and method is None:
        fields["method"].string_value = record.method[:LONGEST_METHOD]
    return entry


@lru_cache(maxsize=4096)
def _address(text: str, port: int) -> bytes:
    """A serialized Address: those of servers come again and again."""
    return bytes(address_pb2.Address(socket_address={"address": text, "port_value": port}).SerializeToString())


def _joined(names: tuple[str, ...]) -> str:
    """With commas between them, as many as there is room for."""
    text = ",".join(names)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT + 1].rpartition(",")[0]
