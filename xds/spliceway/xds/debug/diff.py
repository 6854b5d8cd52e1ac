"""What a node shall have against what its Envoy says that it has (`/config_dump?include_eds`). Pure.

Envoy shows listeners, clusters, routes, secrets and extensions as they came (secrets redacted); endpoints it writes
anew from its hosts, which `_endpoints` undoes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from envoy.config.core.v3 import health_check_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.message import Message

from spliceway.xds.debug.envoydump import Reported, reported
from spliceway.xds.debug.messagediff import ABSENT, Change, changes
from spliceway.xds.debug.redact import Hider, as_json, decoded, redact
from spliceway.xds.debug.status import Held, TypeStatus
from spliceway.xds.debug.view import Secrets
from spliceway.xds.protocol.refusal import HIDDEN
from spliceway.xds.protocol.typeurls import ENDPOINT, TYPES

#: So many differing fields of one resource are told; the others are counted.
_MAX_FIELDS = 50
#: What Envoy fills in where nothing is said.
_OVERPROVISIONING = 140
#: Envoy knows fewer states of a host than can be asked for; healthy is what is not said.
_HEALTH = {
    health_check_pb2.UNHEALTHY: health_check_pb2.UNHEALTHY,
    health_check_pb2.DRAINING: health_check_pb2.UNHEALTHY,
    health_check_pb2.TIMEOUT: health_check_pb2.UNHEALTHY,
    health_check_pb2.DEGRADED: health_check_pb2.DEGRADED,
}
#: Denominator -> how many millionths one is.
_MILLIONTHS = {
    percent_pb2.FractionalPercent.HUNDRED: 10_000,
    percent_pb2.FractionalPercent.TEN_THOUSAND: 100,
    percent_pb2.FractionalPercent.MILLION: 1,
}


class Field(msgspec.Struct, frozen=True):
    """A place where they differ, with both values as JSON has them, redacted; None for one that isn't there."""

    path: str
    desired: Any
    envoy: Any


class Difference(msgspec.Struct, frozen=True):
    """One resource.

    `state`: `same`, Envoy uses what it shall; `differs`, it uses something else, `fields` say what; `missing`, it shall
    have it and does not; `extra`, it has it and shall not; `warming`, it has taken it over, and waits for what it needs
    before it uses it; `error`, it has refused it, `message` are its words, and `fields` what it uses instead.
    `version`: which it shall have; `envoy_version`: which it uses. `more`: differing fields that aren't in `fields`.
    """

    type: str
    name: str
    state: str
    message: str = ""
    fields: tuple[Field, ...] = ()
    more: int = 0
    version: str = ""
    envoy_version: str = ""


def compare(
    desired: Mapping[str, Mapping[str, Held]],
    dump: Mapping[str, Any],
    secrets: Secrets,
    status: Mapping[str, TypeStatus],
    unknown: Collection[str] = (),
) -> list[Difference]:
    """Every resource of both sides, in sending order, then by name.

    `desired`: type URL -> name -> resource, as `DebugView.held(node, "desired")`; `dump`: Envoy's JSON; `secrets`,
    `status`: of the same view: what must not be shown, and what the client has refused or not asked for (`current`).
    `unknown`: names of resources of which the client has content that isn't from here: Secrets in it can't be told.

    Raises:
        AdminError: `dump` isn't a config_dump.
    """
    found = reported(dump)
    hiders = {name: Hider(texts) for name, texts in secrets.items() if texts}
    nothing = Hider()
    everything = Hider(text for texts in secrets.values() for text in texts)
    result = []
    for url, info in TYPES.items():
        wanted, has = desired.get(url, {}), found[url]
        state = status.get(info.short)
        refused = {item.name: item.error for item in state.resources if item.state == "NACK"} if state else {}
        for name in sorted(wanted.keys() | has.keys()):
            hider = hiders.get(name, nothing)
            if name in wanted:
                known = name not in unknown
                item = _compared(url, wanted[name], has.get(name, Reported()), refused.get(name, ""), hider, known)
            elif not has[name].draining and (has[name].active or has[name].warming or has[name].unread):
                item = Difference(info.short, name, "extra", envoy_version=has[name].version)
            else:
                continue  # on its way out
            if item.state == "missing" and state is not None and not (state.wildcard or name in state.names):
                item = msgspec.structs.replace(item, message="Envoy has not asked for it")
            result.append(msgspec.structs.replace(item, message=everything.text(item.message)))
    return result


