"""Lists: which revision is answered from, in which pages, and what is selected.

Source: kubernetes.io/docs/reference/using-api/api-concepts (resource versions, large results in chunks);
apimachinery pkg/apis/meta/internalversion/validation; apiserver pkg/storage (continue.go, etcd3/store.go).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping

import msgspec

from support.kubeapi.errors import ApiError, bad_request, expired, invalid_options, too_large
from support.kubeapi.resources import Served
from support.kubeapi.selectors import Test, field_test, label_test
from support.kubeapi.store import Item, Name, Store

Query = Mapping[str, str]


class Options(msgspec.Struct, frozen=True):
    """ListOptions of a request, checked. `revision` -1: none was given."""

    namespace: str
    test: Test | None
    limit: int
    token: str
    revision: int
    match: str
    watch: bool
    bookmarks: bool
    initial_events: bool
    timeout: float | None

    def selects(self, name: Name, item: Item | None) -> bool:
        """Whether an object is there and wanted."""
        return item is not None and self.namespace in ("", name[0]) and (self.test is None or self.test(item.content))


def read_options(query: Query, served: Served, namespace: str, name: str = "", *, watch_list: bool = True) -> Options:
    """ListOptions. Raises ApiError. `watch_list`: whether the server has that feature."""
    tests: list[Test] = []
    if text := query.get("labelSelector", ""):
        tests.append(label_test(text))
    if text := query.get("fieldSelector", ""):
        tests.append(field_test(text, served.fields))
    if name:
        tests.append(lambda content: content["metadata"]["name"] == name)
    watch, match = _flag(query, "watch"), query.get("resourceVersionMatch", "")
    initial = query.get("sendInitialEvents")
    revision = query.get("resourceVersion", "")
    if revision and not revision.isdigit():
        raise bad_request(
            f'invalid resource version "{revision}": strconv.ParseUint: parsing "{revision}": invalid syntax'
        )
    if match not in ("", "Exact", "NotOlderThan"):
        raise invalid_options("resourceVersionMatch", f'supported values: "Exact", "NotOlderThan" (got "{match}")')
    if initial is not None:
        if not watch:
            raise invalid_options("sendInitialEvents", "sendInitialEvents is forbidden for list")
        if not watch_list:
            raise invalid_options(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            )
        if match != "NotOlderThan":
            raise invalid_options(
                "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
    elif match and watch:
        raise invalid_options(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )
    elif match and not revision:
        raise invalid_options(
            "resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"
        )
    elif match == "Exact" and revision == "0":
        raise invalid_options(
            "resourceVersionMatch", 'resourceVersionMatch "Exact" is forbidden for resourceVersion "0"'
        )
    if query.get("continue") and revision not in ("", "0"):
        raise bad_request("specifying resource version is not allowed when using continue")
    timeout = query.get("timeoutSeconds", "")
    return Options(
        namespace,
        (lambda content: all(test(content) for test in tests)) if tests else None,
        int(query.get("limit") or 0),
        query.get("continue", ""),
        int(revision) if revision else -1,
        match,
        watch,
        _flag(query, "allowWatchBookmarks"),
        (initial or "").lower() == "true",
        float(timeout) if timeout else None,
    )


def listed(store: Store, served: Served, options: Options) -> bytes:
    """The answer to a list. Raises ApiError."""
    now, start = store.revision, ("", "")
    if options.token:
        revision, start = _read_token(options.token)
        revision = now if revision < 0 else revision
    elif options.revision > 0 and options.match != "Exact":
        if options.revision > now:
            raise too_large(options.revision, now)
        revision = now
    elif options.match == "Exact":
        if options.revision > now:
            raise too_large(options.revision, now)
        revision = options.revision
    else:
        revision = now
    try:
        objects = store.objects(served.resource, revision)
    except KeyError:
        raise _too_old(options, revision, store.compacted, start) from None
    names = sorted(name for name, item in objects.items() if name > start and options.selects(name, item))
    # The watch cache answers resourceVersion=0, and does not page.
    limit = 0 if options.revision == 0 and not options.token else options.limit
    metadata: dict[str, object] = {"resourceVersion": str(revision)}
    if limit and len(names) > limit:
        metadata["continue"] = _token(revision, names[limit - 1])
        if options.test is None:  # with a selector the server does not know how many are left
            metadata["remainingItemCount"] = len(names) - limit
        names = names[:limit]
    head = {"kind": f"{served.kind}List", "apiVersion": served.api_version, "metadata": metadata}
    return b"".join(
        _body(
            msgspec.json.encode(head),
            (objects[name].text(served.api_version if served.custom else "") for name in names),
        )
    )


def _body(head: bytes, items: Iterator[bytes]) -> Iterator[bytes]:
    yield head[:-1] + b',"items":['
    for index, item in enumerate(items):
        yield b"," + item if index else item
    yield b"]}\n"


def _too_old(options: Options, revision: int, compacted: int, start: Name) -> ApiError:
    if not options.token:
        return expired(f"too old resource version: {revision} ({compacted})")
    error = expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
        "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
        "modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )
    error.metadata = {"continue": _token(-1, start)}
    return error


def _token(revision: int, start: Name) -> str:
    token = {"v": "meta.k8s.io/v1", "rv": revision, "start": "/".join(start)}
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def _read_token(text: str) -> tuple[int, Name]:
    try:
        token = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        namespace, _, name = token["start"].partition("/")
        return token["rv"], (namespace, name)
    except (binascii.Error, msgspec.DecodeError, KeyError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error


def _flag(query: Query, key: str) -> bool:
    return query.get(key, "").lower() in ("1", "true")
