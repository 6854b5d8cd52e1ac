"""Bodies of requests in chunks: read strictly, written anew. Pure.

What is sent upstream are chunks of the same bytes without extensions and trailers (Envoy drops them, too): a server
that reads sizes, extensions or line ends in another way than we do has nothing to disagree about.
Source: RFC 9112, 7.1.
"""

from __future__ import annotations

import re
from enum import Enum

#: Longest line of a chunk's size with its extensions, and all lines of trailers together, in bytes.
MAX_LINE = 4096
MAX_TRAILERS = 65536
#: From so many pieces on they are put together before they are sent.
_MANY = 16

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_EXTENSION = rb"[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
#: 15 digits: less than 2**60, whatever integer a server keeps it in.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:%b)*" % _EXTENSION)
_TRAILER = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*" % _TOKEN)


class ChunkError(Exception):
    """A body that is not framed as it must be. The message says what was found."""


class _At(Enum):
    SIZE = "size"
    DATA = "data"
    END = "end of a chunk"
    TRAILERS = "trailers"
    DONE = "done"


class ChunkReader:
    """Reads one body; `feed` until `done`.

    After a ChunkError: `whole`, whether all that `feed` has given out so far are whole chunks, so that what came could
    go on behind them as it came, and `unread`, which is that: from the line on that could not be read.
    """

    __slots__ = ("_at", "_left", "_line", "_trailers", "unread")

    def __init__(self) -> None:
        self._at = _At.SIZE
        self._left = 0
        self._line = bytearray()
        self._trailers = 0
        self.unread = b""

    def __repr__(self) -> str:
        return f"<ChunkReader {self._at.value}, {self._left} left>"

    @property
    def done(self) -> bool:
        """Whether the whole body has been read."""
        return self._at is _At.DONE

    @property
    def whole(self) -> bool:
        """See the class."""
        return self._at is _At.SIZE

    def feed(self, data: memoryview, out: list[bytes | memoryview]) -> int:
        """Read `data` up to the end of the body at most; what is to be sent for it is appended to `out`.

        That is one chunk for all that is in `data`, in views of it, or a copy where it came in many small ones. Returns
        how many bytes were read. Raises ChunkError.
        """
        found: list[bytes | memoryview] = []
        try:
            position = self._read(data, found)
        finally:
            self._give(found, out)
        return position

    def _give(self, found: list[bytes | memoryview], out: list[bytes | memoryview]) -> None:
        if size := sum(map(len, found)):
            content = found if len(found) <= _MANY else [b"".join(found)]
            out += [b"%x\r\n" % size, *content, b"\r\n"]
        if self._at is _At.DONE:
            out.append(b"0\r\n\r\n")

    def _read(self, data: memoryview, found: list[bytes | memoryview]) -> int:
        position, end = 0, len(data)
        while position < end and self._at is not _At.DONE:
            if self._at is _At.DATA:
                size = min(self._left, end - position)
                found.append(data[position : position + size])
                position += size
                self._left -= size
                if not self._left:
                    self._at = _At.END
                continue
            start, before = position, len(self._line)
            try:
                position = self._read_line(data, start)
                if self._line.endswith(b"\n"):
                    if not self._line.endswith(b"\r\n"):
                        raise ChunkError("a line that ends in LF alone")
                    self._take(bytes(self._line[:-2]))
                    self._line.clear()
            except ChunkError:
                # The line has what of it came with earlier bytes, too.
                self.unread = bytes(self._line[:before]) + bytes(data[start:])
                raise
        return position

    def _read_line(self, data: memoryview, position: int) -> int:
        """Add to the line up to its LF; the position after it."""
        room = MAX_LINE - len(self._line)
        piece = bytes(data[position : position + room])
        found = piece.find(b"\n")
        piece = piece if found < 0 else piece[: found + 1]
        self._line += piece
        if found < 0 and len(self._line) >= MAX_LINE:
            raise ChunkError("a line that is too long")
        if self._at is _At.END and not b"\r\n".startswith(self._line):
            raise ChunkError("a chunk that is longer than its size")
        return position + len(piece)

    def _take(self, line: bytes) -> None:
        if self._at is _At.END:
            self._at = _At.SIZE
        elif self._at is _At.SIZE:
            found = _SIZE.fullmatch(line)
            if found is None:
                raise ChunkError("the size of a chunk")
            self._left = int(found[1], 16)
            self._at = _At.DATA if self._left else _At.TRAILERS
        elif line:
            self._trailers += len(line)
            if not _TRAILER.fullmatch(line) or self._trailers > MAX_TRAILERS:
                raise ChunkError("a trailer")
        else:
            self._at = _At.DONE
