"""What a worker counts, under Envoy's names where it means the same."""

from __future__ import annotations

from collections import Counter

from spliceway.policy.verdict import Reason

_HTTP = "http.spliceway."
_CLUSTER = "cluster.original-destination."

#: Names of what goes up and down.
GAUGES = frozenset({f"{_HTTP}downstream_cx_active", f"{_HTTP}downstream_rq_active", f"{_CLUSTER}upstream_cx_active"})


class Counters:
    """Attributes are counted up where it happens; `named` has them under their names."""

    __slots__ = (
        "allowed",
        "audited",
        "connect_failed",
        "connect_timeout",
        "connected",
        "cx",
        "cx_active",
        "cx_aged",
        "cx_idle",
        "cx_limited",
        "denied",
        "errors",
        "no_port",
        "overloaded",
        "received",
        "refused",
        "rq",
        "rq_active",
        "sent",
        "status",
        "tunnels",
        "unread",
        "up_active",
        "up_received",
        "up_reset",
        "up_rq",
        "up_sent",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)
        self.status = [0] * 6
        self.refused: Counter[Reason] = Counter()

    allowed: int
    audited: int
    connect_failed: int
    connect_timeout: int
    connected: int
    cx: int
    cx_active: int
    cx_aged: int
    cx_idle: int
    cx_limited: int
    denied: int
    errors: int
    no_port: int
    overloaded: int
    received: int
    rq: int
    rq_active: int
    sent: int
    tunnels: int
    unread: int
    up_active: int
    up_received: int
    up_reset: int
    up_rq: int
    up_sent: int

    def __repr__(self) -> str:
        return f"<Counters {self.cx} connections, {self.rq} requests>"

    def named(self) -> dict[str, int]:
        """All of them: `http.spliceway.downstream_rq_total`, …, and ours as `spliceway.…`."""
        refused = self.refused
        result = {
            f"{_HTTP}downstream_cx_total": self.cx,
            f"{_HTTP}downstream_cx_active": self.cx_active,
            f"{_HTTP}downstream_cx_rx_bytes_total": self.received,
            f"{_HTTP}downstream_cx_tx_bytes_total": self.sent,
            f"{_HTTP}downstream_cx_idle_timeout": self.cx_idle,
            f"{_HTTP}downstream_cx_max_duration_reached": self.cx_aged,
            f"{_HTTP}downstream_cx_overload_reject": self.cx_limited,
            f"{_HTTP}downstream_cx_protocol_error": refused[Reason.HTTP_MALFORMED]
            + refused[Reason.HTTP_TLS]
            + refused[Reason.HTTP_2],
            f"{_HTTP}downstream_cx_upgrades_total": self.tunnels,
            f"{_HTTP}downstream_rq_total": self.rq,
            f"{_HTTP}downstream_rq_active": self.rq_active,
            f"{_HTTP}downstream_rq_timeout": refused[Reason.HTTP_TIMEOUT],
            f"{_HTTP}downstream_rq_too_large": refused[Reason.HTTP_HEAD_TOO_LARGE],
            f"{_HTTP}rbac.allowed": self.allowed,
            f"{_HTTP}rbac.denied": self.denied,
            f"{_HTTP}rbac.shadow_denied": self.audited,
            f"{_CLUSTER}upstream_cx_total": self.connected,
            f"{_CLUSTER}upstream_cx_active": self.up_active,
            f"{_CLUSTER}upstream_cx_connect_fail": self.connect_failed,
            f"{_CLUSTER}upstream_cx_connect_timeout": self.connect_timeout,
            f"{_CLUSTER}upstream_cx_destroy_remote_with_active_rq": self.up_reset,
            f"{_CLUSTER}upstream_cx_rx_bytes_total": self.up_received,
            f"{_CLUSTER}upstream_cx_tx_bytes_total": self.up_sent,
            f"{_CLUSTER}upstream_rq_total": self.up_rq,
            "spliceway.no_port": self.no_port,
            "spliceway.buffer_resets": self.overloaded,
            "spliceway.internal_errors": self.errors,
            "spliceway.unread_connections": self.unread,
        }
        result |= {f"{_HTTP}downstream_rq_{number}xx": self.status[number] for number in range(1, 6)}
        return result | {f"spliceway.refused.{reason.label}": count for reason, count in refused.items()}
