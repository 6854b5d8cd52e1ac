"""The connection to the agent."""

from __future__ import annotations

import grpc

from spliceway.proxy.model import ProxySettings

#: The first pause before the agent is tried again, in seconds.
FIRST_PAUSE = 0.1
#: An agent that gives no sign of life for so many seconds, and then so many more, is away.
_KEEPALIVE, _KEEPALIVE_TIMEOUT = 30.0, 10.0
#: A connection that is taken up and answered by nobody is given up after so many seconds.
_CONNECT = 5.0


def open_channel(settings: ProxySettings) -> grpc.aio.Channel:
    """A channel to the agent's Unix socket, which it tries again for ever; whoever opened it closes it.

    Messages may have any size: 10,000 listeners come in one response.
    """
    longest = max(FIRST_PAUSE, settings.reconnect_max)
    options: list[tuple[str, int | str]] = [
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Not that of another channel in this process, with its pauses.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", _ms(FIRST_PAUSE)),
        ("grpc.max_reconnect_backoff_ms", _ms(longest)),
        ("grpc.min_reconnect_backoff_ms", _ms(_CONNECT)),
        ("grpc.keepalive_time_ms", _ms(_KEEPALIVE)),
        ("grpc.keepalive_timeout_ms", _ms(_KEEPALIVE_TIMEOUT)),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    return grpc.aio.insecure_channel(f"unix:{settings.xds_socket}", options=options)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
