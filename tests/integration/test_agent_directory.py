"""The directory source on a real directory with real inotify."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from spliceway.agent.errors import SourceError
from spliceway.agent.sources import directory
from spliceway.agent.sources.directory import DirectorySource
from spliceway.agent.sources.events import Batch, FileChanged, FileRefused, FileRemoved, SourceLost
from support.agent import run


class Watched:
    """A source and what it says."""

    def __init__(self, root: Path, batches: AsyncIterator[Batch]) -> None:
        self.root = root
        self.first: Batch = ()
        self._batches = batches

    async def next(self, wait: float = 5.0) -> Batch:
        async with asyncio.timeout(wait):
            return await anext(self._batches)

    async def quiet(self) -> None:
        """Make sure that nothing was said: a marker's event comes next."""
        (self.root / "marker.yaml").write_text("marker")
        assert await self.next() == (FileChanged("marker.yaml", "marker"),)
        (self.root / "marker.yaml").unlink()
        assert await self.next() == (FileRemoved("marker.yaml"),)


def watching(root: Path, body: Callable[[Watched], Awaitable[None]], **options: int) -> None:
    async def start() -> None:
        with DirectorySource(root, **options) as source:
            watched = Watched(root, source.batches())
            watched.first = await watched.next()
            await body(watched)

    run(start)


