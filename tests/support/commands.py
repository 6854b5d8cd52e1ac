"""A process that is told what to do: JSON objects on its stdin, one in a line, each with one answer on its stdout."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

_LIMIT = 1 << 28
_TESTS = Path(__file__).parent.parent


class CommandError(Exception):
    """The process could not do what it was told."""


class Commanded:
    """`python -m MODULE ARGUMENTS` in a process of its own. What it logs (stderr) goes to `log`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid

    @classmethod
    async def start(cls, module: str, *arguments: str, log: Path) -> Commanded:
        """Start it."""
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                limit=_LIMIT,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(_TESTS), "PYTHONUNBUFFERED": "1"},
            )
        return cls(process, log)

    async def do(self, command: str, **arguments: object) -> Any:
        """Have it do something, and wait for the answer.

        Raises:
            CommandError: it failed, or the process has died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise CommandError(f"{command}: the process has died:\n{self.log()[-4000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise CommandError(f"{command}: {answer['error']}")
        return answer["answer"]

    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text(errors="replace")

    async def stop(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        # Without this the pipes are closed when the loop is gone, with a warning.
        getattr(self._process, "_transport").close()  # noqa: B009


async def serve_commands(target: object) -> None:
    """Call `target`'s coroutine methods by name until stdin ends. Commands run one after the other.

    What else is printed goes to stderr from here on.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        try:
            answer = {"answer": await getattr(target, command.pop("do"))(**command)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
