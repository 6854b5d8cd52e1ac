"""Runs the steps of the Dockerfile, in chroots with a PID and a mount namespace of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from support.image.dockerfile import Copy, Run, Stage, stages

ROOT = Path(__file__).parents[3]
SUITE = "bookworm"
#: What this machine needs to reach Debian's and PyPI's files → where a step sees it, while it runs.
_BORROWED = {
    "/etc/resolv.conf": "/etc/resolv.conf",
    "/etc/hosts": "/etc/hosts",
    "/etc/pip.conf": "/etc/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt": "/run/borrowed.crt",
}
#: $1: the root; then pairs of a place here and one in the root, then --, then the command.
_STEP = """
root=$1; shift
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root$(dirname "$2")"; [ -e "$root$2" ] || : >"$root$2"; fi
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" /bin/sh -c "$1"
"""


def build(directory: Path, arguments: Mapping[str, str], *, bind: tuple[Path, ...] = ()) -> Stage:
    """Make the root of the image at `directory`, which must not be there; its last stage.

    `bind`: further places of this machine that steps may read, as a local index of Python packages. Raises RuntimeError
    for a step that fails.
    """
    found = stages((ROOT / "Dockerfile").read_text(), arguments)
    work = directory.with_name(f"{directory.name}.work")
    work.mkdir(parents=True)
    try:
        base = work / "base"
        _debootstrap(base)
        roots: dict[str, Path] = {}
        for number, stage in enumerate(found):
            root = work / f"stage-{number}"
            _call("cp", "-a", "--reflink=auto", str(base), str(root))
            for step in stage.steps:
                if isinstance(step, Copy):
                    _copy(step, root, roots.get(step.stage, ROOT) if step.stage else ROOT)
                else:
                    _run(step, root, bind)
            roots[stage.name] = root
        root.rename(directory)
    finally:
        shutil.rmtree(work)
    return found[-1]


def sources() -> list[tuple[str, str]]:
    """(address, suite) of Debian 12's packages as apt on this machine has them."""
    form = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    found = []
    for line in done.stdout.splitlines():
        origin, suite, address = line.split("|")
        if origin == "Debian" and suite.partition("-")[0] == SUITE and (address, suite) not in found:
            found.append((address, suite))
    return sorted(found, key=lambda each: each[1])


def _debootstrap(root: Path) -> None:
    known = sources()
    mirror = next((address for address, suite in known if suite == SUITE), None)
    if mirror is None:
        raise RuntimeError(f"apt on this machine has no sources of Debian's {SUITE}")
    _call("debootstrap", "--variant=minbase", SUITE, str(root), mirror)
    lines = [f"deb {address} {suite} main" for address, suite in known]
    (root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")


def _copy(step: Copy, root: Path, source: Path) -> None:
    """As COPY does: a directory's content, a file under its name if the target ends with a slash."""
    target = root / step.target.lstrip("/")
    for name in step.sources:
        path = source / name.lstrip("/")
        if path.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc") if source == ROOT else None
            shutil.copytree(path, target, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        else:
            into = target / path.name if step.target.endswith("/") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, into)


def _run(step: Run, root: Path, bind: tuple[Path, ...]) -> None:
    names = ("http_proxy", "https_proxy", "no_proxy")
    passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower() in names}
    borrowed = {**_BORROWED, **{str(each): str(each) for each in bind}}
    there = {here: inside for here, inside in borrowed.items() if Path(here).exists()}
    if (inside := there.get("/etc/ssl/certs/ca-certificates.crt")) is not None:
        passed["PIP_CERT"] = inside
    missing = [root / each.lstrip("/") for each in there.values() if not (root / each.lstrip("/")).exists()]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    # The parent's mounts stay as they are: what is bound here is gone when the step has ended.
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", _STEP, "step", str(root)]
    pairs = [each for pair in there.items() for each in pair]
    _call(*command, *pairs, "--", step.command, env={**environment, **passed, **step.variables})
    for each in missing:
        _drop(each)


def _drop(place: Path) -> None:
    """Take out what was made to bind something to; a package may have put something there meanwhile."""
    if place.is_dir():
        if not any(place.iterdir()):
            place.rmdir()
    elif place.stat().st_size == 0:
        place.unlink()


def _call(*command: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise RuntimeError(f"{command[0]} … {command[-1]}: exit status {done.returncode}:\n{tail}")
