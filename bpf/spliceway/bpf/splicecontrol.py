"""What user space says about splicing: which legs, how much may wait unread, whose sockets not; and looking at readers.

All of it reaches new connections only, but for the limits, which count from the next message on. What else programs are
told as a whole (audit, the kill switch) stands in the same map, and counts at once.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from socket import htons

from spliceway.bpf import abi, libbpf, resets
from spliceway.bpf.maps import ZERO, Maps
from spliceway.bpf.netns import current_cookie
from spliceway.bpf.rows import Attached
from spliceway.bpf.types import DatapathSettings, SpliceClasses

_NODE = bytes(8)
_ETHERNET = bytes(14)
#: So many looks in a row must find a sum too high before less than all of the difference is taken off.
_LOOKS = 6
#: Share of a limit from which on readers are looked at more often.
_PRESSED_SHARE = 4


class SpliceControl:
    """Writes `config`, `unspliced` and `unread`."""

    def __init__(
        self, settings: DatapathSettings, maps: Maps, end_inside: Callable[[Iterable[tuple[int, bytes]]], None]
    ) -> None:
        """Nothing is written yet. `end_inside`: see `Sidecars.end`."""
        self._settings, self._maps, self._end_inside = settings, maps, end_inside
        self._classes = settings.splice
        self._disabled = settings.disabled
        self._notes_stay = False
        self._steering = (0, 0)
        self._seen: dict[bytes, tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"SpliceControl({self._classes!r})"

    def write(self) -> None:
        """Write the configuration of the programs."""
        settings, classes = self._settings, self._classes
        flags = abi.ConfigFlag(0)
        for on, flag in (
            (classes.wanted and classes.clients, abi.ConfigFlag.SPLICE_CLIENTS),
            (classes.wanted and classes.servers, abi.ConfigFlag.SPLICE_SERVERS),
            (not classes.wanted, abi.ConfigFlag.SPLICE_OFF),
            (settings.audit, abi.ConfigFlag.AUDIT),
            (self._disabled, abi.ConfigFlag.DISABLED | abi.ConfigFlag.LENIENT),
            (self._notes_stay, abi.ConfigFlag.NOTES_STAY),
        ):
            flags |= flag if on else abi.ConfigFlag(0)
        config = abi.Config(
            node_cookie=current_cookie(),
            mark=settings.mark,
            mark_mask=settings.mark_mask,
            flags=flags,
            first_port=settings.listener_ports[0],
            last_port=settings.listener_ports[1],
            unread_connection=settings.splice_limits.connection,
            unread_endpoint=settings.splice_limits.endpoint,
            unread_node=settings.splice_limits.node,
            steering=self._steering[0],
            delivery=self._steering[1],
            proxy_mark=settings.proxy_mark,
        )
        self._maps.config.update(ZERO, bytes(config))

    def set_steering(self, devices: tuple[int, int]) -> None:
        """By which device the programs send what is for the proxy, and by which it comes in."""
        self._steering = devices
        self.write()

    def set_classes(self, classes: SpliceClasses) -> None:
        """Which legs of new connections are spliced."""
        self._classes = classes
        self.write()

    def set_disabled(self, disabled: bool) -> None:
        """Whether the kill switch is on."""
        self._disabled = disabled
        self.write()

    def set_notes_stay(self, stay: bool) -> None:
        """Whether nobody makes the kernel forget whose a packet is (`notes.py`)."""
        if stay != self._notes_stay:
            self._notes_stay = stay
            self.write()

    def exclude(self, attached: Mapping[str, Attached]) -> None:
        """Make `unspliced` hold the ports of the node and of these endpoints."""
        wanted = {_port_key(0, port) for port in self._settings.unspliced_ports}
        for one in attached.values():
            wanted |= {_port_key(one.ifindex, port) for port in one.endpoint.unspliced_ports}
        have = set(self._maps.unspliced.keys())
        self._maps.unspliced.update_many([(key, b"\1") for key in wanted - have])
        for key in have - wanted:
            self._maps.unspliced.delete(key)

    def measure(self) -> None:
        """Look at the readers of all directions in which something was unread, and at half-closed connections.

        A connection that fell silent still counts with what it had then; after this with what its reader has left. Sums
        that are wrong, because a state entry made room for another one, are put right when two looks agree about it.
        Pods that wait for what nobody sends any more are told.
        """
        forsaken, inside = [], []
        program = libbpf.open_pin(self._maps.root / "programs" / "measure_splice")
        try:
            for key, raw in self._maps.splices.items():
                state = abi.SpliceState.from_buffer_copy(raw)
                wanted = state.ends & ~abi.PROXY_LEFT or any(way.unread or way.charged for way in state.way)
                if not wanted or libbpf.run_on_packet(program, _ETHERNET + key)[0] != abi.FORSAKEN:
                    continue
                cookie = abi.SpliceKey.from_buffer_copy(key).netns_cookie
                if cookie & abi.SIDECAR_LEG:
                    inside.append(
                        (cookie & ~abi.SIDECAR_LEG, state.sock[abi.End.POD].cookie.to_bytes(8, sys.byteorder))
                    )
                else:
                    forsaken.append(key)
        finally:
            os.close(program)
        resets.send(forsaken)
        self._end_inside(inside)
        self._check_sums()

    def _check_sums(self) -> None:
        sums: Counter[bytes] = Counter()
        for raw_key, raw in self._maps.splices.items():
            state, cookie = abi.SpliceState.from_buffer_copy(raw), raw_key[: len(_NODE)]
            for way in state.way:
                if way.charged > abi.UNREAD_FLOOR:
                    sums[cookie] += way.charged
                    sums[_NODE] += way.charged
            if state.held:
                sums[_held(cookie)] += state.held
                sums[_held(_NODE)] += state.held
        seen: dict[bytes, tuple[int, ...]] = {}
        for key, raw in list(self._maps.unread.items()):
            wrong = abi.Unread.from_buffer_copy(raw).bytes - sums[key]
            if wrong:
                seen[key] = (*self._seen.get(key, ()), wrong)[-_LOOKS:]
                if sure := self._surely_wrong(seen[key]):
                    self._maps.unread.update(key, bytes(abi.Unread(abi.Unread.from_buffer_copy(raw).bytes - sure)))
                    del seen[key]
        self._seen = seen

    def _surely_wrong(self, seen: tuple[int, ...]) -> int:
        """How much of a difference is no matter of maps that change while they are read.

        That is what two looks agree about, or what a sum has been too high by at least in all of the last ones, if that
        is more than a connection may have.
        """
        if seen[-2:-1] == seen[-1:]:
            return seen[-1]
        least = min(seen)
        return least if len(seen) == _LOOKS and least > self._settings.splice_limits.connection else 0

    def pressed(self) -> bool:
        """See `Datapath.pressed`.

        A message is counted until its reader is looked at again, and after an answer nobody sends anything for a while:
        thousands of idle connections would take up what may wait.
        """
        limits = self._settings.splice_limits
        for key, raw in self._maps.unread.items():
            limit = limits.node if key in (_NODE, _held(_NODE)) else limits.endpoint
            if abi.Unread.from_buffer_copy(raw).bytes > limit // _PRESSED_SHARE:
                return True
        return False

    def forget(self, endpoint: bytes) -> None:
        """An endpoint (its `struct endpoint`) has gone."""
        whole = abi.Endpoint.from_buffer_copy(endpoint).netns_cookie
        for cookie in (whole, whole | abi.SIDECAR_LEG):
            key = cookie.to_bytes(8, sys.byteorder)
            self._maps.unread.delete(key)
            self._maps.unread.delete(_held(key))

    def unread(self) -> int:
        """Spliced bytes of the node that wait unread, without what is below the floor for a direction."""
        raw = self._maps.unread.lookup(_NODE)
        return abi.Unread.from_buffer_copy(raw).bytes if raw else 0


def _held(cookie: bytes) -> bytes:
    """Key of the sum of send buffers beside that of what is unread."""
    return (int.from_bytes(cookie, sys.byteorder) | abi.HELD_SUMS).to_bytes(8, sys.byteorder)


def _port_key(ifindex: int, port: int) -> bytes:
    return bytes(abi.UnsplicedKey(ifindex=ifindex, port=htons(port)))
