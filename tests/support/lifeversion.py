"""Another version of the package: a copy of its source, with programs of another ABI and layout, and another proxy.

What is kept for a spliced connection has two fields in another place: those of one version are no other version's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from spliceway.bpf.abi import ABI_VERSION
from support.lifenode import PACKAGES

#: Its number; of programs that are compiled for tests alone.
OTHER_ABI = 1004
_ROOT = Path(__file__).resolve().parents[2]


def other_version(directory: Path) -> Path:
    """Make the copy, and return where it is."""
    for name in PACKAGES:
        shutil.copytree(_ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    programs = directory / "bpf/spliceway/bpf"
    ours, theirs = f"#define ABI_VERSION {ABI_VERSION}", f"#define ABI_VERSION {OTHER_ABI}"
    _replace(programs / "c/abi.h", ours, theirs)
    _replace(programs / "abi.py", f"ABI_VERSION = {ABI_VERSION}", f"ABI_VERSION = {OTHER_ABI}")
    _swap(programs / "c/spliceabi.h", "\tu8 has_hole;\n", "\tu8 asks;\t\t// its proxy asks for room (splice_room)\n")
    _swap(programs / "spliceabi.py", '        ("has_hole", c_uint8),\n', '        ("asks", c_uint8),\n')
    with (directory / "proxy/spliceway/proxy/__init__.py").open("a") as code:
        code.write("\n# Another version.\n")
    return directory


def _replace(file: Path, what: str, by: str) -> None:
    text = file.read_text()
    assert text.count(what) == 1, (file, what)
    file.write_text(text.replace(what, by))


def _swap(file: Path, one: str, other: str) -> None:
    _replace(file, one + other, other + one)