def replace(path: Path, text: str) -> None:
    """As kubectl, editors and the kubelet do: write beside, rename into place."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    beside.rename(path)


def test_what_is_there_comes_first(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "f.yaml~", "sub/g.yaml", "sub/deep/h.yaml"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".hidden" / "i.yaml").write_text("i")

    async def body(watched: Watched) -> None:
        names = [event.file for event in watched.first if isinstance(event, FileChanged)]
        assert names == ["a.yaml", "b.yml", "c.json", "sub/g.yaml"]

    watching(tmp_path, body)


def test_an_empty_directory_says_so(tmp_path: Path) -> None:
    async def body(watched: Watched) -> None:
        assert watched.first == ()

    watching(tmp_path, body)


def test_rename_create_write_delete(tmp_path: Path) -> None:
    async def body(watched: Watched) -> None:
        replace(tmp_path / "a.yaml", "1")
        assert await watched.next() == (FileChanged("a.yaml", "1"),)
        replace(tmp_path / "a.yaml", "2")
        assert await watched.next() == (FileChanged("a.yaml", "2"),)
        (tmp_path / "a.yaml").write_text("3")
        assert await watched.next() == (FileChanged("a.yaml", "3"),)
        (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
        assert await watched.next() == (FileRemoved("a.yaml"), FileChanged("b.yaml", "3"))
        (tmp_path / "b.yaml").rename(tmp_path / "b.txt")
        assert await watched.next() == (FileRemoved("b.yaml"),)
        os.link(tmp_path / "b.txt", tmp_path / "c.yaml")
        assert await watched.next() == (FileChanged("c.yaml", "3"),)
        (tmp_path / "c.yaml").unlink()
        assert await watched.next() == (FileRemoved("c.yaml"),)
        (tmp_path / "b.txt").write_text("nobody's")
        (tmp_path / "b.txt").unlink()
        await watched.quiet()

    watching(tmp_path, body)


def test_from_rename_to_event_in_a_few_milliseconds(tmp_path: Path) -> None:
    async def body(watched: Watched) -> None:
        times = []
        for number in range(20):
            replace(tmp_path / "a.yaml", str(number))
            begin = time.monotonic()
            assert await watched.next() == (FileChanged("a.yaml", str(number)),)
            times.append(time.monotonic() - begin)
        assert sorted(times)[10] < 0.05

    watching(tmp_path, body)


def test_a_half_written_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("whole")

    async def body(watched: Watched) -> None:
        with (tmp_path / "a.yaml").open("w") as stream:
            stream.write("ha")
            stream.flush()
            (tmp_path / "b.yaml").write_text("other")
            assert await watched.next() == (FileChanged("b.yaml", "other"),)
            stream.write("lf")
        assert await watched.next() == (FileChanged("a.yaml", "half"),)

    watching(tmp_path, body)


def test_directories_come_and_go(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.yaml").write_text("x")

    async def body(watched: Watched) -> None:
        outside.rename(root / "sub")
        assert await watched.next() == (FileChanged("sub/x.yaml", "x"),)
        replace(root / "sub" / "y.yaml", "y")
        assert await watched.next() == (FileChanged("sub/y.yaml", "y"),)
        (root / "sub").rename(root / "sub2")
        assert await watched.next() == (
            FileRemoved("sub/x.yaml"),
            FileRemoved("sub/y.yaml"),
            FileChanged("sub2/x.yaml", "x"),
            FileChanged("sub2/y.yaml", "y"),
        )
        replace(root / "sub2" / "y.yaml", "z")
        assert await watched.next() == (FileChanged("sub2/y.yaml", "z"),)
        (root / "sub2").rename(outside)
        assert await watched.next() == (FileRemoved("sub2/x.yaml"), FileRemoved("sub2/y.yaml"))
        (outside / "y.yaml").write_text("nobody's")
        (root / "new").mkdir()
        (root / "new" / "a.yaml").write_text("a")
        assert await watched.next() == (FileChanged("new/a.yaml", "a"),)
        shutil.rmtree(root / "new")
        assert await watched.next() == (FileRemoved("new/a.yaml"),)

    watching(root, body)


def test_a_config_map_volume(tmp_path: Path) -> None:
    def version(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    version("..2024_1", "one")
    (tmp_path / "p.yaml").symlink_to("..data/p.yaml")

    async def body(watched: Watched) -> None:
        assert watched.first == (FileChanged("p.yaml", "one"),)
        version("..2024_2", "two")
        assert await watched.next() == (FileChanged("p.yaml", "two"),)
        shutil.rmtree(tmp_path / "..2024_1")
        await watched.quiet()

    watching(tmp_path, body)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("x" * 101)
    (tmp_path / "latin.yaml").write_bytes(b"\xe4")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    # Regular files by their mode: one has nothing to read for now (or needs a right), one can't be read at all.
    (tmp_path / "log.yaml").symlink_to("/proc/kmsg")
    (tmp_path / "memory.yaml").symlink_to("/proc/self/mem")
    (tmp_path / os.fsdecode(b"\xff.yaml")).write_text("a")

    async def body(watched: Watched) -> None:
        log, *others = sorted(watched.first, key=lambda event: event.file != "log.yaml")  # type: ignore[union-attr]
        assert isinstance(log, FileRefused)
        assert others == [
            FileRefused("big.yaml", "is larger than 100 bytes"),
            FileRefused("latin.yaml", "is not UTF-8 (byte 0)"),
            FileRefused("memory.yaml", "can't be read: Input/output error"),
            FileRefused("pipe.yaml", "is not a regular file"),
            FileRefused("\\xff.yaml", "its name is not UTF-8"),
        ]
        replace(tmp_path / "big.yaml", "small")
        assert await watched.next() == (FileChanged("big.yaml", "small"),)

    watching(tmp_path, body, max_bytes=100)


def test_a_root_that_goes_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "LOST_SECONDS", 0.01)
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.yaml").write_text("a")

    async def body(watched: Watched) -> None:
        root.rename(tmp_path / "away")
        (lost,) = await watched.next()
        assert isinstance(lost, SourceLost)
        assert "No such file" in lost.reason
        root.mkdir()
        (root / "b.yaml").write_text("b")
        batch = await watched.next()
        while FileChanged("b.yaml", "b") not in batch:
            batch = (*batch, *await watched.next())
        assert SourceLost("") in batch
        replace(root / "b.yaml", "c")
        assert await watched.next() == (FileChanged("b.yaml", "c"),)

    watching(root, body)


def test_many_files_at_once_are_one_change_or_few(tmp_path: Path) -> None:
    async def body(watched: Watched) -> None:
        for number in range(300):
            (tmp_path / f"{number:03}.yaml").write_text(str(number))
        seen: set[str] = set()
        batches = 0
        while len(seen) < 300:
            seen.update(event.file for event in await watched.next() if isinstance(event, FileChanged))
            batches += 1
        assert batches < 20

    watching(tmp_path, body)


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(SourceError, match=r"nothing is not a directory"), DirectorySource(tmp_path / "nothing"):
            pass

    run(body)
