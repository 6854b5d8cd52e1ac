"""The plugin's binary: static, so that it runs on any node, whatever image brings it.

An image builds it once (`python -m spliceway.agent.cni.build`, into the package); where nobody did, the agent does,
into its state directory. The name of what is built holds a digest of sources and version, so an old one is never taken.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import version as package_version
from pathlib import Path

from spliceway.agent.errors import AgentError

NAME = "spliceway-cni"
SOURCES = Path(__file__).parent / "c"
#: Where an image has it.
INSIDE = Path(__file__).parent / "bin"
_FLAGS = (
    *("-std=c11", "-Os", "-static", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"),
    *("-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-Wl,-s,-z,relro,-z,now"),
)
_SECONDS = 60.0


def version() -> str:
    """Which version its `--version` tells."""
    return package_version("spliceway")


def file_name() -> str:
    """What the binary of this version is called where it is kept."""
    digest = hashlib.sha256(version().encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return f"{NAME}-{digest.hexdigest()[:16]}"


def binary(state_dir: Path) -> Path:
    """The plugin's binary, built if it has to be. Blocks. Raises AgentError."""
    name = file_name()
    for place in (INSIDE, state_dir):
        if (place / name).is_file():
            return place / name
    return build(state_dir)


def build(directory: Path) -> Path:
    """Compile it into a directory. Raises AgentError."""
    target = directory / file_name()
    beside = directory / f".{target.name}.new"
    sources = map(str, sorted(SOURCES.glob("*.c")))
    command = ("gcc", *_FLAGS, f'-DSPLICEWAY_VERSION="{version()}"', "-o", str(beside), *sources)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise AgentError(f"{NAME} can't be compiled: {done.stderr.strip()[:500]}")
        beside.rename(target)
    except FileNotFoundError as error:
        raise AgentError(
            f"{NAME} is not built, and there is no gcc: build it into the image (python -m {__package__}.build)"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError(f"{NAME} can't be built in {directory}: {error}") from error
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else INSIDE))
