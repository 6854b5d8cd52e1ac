"""Reports of the self-test: what they allow, and which of those that are kept count."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spliceway.bpf import ownfiles
from spliceway.bpf.selftest import cache, leftovers, run
from spliceway.bpf.selftest.identity import Identity, identity, make_report
from spliceway.bpf.selftest.report import Check, Result, SelfTestReport, Side, conclude
from spliceway.bpf.types import DatapathSettings

_GOOD = Check("order", 1, Result.OK, "every byte came")
_OTHER = Check("splice", 3, Result.KNOWN, "EAGAIN")
_NOT_RUN = Check("measure", 5, Result.NOT_RUN, "no BTF")
_ABOUT = Identity("6.18", "#1", "boot", "programs", "source")


def _bad(name: str, *off: Side) -> Check:
    return Check(name, 16, Result.BAD, f"{name} lost bytes", off)


def _report(*checks: Check, error: str = "", about: Identity = _ABOUT) -> SelfTestReport:
    return make_report(about, time=0.0, seconds=1.0, checks=checks, error=error)


@pytest.mark.parametrize(
    ("checks", "clients", "servers", "why"),
    [
        ([_GOOD], True, True, ""),
        ([_GOOD, _OTHER], True, True, ""),
        ([_GOOD, _NOT_RUN], True, True, ""),
        ([_GOOD, _bad("fin", Side.CLIENTS)], False, True, "fin is bad: fin lost bytes"),
        ([_GOOD, _bad("fin", Side.SERVERS)], True, False, "fin is bad: fin lost bytes"),
        ([_bad("order", *Side), _bad("fin", *Side)], False, False, "order is bad: order lost bytes; also bad: fin"),
        ([], False, False, "not proved: order"),
    ],
)  # fmt: skip
def test_what_a_report_allows(checks: list[Check], clients: bool, servers: bool, why: str) -> None:
    assert conclude(checks) == (clients, servers, why)


def test_a_run_that_did_not_end_allows_nothing() -> None:
    report = _report(_GOOD, error="not done after 30 s")
    assert (report.clients, report.servers) == (False, False)
    assert report.summary == "did not come to its end: not done after 30 s"


def test_what_is_kept_is_found_again_and_private(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    cache.store(directory, _report(_GOOD))
    assert cache.load(directory, _ABOUT) == _report(_GOOD)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert cache.path_of(directory, _ABOUT).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("field", ["kernel", "version", "boot", "programs", "source"])
def test_what_is_about_something_else_does_not_count_and_goes(tmp_path: Path, field: str) -> None:
    other = msgspec.structs.replace(_ABOUT, **{field: "another"})
    cache.store(tmp_path, _report(_GOOD))
    assert cache.load(tmp_path, other) is None
    cache.store(tmp_path, _report(_GOOD, about=other))
    assert cache.load(tmp_path, _ABOUT) is None


def _others_may_write(path: Path) -> None:
    path.chmod(0o620)


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _a_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def _about_another(path: Path) -> None:
    path.write_bytes(msgspec.json.encode(_report(_GOOD, about=msgspec.structs.replace(_ABOUT, boot="earlier"))))


@pytest.mark.parametrize("spoil", [_others_may_write, _damaged, _a_link, _about_another])
def test_a_file_that_others_could_have_written_does_not_count(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    cache.store(tmp_path, _report(_GOOD))
    spoil(cache.path_of(tmp_path, _ABOUT))
    assert cache.load(tmp_path, _ABOUT) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_and_directories_of_others_do_not_count(tmp_path: Path) -> None:
    cache.store(tmp_path, _report(_GOOD))
    os.chown(cache.path_of(tmp_path, _ABOUT), 1000, 1000)
    assert cache.load(tmp_path, _ABOUT) is None
    os.chown(tmp_path, 1000, 1000)
    with pytest.raises(OSError, match="belongs to user 1000"):
        ownfiles.prepare(tmp_path)


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match="others may write"):
        ownfiles.prepare(tmp_path)


class _Runs:
    """Stands for the child process: each run takes until others had their turn."""

    def __init__(self, error: str = "", checks: tuple[Check, ...] = (_GOOD,)) -> None:
        self.count = 0
        self._error, self._checks = error, checks

    async def __call__(self, _settings: DatapathSettings, **_: Any) -> SelfTestReport:
        self.count += 1
        for _turn in range(3):
            await asyncio.sleep(0)
        return _report(*self._checks, error=self._error, about=identity())


@pytest.fixture
def settings(tmp_path: Path) -> DatapathSettings:
    return DatapathSettings(bpffs=tmp_path, state_dir=tmp_path, pods_cgroup=tmp_path, proxy_cgroup=tmp_path)


def test_it_runs_once_however_many_ask(
    tmp_path: Path, settings: DatapathSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _Runs()
    monkeypatch.setattr(run, "run", runs)

    async def ask() -> list[SelfTestReport]:
        return await asyncio.gather(*(run.load_or_run(settings, tmp_path / "kept") for _ in range(3)))

    assert asyncio.run(ask()) == [_report(_GOOD, about=identity())] * 3
    assert runs.count == 1


def test_a_run_that_failed_is_made_again(
    tmp_path: Path, settings: DatapathSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _Runs("no BPF")
    monkeypatch.setattr(run, "run", runs)
    for _ in range(2):
        assert asyncio.run(run.load_or_run(settings, tmp_path / "kept")).error == "no BPF"
    assert runs.count == 2


def test_a_run_with_a_check_that_did_not_end_is_made_again(
    tmp_path: Path, settings: DatapathSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Check("fin", 16, Result.BAD, "not done after 8 s", (Side.CLIENTS,), broken=True)
    runs = _Runs(checks=(_GOOD, late))
    monkeypatch.setattr(run, "run", runs)
    for _ in range(2):
        report = asyncio.run(run.load_or_run(settings, tmp_path / "kept"))
        assert (report.clients, report.servers, report.lasts) == (False, True, False)
    assert runs.count == 2


def test_a_lock_that_nobody_lets_go_is_waited_for_no_longer_than_a_run(
    tmp_path: Path, settings: DatapathSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _Runs()
    monkeypatch.setattr(run, "run", runs)
    monkeypatch.setattr(run, "TIMEOUT", 0.3)
    directory = tmp_path / "kept"
    directory.mkdir(mode=0o700)
    with (directory / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        assert asyncio.run(run.load_or_run(settings, directory)).clients
        assert time.monotonic() - began >= 0.3
    assert runs.count == 1


def test_without_a_safe_directory_it_runs_every_time(
    tmp_path: Path, settings: DatapathSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _Runs()
    monkeypatch.setattr(run, "run", runs)
    tmp_path.chmod(0o777)
    for _ in range(2):
        assert asyncio.run(run.load_or_run(settings, tmp_path)).clients
    assert runs.count == 2


def test_a_run_that_is_cut_short_leaves_no_cgroup(
    tmp_path: Path, settings: DatapathSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that ends meanwhile may be the last one; of one that was killed the next one removes it."""
    settings = msgspec.structs.replace(settings, pods_cgroup=tmp_path / "pods", proxy_cgroup=tmp_path / "proxy")
    left = [
        settings.pods_cgroup / f"{leftovers.PREFIX}-4194305-77",
        settings.proxy_cgroup / f"{leftovers.PREFIX}-4194305-78",
    ]

    async def child(_argv: list[str], _patience: float) -> SelfTestReport:
        for each in left:
            each.mkdir(parents=True)
        return await asyncio.Future()

    async def cut() -> None:
        task = asyncio.create_task(run.run(settings))
        await asyncio.sleep(0.05)
        assert all(each.is_dir() for each in left)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    monkeypatch.setattr(run, "_child", child)
    asyncio.run(cut())
    assert not any(each.exists() for each in left)
    for each in left:
        each.mkdir()
    runs = _Runs()
    monkeypatch.setattr(run, "run", runs)
    asyncio.run(run.load_or_run(settings, tmp_path / "reports"))
    assert not any(each.exists() for each in left)


def test_only_what_ended_runs_have_left_is_swept(tmp_path: Path) -> None:
    own, stranger = tmp_path / leftovers.own_name(), tmp_path / f"{leftovers.PREFIX}-of-somebody"
    reused = tmp_path / f"{leftovers.PREFIX}-{os.getpid()}-1"
    gone = tmp_path / f"{leftovers.PREFIX}-4194305-77"  # more than PID_MAX_LIMIT
    for path in (own, stranger, reused, gone):
        path.mkdir()
    assert set(leftovers.sweep(tmp_path)) == {gone, reused}
    assert {path.name for path in tmp_path.iterdir()} == {own.name, stranger.name}
