"""The table's HTTP requests, each on a real connection between the ends that it names, through the node's proxy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.plan import IPAddress
from spliceway.policy.table import PolicyTable
from spliceway.xds.accesslog.flow import HttpFlow
from support.casebed import CaseBed
from support.casenode import CaseNode
from support.cases import Case, CaseFile
from support.envoycases import raw_of
from support.steered import Reply, Upstream, read_reply

#: How many connections are open at once, so that each has a port of its own until its entry is there.
_TOGETHER = 64


class CaseServers(Upstream):
    """`Upstream`'s server at each address and port that requests go to, where the address lives."""

    def __init__(self, places: Iterable[tuple[Path, IPAddress, int]]) -> None:
        self.heads: list[bytes] = []
        self.peers: list[tuple[str, int]] = []
        self.open = 0
        self._listeners = [_listen(*place) for place in places]


def requests_of(file: CaseFile) -> list[Case]:
    """Its cases that the embedded proxy is asked about."""
    return [case for case in file.cases if case.request is not None and "embedded" in case.paths]


def requests(bed: CaseBed, node: CaseNode, file: CaseFile, table: PolicyTable) -> tuple[int, list[str]]:
    """Send every request of a file that is loaded: how many, and what is wrong."""
    cases = requests_of(file)
    wrong: list[str] = []
    places = {(bed.home(case.destination).netns, case.destination, case.port) for case in cases}
    with CaseServers(sorted(places, key=str)) as servers:
        for at in range(0, len(cases), _TOGETHER):
            wrong += _batch(bed, node, table, servers, cases[at : at + _TOGETHER])
    return len(cases), wrong


def _batch(bed: CaseBed, node: CaseNode, table: PolicyTable, servers: Upstream, cases: list[Case]) -> Iterator[str]:
    since = len(node.requests)
    with contextlib.ExitStack() as stack:
        answers = []
        for case in cases:
            before = len(servers.heads)
            try:
                connection = stack.enter_context(_dial(bed, case))
            except OSError as error:
                yield f"{case.id}: {case.source} to {case.destination} port {case.port}: {error}"
                continue
            assert case.request is not None
            try:
                connection.sendall(raw_of(case.request))
                reply = read_reply(connection, case.request.method == b"HEAD")
            except TimeoutError:
                reply = Reply(0, b"", b"no answer")
            port = connection.getsockname()[1]
            answers.append((case, port, reply, servers.heads[before:], servers.peers[-1:]))
        flows = {(flow.source, flow.source_port): flow for flow in node.wait_requests(since, len(answers))}
    for case, port, reply, heads, peers in answers:
        yield from _complaints(bed, table, case, flows.get((case.source, port)), reply, heads, peers)


def _complaints(
    bed: CaseBed,
    table: PolicyTable,
    case: Case,
    flow: HttpFlow | None,
    reply: Reply,
    heads: list[bytes],
    peers: list[tuple[str, int]],
) -> Iterator[str]:
    expect = case.expect.http
    assert expect is not None
    if flow is None:
        yield f"{case.id}: status {reply.status} {reply.body!r}, and the access log has no entry"
        return
    rule = str(table.rules[flow.rule]) if flow.rule else None
    got, wanted = (reply.status, flow.reason.label, rule), (expect.status, expect.reason, expect.rule)
    if got != wanted:
        yield f"{case.id}: {got}, not {wanted}"
    if len(heads) != (expect.status == 200):
        yield f"{case.id}: {len(heads)} requests arrived"
    # To a pod the proxy comes from the client's own address; on the way out some profiles masquerade.
    if heads and bed.home(case.destination).kind == "pod" and peers[0][0] != str(case.source):
        yield f"{case.id}: it came from {peers[0][0]}"


def _dial(bed: CaseBed, case: Case) -> socket.socket:
    def connect() -> socket.socket:
        made = socket.socket(_family(case.source), socket.SOCK_STREAM)
        try:
            made.settimeout(5)
            made.bind((str(case.source), 0))
            made.connect((str(case.destination), case.port))
            made.settimeout(20)
        except BaseException:
            made.close()
            raise
        return made

    return netns.call(bed.home(case.source).netns, connect)


def _listen(place: Path, address: IPAddress, port: int) -> socket.socket:
    def listen() -> socket.socket:
        made = socket.socket(_family(address), socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((str(address), port))
        made.listen(128)
        return made

    return netns.call(place, listen)


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
