"""Reading the maps for people: connections, sockets, counters and rows as the kernel has them."""

from __future__ import annotations

import time
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import ntohs

from spliceway.bpf import abi
from spliceway.bpf.abi import CtFlag, End, Side, Why
from spliceway.bpf.addresses import unpack_address, unpack_prefix
from spliceway.bpf.libbpf import BpfMap, open_pin
from spliceway.bpf.maps import LAYOUT, ZERO, Maps
from spliceway.bpf.types import CtEntry, Hook, Leg, ReasonCount, SockEntry, SpliceCounters, SpliceState
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict

IPAddress = IPv4Address | IPv6Address


def conntrack(maps: Maps) -> list[CtEntry]:
    """Every entry, in the perspective of the endpoint's own end."""
    now, found = time.monotonic_ns(), []
    for raw_key, raw in maps.conntrack.items():
        key, value = abi.CtKey.from_buffer_copy(raw_key), abi.CtValue.from_buffer_copy(raw)
        local, remote = unpack_address(bytes(key.local.w)), unpack_address(bytes(key.remote.w))
        client = bool(value.flags & CtFlag.CLIENT)
        ends = ((local, ntohs(key.local_port)), (remote, ntohs(key.remote_port)))
        if key.side == Side.NETWORK:  # kept for a host outside: the endpoint is the remote end
            ends, client = (ends[1], ends[0]), not client
        found.append(
            CtEntry(
                endpoint=ends[0][0],
                endpoint_port=ends[0][1],
                peer=ends[1][0],
                peer_port=ends[1][1],
                protocol=key.protocol,
                leg=Leg(value.leg),
                endpoint_is_client=client,
                verdict=Verdict(value.judged & 3),
                reason=Reason(value.reason),
                rule=value.rule,
                rule_set=value.rule_set & ~abi.RULE_SET_AUDIT,
                generation=value.judged >> 2,
                idle_seconds=max(0, now - value.seen) / 1e9,
                packets=value.packets,
                bytes=value.bytes,
            )
        )
    return found


def socks(maps: Maps) -> list[SockEntry]:
    """Every redirected connection that is alive. A SYN that nobody has answered yet is none."""
    now, found = time.monotonic_ns(), []
    for raw_key, raw in maps.splices.items():
        key, state = abi.SpliceKey.from_buffer_copy(raw_key), abi.SpliceState.from_buffer_copy(raw)
        if key.end & abi.REMAINS or not any(end.cookie for end in state.sock):
            continue
        found.append(
            SockEntry(
                endpoint=unpack_address(bytes(key.pod.w)),
                endpoint_port=ntohs(key.pod_port),
                peer=unpack_address(bytes(key.peer.w)),
                peer_port=ntohs(key.peer_port),
                leg=Leg(state.leg),
                state=SpliceState(state.word),
                why=Why(state.why).label,
                rule_set=state.rule_set & ~abi.RULE_SET_AUDIT,
                to_proxy_bytes=state.way[End.POD].bytes,
                to_proxy_messages=state.way[End.POD].messages,
                from_proxy_bytes=state.way[End.PROXY].bytes,
                from_proxy_messages=state.way[End.PROXY].messages,
                to_proxy_unread=state.way[End.POD].unread,
                from_proxy_unread=state.way[End.PROXY].unread,
                member=bool(state.pod_in),
                age_seconds=max(0, now - state.born) / 1e9,
            )
        )
    return found


def has_socks(maps: Maps, own: Collection[IPAddress]) -> bool:
    """Whether a redirected connection (to or from the proxy) is alive of which one of these addresses is an end."""
    others = (sock for sock in socks(maps) if sock.leg is not Leg.SIDECAR)
    return any(sock.endpoint in own or sock.peer in own for sock in others)


def forget_connections(maps: Maps, own: Collection[IPAddress]) -> None:
    """Delete conntrack entries in which one of these addresses is an end."""
    for raw_key in list(maps.conntrack.keys()):
        key = abi.CtKey.from_buffer_copy(raw_key)
        if {unpack_address(bytes(key.local.w)), unpack_address(bytes(key.remote.w))} & set(own):
            maps.conntrack.delete(raw_key)


def endpoint_addresses(maps: Maps, key: bytes) -> tuple[IPAddress, ...]:
    """Addresses of an endpoint by its interface index (4 bytes)."""
    raw = maps.endpoints.lookup(key)
    if raw is None:
        return ()
    value = abi.Endpoint.from_buffer_copy(raw)
    return tuple(unpack_address(bytes(a.w)) for a in (value.v4, value.v6) if any(a.w))


def listeners(maps: Maps) -> dict[int, int]:
    """Rule set to port."""
    return {
        int.from_bytes(key, "little"): abi.Listener.from_buffer_copy(raw).port for key, raw in maps.listeners.items()
    }


