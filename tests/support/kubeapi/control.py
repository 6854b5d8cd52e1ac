"""What a test holds of the API server: it has a thread of its own, and all that is here may be called from others."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import yaml

from support.kubeapi.api import Api
from support.kubeapi.server import Faults, Server
from support.kubeapi.store import Change

Json = dict[str, Any]
T = TypeVar("T")

#: Seconds for one call to get through to the server's loop.
_LIMIT = 30.0


class KubeApi:
    """An API server on an address of this machine (in the network namespace of the thread that makes it).

    Use it as a context manager. Objects are plain documents, as in YAML; `put` takes them whole, status included.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: tuple[Path, Path] | None = None,
        bookmark_seconds: float = 60.0,
        enter: Callable[[], None] | None = None,
        stored: KubeApi | None = None,
    ) -> None:
        """`tls`: certificate and key; `enter`: called in the server's thread first (to enter a network namespace).

        `stored`: one that has ended, and whose objects this one has.
        """
        self.host, self.port = host, port
        self._tls = tls
        self._bookmark_seconds = bookmark_seconds
        self._enter = enter
        self._loop = asyncio.new_event_loop()
        self._api: Api = stored._api if stored is not None else Api()
        self._server: Server | None = None
        self._faults = Faults()
        self._thread = threading.Thread(target=self._live, name="kubeapi", daemon=True)

    def __repr__(self) -> str:
        return f"KubeApi({self.url}, {self._api.store!r})"

    def __enter__(self) -> Self:
        self._thread.start()
        self._await(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LIMIT)

    @property
    def url(self) -> str:
        """Where it is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def requests(self) -> list[tuple[str, str, str]]:
        """Method, path and query of every request so far."""
        return self._do(lambda: list(self._serving.requests))

    @property
    def revision(self) -> int:
        """The revision of the latest write."""
        return self._api.store.revision

    def kubeconfig(
        self, file: Path, *, token: str = "", token_file: Path | None = None, ca: Path | None = None
    ) -> Path:
        """Write a kubeconfig for this server."""
        user = {**({"token": token} if token else {}), **({"tokenFile": str(token_file)} if token_file else {})}
        cluster = {"server": self.url, **({"certificate-authority": str(ca)} if ca else {})}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": cluster}],
            "users": [{"name": "double", "user": user}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "double"}}],
            "current-context": "double",
        }
        file.write_text(yaml.safe_dump(document))
        return file

    def put(self, *documents: Json | str) -> int:
        """Store objects as they are, and make their namespaces (`str`: YAML of any number); the last revision."""

        def put() -> int:
            for document in documents:
                several = yaml.safe_load_all(document) if isinstance(document, str) else (document,)
                for one in several:
                    for each in () if one is None else one["items"] if one["kind"] == "List" else (one,):
                        self._api.put(each)
            return self._api.store.revision

        return self._do(put)

    def drop(self, api_version: str, kind: str, name: str) -> None:
        """Remove «namespace/name», or «name», at once. Raises ApiError when it is not there."""
        namespace, _, short = name.rpartition("/")
        self._do(lambda: self._api.drop(self._api.registry.of_kind(api_version, kind), (namespace, short)))

    def get(self, api_version: str, kind: str, name: str) -> Json | None:
        """«namespace/name», or «name», as it is stored."""
        namespace, _, short = name.rpartition("/")

        def get() -> Json | None:
            item = self._api.store.get(self._api.registry.of_kind(api_version, kind).resource, (namespace, short))
            return item.content if item else None

        return self._do(get)

    def all(self, api_version: str, kind: str) -> list[Json]:
        """All objects of a kind, by name."""

        def every() -> list[Json]:
            objects = self._api.store.objects(self._api.registry.of_kind(api_version, kind).resource)
            return [item.content for _name, item in sorted(objects.items())]

        return self._do(every)

    def collect(self) -> list[str]:
        """Delete what has lost its owner, as kube-controller-manager does; what that was, by name.

        An owner is looked for in the object's own namespace, or in none: one elsewhere counts as gone.
        """

        def collect() -> list[str]:
            store, gone = self._api.store, []
            for served in {each.resource: each for each in self._api.registry.served()}.values():
                for name, item in sorted(store.objects(served.resource).items()):
                    owners = item.content["metadata"].get("ownerReferences") or ()
                    if owners and not any(self._owned(name[0], one) for one in owners):
                        self._api.drop(served, name)
                        gone.append("/".join(filter(None, (served.kind, *name))))
            return sorted(gone)

        return self._do(collect)

    def record(self, api_version: str, kind: str) -> list[list[Json]]:
        """What there is of a kind after each write of any of it, from now on."""

        def begin() -> list[list[Json]]:
            store, resource = self._api.store, self._api.registry.of_kind(api_version, kind).resource
            states: list[list[Json]] = []

            def wrote(change: Change) -> None:
                if change.resource == resource:
                    states.append([one.content for one in store.objects(resource).values()])

            store.listeners.append(wrote)
            return states

        return self._do(begin)

    def _owned(self, namespace: str, owner: Json) -> bool:
        try:
            served = self._api.registry.of_kind(owner["apiVersion"], owner["kind"])
        except LookupError:
            return True  # nobody knows: the collector waits
        found = self._api.store.get(served.resource, (namespace if served.namespaced else "", owner["name"]))
        return found is not None and found.content["metadata"]["uid"] == owner["uid"]

    def compact(self) -> None:
        """Forget all history: what resumes at an older revision gets 410."""
        self._do(lambda: self._api.store.compact())

    def watch_list(self, there: bool) -> None:
        """Have the WatchList feature, or not (as servers before 1.32)."""
        self._do(lambda: setattr(self._api, "watch_list", there))

    def rights(self, change: Callable[[Any], T]) -> T:
        """Call something with `Rights`: tokens and rules."""
        return self._do(lambda: change(self._api.rights))

    def faults(self, **values: Any) -> None:
        """Set attributes of `Faults`."""

        def change() -> None:
            for name, value in values.items():
                if not hasattr(self._faults, name):
                    raise AttributeError(name)
                setattr(self._faults, name, value)

        self._do(change)

    def drop_watches(self, share: float = 1.0, *, abrupt: bool = True) -> int:
        """End watches, all or a share of them, by a reset or in good order."""
        return self._do(lambda: self._serving.drop_watches(share, abrupt=abrupt))

    def bookmark(self) -> None:
        """Send bookmarks now."""
        self._do(lambda: self._serving.bookmark())

    def watches(self) -> list[str]:
        """Plural names of what is watched at this moment."""
        return self._do(lambda: sorted(one.served.plural for one in self._serving.sessions))

    def stop(self, *, abrupt: bool = False) -> None:
        """Stop serving; what is stored stays."""
        if self._server is not None:
            self._await(self._server.stop(abrupt=abrupt))
            self._server = None

    def start(self, *, forget: bool = False) -> None:
        """Serve again on the same port. `forget`: the watch cache is new, so it has no history (as in real ones)."""
        if forget:
            self._api.oldest = self._api.store.revision
        self._await(self._start())

    def restart(self, *, abrupt: bool = True, forget: bool = False) -> None:
        """Stop and start."""
        self.stop(abrupt=abrupt)
        self.start(forget=forget)

    @property
    def _serving(self) -> Server:
        assert self._server is not None, "the server is stopped"
        return self._server

    async def _start(self) -> None:
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
        self._server = Server(self._api, bookmark_seconds=self._bookmark_seconds, context=context)
        self._server.faults = self._faults
        self.port = await self._server.start(self.host, self.port)

    def _live(self) -> None:
        if self._enter is not None:
            self._enter()
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            # Connections that came while it ended: their tasks close them.
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            # Handshakes of TLS that nobody ends any more have no task.
            for transport in list(getattr(self._loop, "_transports", {}).values()):
                transport.abort()
            self._loop.run_until_complete(asyncio.sleep(0.01))
            self._loop.close()

    def _do(self, call: Callable[[], T]) -> T:
        async def run() -> T:
            return call()

        return self._await(run())

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_LIMIT)


def documents(values: Iterable[Mapping[str, Any]]) -> str:
    """YAML of several documents."""
    return yaml.safe_dump_all(values, sort_keys=False)
