"""Connections between two local endpoints that both have HTTP rules: which rule sets meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spliceway.policy.ports import covers
from spliceway.policy.programs import Content, Half


class Pairs:
    """The pairs of (client's egress, server's ingress) rule sets that connections on this node can meet.

    An end is a half and the identities that its endpoints have for others.
    """

    def __init__(self) -> None:
        self._met: dict[tuple[Content, Content], frozenset[tuple[int, int]]] = {}

    def find(
        self, clients: Mapping[Half, Iterable[int]], servers: Mapping[Half, Iterable[int]]
    ) -> set[tuple[int, int]]:
        """All of them. Only halves that steer anything need to be asked about."""
        found: set[tuple[int, int]] = set()
        known, self._met = self._met, {}
        for client, client_identities in clients.items():
            for server, server_identities in servers.items():
                assert client.program is not None
                assert server.program is not None
                egress = {client.program.assigned.get(number, client.program.other) for number in server_identities}
                ingress = {server.program.assigned.get(number, server.program.other) for number in client_identities}
                for both in ((one, other) for one in egress for other in ingress):
                    met = self._met.get(both)
                    if met is None:
                        met = self._met[both] = known.get(both) or _meet(*both)
                        found |= met
        return found


def _meet(egress: Content, ingress: Content) -> frozenset[tuple[int, int]]:
    found = set()
    for protocol, port, bits, first in egress.redirects:
        for other_protocol, other_port, other_bits, second in ingress.redirects:
            shorter, longer = sorted(((bits, port), (other_bits, other_port)))
            if protocol == other_protocol and covers(longer[1], shorter[1], shorter[0]):
                found.add((first, second))
    return frozenset(found)
