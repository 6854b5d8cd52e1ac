"""`spliceway` on a machine that has booted once more: `python -m support.lifeagent BOOT-ID ARGUMENTS`."""

from __future__ import annotations

import pathlib
import sys
from pathlib import Path
from typing import Any

from spliceway.agent.cli import main

_FILE = "/proc/sys/kernel/random/boot_id"
_read = Path.read_text


def _read_text(self: Path, *arguments: Any, **options: Any) -> str:
    return _boot if str(self) == _FILE else _read(self, *arguments, **options)


if __name__ == "__main__":
    _boot = sys.argv.pop(1)
    vars(pathlib)["Path"].read_text = _read_text
    main()
