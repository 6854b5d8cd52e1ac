"""Roots of other versions go when they are not needed any more, and never before ours are at all pods."""

from __future__ import annotations

import asyncio
from pathlib import Path

from spliceway.bpf.upgrade import Drain
from support.agent import until


def test_no_root_goes_before_ours_is_in_place(tmp_path: Path) -> None:
    top = tmp_path / "spliceway"
    for name in ("v3", "v4", "v5", "clsact", "notes"):
        (top / name / "links").mkdir(parents=True)
    drain = Drain(tmp_path, top / "v5")
    asyncio.run(drain.look())
    assert [other.name for other in drain.others] == ["v3", "v4"]
    assert (top / "v3" / "links").is_dir()
    assert (top / "v4" / "links").is_dir()
    drain.in_place()
    asyncio.run(drain.look())
    assert drain.others == []
    assert sorted(path.name for path in top.iterdir()) == ["clsact", "notes", "v5"]
    assert (top / "v5" / "links").is_dir()


def test_it_runs_until_all_are_gone(tmp_path: Path) -> None:
    (tmp_path / "spliceway" / "v4").mkdir(parents=True)

    async def main() -> None:
        drain = Drain(tmp_path, tmp_path / "spliceway" / "v5")
        drain.in_place()
        drain.start()
        await until(lambda: not drain.others)
        await drain.stop()
        assert not drain.runs

    asyncio.run(main())
