"""etcd and kube-apiserver as processes of a test."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import msgspec
import pytest
import yaml

from support.certificates import Authority
from support.kubeapi import Rule
from support.realapi.front import Front
from support.realapi.objects import LIMIT, Json, Objects

T = TypeVar("T")

BINARIES = os.environ.get("SPLICEWAY_KUBE_BINARIES", "")
#: Who may do everything, and others, whom `rights` lets do something.
_ADMIN = "admin-of-the-test"
_TOKENS = {_ADMIN: ("admin", "system:masters"), "anybody": ("agent", "system:masters"), "secret": ("agent", "")}
#: Each request, without what it says and is answered.
_AUDIT = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
_RBAC = "rbac.authorization.k8s.io/v1"
_DECISION = "authorization.k8s.io/decision"


class RealApi:
    """What tests use of `KubeApi`, with the real parts. Use it as a context manager.

    No controllers run: pods have no kubelet. It decides uids and times itself.
    """

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
        atexit.register(shutil.rmtree, self.directory, ignore_errors=True)  # agents may outlive it
        self.authority = Authority(self.directory / "pki")
        self._binaries = Path(binaries)
        self._arguments = arguments
        self._enter = enter
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="kube", daemon=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._closing = contextlib.AsyncExitStack()
        self._serves: tuple[str, ...] = ()
        self._etcd = ""
        self._client: httpx2.AsyncClient
        self._front: Front
        self.objects: Objects

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
        shutil.rmtree(self.directory / "etcd", ignore_errors=True)

    @property
    def url(self) -> str:
        """Where agents find it."""
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(self, file: Path, *, token: str = "anybody") -> Path:
        """Write one, of somebody who may do everything or of whose token this is."""
        cluster = {"server": self.url, "certificate-authority": str(self.authority.path)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "real", "cluster": cluster}],
            "users": [{"name": "real", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "real"}}],
            "current-context": "real",
        }
        file.write_text(yaml.safe_dump(document))
        return file

    # ---- objects ----

    def put(self, *documents: Json | str) -> int:
        """Make or change objects, status included, and their namespaces."""
        self._await(self.objects.put(documents))
        return self.revision

    def drop(self, api_version: str, kind: str, name: str) -> None:
        """Delete one at once. Raises LookupError when it is not there."""
        self._await(self.objects.drop(api_version, kind, name))

    def get(self, api_version: str, kind: str, name: str) -> Json | None:
        """«namespace/name», or «name»; None: there is none."""
        return self._await(self.objects.get(api_version, kind, name))

    def all(self, api_version: str, kind: str) -> list[Json]:
        """All objects of a kind, by name; none of one that is not served."""
        return self._await(self.objects.all(api_version, kind))

    def collect(self) -> list[str]:
        """Delete what has lost its owner."""
        return self._await(self.objects.collect())

    def record(self, api_version: str, kind: str) -> list[list[Json]]:
        """What there is of a kind after each write of any of it, from now on, and a moment later."""
        return self._await(self.objects.record(api_version, kind))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Anything, as somebody who may do everything: status and answer."""
        return self._await(self.objects.ask(method, path, body, **headers))

    @property
    def revision(self) -> int:
        """Of the latest write."""
        return self._await(self._revision())

    @property
    def requests(self) -> list[tuple[str, str, str]]:
        """Method, path and query of every request so far that agents have made."""
        return [_request(one) for one in self.audited("RequestReceived")]

    def audited(self, stage: str) -> list[Json]:
        """Entries of the audit log that are not our own."""
        lines = (self.directory / "audit.log").read_bytes().splitlines()
        found = [msgspec.json.decode(line) for line in lines]
        return [one for one in found if one["stage"] == stage and one["user"]["username"] == "agent"]

    def rights(self, change: Callable[[Rights], T]) -> T:
        """Call something with what the double has for it."""
        return change(Rights(self))

    # ---- what happens to it ----

    def compact(self) -> None:
        """Forget all history in etcd; the server's watch cache keeps its own until it begins anew."""
        self._await(self._compact())

    def watch_list(self, there: bool) -> None:
        """It has the feature, always."""

    def faults(self, **values: Any) -> None:
        """`cut_lines`: of so many pieces of watches only a half comes; `stalled`: watches bring nothing."""
        if values.keys() - {"cut_lines", "stalled"}:
            pytest.skip("a real server has no such faults")

        async def change() -> None:
            self._front.cut = values.get("cut_lines", self._front.cut)
            if values.get("stalled"):
                self._front.moves.clear()
            else:
                self._front.moves.set()

        self._await(change())

    def drop_watches(self, share: float = 1.0, *, abrupt: bool = True) -> int:
        """End connections that carry watches."""

        async def drop() -> int:
            return self._front.drop_watches(share, abrupt=abrupt)

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

    async def _begin(self) -> None:
        client, peer, secure = (_free_port() for _ in range(3))
        self._etcd, near = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        certificate, key = self.authority.issue("server", "kube-apiserver", "IP:127.0.0.1", "DNS:localhost")
        accounts, signs = self.authority.issue("accounts", "accounts")
        tokens, audit = self.directory / "tokens.csv", self.directory / "audit.yaml"
        lines = [f'{token},{user},{user},"{groups}"' for token, (user, groups) in _TOKENS.items()]
        tokens.write_text("\n".join(lines) + "\n")
        audit.write_text(yaml.safe_dump(_AUDIT))
        self._spawn(
            *("etcd", f"--data-dir={self.directory / 'etcd'}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={self._etcd}", f"--advertise-client-urls={self._etcd}"),
            *(f"--listen-peer-urls={near}", f"--initial-advertise-peer-urls={near}"),
            f"--initial-cluster=default={near}",
        )
        self._serves = (
            *("kube-apiserver", f"--etcd-servers={self._etcd}", "--bind-address=127.0.0.1", f"--secure-port={secure}"),
            *("--advertise-address=192.0.2.1", "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112"),
            *(f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}", f"--cert-dir={self.directory}"),
            *(f"--token-auth-file={tokens}", "--authorization-mode=RBAC", "--allow-privileged=true"),
            *(f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={signs}"),
            *("--service-account-issuer=https://kubernetes.default.svc", "--endpoint-reconciler-type=none"),
            *("--disable-admission-plugins=ServiceAccount", f"--audit-policy-file={audit}"),
            *(f"--audit-log-path={self.directory / 'audit.log'}", *self._arguments),
        )
        self._client = await self._closing.enter_async_context(
            httpx2.AsyncClient(
                base_url=f"https://127.0.0.1:{secure}",
                verify=ssl.create_default_context(cafile=str(self.authority.path)),
                headers={"authorization": f"Bearer {_ADMIN}"},
                timeout=60.0,
            )
        )
        self.objects = Objects(self._client)
        await self._serve()
        serves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serves.load_cert_chain(certificate, key)
        self._front = Front(secure, serves, ssl.create_default_context(cafile=str(self.authority.path)))
        self._closing.push_async_callback(self._front.stop, abrupt=True)
        self.port = await self._front.start(self.port)

    async def _close(self) -> None:
        await self._closing.aclose()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # what was closed is told to be

    async def _serve(self) -> None:
        self._spawn(*self._serves)
        process, deadline = self._processes["kube-apiserver"], time.monotonic() + LIMIT
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if (await self._client.get("/readyz")).status_code == 200:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                told = (self.directory / "kube-apiserver.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"kube-apiserver ({process.returncode}): {told}")
            await asyncio.sleep(0.2)

    def _spawn(self, name: str, *arguments: str) -> None:
        """In the namespaces of this thread, and until it ends, however that may be."""
        with (self.directory / f"{name}.log").open("ab") as log:
            command = ["setpriv", "--pdeathsig", "KILL", str(self._binaries / name), *arguments]
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def _of_etcd(self, path: str, body: Json) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=self._etcd, timeout=60.0) as client:
            return await client.post(path, content=msgspec.json.encode(body))

    async def _revision(self) -> int:
        status = (await self._of_etcd("/v3/maintenance/status", {})).json()
        return int(status["header"]["revision"])

    async def _compact(self) -> None:
        body = {"revision": await self._revision(), "physical": True}
        answer = await self._of_etcd("/v3/kv/compaction", body)
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

    def _live(self) -> None:
        if self._enter is not None:
            self._enter()
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(2 * LIMIT)


class Rights:
    """The double's `Rights`, as objects of RBAC."""

    def __init__(self, api: RealApi) -> None:
        self._api = api

    @property
    def refused(self) -> list[tuple[str, str, str]]:
        """What the agent has asked for and may not; what admission refuses has the same code."""
        entries = self._api.audited("ResponseComplete")
        return [_request(one) for one in entries if one.get("annotations", {}).get(_DECISION) == "forbid"]

    def token(self, token: str, user: str) -> None:
        """There are those that there are."""
        assert _TOKENS[token][0] == user, token

    def allow(self, user: str, rules: Iterable[Rule]) -> None:
        """From now on this user may what the rules say, and nothing else."""
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        by_namespace: dict[str, list[Json]] = {}
        for rule in rules:
            found = msgspec.to_builtins(rule)
            by_namespace.setdefault(found.pop("namespace"), []).append(
                {key: value for key, value in found.items() if value}
            )
        for namespace, allowed in by_namespace.items():
            kind = "Role" if namespace else "ClusterRole"
            metadata = {"name": f"rights-of-{user}", **({"namespace": namespace} if namespace else {})}
            role = {"apiVersion": _RBAC, "kind": kind, "metadata": metadata, "rules": allowed}
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": metadata["name"]}
            binding = {"apiVersion": _RBAC, "kind": f"{kind}Binding", "metadata": metadata, "subjects": [subject]}
            self._api.put(role, {**binding, "roleRef": reference})


def _request(entry: Json) -> tuple[str, str, str]:
    verbs = {"list": "GET", "watch": "GET", "get": "GET", "create": "POST", "update": "PUT"}
    path, _, query = entry["requestURI"].partition("?")
    return verbs.get(entry["verb"], entry["verb"].upper()), path, query


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        found: int = one.getsockname()[1]
        return found
