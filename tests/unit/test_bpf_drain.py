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


def test_a_root_stays_for_the_endpoints_that_may_go_by_its_programs(tmp_path: Path) -> None:
    top = tmp_path / "spliceway"
    for name in ("v3/unheard-of", "v4/links", "v4/maps", "v5/links"):
        (top / name).mkdir(parents=True)
    (top / "v3" / "unheard-of" / "7").touch()
    drain = Drain(tmp_path, top / "v5")
    drain.in_place(["veth1"], ["veth1"])
    asyncio.run(drain.look())
    why = "its programs are at veth1, where this version's can't be attached"
    assert drain.left == (f"v3: {why}", f"v4: {why}")
    drain.in_place([], ["veth1"])  # what it has at hooks that this version knows is ours
    asyncio.run(drain.look())
    told = "v3: its programs (unheard-of) may be at veth1, where this version's can't be attached"
    assert drain.left == (told,)
    assert [other.name for other in drain.others] == ["v3"]
    drain.in_place()
    drain.in_place(["veth2"], ["veth2"])  # that came later, and has nothing of it
    asyncio.run(drain.look())
    assert (drain.left, drain.others) == ((), [])


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
