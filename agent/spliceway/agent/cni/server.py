"""The Unix socket that the plugin talks to: one question and one answer for each connection, root only (mode 0600)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import structlog

from spliceway.agent.cni.metrics import CniMetrics
from spliceway.agent.cni.netconf import BAD_JSON, TRY_AGAIN, CniError, version_of
from spliceway.agent.cni.wire import MalformedError, Question, pack_answer, read_question
from spliceway.agent.errors import OWN_ERRORS

#: Questions at once. A kubelet starts some ten pods side by side; each question may have 1 MiB.
MAX_QUESTIONS = 128
#: Seconds for a question to come: the plugin has it whole when it dials.
READ_SECONDS = 5.0

log = structlog.get_logger(__name__)

#: Does what is asked, or raises CniError.
Answer = Callable[[Question], Awaitable[None]]


class CniServer:
    """Serves until it is cancelled; `listener` is closed then."""

    def __init__(self, listener: socket.socket, answer: Answer, metrics: CniMetrics) -> None:
        self._metrics = metrics
        self._listener = listener
        self._answer = answer
        self._asked = 0

    def __repr__(self) -> str:
        return f"CniServer({self._asked} questions)"

    async def run(self) -> None:
        """Answer."""
        server = await asyncio.start_unix_server(self._serve, sock=self._listener)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._asked += 1
        try:
            with contextlib.suppress(ConnectionError):
                if (told := await self._told(reader)) is not None:
                    writer.write(told)
                    await writer.drain()
        finally:
            self._asked -= 1
            writer.close()

    async def _told(self, reader: asyncio.StreamReader) -> bytes | None:
        """What is answered; None: nobody waits for it."""
        if self._asked > MAX_QUESTIONS:
            return pack_answer(CniError(TRY_AGAIN, "too many pods start at once").encode("1.0.0"))
        try:
            async with asyncio.timeout(READ_SECONDS):
                question = await read_question(reader)
        except MalformedError as error:
            return pack_answer(CniError(BAD_JSON, str(error)).encode("1.0.0"))
        except (asyncio.IncompleteReadError, TimeoutError):
            return None
        try:
            with self._metrics.asked(question.command):
                await self._answer(question)
        except CniError as error:
            return self._refused(question, error)
        except OWN_ERRORS as error:
            return self._refused(question, CniError(TRY_AGAIN, str(error)))
        except Exception as error:  # a bug: the pod must not start unguarded, and the agent goes on for the others
            log.exception("a CNI question failed")
            return self._refused(question, CniError(TRY_AGAIN, f"internal error: {error!r}"))
        return pack_answer(None)

    def _refused(self, question: Question, error: CniError) -> bytes:
        arguments = question.variables.get("CNI_ARGS", "")[:200]
        log.warning("CNI refused", command=question.command, arguments=arguments, code=error.code, error=str(error))
        return pack_answer(error.encode(version_of(question.document)))
