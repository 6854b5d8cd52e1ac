"""The data paths that can be compared. Pure.

A path says which pod is asked and how the splice switch stands meanwhile; everything else (programs, configuration,
CPUs, load) is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from spliceway.agent.bench.errors import UnknownPathError
from spliceway.agent.configsections import ProxyKind

#: Pods of a site, by role: a server without any policy, and the same on a node without Spliceway. The server that an
#: HTTP policy selects has for its role the kind of its node's proxy.
PLAIN = "plain"
BARE = "bare"

#: What a path's name ends in when it is another path with splicing on.
SPLICE = "+splice"


class DataPath(msgspec.Struct, frozen=True):
    """One data path.

    `server`: role of the pod that is asked; `proxy`: what stands between, None for nothing; `splice`: mode of the
    splice switch, None where nothing is steered.
    """

    name: str
    text: str
    server: str
    proxy: ProxyKind | None = None
    splice: str | None = None


PATHS: dict[str, DataPath] = {
    path.name: path
    for path in (
        DataPath("bare", "pod to pod, without Spliceway on the node", BARE),
        DataPath("direct", "pod to pod, no policy on either end", PLAIN),
        DataPath("embedded", "through the embedded proxy, splicing off", "embedded", "embedded", "off"),
        DataPath(f"embedded{SPLICE}", "through the embedded proxy, sockets spliced", "embedded", "embedded", "auto"),
        DataPath("envoy", "through Envoy, splicing off", "envoy", "envoy", "off"),
        DataPath(f"envoy{SPLICE}", "through Envoy, sockets spliced", "envoy", "envoy", "auto"),
    )
}


def default_paths(*kinds: ProxyKind) -> str:
    """What is compared unless asked otherwise: no proxy, and proxies of these kinds, spliced and not."""
    return ",".join(("direct", *(name for kind in kinds for name in (kind, f"{kind}{SPLICE}"))))


def kinds_of(paths: Iterable[DataPath]) -> tuple[ProxyKind, ...]:
    """Kinds of proxies that there must be, each once; at least one, for a node has a proxy."""
    return tuple(dict.fromkeys(path.proxy for path in paths if path.proxy)) or ("embedded",)


def parse_paths(text: str) -> tuple[DataPath, ...]:
    """Paths by their names, comma between. Raises UnknownPathError that lists what there is."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in PATHS]
    if unknown or not names:
        what = f"no data path {', '.join(unknown)}" if unknown else "no data path is named"
        raise UnknownPathError(f"{what}; there are {', '.join(PATHS)}")
    return tuple(PATHS[name] for name in names)


def rotations(paths: tuple[DataPath, ...]) -> Iterator[tuple[DataPath, ...]]:
    """The order of the paths in each round, without end: each path is first, second, … equally often."""
    while True:
        for start in range(len(paths)):
            yield paths[start:] + paths[:start]


def comparisons(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs whose ratios tell something: spliced to unspliced, proxied to direct, and one proxy to the other."""
    there = list(names)
    pairs = [(name, name.removesuffix(SPLICE)) for name in there if name.endswith(SPLICE)]
    pairs += [(name, "direct") for name in there if name not in ("direct", BARE)]
    pairs += [("direct", BARE)]
    pairs += [(f"embedded{how}", f"envoy{how}") for how in ("", SPLICE)]
    return [(over, under) for over, under in pairs if over in there and under in there]
