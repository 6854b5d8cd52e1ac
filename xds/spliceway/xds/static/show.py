"""What the admin API shows, as plain JSON values. Private keys are redacted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spliceway.xds.debug.dump import shown
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.static.files import EVERYONE, File, Key
from spliceway.xds.static.state import Served, State

_NOUNS = {
    "CDS": "cluster", "EDS": "endpoint", "SDS": "secret", "LDS": "listener", "RDS": "route", "ECDS": "extension",
}  # fmt: skip
_PREFIX = "type.googleapis.com/"


def _words() -> Iterator[tuple[str, str]]:
    for url, info in TYPES.items():
        noun, message = _NOUNS[info.short], url.removeprefix(_PREFIX)
        yield from ((word.lower(), url) for word in (info.short, noun, f"{noun}s", message, url))


#: How a type may be called, in lower case: `cds`, `cluster`, `clusters`, the message's full name, the type URL.
TYPE_WORDS = dict(_words())


def resources_shown(scope: str, served: Served | None, fits: Callable[[Key], bool]) -> dict[str, Any]:
    """What a node gets, or everyone: each resource with version and the place that it comes from."""
    if served is None:
        return {"node": scope, "version": "", "resources": []}
    found = []
    for url, held in served.snapshot.types.items():
        for name, resource in held.resources.items():
            if not fits((url, name)):
                continue
            item = {"type": TYPES[url].short, "name": name, "version": resource.version, "ttl": resource.ttl}
            body = shown(url, resource, frozenset())
            found.append(item | {"from": served.where[url, name], "resource": body})
    return {"node": scope, "version": served.snapshot.version, "resources": found}


def state_shown(state: State, lost: str = "") -> dict[str, Any]:
    """Files, nodes, and what is wrong. `lost`: why no file can be read for now."""
    return {
        "complete": state.complete,
        "files": [
            {
                "file": path,
                "state": "refused" if file.error else "served",
                "resources": len(file.loaded or ()),
                "reason": _file_reason(file),
            }
            for path, file in sorted(state.layers.files.items())
        ],
        "nodes": [
            {
                "node": scope,
                "version": held.snapshot.version,
                "resources": {TYPES[url].short: len(each.resources) for url, each in held.snapshot.types.items()},
                "changed": scope in state.layers.changes,
                "problem": state.problems.get(scope, ""),
            }
            for scope, held in sorted(state.served.items(), key=lambda item: (item[0] != EVERYONE, item[0]))
        ],
        "problems": [
            *([lost] if lost else []),
            *(file.error for _, file in sorted(state.layers.files.items()) if file.error),
            *(f"node {scope}: {problem}" for scope, problem in sorted(state.problems.items())),
        ],
    }


def refused_shown(state: State, lost: str = "") -> list[dict[str, Any]]:
    """What is refused now: `kind` is directory, file or node (a set of resources; its name is `*` for everyone's).

    `lost`: why no file can be read for now.
    """
    found = [("directory", "", f"{lost} (what is served stays)")] if lost else []
    files = sorted(state.layers.files.items())
    found += [("file", path, _file_reason(file)) for path, file in files if file.error]
    for scope, problem in sorted(state.problems.items()):
        whom = "every node" if scope == EVERYONE else f"node {scope}"
        stays = "what was served before stays" if scope in state.served else "nothing is served instead"
        found.append(("node", scope, f"resources for {whom}: {problem} ({stays})"))
    return [{"kind": kind, "name": name, "reason": reason, "time": None} for kind, name, reason in found]


def _file_reason(file: File) -> str:
    """Why it is refused, and what counts instead; empty if it isn't."""
    return file.error and file.error + (" (its last good content stays)" if file.loaded is not None else "")
