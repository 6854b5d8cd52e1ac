"""Resources as people look at them: what a node shall have, was sent or has acknowledged. Pure but for `dump`."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from spliceway.xds.debug.redact import REDACTED, Hider, as_json, decoded, redact
from spliceway.xds.debug.status import Held, TypeStatus, held_of
from spliceway.xds.debug.view import DebugView, Secrets, Stage
from spliceway.xds.protocol.refusal import HIDDEN
from spliceway.xds.protocol.snapshot import Resource, Snapshot
from spliceway.xds.protocol.typeurls import TYPES

#: What stands in fields of bytes, as JSON has it, and what it says.
_READABLE = {base64.b64encode(text.encode()).decode(): text for text in (HIDDEN, REDACTED)}
#: State of a resource that the node has not asked for, or that nobody can have asked for yet.
_NOT_SENT = "NOT SENT"


def dump(
    view: DebugView, node: str, stage: Stage = "desired", types: Collection[str] = (), names: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The resources of one node at one stage, see `dump_held`; empty for a node that isn't known."""
    return list(dump_held(view.held(node, stage), view.current(node), view.secrets(node), types, names))


def dump_held(
    held: Mapping[str, Mapping[str, Held]],
    status: Mapping[str, TypeStatus],
    secrets: Secrets,
    types: Collection[str] = (),
    names: Collection[str] = (),
    *,
    contents: bool = True,
) -> Iterable[dict[str, Any]]:
    """Every resource as JSON, only those short types and names, if given; in sending order, then by name.

    `held`: type URL -> name -> resource. `status`: short type -> status at the client. `secrets`: see Snapshot.
    Keys: `type`, `name`, `version`, `digest`, `size` (bytes), `state` (as in ResourceStatus) and `resource`, redacted;
    None when it is something that the client had before, in a version that isn't from here. Without `contents` there is
    no `resource`: decoding them is most of the work.
    """
    for url, info in TYPES.items():
        if types and info.short not in types:
            continue
        states = {item.name: item.state for item in status[info.short].resources} if info.short in status else {}
        for name, item in sorted(held.get(url, {}).items()):
            if names and name not in names:
                continue
            resource = item.resource
            made = {
                "type": info.short,
                "name": name,
                "version": item.version,
                "digest": resource.digest if resource else "",
                "size": len(resource.body) if resource else 0,
                "state": states.get(name, _NOT_SENT),
            }
            if contents:
                made["resource"] = shown(url, resource, secrets.get(name, frozenset())) if resource else None
            yield made


def dump_snapshot(
    snapshot: Snapshot, types: Collection[str] = (), names: Collection[str] = ()
) -> Iterable[dict[str, Any]]:
    """The resources of a snapshot that nobody need have been sent yet, as `dump_held` has them."""
    held = {url: held_of(of.resources) for url, of in snapshot.types.items()}
    return dump_held(held, {}, snapshot.secrets, types, names)


def shown(url: str, resource: Resource, secrets: frozenset[str] = frozenset()) -> dict[str, Any]:
    """One resource as a JSON object with its `@type`, redacted and readable. `secrets`: further texts to be hidden."""
    message = decoded(url, resource.body)
    if message is None:
        return {"@type": url, "value": f"({len(resource.body)} bytes that can't be read as this type)"}
    redact(message, Hider(resource.secrets | secrets), stand_in=True)
    return {"@type": url, **_readable(as_json(message))}


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return _READABLE.get(value, value) if isinstance(value, str) else value
