"""What goes between the plugin and the agent, on a Unix socket. The head comment of `c/spliceway-cni.c` has the format.

One question and one answer, then the connection ends. Lengths come first and are checked before anything is read.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping

import msgspec

MAGIC = b"SPLCNI1\n"
MAX_DOCUMENT = 1 << 20
MAX_ENVIRONMENT = 64 << 10
MAX_ANSWER = 64 << 10
_HEAD, _BACK = struct.Struct("<8sII"), struct.Struct("<BxxxI")


class Question(msgspec.Struct, frozen=True):
    """What the runtime said: variables CNI_… and the document of stdin."""

    variables: Mapping[str, str]
    document: bytes

    @property
    def command(self) -> str:
        """ADD, DEL, CHECK, GC or STATUS."""
        return self.variables.get("CNI_COMMAND", "")


class MalformedError(ValueError):
    """Something else than our plugin asks."""


async def read_question(reader: asyncio.StreamReader) -> Question:
    """Read one. Raises MalformedError, and asyncio.IncompleteReadError when whoever asks is gone."""
    magic, variables, document = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if magic != MAGIC:
        raise MalformedError("the request is not in the plugin's format")
    if variables > MAX_ENVIRONMENT or document > MAX_DOCUMENT:
        raise MalformedError("the request is too large")
    return Question(_variables(await reader.readexactly(variables)), await reader.readexactly(document))


def pack_question(variables: Mapping[str, str], document: bytes) -> bytes:
    """As the plugin sends it."""
    block = b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
    return _HEAD.pack(MAGIC, len(block), len(document)) + block + document


def pack_answer(error: bytes | None) -> bytes:
    """Done, or failed with this CNI error."""
    told = error or b""
    assert len(told) <= MAX_ANSWER
    return _BACK.pack(error is not None, len(told)) + told


def unpack_answer(data: bytes) -> bytes | None:
    """What `pack_answer` made. Raises MalformedError."""
    if len(data) < _BACK.size:
        raise MalformedError("the answer is cut short")
    failed, length = _BACK.unpack_from(data)
    if failed > 1 or len(data) != _BACK.size + length:
        raise MalformedError("the answer can't be understood")
    return data[_BACK.size :] if failed else None


def _variables(block: bytes) -> dict[str, str]:
    try:
        parts = block.decode().split("\0")
    except UnicodeDecodeError as error:
        raise MalformedError("a variable is not UTF-8") from error
    if parts.pop():
        raise MalformedError("the variables are cut short")
    found: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or name in found:
            raise MalformedError("a variable is no NAME=VALUE, or is there twice")
        found[name] = value
    return found
