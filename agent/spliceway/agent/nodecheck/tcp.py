"""TCP settings of this network namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from spliceway.agent.nodecheck.model import Check, Target, info, ok, skipped, warn
from spliceway.agent.nodecheck.reading import Unreadable, sysctl, text
from spliceway.bpf import abi

_LISTENERS = "proxy.listenerPorts"
#: The others may be there in the machine's first network namespace only.
_OF_EVERY_NAMESPACE = frozenset({"net/ipv4/tcp_tw_reuse"})
_ELSEWHERE = "nothing, where nodes are namespaces of one machine: look at it in the machine's own (nsenter -t 1 --net)"


def tcp(target: Target) -> Iterator[Check]:
    """Ports, memory, pacing."""
    limit = target.settings.splice_limits.connection
    for judge, path in (
        (_reuse, "net/ipv4/tcp_tw_reuse"),
        (_memory, "net/ipv4/tcp_mem"),
        (lambda value: judge_buffer(value, limit), "net/core/rmem_max"),
        (judge_send_buffer, "net/core/wmem_max"),
        (_qdisc, "net/core/default_qdisc"),
    ):
        try:
            yield judge(sysctl(path))
        except Unreadable as error:
            name = path.rpartition("/")[2].replace("_", "-")
            yield skipped(name, str(error), "" if path in _OF_EVERY_NAMESPACE else _ELSEWHERE)
    try:
        yield judge_ports(sysctl("net/ipv4/ip_local_port_range"), target.settings.listener_ports)
    except Unreadable as error:
        yield skipped("ip-local-port-range", str(error))


def judge_ports(found: str, listeners: tuple[int, int]) -> Check:
    """From `ip_local_port_range`: how many connections a pair of client and server may have, and our listeners."""
    low, high = map(int, found.split())
    name = "ip-local-port-range"
    if low <= listeners[1] and listeners[0] <= high:
        todo = f"sysctl -w net.ipv4.ip_local_port_range='{max(32768, listeners[1] + 1)} {high}', or move {_LISTENERS}"
        return warn(name, f"{low} to {high} reaches into {_LISTENERS} {listeners[0]}-{listeners[1]}", todo)
    if high - low < 10_000:
        todo = "widen it: each connection of the proxy from one client to one server needs a port of its own"
        return warn(name, f"{low} to {high}: {high - low + 1} ports", todo)
    return ok(name, f"{low} to {high}: {high - low + 1} connections for each client and server")


def _reuse(value: str) -> Check:
    if value == "1":
        return ok("tcp-tw-reuse", "1")
    return info("tcp-tw-reuse", value, "nothing: the agent sets it to 1, and `spliceway cleanup` puts it back")


def _memory(value: str) -> Check:
    return judge_memory(value, os.sysconf("SC_PAGE_SIZE"), _total())


def judge_memory(value: str, page: int, total: int) -> Check:
    """From `tcp_mem` (three numbers of pages) and the machine's memory in bytes."""
    low, pressure, high = (int(part) * page >> 20 for part in value.split())
    found = f"{low}, {pressure}, {high} MiB (low, pressure, high)"
    if total and high << 20 > total // 2:
        return warn("tcp-mem", f"{found} of {total >> 20} MiB", "lower net.ipv4.tcp_mem: TCP may take over half of it")
    if pressure < 64:
        return warn("tcp-mem", found, "raise net.ipv4.tcp_mem: splice.limits are a share of it")
    return ok("tcp-mem", found)


def judge_buffer(value: str, limit: int) -> Check:
    """From `rmem_max`: a spliced socket gets a receive buffer of `limit` bytes, which is twice what is asked for."""
    found = f"{int(value) >> 10} KiB"
    if 2 * int(value) < limit:
        least = 2 * int(value) >> 10
        todo = f"sysctl -w net.core.rmem_max={limit // 2}: spliced connections leave at {least} KiB unread"
        return warn("rmem-max", f"{found}; splice.limits.connectionKib is {limit >> 10}", todo)
    return ok("rmem-max", found)


def judge_send_buffer(value: str) -> Check:
    """From `wmem_max`: what the kernel may take of Envoy when a spliced connection has left and its pod is behind."""
    found = f"{int(value) >> 10} KiB"
    if int(value) < abi.HELD_BACK:
        todo = f"with Envoy: sysctl -w net.core.wmem_max={abi.HELD_BACK}, or answers to slow readers may be cut"
        return warn("wmem-max", found, todo)
    return ok("wmem-max", found)


def _qdisc(value: str) -> Check:
    if value == "fq":
        todo = "nothing; between pods of a node nothing is paced, and spliced bytes pass no qdisc"
        return info("default-qdisc", "fq", todo)
    return ok("default-qdisc", value)


def _total() -> int:
    """Memory of the machine in bytes, 0 when it can't be told."""
    try:
        lines = text(Path("/proc/meminfo")).splitlines()
    except Unreadable:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("MemTotal:")]
    return int(found[0]) << 10 if found else 0
