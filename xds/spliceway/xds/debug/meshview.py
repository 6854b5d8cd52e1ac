"""What other control planes' clients have: names, versions and states from Envoy's `/config_dump` and istiod's `syncz`.

Pure. Nothing is sure of what comes in; bodies of resources are passed over unread, so that types which nobody here
knows do no harm. Sources: envoy.admin.v3.ConfigDump; istiod's pilot/pkg/xds/debug.go (`SyncStatus`, 1.26 and newer).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from spliceway.xds.errors import AdminError
from spliceway.xds.protocol.typeurls import TYPES


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """A resource (or with istiod, a type: then `name` is empty) of a `node`, and how far it is.

    `source`: `sidecar` or `istiod`. `state` of a sidecar's: ACTIVE, WARMING, DRAINING, STATIC or ERROR; of istiod's:
    SYNCED, STALE, NACK or NOT SENT.
    """

    source: str
    node: str
    type: str
    name: str
    state: str
    version: str = ""
    error: str = ""


class _Error(msgspec.Struct):
    details: str = ""


class _Named(msgspec.Struct):
    name: str = ""
    cluster_name: str = ""


class _State(msgspec.Struct):
    version_info: str = ""
    listener: _Named | None = None


class _Entry(msgspec.Struct):
    """One of any list: fields of all kinds."""

    name: str = ""
    version_info: str = ""
    error_state: _Error | None = None
    active_state: _State | None = None
    warming_state: _State | None = None
    draining_state: _State | None = None
    listener: _Named | None = None
    cluster: _Named | None = None
    route_config: _Named | None = None
    endpoint_config: _Named | None = None
    ecds_filter: _Named | None = None

    @property
    def called(self) -> str:
        parts = (self.listener, self.cluster, self.route_config, self.endpoint_config, self.ecds_filter)
        inner = next((one for one in parts if one is not None), _Named())
        states = (self.active_state, self.warming_state, self.draining_state)
        deeper = next((one.listener.name for one in states if one is not None and one.listener is not None), "")
        return self.name or inner.name or inner.cluster_name or deeper


_List = list[_Entry]


class _Section(msgspec.Struct):
    """Any section of the dump."""

    kind: str = msgspec.field(default="", name="@type")
    static_listeners: _List = []
    dynamic_listeners: _List = []
    static_clusters: _List = []
    dynamic_active_clusters: _List = []
    dynamic_warming_clusters: _List = []
    static_route_configs: _List = []
    dynamic_route_configs: _List = []
    static_endpoint_configs: _List = []
    dynamic_endpoint_configs: _List = []
    static_secrets: _List = []
    dynamic_active_secrets: _List = []
    dynamic_warming_secrets: _List = []
    ecds_filters: _List = []


class _Dump(msgspec.Struct):
    configs: list[_Section]


class _Resource(msgspec.Struct):
    sent: str = ""
    acked: str = ""
    last_error: str = msgspec.field(default="", name="lastError")


class _Sync(msgspec.Struct):
    """Only `proxy` is always there; nonces without `resources` come from an istiod that has not got these yet."""

    proxy: str = ""
    cluster_sent: str = ""
    cluster_acked: str = ""
    listener_sent: str = ""
    listener_acked: str = ""
    route_sent: str = ""
    route_acked: str = ""
    endpoint_sent: str = ""
    endpoint_acked: str = ""
    extensionconfig_sent: str = ""
    extensionconfig_acked: str = ""
    resources: dict[str, _Resource] | None = None


#: Field of a section → type, and the state of what is in there.
_LISTS = {
    "static_listeners": ("LDS", "STATIC"),
    "dynamic_listeners": ("LDS", ""),
    "static_clusters": ("CDS", "STATIC"),
    "dynamic_active_clusters": ("CDS", "ACTIVE"),
    "dynamic_warming_clusters": ("CDS", "WARMING"),
    "static_route_configs": ("RDS", "STATIC"),
    "dynamic_route_configs": ("RDS", "ACTIVE"),
    "static_endpoint_configs": ("EDS", "STATIC"),
    "dynamic_endpoint_configs": ("EDS", "ACTIVE"),
    "static_secrets": ("SDS", "STATIC"),
    "dynamic_active_secrets": ("SDS", "ACTIVE"),
    "dynamic_warming_secrets": ("SDS", "WARMING"),
    "ecds_filters": ("ECDS", "ACTIVE"),
}
_WORDS = {"CDS": "cluster", "LDS": "listener", "RDS": "route", "EDS": "endpoint", "ECDS": "extensionconfig"}


def of_sidecar(body: bytes, node: str) -> list[Seen]:
    """What `/config_dump` says, in the order of the dump. Raises AdminError: it is none."""
    try:
        dump = msgspec.json.decode(body, type=_Dump)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise AdminError(f"{node}: this is not the JSON of Envoy's /config_dump: {error}") from None
    return [seen for section in dump.configs for seen in _of_section(section, node)]


def of_istiod(body: bytes) -> list[Seen]:
    """What `/debug/syncz` says: one of each proxy and type. Raises AdminError: it is none."""
    try:
        proxies = msgspec.json.decode(body, type=list[_Sync])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise AdminError(f"this is not the JSON of istiod's /debug/syncz: {error}") from None
    return [seen for proxy in proxies for seen in _of_proxy(proxy)]


def _of_section(section: _Section, node: str) -> Iterator[Seen]:
    for field, (short, state) in _LISTS.items():
        for entry in getattr(section, field):
            error = entry.error_state.details if entry.error_state is not None else ""
            version, found = entry.version_info, state
            if not found:
                found, version = _of_listener(entry)
            if entry.error_state is not None:
                found, error = "ERROR", error or "refused, for a reason that Envoy does not tell"
            yield Seen("sidecar", node, short, entry.called, found, version, error)


def _of_listener(entry: _Entry) -> tuple[str, str]:
    for state, part in (
        ("ACTIVE", entry.active_state),
        ("WARMING", entry.warming_state),
        ("DRAINING", entry.draining_state),
    ):
        if part is not None:
            return state, part.version_info
    return "WARMING", ""


def _of_proxy(proxy: _Sync) -> Iterator[Seen]:
    if proxy.resources is not None:
        types = {_short(url): one for url, one in sorted(proxy.resources.items())}
    else:
        types = {
            short: _Resource(getattr(proxy, f"{word}_sent"), getattr(proxy, f"{word}_acked"))
            for short, word in _WORDS.items()
        }
    for short, one in types.items():
        # Of what was refused, the nonce that counts is the one before: so a NACK is no SYNCED.
        state = "NACK" if one.last_error else _state(one)
        yield Seen("istiod", proxy.proxy, short, "", state, one.sent, one.last_error)


def _state(one: _Resource) -> str:
    if not one.sent:
        return "NOT SENT"
    return "SYNCED" if one.sent == one.acked else "STALE"


def _short(url: str) -> str:
    return TYPES[url].short if url in TYPES else url.rpartition("/")[2]