def _compared(url: str, wanted: Held, has: Reported, refused: str, hider: Hider, known: bool) -> Difference:
    def told(state: str, message: str = "", found: Sequence[Change] = ()) -> Difference:
        careful = not known or (wanted.resource is not None and bool(wanted.resource.secrets))
        fields = tuple(_field(change, hider, careful=careful) for change in found[:_MAX_FIELDS])
        more = max(0, len(found) - _MAX_FIELDS)
        return Difference(TYPES[url].short, wanted.name, state, message, fields, more, wanted.version, has.version)

    normal = _NORMAL.get(url, _as_shown)
    message = decoded(url, wanted.resource.body) if wanted.resource else None
    if message is None:
        return told("differs", "what it shall have can't be read here")

    def differing(found: Message | None) -> list[Change] | None:
        if found is None:
            return None
        # Most are the same as they are, and normalizing is the dear part.
        return list(changes(normal(message), normal(found))) if any(changes(message, found)) else []

    active, warming, failed = differing(has.active), differing(has.warming), differing(has.refused)
    if active == []:
        return told("same")
    if warming == []:
        return told("warming")
    # Envoy goes on telling of a refusal while something else is on its way to it.
    error = refused or (has.error if not failed else "")
    if error:
        return told("error", error, active or ())
    if active is None and warming is None:
        return told("differs", f"what Envoy has can't be read here: {has.unread}") if has.unread else told("missing")
    return told("differs", "", (active if active is not None else warming) or ())


def _field(change: Change, hider: Hider, *, careful: bool) -> Field:
    """`careful`: no text of Envoy's is shown, for it may be the value that a Secret had before."""
    left, right = _shown(change.left, hider), _shown(change.right, hider)
    if careful and right is not None and not isinstance(right, bool | int | float):
        right = HIDDEN
    return Field(change.path, left, right)


def _shown(value: Any, hider: Hider) -> Any:
    if value is ABSENT:
        return None
    if isinstance(value, Message):
        copy = _copy(value)
        redact(copy, hider, stand_in=True)
        return as_json(copy)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return hider.text(value) if isinstance(value, str) else value


def _as_shown(message: Message) -> Message:
    """As Envoy's dump has it: without what is sensitive."""
    copy: Message = _copy(message)
    redact(copy, Hider())
    return copy


def _endpoints(message: Any) -> Message:
    """A ClusterLoadAssignment as Envoy has it, without what it fills in.

    Where Envoy itself checks hosts, one that fails is a difference.
    """
    copy = _copy(message)
    if copy.policy.overprovisioning_factor.value in (0, _OVERPROVISIONING):
        copy.policy.ClearField("overprovisioning_factor")
    for overload in copy.policy.drop_overloads:
        share = overload.drop_percentage
        share.numerator *= _MILLIONTHS.get(share.denominator, 1)
        share.denominator = percent_pb2.FractionalPercent.MILLION
    if not copy.policy.ListFields():
        copy.ClearField("policy")
    for locality in copy.endpoints:
        _drop_empty(locality, "locality", "load_balancing_weight")
        for endpoint in locality.lb_endpoints:
            if endpoint.load_balancing_weight.value == 1:
                endpoint.ClearField("load_balancing_weight")
            endpoint.health_status = _HEALTH.get(endpoint.health_status, 0)
            _drop_empty(endpoint.endpoint, "health_check_config")
            _drop_empty(endpoint, "metadata")
        hosts = sorted(locality.lb_endpoints, key=_key)
        del locality.lb_endpoints[:]
        locality.lb_endpoints.extend(hosts)
    groups = sorted((group for group in copy.endpoints if group.lb_endpoints), key=lambda g: (g.priority, _key(g)))
    del copy.endpoints[:]
    copy.endpoints.extend(groups)
    return copy  # type: ignore[no-any-return]


#: Type URL -> how both sides are made comparable.
_NORMAL: dict[str, Callable[[Message], Message]] = {ENDPOINT: _endpoints}


def _drop_empty(message: Any, *fields: str) -> None:
    for field in fields:
        if message.HasField(field) and not getattr(message, field).ListFields():
            message.ClearField(field)


def _key(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
