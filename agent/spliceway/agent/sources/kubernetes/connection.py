"""Requests to the API server: where it is and who we are (kubeconfig or service account), and its refusals as ours.

lightkube reads the configuration, makes the TLS context and has the token, which it reads again from its file when the
server does not take it any more: the kubelet rotates tokens of service accounts. The requests themselves are httpx's:
what a watch brings is decoded by `objects`, not into models of everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import yaml
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError as LightkubeError

from spliceway.agent.errors import SourceError
from spliceway.agent.sources.kubernetes.network import SocketOption, Transport
from spliceway.agent.sources.kubernetes.objects import Status

#: Seconds to connect, and for an answer that is no watch.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
#: Seconds for an answer to begin where nothing is to be gathered for it first: watches, and what is served. A busy
#: server lets requests wait for 15 (a quarter of its --request-timeout), and then refuses them.
BEGIN_SECONDS = 20.0
#: Seconds after which a request without an answer counts as lost when others are answered again.
_HANGS = 2.0
#: The longest that the server may ask us to wait, in seconds: client-go's longest pause.
MOST_WAIT = 30.0
#: Seconds for the answer to what is written: objects of some KiB.
SEND_SECONDS = 10.0
#: A line of a watch, or a page of a list, is not longer. Objects end at 1.5 MiB, as etcd has them.
MAX_BYTES = 64 << 20
#: A refusal's text is not longer.
_MAX_REFUSAL = 64 << 10
_STATUS = msgspec.json.Decoder(Status)
#: A connection whose other end has gone is noticed within half a minute or so, whoever is silent, and also while
#: something of ours is on its way (then nobody asks whether it is still there).
_KEEPALIVE: list[SocketOption] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 35_000),
]


class ApiFailure(Exception):  # noqa: N818
    """A request that came to nothing. `code` 0: there was no answer, or not all of it.

    `reason`: what a Status says in one word, or «Idle»: an answer has begun, and does not go on. `wait`: seconds that
    the server asks for, MOST_WAIT at most.
    """

    def __init__(self, code: int, reason: str, message: str, wait: float = 0.0) -> None:
        super().__init__(f"{code} {reason}: {message}" if code else message)
        self.code = code
        self.reason = reason
        self.message = message
        self.wait = wait

    @property
    def is_expired(self) -> bool:
        """Whether the history that was asked for is gone."""
        return self.code == 410 or self.reason in ("Expired", "Gone")


class Connection:
    """A client of one API server. Use `renewed` when it fails for long: certificates may be others by then."""

    def __init__(self, kubeconfig: Path | None, context: str) -> None:
        """None: the service account that the kubelet gives to pods. Raises SourceError."""
        self._kubeconfig = kubeconfig
        self._context = context
        self._client, self.server = self._make()
        self._unanswered: dict[asyncio.Task[Any] | None, tuple[float, asyncio.Timeout]] = {}  # since when

    def __repr__(self) -> str:
        return f"Connection({self.server})"

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    async def renew(self) -> None:
        """Read the configuration again, and begin with new connections. Raises SourceError; then all stays."""
        client, server = self._make()
        old, self._client, self.server = self._client, client, server
        await old.aclose()

    def hurry(self, task: asyncio.Task[Any] | None) -> None:
        """The server answers others: what this task has asked it long before that is given up."""
        found = self._unanswered.get(task)
        now = asyncio.get_running_loop().time()
        # One that is being given up already takes a few turns of the loop to end, and can't be told once more.
        if found is not None and now - found[0] > _HANGS and not found[1].expired():
            found[1].reschedule(now)

    async def get(self, path: str, query: Mapping[str, str] | None = None, seconds: float = ANSWER_SECONDS) -> bytes:
        """The answer to GET, of which nothing may be to come for so many seconds. Raises ApiFailure."""
        body = bytearray()
        async with contextlib.aclosing(self.stream(path, query or {}, lambda: seconds, seconds)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > MAX_BYTES:
                    raise ApiFailure(0, "", f"an answer of more than {MAX_BYTES} bytes ({path})")
        return bytes(body)

    async def send(
        self, method: str, path: str, content: object, *, kind: str = "application/json", seconds: float = SEND_SECONDS
    ) -> bytes:
        """The answer to a request that writes. `content`: None for an empty body. Raises ApiFailure.

        With code 0 nobody knows whether it was done.
        """
        body = b"" if content is None else msgspec.json.encode(content)
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=None)
        query = {} if method == "DELETE" else {"fieldManager": "spliceway"}
        try:
            async with asyncio.timeout(seconds):
                answer = await self._client.request(
                    method, path, content=body, headers={"content-type": kind}, params=query, timeout=timeout
                )
        except TimeoutError as error:
            raise ApiFailure(0, "Idle", f"{self.server} was silent for too long") from error
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, LightkubeError, OSError) as error:
            raise ApiFailure(0, "", f"{self.server}: {_why(error)}") from error
        if answer.status_code not in (200, 201, 202):
            raise _refused(answer, answer.content[:_MAX_REFUSAL])
        return answer.content

    async def stream(
        self, path: str, query: Mapping[str, str], idle: Callable[[], float], begin: float = ANSWER_SECONDS
    ) -> AsyncGenerator[bytes, None]:
        """The answer to GET in pieces, as they come, the first an empty one: the server has begun to answer.

        It has `begin` seconds for that. So many of `idle`, which is asked each time, without any end it. Raises
        ApiFailure.
        """
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=None)
        begun = False
        try:
            request = self._client.build_request("GET", path, params=dict(query), timeout=timeout)
            async with asyncio.timeout(begin) as limit:
                task = asyncio.current_task()
                self._unanswered[task] = (asyncio.get_running_loop().time(), limit)
                try:
                    answer = await self._client.send(request, stream=True)
                finally:
                    del self._unanswered[task]
            begun = True
            async with contextlib.aclosing(answer):
                if answer.status_code != 200:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        raise await _refusal(answer)
                yield b""
                pieces = answer.aiter_raw()
                while True:
                    async with asyncio.timeout(idle()):
                        piece = await anext(pieces, b"")
                    if not piece:
                        return
                    yield piece
        except TimeoutError as error:
            raise ApiFailure(0, "Idle" if begun else "", f"{self.server} was silent for too long") from error
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, LightkubeError, OSError) as error:
            raise ApiFailure(0, "", f"{self.server}: {_why(error)}") from error

    def _make(self) -> tuple[httpx2.AsyncClient, str]:
        config = _configuration(self._kubeconfig, self._context)
        user = config.user or User()
        try:
            context = verify_cluster(config.cluster, user, config.abs_file)
            auth = user_auth(user)
        except (LightkubeError, OSError, ssl.SSLError, ValueError) as error:
            raise SourceError(f"source.kubernetes: the API server's or our own certificate: {_why(error)}") from error
        server = config.cluster.server
        try:
            client = httpx2.AsyncClient(
                base_url=server,
                auth=auth,
                transport=Transport(context, _KEEPALIVE),
                headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "spliceway"},
            )
        except httpx2.InvalidURL as error:
            raise SourceError(f"source.kubernetes: {server!r} is no URL of an API server: {error}") from error
        return client, server


def _configuration(kubeconfig: Path | None, context: str) -> SingleConfig:
    try:
        found = KubeConfig.from_service_account() if kubeconfig is None else KubeConfig.from_file(kubeconfig)
        chosen = found.get(context or None)
    except KeyError as error:
        if kubeconfig is None:
            raise SourceError(
                f"source.kubernetes: {error} is not in the environment: the agent is not in a pod (name a kubeconfig)"
            ) from error
        raise SourceError(f"source.kubernetes.kubeconfig: {kubeconfig} has no {error}") from error
    except (LightkubeError, OSError, ValueError, TypeError, msgspec.MsgspecError, yaml.YAMLError) as error:
        where = "kubeconfig" if kubeconfig else "the service account"
        raise SourceError(f"source.kubernetes: {where}: {_why(error)}") from error
    assert chosen is not None  # only with a default
    return chosen


async def _refusal(answer: httpx2.Response) -> ApiFailure:
    body = b""
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > _MAX_REFUSAL:
            break
    return _refused(answer, body)


def _refused(answer: httpx2.Response, body: bytes) -> ApiFailure:
    try:
        status = _STATUS.decode(body)
    except msgspec.MsgspecError:
        status = Status(message=body[:200].decode(errors="replace").strip())
    text = answer.headers.get("retry-after", "")
    # Or a date: nobody's clock is trusted for that.
    wait = min(float(text), MOST_WAIT) if text.isascii() and text.isdigit() else 0.0
    return ApiFailure(answer.status_code, status.reason, status.message or answer.reason_phrase, wait)


def _why(error: BaseException) -> str:
    """An exception as text; some of httpx's have none."""
    return " ".join(str(error).split()) or type(error).__name__
