"""A network configuration of the node with our plugin at its end, and without it. Pure.

Everything else in it keeps its meaning: fields, order, numbers. A file that says a field twice is refused, since nobody
knows what its other readers take it for. Which file counts, and how a lone .conf is read, is as containerd (go-cni) and
CRI-O (ocicni) do it: the first by name of those that can be read.

A lone .conf is left as it is: whoever wrote it may write it again. Beside it comes a list with its content and our
plugin, whose name sorts right before it: what «10-net.conf» says is in «10-net-spliceway.conflist», since «-» comes
before «.».
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from spliceway.agent.cni.build import NAME

#: What libcni takes for network configurations.
SUFFIXES = (".conf", ".conflist", ".json")
_OURS = "-spliceway.conflist"
#: A list has a few plugins; this is more than anybody's.
MAX_BYTES = 1 << 20


class BadConfError(ValueError):
    """A file that is no network configuration."""


class Wanted(msgspec.Struct, frozen=True):
    """A file as it should be: its name and its text. `wraps`: the .conf that it stands for."""

    name: str
    text: str
    wraps: str = ""


def candidates(names: Iterable[str]) -> list[str]:
    """Names of files that may be network configurations, in the order in which runtimes look; without our own."""
    return sorted(name for name in names if name.endswith(SUFFIXES) and not is_ours(name))


def is_ours(name: str) -> bool:
    """Whether a file is a list that we made of a .conf."""
    return name.endswith(_OURS)


def parse(text: str) -> dict[str, Any]:
    """A network configuration, or a list of plugins. Raises BadConfError."""
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_float=_float, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise BadConfError(f"is not a network configuration: {error}") from error
    if not isinstance(found, dict):
        raise BadConfError("is not a network configuration: no JSON object")
    plugins = found.get("plugins", [found])
    if not isinstance(plugins, list) or not plugins:
        raise BadConfError("has no plugins")
    if not all(isinstance(each, dict) and isinstance(each.get("type"), str) and each["type"] for each in plugins):
        raise BadConfError("has a plugin without a type")
    if not isinstance(found.get("name"), str):
        raise BadConfError("has no name")
    return found


def with_plugin(name: str, text: str, plugin: Mapping[str, Any]) -> Wanted:
    """What should be in place of this file, or beside it. The text is the same where nothing is to be done.

    Raises BadConfError.
    """
    found = parse(text)
    if "plugins" in found:
        plugins = found["plugins"]
        others = [each for each in plugins if each["type"] != NAME]
        if not others:
            raise BadConfError("has no plugin but ours")
        # Who came behind it may stay there: it needs the pod's interface, and that is there after the first.
        if len(plugins) == len(others) + 1 and plugins[0]["type"] != NAME and plugin in plugins:
            return Wanted(name, text)
        return Wanted(name, _dump({**found, "plugins": [*others, dict(plugin)]}))
    head: dict[str, Any] = {key: found[key] for key in ("cniVersion", "name") if key in found}
    inner = {key: value for key, value in found.items() if key not in ("cniVersion", "name")}
    return Wanted(f"{PurePath(name).stem}{_OURS}", _dump({**head, "plugins": [inner, dict(plugin)]}), name)


def with_others(wanted: Wanted, there: str | None) -> Wanted:
    """A list that we made of a .conf, with the plugins that others have put into it since (`there`), as they stand.

    Istio's would be lost otherwise, and pods would start outside of their mesh.
    """
    if not wanted.wraps or there is None:
        return wanted
    try:
        held = parse(there)
    except BadConfError:
        return wanted
    old, new = held.get("plugins", []), json.loads(wanted.text)
    if not old or old[0]["type"] == NAME or all(each["type"] == NAME for each in old[1:]):
        return wanted
    inner, ours = new["plugins"]
    rest = [each for each in old[1:] if each["type"] != NAME]
    place = next((number for number, each in enumerate(old[1:]) if each["type"] == NAME), len(rest))
    whole = {**new, "plugins": [inner, *rest[:place], ours, *rest[place:]]}
    return Wanted(wanted.name, there if whole == held else _dump(whole), wanted.wraps)


def without_plugin(text: str) -> str | None:
    """A list without our plugin, None where that is not in it. Raises BadConfError."""
    found = parse(text)
    plugins = found.get("plugins", [])
    others = [each for each in plugins if each["type"] != NAME]
    return None if others == plugins else _dump({**found, "plugins": others})


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a field twice")
    return found


def _float(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{text} is too large")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
