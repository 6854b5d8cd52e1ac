"""Opens a datapath again and again, each time in a process of its own that may be killed before any step it takes.

`python dyingagent.py SETTINGS STASH` reads {"defines": {…}, "kill": n} line by line; n = 0: not at all. It answers with
{"killed": bool, "steps": […]}: the steps that were taken. A step is a call that changes the bpffs, a link or a map.
Programs come from `STASH`, see `remembered.py`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from spliceway.bpf import libbpf, tcx
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.types import DatapathSettings
from support.remembered import remember_programs

_STEPS: list[tuple[Any, str]] = [
    *((Path, name) for name in ("mkdir", "unlink", "rename", "symlink_to", "rmdir")),
    *((libbpf, name) for name in ("pin", "update_link", "create_link", "attach_to_map")),
    (tcx, "create_link"),
    (shutil, "rmtree"),
    (libbpf.BpfMap, "update"),
]


def _open(settings: DatapathSettings, stash: Path, defines: dict[str, str], kill: int, out: int) -> None:
    """In the child: the end is a status, or SIGKILL."""
    taken = 0

    def counted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            where = arguments[-1] if name == "pin" else arguments[0]
            os.write(out, f"{name} {where.parent.name if isinstance(where, Path) else ''}\n".encode())
            return function(*arguments, **options)

        return step

    remember_programs(stash)
    for owner, name in _STEPS:
        setattr(owner, name, counted(getattr(owner, name), name))
    asyncio.run(Datapath.open(settings, test_defines=defines))


def main() -> None:
    """Handle one line after the other. Answers are all that goes to standard output."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = msgspec.json.decode(sys.argv[1], type=DatapathSettings, dec_hook=lambda kind, text: kind(text))
    stash = Path(sys.argv[2])
    for line in sys.stdin:
        asked = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            try:
                _open(settings, stash, asked["defines"], asked["kill"], writing)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as steps:
            taken = steps.read().splitlines()
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or status == 0, status
        print(json.dumps({"killed": killed, "steps": taken}), flush=True)


if __name__ == "__main__":
    main()
