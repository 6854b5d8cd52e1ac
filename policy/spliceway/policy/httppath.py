"""Request targets: refused when two servers could read them differently, otherwise normalised as Envoy does.

What is accepted becomes byte for byte what Envoy 1.40 makes of it with `normalize_path`, `merge_slashes` and
`path_with_escaped_slashes_action: REJECT_REQUEST`; the rest is what its own checks (400) or the deny-ambiguous filter
(403) refuse. Source: http.md; every row was compared with a running Envoy.
"""

from __future__ import annotations

import re

from spliceway.policy.errors import SplicewayError
from spliceway.policy.verdict import Reason


class TargetError(SplicewayError):
    """A target that is refused before matching: HTTP_MALFORMED or HTTP_AMBIGUOUS, and why."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why


#: Most targets: nothing to decode or encode, no segment that is empty or of dots alone.
_PLAIN = re.compile(
    rb"/(?:(?!\.\.?(?:[/?]|\Z))[A-Za-z0-9_~!$&'()*+,=:@.-]+(?:/|(?=\?)|\Z))*"  # segments
    rb"(?:\?[\x21\x22\x24-\x7e]*)?"  # query
)
_NOT_PRINTABLE = re.compile(rb"[^\x21-\x7e]")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
#: Encoded bytes that Envoy answers with 400: NUL and the two slashes.
_REJECTED = frozenset((0x00, 0x2F, 0x5C))
#: Encoded bytes that some servers decode a second time, or before they split the path.
_AMBIGUOUS = frozenset((*range(0x01, 0x20), 0x25, 0x2E, 0x3B, *range(0x7F, 0x100)))
#: RFC 3986 unreserved characters: encoding them means nothing, so that they are decoded.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~")
#: Characters that Envoy percent-encodes in a path.
_ENCODED = {byte: b"%%%02X" % byte for byte in b'"<>^`{|}'}


def normalise(target: bytes) -> bytes:
    """The `:path` that rules are matched against (query included) and that is sent upstream.

    `target` is in origin form: `/path?query`. Raises TargetError.
    """
    if _PLAIN.fullmatch(target):
        return target
    if not target.startswith(b"/"):
        raise TargetError(Reason.HTTP_MALFORMED, "the target does not begin with /")
    if found := _NOT_PRINTABLE.search(target):
        raise TargetError(Reason.HTTP_MALFORMED, f"byte 0x{found[0][0]:02x} in the target")
    if b"#" in target:
        raise TargetError(Reason.HTTP_MALFORMED, "# in the target")
    path, mark, query = target.partition(b"?")
    _check_path(path)
    path = _ESCAPE.sub(_decode_unreserved, path).replace(b"\\", b"/")
    path = b"".join(_ENCODED.get(byte, bytes((byte,))) for byte in path)
    return _merge_slashes(_remove_dots(path)) + mark + query


def _check_path(path: bytes) -> None:
    escapes = {int(digits, 16) for digits in _ESCAPE.findall(path)}
    # Envoy normalises before its filters run: what is malformed for it comes first.
    if rejected := escapes & _REJECTED:
        raise TargetError(Reason.HTTP_MALFORMED, f"%{min(rejected):02x} in the path")
    if b";" in path:
        raise TargetError(Reason.HTTP_AMBIGUOUS, "; in the path")
    if _BAD_ESCAPE.search(path):
        raise TargetError(Reason.HTTP_AMBIGUOUS, "% without two hexadecimal digits in the path")
    if ambiguous := escapes & _AMBIGUOUS:
        raise TargetError(Reason.HTTP_AMBIGUOUS, f"%{min(ambiguous):02x} in the path")


def _decode_unreserved(found: re.Match[bytes]) -> bytes:
    byte = int(found[1], 16)
    return bytes((byte,)) if byte in _UNRESERVED else found[0]


def _remove_dots(path: bytes) -> bytes:
    """Resolve `.` and `..` segments (RFC 3986, 5.2.4); empty segments count."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment == b".." and kept:
            kept.pop()
        if segment not in (b".", b".."):
            kept.append(segment)
        elif last:
            kept.append(b"")
    return b"/" + b"/".join(kept)


def _merge_slashes(path: bytes) -> bytes:
    """Envoy's mergeSlashes: a path of nothing but slashes becomes `//`."""
    if b"//" not in path:
        return path
    merged = b"/".join(segment for segment in path.split(b"/") if segment)
    return b"/" + merged + (b"/" if path.endswith(b"/") else b"")
