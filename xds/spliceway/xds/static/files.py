"""What the files of a directory say: the resources of each, or why it is refused. Pure: texts in, values out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

import msgspec

from spliceway.xds.errors import InconsistentSnapshotError, ResourceError
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.resources.protofiles import Loaded

#: Whose resources: a node id, or this for every node.
EVERYONE = "*"
#: The folder with a folder for each node that has resources of its own.
NODES = "nodes"

#: (type URL, name) of a resource.
Key = tuple[str, str]
#: Text of a file and its name for errors -> resources; raises ResourceError.
Load = Callable[[str, str], list[Loaded]]


class News(msgspec.Struct, frozen=True):
    """What happened to a file: `text` is new, or there is an `error` and none can be had, or it is gone (neither)."""

    file: str
    text: str | None = None
    error: str = ""


class File(msgspec.Struct, frozen=True):
    """One file. `scope`: whose resources. `loaded`: its last good content, None when there never was one.

    `error`: why its newest content is refused.
    """

    scope: str
    loaded: tuple[Loaded, ...] | None = None
    error: str = ""


def scope_of(file: str) -> str:
    """Whose resources a file has: `a.yaml` everyone's, `nodes/<node id>/a.yaml` that node's.

    A node id in the name of a folder may be percent-encoded; one with a slash must be.

    Raises:
        ResourceError: the file is in another folder.
    """
    folders = file.split("/")[:-1]
    if not folders:
        return EVERYONE
    node = unquote(folders[1]) if len(folders) == 2 and folders[0] == NODES else EVERYONE
    if node == EVERYONE:
        raise ResourceError(f"{file}: belongs beside the folder {NODES}, or into {NODES}/<node id>")
    return node


def read(files: Mapping[str, File], news: Iterable[News], load: Load) -> dict[str, File]:
    """The files after `news`. What can't be read keeps its last good content."""
    result = dict(files)
    for item in news:
        if item.text is None and not item.error:
            result.pop(item.file, None)
        else:
            result[item.file] = _read(item, result.get(item.file), load)
    return result


def _read(item: News, before: File | None, load: Load) -> File:
    scope, loaded = EVERYONE, before.loaded if before else None
    try:
        scope = scope_of(item.file)
        if item.text is None:
            return File(scope, loaded, f"{item.file}: {item.error}")
        return File(scope, tuple(load(item.text, item.file)))
    except ResourceError as error:
        return File(scope, loaded, str(error))


def resources_of(files: Mapping[str, File], scope: str) -> dict[Key, Loaded]:
    """The resources that the files have for `scope`, by key.

    Raises:
        InconsistentSnapshotError: the same one is in two files.
    """
    found: dict[Key, Loaded] = {}
    for _, file in sorted(files.items()):
        for item in file.loaded or () if file.scope == scope else ():
            first = found.setdefault((item.url, item.name), item)
            if first is not item:
                short = TYPES[item.url].short
                raise InconsistentSnapshotError(f"{item.where}: {short} {item.name!r} is in {first.where} already")
    return found


def unread(files: Mapping[str, File]) -> list[str]:
    """The errors of files that never had good content."""
    return [file.error for _, file in sorted(files.items()) if file.loaded is None]
