"""The kill switch: who turns it, when it is brought into kernel and proxy, and what it says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from spliceway.agent import killswitch
from spliceway.agent.cli.summary import _disabled, problems, unenforced
from spliceway.agent.configsections import KillSwitchConfig
from spliceway.agent.jsonable import plain
from spliceway.agent.killswitch import KillSwitch
from spliceway.bpf.errors import DatapathError
from support.agent import run, until

KEY = "spliceway.io/disabled"


class Sides:
    """Kernel and proxy: what they were told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails = 0
        self.disabled = False
        self.confirmed = True
        self.runs = True
        self.refused = 0

    def is_disabled(self) -> bool:
        return self.disabled

    async def set_disabled(self, disabled: bool) -> None:
        if self.fails:
            self.fails -= 1
            raise DatapathError("no such map")
        self.told.append(f"kernel {disabled}")
        self.disabled = disabled

    def stand_in(self) -> None:
        if not self.confirmed:
            self.refused += 1

    def set_lenient(self, on: bool) -> None:
        self.told.append(f"proxy {on}")


def switched(file: Path | None, body: Callable[[KillSwitch, Sides], Awaitable[None]], *, was_on: bool = False) -> None:
    async def start() -> None:
        switch, sides = KillSwitch(KillSwitchConfig(file=file), was_on=was_on), Sides()
        sides.disabled = switch.on  # what the datapath was opened with
        switch.use(sides, sides, lambda: sides.runs)
        task = asyncio.create_task(switch.run())
        try:
            await body(switch, sides)
        finally:
            task.cancel()
            await asyncio.wait({task})

    run(start)


@pytest.mark.parametrize("place", ["disabled", "not/there/yet/disabled"])
def test_the_file_is_seen_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """By inotify: looking now and then would take too long here. Its directory may come later."""
    monkeypatch.setattr(killswitch, "LOOK_SECONDS", 60.0)
    file = tmp_path / place

    async def body(switch: KillSwitch, sides: Sides) -> None:
        switch.annotated(None)
        for _ in range(2):
            await until(lambda: not switch.on)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            await until(lambda: switch.on)
            file.unlink()
        await until(lambda: not switch.on)
        on, off = ["kernel True", "proxy True"], ["proxy False", "kernel False"]
        assert sides.told == ["proxy False", *on, *off, *on, *off]

    switched(file, body)


def test_a_file_that_is_there_counts_before_anything_is_attached(tmp_path: Path) -> None:
    file = tmp_path / "disabled"
    file.symlink_to("nowhere")  # whoever made it meant it
    assert KillSwitch(KillSwitchConfig(file=file)).on
    assert not KillSwitch(KillSwitchConfig(file=None)).on

    async def body(switch: KillSwitch, sides: Sides) -> None:
        assert sides.told == ["proxy True"]
        file.unlink()
        await until(lambda: not switch.on)
        assert sides.told[1:] == ["proxy False", "kernel False"]

    switched(file, body)


@pytest.mark.parametrize(
    ("value", "on"), [("true", True), (" True", True), (True, True), ("false", False), ("", False)]
)
def test_the_annotation(tmp_path: Path, value: object, on: bool) -> None:
    async def body(switch: KillSwitch, _sides: Sides) -> None:
        switch.annotated(value)
        if on:
            await until(lambda: switch.on)
            assert switch.status().why == (f"the Node has the annotation {KEY}: true",)
            switch.annotated(None)
        await until(lambda: not switch.on)

    switched(tmp_path / "disabled", body)


def test_either_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "disabled"

    async def body(switch: KillSwitch, _sides: Sides) -> None:
        file.touch()
        switch.annotated("true")
        await until(lambda: len(switch.status().why) == 2 and switch.on)
        file.unlink()
        await until(lambda: len(switch.status().why) == 1)
        assert switch.on
        switch.annotated("false")
        await until(lambda: not switch.on)

    switched(file, body)


def test_what_the_kernel_has_stays_until_the_node_was_seen(tmp_path: Path) -> None:
    """The API server is away, and the annotation with it."""

    async def body(switch: KillSwitch, sides: Sides) -> None:
        assert switch.on
        assert "was on before the agent started" in switch.status().why[0]
        assert sides.told == ["proxy True"]
        switch.annotated(None)
        await until(lambda: not switch.on)

    switched(tmp_path / "disabled", body, was_on=True)


def test_what_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killswitch, "LOOK_SECONDS", 0.05)
    file = tmp_path / "disabled"

    async def body(switch: KillSwitch, sides: Sides) -> None:
        sides.fails = 1_000_000
        file.touch()
        await until(lambda: bool(switch.status().error))
        status = plain(switch.status())
        assert (status["on"], status["error"]) == (False, "no such map")
        sides.fails = 0
        await until(lambda: switch.on)
        assert switch.status().error == ""

    switched(file, body)


def test_the_kernel_steers_again_only_when_the_proxy_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or when there is none, which lets nothing pass."""
    monkeypatch.setattr(killswitch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(killswitch, "CONFIRM_SECONDS", 0.05)
    file = tmp_path / "disabled"

    async def body(switch: KillSwitch, sides: Sides) -> None:
        for back in ("confirmed", "runs"):
            file.touch()
            await until(lambda: switch.on)
            sides.confirmed = False
            file.unlink()
            await until(lambda: "not confirmed" in switch.status().error)
            assert (switch.on, sides.disabled) == (True, True)
            assert sides.refused  # what a proxy refuses must not keep it on
            setattr(sides, back, back == "confirmed")
            await until(lambda: not switch.on)
            assert (sides.disabled, switch.status().error) == (False, "")
            sides.runs = True

    switched(file, body)


def test_what_others_turn_in_the_kernel_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the agent would tell that policy is enforced, and it would not be."""
    monkeypatch.setattr(killswitch, "LOOK_SECONDS", 0.05)
    file = tmp_path / "disabled"

    async def body(switch: KillSwitch, sides: Sides) -> None:
        sides.disabled = True
        await until(lambda: not sides.disabled)
        file.touch()
        await until(lambda: switch.on)
        sides.disabled = False
        await until(lambda: sides.disabled)

    switched(file, body)


def test_people_are_told_first_of_all() -> None:
    found = {"on": True, "why": ["the file /f is there"], "since": 0.0, "error": ""}
    assert _disabled({"killSwitch": found}).startswith("OFF for ")
    assert _disabled({"killSwitch": {**found, "on": False}}) == ""
    status = {
        "killSwitch": found,
        "source": {"refusals": []},
        "policy": {
            "error": "", "endpointError": "", "waiting": {}, "notApplied": [], "revision": 1, "wanted": 1,
            "refusedPairs": 0,
        },
        "datapath": {"problems": []},
        "proxy": {"process": {}, "refused": [], "unfit": {}, "clients": 1},
    }  # fmt: skip
    assert problems(status) == ["kill switch: ON, no policy is enforced on this node: the file /f is there"]
    mode = {"enforcement": {"mode": "audit"}}
    assert unenforced({"killSwitch": found, **mode}) == "the kill switch is on: nothing is enforced"
    assert unenforced(mode) == "enforcement is audit: nothing is denied"
    assert unenforced({"killSwitch": {**found, "on": False}, "enforcement": {"mode": "enforce"}}) == ""
    late = {**found, "on": False, "error": "no such map"}
    assert problems({**status, "killSwitch": late}) == [
        "kill switch: is to be on, and is not yet: the file /f is there",
        "kill switch: could not be turned: no such map",
    ]
