"""Compiled programs that are kept: which files count, and how instructions get their maps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spliceway.bpf import ownfiles, progcache
from spliceway.bpf.progcache import Code, Compiled, DamagedError, MapPlan, bind, unbind

_MOVE = bytes((0xB7, 0, 0, 0, 1, 0, 0, 0))  # r0 = 1


def _wide(kind: int, value: int) -> bytes:
    """r1 = 64 bits; kind 1: the map with this descriptor."""
    return bytes((0x18, kind << 4 | 1, 0, 0)) + value.to_bytes(4, "little") + bytes(8)


def _compiled(key: str) -> Compiled:
    plan = MapPlan("policy", "", 1, 4, 8, 16, 0, 0, 1, 2)
    return Compiled(key, [b"types"], [plan], [Code("judge", _MOVE, {0: "policy"})])


def _file(directory: Path, key: str = "k") -> Path:
    progcache.store(directory, _compiled(key))
    (path,) = directory.glob(f"{key}.*")
    return path


def test_what_is_kept_is_found_again_and_private(tmp_path: Path) -> None:
    path = _file(tmp_path / "a" / "programs")
    assert progcache.load(path.parent, "k") == _compiled("k")
    assert progcache.load(path.parent, "other") is None
    assert [progcache.holds(path.parent, key) for key in ("k", "other")] == [True, False]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("at", [0, 70, -1])
def test_a_byte_that_changed_is_seen(tmp_path: Path, at: int) -> None:
    path = _file(tmp_path / "programs")
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="checksum"):
        progcache.load(path.parent, "k")


@pytest.mark.parametrize("length", [0, 10, 80])
def test_half_a_file_is_seen(tmp_path: Path, length: int) -> None:
    path = _file(tmp_path / "programs")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError):
        progcache.load(path.parent, "k")


def test_a_file_under_another_key_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "programs")
    path.rename(path.with_stem("other"))
    with pytest.raises(DamagedError, match="another one's"):
        progcache.load(path.parent, "other")


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "programs")
    path.chmod(0o620)
    with pytest.raises(OSError, match="others may write to it"):
        progcache.load(path.parent, "k")


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "programs")
    path.parent.chmod(0o770)
    with pytest.raises(OSError, match="others may write to it"):
        progcache.load(path.parent, "k")
    with pytest.raises(OSError, match="others may write to it"):
        progcache.store(path.parent, _compiled("k"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "programs")
    os.chown(path, 65534, 65534)
    with pytest.raises(OSError, match="belongs to user 65534"):
        progcache.load(path.parent, "k")


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "programs")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        ownfiles.read(path)


def test_those_that_were_used_last_stay(tmp_path: Path) -> None:
    directory = tmp_path / "programs"
    for number in range(progcache.KEPT):
        os.utime(_file(directory, f"k{number}"), (number, number))
    progcache.load(directory, "k0")
    _file(directory, "new")
    assert {path.stem for path in directory.glob("[kn]*")} == {
        "new", "k0", *(f"k{number}" for number in range(2, progcache.KEPT)),
    }  # fmt: skip


def test_the_key_is_of_all_definitions_but_the_place() -> None:
    key = progcache.key({"PIN_ROOT": "a", "MAX_ROWS": "1"})
    assert key == progcache.key({"PIN_ROOT": "b", "MAX_ROWS": "1"})
    assert key != progcache.key({"PIN_ROOT": "a", "MAX_ROWS": "2"})
    assert key != progcache.key({"PIN_ROOT": "a", "MAX_ROWS": "1", "TEST": "1"})


def test_descriptors_become_names_and_descriptors_again() -> None:
    code = unbind("judge", _MOVE + _wide(1, 7) + _wide(0, 7) + _wide(1, 300), {7: "policy", 300: "x.c/works"})
    assert code == Code("judge", _MOVE + _wide(1, 0) + _wide(0, 7) + _wide(1, 0), {1: "policy", 5: "x.c/works"})
    assert bind(code, {"policy": 9, "x.c/works": 8}.__getitem__) == _MOVE + _wide(1, 9) + _wide(0, 7) + _wide(1, 8)


@pytest.mark.parametrize("odd", [_wide(1, 8), _wide(2, 7), _wide(4, 7)])
def test_what_names_no_map_of_its_own_is_not_kept(odd: bytes) -> None:
    with pytest.raises(DamagedError, match="instruction 1 of judge"):
        unbind("judge", _MOVE + odd, {7: "policy"})


@pytest.mark.parametrize("number", [0, 2, 3])
def test_only_an_instruction_that_names_a_map_gets_one(number: int) -> None:
    with pytest.raises(DamagedError, match="names no map"):
        bind(Code("judge", _MOVE + _wide(1, 0), {number: "policy"}), lambda _: 9)
