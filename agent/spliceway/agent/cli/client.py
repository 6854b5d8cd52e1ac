"""A client of the admin API: plain HTTP/1.1 over a Unix socket, with the standard library alone."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from spliceway.agent.errors import ClientError, NoAgentError

#: Longest wait for an answer, in seconds. Dumps of full maps take a while.
TIMEOUT = 30.0


class AgentClient:
    """Asks one agent. Every method raises ClientError when it can't be reached or refuses."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        """`timeout`: longest wait for an answer, in seconds."""
        self.path = path
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"AgentClient({str(self.path)!r})"

    def get(self, target: str, **query: str | None) -> Any:
        """Answer to GET /v1/`target`, decoded. Parameters that are None are left out."""
        with self._ask("GET", _with_query(target, query)) as answer:
            return msgspec.json.decode(answer.read())

    def put(self, target: str, body: object) -> Any:
        """Answer to PUT /v1/`target`, decoded."""
        with self._ask("PUT", _with_query(target, {}), msgspec.json.encode(body)) as answer:
            return msgspec.json.decode(answer.read())

    def post(self, target: str, body: bytes, **query: str | None) -> Any:
        """Answer to POST /v1/`target` of a body that is JSON already, decoded."""
        with self._ask("POST", _with_query(target, query), body) as answer:
            return msgspec.json.decode(answer.read())

    def delete(self, target: str) -> Any:
        """Answer to DELETE /v1/`target`, decoded."""
        with self._ask("DELETE", _with_query(target, {})) as answer:
            return msgspec.json.decode(answer.read())

    def lines(self, target: str, **query: str | None) -> Iterator[dict[str, Any]]:
        """Answer to GET /v1/`target` as JSON lines, each as it comes; ends when the agent ends."""
        with self._ask("GET", _with_query(target, query), endless=True) as answer:
            try:
                while line := answer.readline():
                    yield msgspec.json.decode(line)
            except (http.client.HTTPException, OSError):
                return  # the agent ended in mid-stream: so does this

    def _ask(
        self, method: str, target: str, body: bytes | None = None, *, endless: bool = False
    ) -> http.client.HTTPResponse:
        connection = _UnixConnection(self.path, None if endless else self._timeout)
        try:
            connection.request(method, target, body, {"Connection": "close"})
            answer = connection.getresponse()
        except FileNotFoundError as error:
            raise NoAgentError(f"no agent at {self.path}: is it running, or still starting?") from error
        except PermissionError as error:
            raise ClientError(f"{self.path}: permission denied (the socket belongs to root)") from error
        except ConnectionRefusedError as error:
            text = f"nobody listens at {self.path}: the agent has ended; what it put into force stays so"
            raise NoAgentError(text) from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAgentError(f"the agent at {self.path} did not answer: {error}") from error
        if answer.status != 200:
            raise ClientError(_reason(answer))
        return answer


def config_dump(admin: str) -> bytes:
    """What a proxy says of its configuration, endpoints included: JSON, as it came.

    `admin`: its admin interface, the path of a Unix socket or `http://127.0.0.1:9901`. Raises ClientError.
    """
    connection = _admin_connection(admin)
    try:
        connection.request("GET", "/config_dump?include_eds", headers={"Host": "admin", "Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ClientError(f"no proxy answers at {admin}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise ClientError(f"the proxy at {admin} answered {answer.status} {answer.reason}")
    return body


def _admin_connection(admin: str) -> http.client.HTTPConnection:
    if "/" in admin and "://" not in admin:
        return _UnixConnection(Path(admin), TIMEOUT)
    try:
        parts = urlsplit(admin if "://" in admin else f"http://{admin}")
        # It has neither authentication nor encryption: what comes over the network may be anybody's word.
        loopback = parts.scheme == "http" and ip_address(parts.hostname or "").is_loopback
        port = parts.port or 80
    except ValueError:
        loopback = False
    if not loopback:
        raise ClientError(f"{admin!r} is neither the path of a socket nor http://127.0.0.1:PORT")
    return http.client.HTTPConnection(str(parts.hostname), port, timeout=TIMEOUT)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


def _with_query(target: str, query: dict[str, str | None]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"/v1/{target}" + (f"?{urlencode(given)}" if given else "")


def _reason(answer: http.client.HTTPResponse) -> str:
    body = answer.read()
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"the agent answered {answer.status} {answer.reason}"
