"""What we depend on: pyproject.toml and the lock agree, and BCC comes from Debian only."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {
    canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", LOCK, re.M)
}


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), PYPROJECT["build-system"]["requires"]]
    return [Requirement(text) for texts in lists for text in texts]


def test_pypis_bcc_is_never_a_dependency() -> None:
    """PyPI's `bcc` is another project; ours is Debian's python3-bpfcc."""
    names = {canonicalize_name(requirement.name) for requirement in requirements()} | set(LOCKED)
    assert names.isdisjoint({"bcc", "bpfcc", "python-bpfcc", "python3-bpfcc"})
    assert "python3-bpfcc" in (ROOT / "scripts/packages").read_text().split()


def test_bcc_is_debians() -> None:
    bcc = pytest.importorskip("bcc", reason="Debian's python3-bpfcc is not installed")
    assert Path(bcc.__file__).is_relative_to("/usr/lib/python3/dist-packages")


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_locked_at_a_version_that_meets_it(requirement: Requirement) -> None:
    assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])


def test_the_lock_has_hashes_for_everything_and_names_no_index() -> None:
    blocks = re.split(r"^(?=\S+==)", LOCK, flags=re.M)[1:]
    assert len(blocks) == len(LOCKED) > 30
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", LOCK)


def test_every_requirement_has_a_floor() -> None:
    for requirement in requirements():
        assert [specifier.operator for specifier in requirement.specifier] == [">="], requirement