def reasons(maps: Maps) -> list[ReasonCount]:
    """Counters that are not zero, all CPUs summed."""
    found = []
    for hook in Hook:
        for verdict in (Verdict.ALLOW, Verdict.REDIRECT, Verdict.DENY):
            for reason in Reason:
                if reason >= Reason.HTTP_ALLOWED:
                    continue
                index = (hook * abi.VERDICTS + verdict) * abi.REASON_SLOTS + reason
                cpus = [
                    abi.Counter.from_buffer_copy(raw) for raw in maps.reasons.lookup_cpus(index.to_bytes(4, "little"))
                ]
                packets = sum(c.packets for c in cpus)
                if packets:
                    found.append(ReasonCount(hook, verdict, reason, packets, sum(c.bytes for c in cpus)))
    return found


def _totals(totals: BpfMap) -> list[abi.SpliceCounters]:
    return [abi.SpliceCounters.from_buffer_copy(raw) for raw in totals.lookup_cpus(ZERO)]


def splice_counters(maps: Maps) -> SpliceCounters:
    """Node-wide splice counters."""
    cpus = _totals(maps.splice_totals)
    names = [field[0] for field in abi.SpliceCounters._fields_ if field[0] not in ("lost_events", "by_why")]
    by_why = {why.label: sum(cpu.by_why[why] for cpu in cpus) for why in Why if why.label}
    return SpliceCounters(**{name: sum(getattr(cpu, name) for cpu in cpus) for name in names}, by_why=by_why)


def other_owner_count(bpffs: Path) -> int:
    """Connections that stayed on TCP for another program's sockmap, as the pinned counters say; needs no agent.

    Raises KernelRefusedError when no programs of this version are pinned on that bpffs.
    """
    key, value, per_cpu = LAYOUT["splice_totals"]
    pin = bpffs / "spliceway" / f"v{abi.ABI_VERSION}" / "maps" / "splice_totals"
    totals = BpfMap(open_pin(pin), "splice_totals", key, value, per_cpu=per_cpu)
    try:
        return sum(int(cpu.by_why[Why.OTHER_OWNER]) for cpu in _totals(totals))
    finally:
        totals.close()


def lost_events(maps: Maps) -> int:
    """Records for which the ring buffer had no room."""
    return sum(cpu.lost_events for cpu in _totals(maps.splice_totals))


def policy(maps: Maps, slot: int) -> list[dict[str, object]]:
    """Rows of the live slot, in the words of RowKey and Row."""
    classes: dict[tuple[int, int, int], list[int]] = {}
    for raw_key, raw in maps.classes.items():
        class_key = abi.ClassKey.from_buffer_copy(raw_key)
        class_id = abi.ClassValue.from_buffer_copy(raw).class_id[slot]
        classes.setdefault((class_key.policy, class_key.direction, class_id), []).append(class_key.identity)
    found: list[dict[str, object]] = []
    for raw_key, raw in maps.policy.items():
        key, value = abi.PolicyKey.from_buffer_copy(raw_key), abi.PolicyValue.from_buffer_copy(raw)
        any_protocol = key.prefixlen == abi.POLICY_PREFIX_ANY
        found.append(
            {
                "policy_id": key.policy,
                "direction": Direction(key.direction).label,
                "class_id": key.class_id,
                "identities": sorted(classes.get((key.policy, key.direction, key.class_id), [])),
                "protocol": "ANY" if any_protocol else _protocol(key.protocol),
                "port": ntohs(key.port),
                "port_bits": 0 if any_protocol else key.prefixlen - abi.POLICY_PREFIX_PROTOCOL,
                "verdict": Verdict(value.verdict[slot]).label,
                "reason": Reason(value.reason[slot]).label,
                "rule": value.rule[slot],
                "rule_set": value.rule_set[slot] & ~abi.RULE_SET_AUDIT,
            }
        )
    return sorted(found, key=lambda row: (row["policy_id"], row["direction"], row["class_id"], row["port"]))


def _protocol(number: int) -> str:
    try:
        return Protocol(number).name
    except ValueError:
        return str(number)


def ipcache(maps: Maps, slot: int) -> list[dict[str, object]]:
    """Prefixes of the live slot with their identities; `endpoint` is the interface index of a local one.

    `service`: Services are dialled by this address.
    """
    found: list[dict[str, object]] = []
    for raw_key, raw in maps.ipcache.items():
        value = abi.IpcacheValue.from_buffer_copy(raw)
        found.append(
            {
                "prefix": str(unpack_prefix(raw_key)),
                "identity": value.identity[slot],
                "endpoint": None if value.endpoint[slot] == abi.SERVICE_ADDRESS else value.endpoint[slot] or None,
                "service": value.endpoint[slot] == abi.SERVICE_ADDRESS,
            }
        )
    return sorted(found, key=lambda row: (":" in str(row["prefix"]), str(row["prefix"])))
