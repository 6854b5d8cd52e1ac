"""One worker's relay of the embedded proxy with a rule set, and nothing around it.

`python bench_proxy_relay.py JSON`, where JSON has `port`, `mark`, `rules` («METHOD PATH», …), `head_cache` and `share`
(how many of a million allowed requests are recorded; a record is encoded as for the supervisor, and dropped).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import msgspec
import uvloop

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.proxy.model import AccessRecord, Change, ClusterConfig, Limits, ListenerConfig
from spliceway.proxy.relay.relay import Relay

_NAME = "bench"


def change(port: int, mark: int, rules: list[str]) -> Change:
    """A listener with these rules, as the agent would have it."""
    listener = ListenerConfig(
        name=_NAME, addresses=(("127.0.0.1", port),), backlog=4096, buffer_limit=65536, upstream_mark=mark,
        route=_NAME, headers_timeout=60.0, idle_timeout=3600.0, max_head_bytes=61440, max_headers=100,
        denied_body=b"Access denied",
    )  # fmt: skip
    split = (rule.split(" ") for rule in rules)
    made = tuple(HttpRule(number, method, path) for number, (method, path) in enumerate(split, 1))
    return Change(
        revision=1,
        listeners={_NAME: listener},
        sockets=(_NAME,),
        rules={_NAME: RuleSet(1, _NAME, made)},
        cluster=ClusterConfig(
            name="original-destination", connect_timeout=5.0, buffer_limit=65536, max_headers=200, max_head_bytes=61440
        ),
    )


async def serve(settings: dict[str, Any]) -> None:
    """Relay, for ever."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    listener.bind(("127.0.0.1", settings["port"]))
    listener.listen(4096)
    listener.setblocking(False)
    encoder, dropped = msgspec.msgpack.Encoder(), bytearray()

    def record(one: AccessRecord) -> None:
        encoder.encode_into(one, dropped)

    relay = Relay(
        asyncio.get_running_loop(), worker=0, limits=Limits(), on_record=record, head_cache=settings["head_cache"]
    )
    relay.apply(change(settings["port"], settings["mark"], settings["rules"]), {_NAME: [listener]})
    relay.set_share(settings["share"])
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve(msgspec.json.decode(sys.argv[1])))
