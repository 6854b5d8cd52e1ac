"""A real kube-apiserver on a real etcd, in the place of the double: what holds there must hold here.

Used where `SPLICEWAY_KUBE_BINARIES` names a directory with `kube-apiserver` and `etcd` (docs/kubernetes.md says where
they come from). No controllers run: pods have no kubelet, and a namespace that is dropped is emptied here. Agents reach
the server by a forwarder of this process, which is what is stopped, cut, and stalled for them; `put` and `drop` don't.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import msgspec
import yaml

from support.certificates import Authority
from support.kubeapi import KubeApi

T = TypeVar("T")
Json = dict[str, Any]

BINARIES = os.environ.get("SPLICEWAY_KUBE_BINARIES", "")
#: Seconds for the server to be there, and for one call.
_START, _LIMIT = 120.0, 120.0
_TOKEN = "admin-of-the-test"
_RESET = struct.pack("ii", 1, 0)
#: So many writes are asked for at once.
_WRITES = 16


class Front:
    """Forwards TCP from one port to another one of the loopback, as long as it is let."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.cut, self.stalled = 0, asyncio.Event()
        self.stalled.set()  # set: it moves

    async def start(self, port: int) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self, *, abrupt: bool) -> None:
        """Listen no more, and end what there is."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop(1.0, abrupt=abrupt)

    def drop(self, share: float, *, abrupt: bool) -> int:
        """End connections, all or the first of them."""
        chosen = sorted(self._writers, key=id)[: max(1, int(len(self._writers) * share))]
        for one in chosen:
            _end(one, abrupt=abrupt)
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            above, below = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _end(writer, abrupt=True)
            return
        self._writers.add(writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, below, down=False))
                group.create_task(self._copy(above, writer, down=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            for one in (below, writer):
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool) -> None:
        while data := await reader.read(1 << 16):
            if down:
                await self.stalled.wait()
                if self.cut:
                    self.cut -= 1
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    _end(writer, abrupt=False)
                    raise OSError("cut")
            writer.write(data)
            await writer.drain()
        raise OSError("ended")  # what one side ends is over for both


def _end(writer: asyncio.StreamWriter, *, abrupt: bool) -> None:
    sock = writer.get_extra_info("socket")
    if abrupt and sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    else:
        writer.close()


class RealApi:
    """What tests use of `KubeApi`, with the real parts. Use it as a context manager."""

    def __init__(
        self,
        *,
        bookmark_seconds: float = 60.0,
        enter: Callable[[], None] | None = None,
        port: int = 0,
        binaries: str = BINARIES,
        arguments: tuple[str, ...] = (),
    ) -> None:
        """`enter` as the double has it; `arguments`: further ones of kube-apiserver. Bookmarks come when it likes."""
        del bookmark_seconds
        self.port = port
        self.directory = Path(tempfile.mkdtemp(prefix="kube-"))
        self.authority = Authority(self.directory / "pki")
        self._binaries = Path(binaries)
        self._arguments = arguments
        self._enter = enter
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="kube", daemon=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._kinds: dict[str, dict[str, Json]] = {}
        self._accounts: tuple[str, ...] = ()
        self._made: httpx2.AsyncClient | None = None
        self._before: Front | None = None
        self.etcd_port = self.server_port = 0

    def __repr__(self) -> str:
        return f"RealApi({self.directory})"

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._await(self._begin())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in reversed(self._processes.values()):
            one.kill()
            one.wait()
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where agents find it."""
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(self, file: Path, *, token: str = _TOKEN) -> Path:
        """Write one, of somebody who may do all or of whose token this is."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "real", "cluster": {"server": self.url, "certificate-authority": str(self.authority.path)}}
            ],
            "users": [{"name": "real", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "real"}}],
            "current-context": "real",
        }
        file.write_text(yaml.safe_dump(document))
        return file

    # ---- objects ----

    def put(self, *documents: Json | str) -> int:
        """Make or change objects, status included, and their namespaces."""
        every: list[Json] = []
        for document in documents:
            several = yaml.safe_load_all(document) if isinstance(document, str) else (document,)
            for one in several:
                every += [] if one is None else one["items"] if one["kind"] == "List" else [one]
        self._await(self._put_all(every))
        return 0

    def drop(self, api_version: str, kind: str, name: str) -> None:
        """Delete one at once. Raises LookupError when it is not there."""
        self._await(self._drop(api_version, kind, name))

    def get(self, api_version: str, kind: str, name: str) -> Json | None:
        """«namespace/name», or «name»; None: there is none."""
        return self._await(self._get(api_version, kind, name))

    def all(self, api_version: str, kind: str) -> list[Json]:
        """All objects of a kind, by name; none of one that is not served."""
        return self._await(self._all(api_version, kind))

    def request(self, method: str, path: str, body: Json | None = None, **headers: str) -> tuple[int, Any]:
        """Anything: status and answer."""
        return self._await(self._request(method, path, body, **headers))

    # ---- what happens to it ----

    def compact(self) -> None:
        """Forget all history in etcd; the server's watch cache keeps its own until it begins anew."""
        self._await(self._compact())

    def watch_list(self, there: bool) -> None:
        """It has the feature, always."""

    def faults(self, **values: Any) -> None:
        """`cut_lines`: of so many pieces that come only a half does; `stalled`: nothing comes."""

        async def change() -> None:
            self._front.cut = values.get("cut_lines", self._front.cut)
            if values.get("stalled"):
                self._front.stalled.clear()
            else:
                self._front.stalled.set()

        self._await(change())

    def drop_watches(self, share: float = 1.0, *, abrupt: bool = True) -> int:
        """End connections, whatever they carry."""

        async def drop() -> int:
            return self._front.drop(share, abrupt=abrupt)

        return self._await(drop())

    def stop(self, *, abrupt: bool = False) -> None:
        """Agents do not reach it any more."""
        self._await(self._front.stop(abrupt=abrupt))

    def start(self, *, forget: bool = False) -> None:
        """They do again. `forget`: the server was ended meanwhile, and what happened before is compacted."""
        self._await(self._again(forget=forget))

    def restart(self, *, abrupt: bool = True, forget: bool = False) -> None:
        """Stop and start."""
        self.stop(abrupt=abrupt)
        self.start(forget=forget)

    # ---- inside ----

    @property
    def _client(self) -> httpx2.AsyncClient:
        assert self._made is not None
        return self._made

    @property
    def _front(self) -> Front:
        assert self._before is not None
        return self._before

    async def _begin(self) -> None:
        self.etcd_port, peer, self.server_port = (_free_port() for _ in range(3))
        keys = self.directory / "pki"
        self._issued = self.authority.issue("server", "kube-apiserver", "IP:127.0.0.1", "DNS:localhost")
        accounts, signs = self.authority.issue("accounts", "accounts")
        self._accounts = (f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={signs}")
        (keys / "tokens.csv").write_text(f"{_TOKEN},admin,admin,system:masters\n")
        etcd = f"http://127.0.0.1:{self.etcd_port}"
        data, near = self.directory / "etcd", f"http://127.0.0.1:{peer}"
        self._spawn(
            *("etcd", f"--data-dir={data}", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
            *(
                f"--listen-peer-urls={near}",
                f"--initial-advertise-peer-urls={near}",
                f"--initial-cluster=default={near}",
            ),
            "--unsafe-no-fsync",
        )
        context = ssl.create_default_context(cafile=str(self.authority.path))
        self._made = httpx2.AsyncClient(
            base_url=f"https://127.0.0.1:{self.server_port}",
            verify=context,
            headers={"authorization": f"Bearer {_TOKEN}"},
            timeout=60.0,
        )
        await self._serve()
        self._before = Front(self.server_port)
        self.port = await self._front.start(self.port)

    async def _close(self) -> None:
        if self._before is not None:
            await self._before.stop(abrupt=True)
        if self._made is not None:
            await self._made.aclose()
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)

    async def _serve(self) -> None:
        keys = self.directory / "pki"
        self._spawn(
            *("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self.etcd_port}", "--bind-address=127.0.0.1"),
            "--advertise-address=192.0.2.1",
            *(f"--secure-port={self.server_port}", "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112"),
            *(f"--tls-cert-file={self._issued[0]}", f"--tls-private-key-file={self._issued[1]}"),
            *(f"--token-auth-file={keys / 'tokens.csv'}", "--authorization-mode=RBAC", "--allow-privileged=true"),
            *self._accounts,
            *("--service-account-issuer=https://kubernetes.default.svc", f"--cert-dir={keys}"),
            *("--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", *self._arguments),
        )
        deadline = time.monotonic() + _START
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if (await self._client.get("/readyz")).status_code == 200:
                    return
            process = self._processes["kube-apiserver"]
            if process.poll() is not None or time.monotonic() > deadline:
                end = (self.directory / "kube-apiserver.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"kube-apiserver ({process.returncode}): {end}")
            await asyncio.sleep(0.2)

    def _spawn(self, name: str, *arguments: str) -> None:
        """In the namespaces of this thread."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self._binaries / name), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def _compact(self) -> None:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.etcd_port}", timeout=60.0) as client:
            status = (await client.post("/v3/maintenance/status", content=b"{}")).json()
            revision = int(status["header"]["revision"])
            body = msgspec.json.encode({"revision": revision, "physical": True})
            answer = await client.post("/v3/kv/compaction", content=body)
            # Nothing was written since the last one.
            assert answer.status_code == 200 or "compacted" in answer.text, answer.text

    async def _again(self, *, forget: bool) -> None:
        if forget:
            process = self._processes["kube-apiserver"]
            process.kill()
            await asyncio.to_thread(process.wait)
            await self._compact()
            await self._serve()
        self.port = await self._front.start(self.port)

    async def _request(self, method: str, path: str, body: Json | None = None, **headers: str) -> tuple[int, Any]:
        content = None if body is None else msgspec.json.encode(body)
        kind = {"content-type": "application/json"} if body is not None else {}
        deadline = time.monotonic() + _LIMIT
        while True:
            answer = await self._client.request(method, path, content=content, headers={**kind, **headers})
            # Its watch cache is being made anew, say.
            if answer.status_code != 429 or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        return answer.status_code, msgspec.json.decode(answer.content) if answer.content[:1] in (
            b"{",
            b"[",
        ) else answer.text

    async def _good(self, method: str, path: str, body: Json | None = None) -> Json:
        status, answer = await self._request(method, path, body)
        assert status in (200, 201, 202), (method, path, status, answer)
        found: Json = answer
        return found

    async def _resource(self, api_version: str, kind: str) -> tuple[str, Json]:
        """Path of the version, and the resource. Raises LookupError."""
        base = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        for fresh in (False, True):
            if fresh or base not in self._kinds:
                status, answer = await self._request("GET", base)
                found = answer["resources"] if status == 200 else []
                self._kinds[base] = {}
                for one in found:
                    if "/" not in one["name"]:
                        self._kinds[base][one["kind"]] = one
                    elif one["name"].endswith("/status"):
                        self._kinds[base][f"{one['kind']}/status"] = one
            if kind in self._kinds[base]:
                return base, self._kinds[base][kind]
        raise LookupError(f"{api_version} {kind} is not served")

    async def _path(self, api_version: str, kind: str, name: str) -> str:
        base, resource = await self._resource(api_version, kind)
        namespace, _, short = name.rpartition("/")
        within = f"/namespaces/{namespace}" if resource["namespaced"] else ""
        return f"{base}{within}/{resource['name']}" + (f"/{short}" if short else "")

    async def _put_all(self, documents: list[Json]) -> None:
        """Namespaces and definitions first, in their order; then the others, some at a time."""
        names = dict.fromkeys(one["metadata"].get("namespace", "") for one in documents)
        for name in names:
            if name and await self._get("v1", "Namespace", name) is None:
                await self._put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        gate, tasks = asyncio.Semaphore(_WRITES), []

        async def put(one: Json) -> None:
            async with gate:
                await self._put(one)

        for one in documents:
            if one["kind"] in ("Namespace", "CustomResourceDefinition"):
                await self._put(one)
            else:
                tasks.append(put(one))
        await asyncio.gather(*tasks)

    async def _put(self, document: Json) -> None:
        wanted = _as_servers_want_it(document)
        api_version, kind, metadata = wanted["apiVersion"], wanted["kind"], wanted["metadata"]
        base, resource = await self._resource(api_version, kind)
        if resource["namespaced"]:
            metadata.setdefault("namespace", "default")
        name = "/".join(filter(None, (metadata.get("namespace", ""), metadata["name"])))
        path = await self._path(api_version, kind, name)
        # Somebody else may write meanwhile: the agent, say.
        for _ in range(20):
            status, found = await self._request("GET", path)
            if status == 404:
                status, found = await self._request("POST", path.rpartition("/")[0], wanted)
                if status == 409:
                    continue
            else:
                own = {**found["metadata"], **{key: metadata.get(key) for key in ("labels", "annotations")}}
                spec = {"spec": found["spec"]} if kind == "Pod" else {}
                status, found = await self._request("PUT", path, {**found, **wanted, "metadata": own, **spec})
                if status == 409:
                    continue
            assert status in (200, 201), (name, status, found)
            if "status" in wanted and f"{kind}/status" in self._kinds[base]:
                status, found = await self._request("PUT", f"{path}/status", {**found, "status": wanted["status"]})
                if status == 409:
                    continue
                assert status == 200, (name, status, found)
            break
        else:
            raise AssertionError(f"{kind} {name}: others write it all the time")
        if kind == "CustomResourceDefinition":
            await self._established(path, wanted)

    async def _established(self, path: str, crd: Json) -> None:
        deadline = time.monotonic() + _LIMIT
        spec = crd["spec"]
        group, names = spec["group"], [one["name"] for one in spec["versions"] if one.get("served", True)]
        while time.monotonic() < deadline:
            found = await self._good("GET", path)
            conditions = found.get("status", {}).get("conditions") or ()
            if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
                with contextlib.suppress(LookupError):
                    for each in names:
                        self._kinds.pop(f"/apis/{group}/{each}", None)
                        await self._resource(f"{group}/{each}", spec["names"]["kind"])
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{path}: not established")

    async def _get(self, api_version: str, kind: str, name: str) -> Json | None:
        status, found = await self._request("GET", await self._path(api_version, kind, name))
        assert status in (200, 404), found
        return found if status == 200 else None

    async def _all(self, api_version: str, kind: str) -> list[Json]:
        try:
            base, resource = await self._resource(api_version, kind)
        except LookupError:
            return []
        found = await self._good("GET", f"{base}/{resource['name']}")
        items = [{"apiVersion": api_version, "kind": kind, **one} for one in found["items"]]
        return sorted(items, key=lambda one: (one["metadata"].get("namespace", ""), one["metadata"]["name"]))

    async def _drop(self, api_version: str, kind: str, name: str) -> None:
        path = await self._path(api_version, kind, name)
        if kind == "Namespace":
            await self._empty(name)
        status, answer = await self._request("DELETE", f"{path}?gracePeriodSeconds=0")
        if status == 404:
            raise LookupError(f"{kind} {name}: {answer}")
        assert status in (200, 202), answer
        if kind == "Namespace":
            found = await self._good("GET", path)
            await self._good("PUT", f"{path}/finalize", {**found, "spec": {"finalizers": []}})

    async def _empty(self, namespace: str) -> None:
        """Of what tests put there."""
        for base, kinds in list(self._kinds.items()):
            for kind, one in kinds.items():
                if one["namespaced"] and "/" not in kind and "deletecollection" in one["verbs"]:
                    await self._request("DELETE", f"{base}/namespaces/{namespace}/{one['name']}?gracePeriodSeconds=0")

    def _live(self) -> None:
        if self._enter is not None:
            self._enter()
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_LIMIT)


#: What either of them can do.
AnyApi = KubeApi | RealApi


def api_server(*, enter: Callable[[], None], bookmark_seconds: float) -> AnyApi:
    """The real one where its binaries are, else the double."""
    return (RealApi if BINARIES else KubeApi)(enter=enter, bookmark_seconds=bookmark_seconds)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        found: int = one.getsockname()[1]
        return found


def _as_servers_want_it(document: Mapping[str, Any]) -> Json:
    """A copy with what a real server insists on, and without what it decides itself."""
    made: Json = msgspec.json.decode(msgspec.json.encode(document))
    kind, metadata = made["kind"], made["metadata"]
    for field in ("uid", "creationTimestamp", "resourceVersion", "generation"):
        metadata.pop(field, None)
    if kind == "Pod":
        spec = made.setdefault("spec", {})
        containers = spec.setdefault("containers", [{"name": "c"}])
        for one in containers:
            one.setdefault("image", "none.example/none:1")
        if "podIPs" in made.get("status", {}):
            ips = made["status"]["podIPs"]
            made["status"]["podIP"] = ips[0]["ip"] if ips else ""
    if kind == "CustomResourceDefinition" and made["spec"]["group"].endswith("k8s.io"):
        metadata.setdefault("annotations", {})["api-approved.kubernetes.io"] = "unapproved, a test's"
    return made
