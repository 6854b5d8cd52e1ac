"""The kill switch: a file on the node or an annotation of its Node turns enforcement and steering off, and on again.

While it is on, the kernel's programs pass everything; connections that the proxy has stay there, and it lets every
request pass. Policies are read and staged all the same, so that they are in force as soon as the switch is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import inotify_simple
import msgspec
import structlog

from spliceway.agent.configsections import KillSwitchConfig
from spliceway.agent.errors import OWN_ERRORS, AgentError

#: How often the file is looked for in any case, in seconds: a mount over its directory tells nobody, and what failed is
#: tried again.
LOOK_SECONDS = 1.0
#: How long the proxy may take at once to confirm that it asks its rules again, and the pause between two looks.
CONFIRM_SECONDS = 2.0
CONFIRM_PAUSE = 0.005

_F = inotify_simple.flags
_MASK = (
    _F.CREATE | _F.DELETE | _F.MOVED_FROM | _F.MOVED_TO | _F.DELETE_SELF | _F.MOVE_SELF | _F.ATTRIB | _F.ONLYDIR
)  # fmt: skip

log = structlog.get_logger(__name__)


class KillSwitchStatus(msgspec.Struct, frozen=True, rename="camel"):
    """`on`: nothing is enforced or steered; `why`: sentences, who wants it so. `since`: seconds since the epoch, or 0.

    `error`: why what is wanted could not be done, empty when it is.
    """

    on: bool
    why: tuple[str, ...]
    since: float
    file: str
    annotation: str
    error: str = ""


class SwitchKernel(Protocol):
    """What it needs of the datapath."""

    async def set_disabled(self, disabled: bool) -> None:
        """Pass everything from now on, or judge it again. Raises DatapathError."""

    def is_disabled(self) -> bool:
        """Whether everything passes, as the kernel has it: others may write it, too. Raises DatapathError."""


class SwitchProxy(Protocol):
    """And of the proxy."""

    def set_lenient(self, on: bool) -> None:
        """Let every request pass, or ask the rules again. Returns before the proxy has answered. Raises XdsError."""

    @property
    def confirmed(self) -> bool:
        """Whether it has taken the latest."""

    def stand_in(self) -> None:
        """Put others in the place of what it refuses. Raises XdsError."""


class KillSwitch:
    """See the module. `run` is its life; `annotated` and `status` may be called meanwhile."""

    def __init__(self, config: KillSwitchConfig, *, was_on: bool = False) -> None:
        """`was_on`: in the kernel, as an earlier agent left it. It stays so until the source has told of the Node."""
        self._config = config
        self._was_on = was_on
        self._annotation: bool | None = None
        self._on = self.wanted
        self._since = time.time() if self._on else 0.0
        self._error = ""
        self._changed = asyncio.Event()
        self._kernel: SwitchKernel | None = None
        self._proxy: SwitchProxy | None = None
        self._proxy_runs: Callable[[], bool] = lambda: True

    def __repr__(self) -> str:
        return f"KillSwitch(on={self._on}, wanted={self.wanted}, error={self._error!r})"

    @property
    def wanted(self) -> bool:
        """Whether it is to be on, by what there is now."""
        return bool(self._why())

    @property
    def on(self) -> bool:
        """Whether it is on in kernel and proxy."""
        return self._on

    def status(self) -> KillSwitchStatus:
        """Where things are now."""
        return KillSwitchStatus(
            on=self._on,
            why=self._why(),
            since=self._since,
            file=str(self._config.file or ""),
            annotation=self._config.annotation,
            error=self._error,
        )

    def annotated(self, value: object) -> None:
        """What the annotation of the Node says, None where it is not there. Call it when the source has been seen."""
        said = str(value).strip().lower() == "true"
        if said != self._annotation:
            self._annotation = said
            self._changed.set()

    def use(self, kernel: SwitchKernel, proxy: SwitchProxy, proxy_runs: Callable[[], bool]) -> None:
        """Whom to tell, and whether there is a proxy process at all.

        The datapath was opened with what is so now; the proxy learns it here. Raises XdsError.
        """
        self._kernel, self._proxy, self._proxy_runs = kernel, proxy, proxy_runs
        proxy.set_lenient(self._on)

    async def run(self) -> None:
        """Follow file and annotation, until cancelled. After `use`."""
        if self._on:
            self._tell()
        with _Watch(self._config.file, self._changed.set) as watch:
            while True:
                watch.renew()
                self._changed.clear()  # before the look: what comes after it is seen by the next one
                await self._follow()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), LOOK_SECONDS)

    async def _follow(self) -> None:
        assert self._kernel is not None  # `use` came before
        wanted = self.wanted
        try:
            drifted = self._kernel.is_disabled() != self._on
            if wanted == self._on and not (self._error or drifted):
                return
            if wanted == self._on and drifted:
                # `spliceway kill-switch` with another file than this agent's, say: what is told here must be true.
                log.warning("somebody else has turned the kill switch in the kernel: it is put back", on=wanted)
            await self._turn(wanted)
        except OWN_ERRORS as error:
            if str(error) != self._error:
                log.error("the kill switch could not be turned, trying again", on=wanted, error=str(error))
            self._error = str(error)
            return
        self._error = ""
        if wanted != self._on:
            self._on, self._since = wanted, time.time() if wanted else 0.0
            self._tell()

    async def _turn(self, on: bool) -> None:
        """On: the kernel goes first, which most of the traffic meets. Off: last, once the proxy asks rules again."""
        assert self._kernel is not None  # `use` came before
        assert self._proxy is not None
        if on:
            await self._kernel.set_disabled(True)
        self._proxy.set_lenient(on)
        if on:
            return
        # What is steered to a proxy that still lets everything pass would go past its rules.
        deadline = time.monotonic() + CONFIRM_SECONDS
        while self._proxy_runs() and not self._proxy.confirmed:
            self._proxy.stand_in()
            if time.monotonic() > deadline:
                raise AgentError("the proxy has not confirmed yet that it asks its rules again")
            await asyncio.sleep(CONFIRM_PAUSE)
        await self._kernel.set_disabled(False)

    def _tell(self) -> None:
        if self._on:
            log.warning(
                "THE KILL SWITCH IS ON: no policy is enforced on this node, nothing is steered", why=self._why()
            )
        else:
            log.warning("the kill switch is off: policy is in force again")

    def _why(self) -> tuple[str, ...]:
        found = []
        file, annotation = self._config.file, self._config.annotation
        if file is not None and os.path.lexists(file):
            found.append(f"the file {file} is there")
        if annotation and self._annotation:
            found.append(f"the Node has the annotation {annotation}: true")
        if self._annotation is None and self._was_on and not found:
            found.append("it was on before the agent started, and the Node has not been seen yet")
        return tuple(found)


class _Watch:
    """Calls when something changes where a file is, or could be. Watches the directory, or the nearest that exists."""

    def __init__(self, file: Path | None, changed: Callable[[], object]) -> None:
        self._file, self._changed = file, changed
        self._inotify: inotify_simple.INotify | None = None
        self._watches: dict[int, Path] = {}

    def __enter__(self) -> _Watch:
        if self._file is not None:
            # Without one (fs.inotify.max_user_instances) the file is looked for every LOOK_SECONDS all the same.
            with contextlib.suppress(OSError):
                self._inotify = inotify_simple.INotify(nonblocking=True)
                asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._on_readable)
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()

    def renew(self) -> None:
        """Watch what is there now: adding a watch again is the kernel's no-op."""
        if self._inotify is None or self._file is None:
            return
        for directory in self._file.parents:
            try:
                watch = self._inotify.add_watch(directory, _MASK)
            except OSError:
                continue
            for stale in self._watches.keys() - {watch}:
                with contextlib.suppress(OSError):  # it went with its directory
                    self._inotify.rm_watch(stale)
            self._watches = {watch: directory}
            return

    def _on_readable(self) -> None:
        assert self._inotify is not None
        self._inotify.read(timeout=0)
        self._changed()
