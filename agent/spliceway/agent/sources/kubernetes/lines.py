"""A watch's bytes as lines, each an event."""

from __future__ import annotations

from collections.abc import Sequence

from spliceway.agent.sources.kubernetes.connection import MAX_BYTES, ApiFailure


class Lines:
    """Of one watch. Pure."""

    def __init__(self, plural: str) -> None:
        """`plural`: of what, for errors."""
        self._plural = plural
        self._rest = bytearray()

    def __repr__(self) -> str:
        return f"Lines({self._plural}, rest={len(self._rest)})"

    def of(self, piece: bytes) -> Sequence[bytes | bytearray]:
        """The lines that end in this piece, without empty ones. Raises ApiFailure."""
        if b"\n" not in piece:
            self._rest += piece
            if len(self._rest) > MAX_BYTES:
                raise ApiFailure(0, "", f"{self._plural}: a line of more than {MAX_BYTES} bytes")
            return ()
        *whole, self._rest = (self._rest + piece).split(b"\n")
        return [line for line in whole if line]

    def end(self) -> None:
        """There are no more pieces. Raises ApiFailure."""
        if self._rest:
            raise ApiFailure(0, "", f"{self._plural}: the watch ended in the middle of a line")
