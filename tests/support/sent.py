"""What differs in the heads that the server gets from the two proxies; docs/proxy.md has the same rows.

`by_envoy` makes of what the one has sent what the other would have: whatever it does not explain is a fault.
"""

from __future__ import annotations

import re

from support.differential import Arrived

#: Headers of which Envoy makes one line, with commas; the others stay as they are.
_JOINED = frozenset(
    b"accept accept-encoding authorization cache-control content-type expect origin referer user-agent via "
    b"x-forwarded-for x-forwarded-host x-request-id".split()
)
#: Headers that Envoy takes away: they are about the connection, or about what Envoy itself does.
_TAKEN = frozenset(
    b"connection keep-alive proxy-connection x-envoy-internal x-envoy-retry-on x-envoy-expected-rq-timeout-ms "
    b"x-envoy-force-trace x-envoy-upstream-rq-timeout-ms x-forwarded-client-cert".split()
)
_NO_BODY = (b"GET ", b"HEAD ", b"DELETE ", b"TRACE ")

#: What differs in the head that the server gets: request, by the embedded proxy, by Envoy.
SENT = (
    ("HTTP/1.0", "sent on as HTTP/1.0", "sent on as HTTP/1.1"),
    (
        "`Connection`, `Keep-Alive`, `Proxy-Connection`, `TE` but for `trailers`, `X-Envoy-…` that Envoy obeys, "
        "`X-Forwarded-Client-Cert`",
        "as they came",
        "taken away",
    ),
    ("`Upgrade` without `Connection: upgrade`", "as it came", "taken away"),
    (
        "`Connection: upgrade` with `Upgrade: websocket` and a body in chunks",
        "as it came",
        "without `Transfer-Encoding` and the body",
    ),
    ("`Transfer-Encoding: Chunked`", "as it came", "`chunked`"),
    (
        "two lines of `Accept`, `Authorization`, `Expect`, `User-Agent` … (docs/xds.md)",
        "two lines",
        "one line, with a comma",
    ),
    ("a method other than GET, HEAD, DELETE and TRACE, without a body", "as it came", "`Content-Length: 0` is added"),
    ("no `X-Forwarded-Proto`", "as it came", "`x-forwarded-proto: http` is added"),
    ("an ambiguous path that passes because of audit", "as it came", "normalised all the same"),
)


def by_envoy(arrived: Arrived) -> tuple[bytes, dict[bytes, list[bytes]], bytes | None]:
    """What Envoy would have made of a request that the embedded proxy has sent on: line, values by name, body."""
    line = re.sub(rb"HTTP/1\.0\Z", b"HTTP/1.1", arrived.line)
    values: dict[bytes, list[bytes]] = {}
    for name, value in arrived.headers:
        values.setdefault(name.lower(), []).append(value)
    tokens = {token.strip().lower() for value in values.get(b"connection", ()) for token in value.split(b",")}
    websocket = b"upgrade" in tokens and b"websocket" in [value.lower() for value in values.get(b"upgrade", ())]
    body = arrived.body
    if websocket and values.pop(b"transfer-encoding", []):
        body = b""
    taken = _TAKEN - {b"connection"} if websocket else _TAKEN | {b"upgrade"}
    values = {name: held for name, held in values.items() if name not in taken}
    if b"transfer-encoding" in values:
        values[b"transfer-encoding"] = [value.lower() for value in values[b"transfer-encoding"]]
    if values.get(b"te", [b"trailers"]) != [b"trailers"]:
        del values[b"te"]
    values |= {name: [b",".join(filter(None, held))] for name, held in values.items() if name in _JOINED}
    if (
        not line.startswith(_NO_BODY)
        and not values.keys() & {b"content-length", b"transfer-encoding"}
        and not websocket
    ):
        values[b"content-length"] = [b"0"]
    values.setdefault(b"x-forwarded-proto", [b"http"])
    return line, values, body


def as_sent(arrived: Arrived) -> tuple[bytes, dict[bytes, list[bytes]], bytes | None]:
    """The same of what Envoy has sent on."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in arrived.headers:
        values.setdefault(name.lower(), []).append(value)
    return arrived.line, values, arrived.body
