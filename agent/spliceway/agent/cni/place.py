"""The plugin's place on the node: its binary in `cni.binDir`, and itself in the first configuration of `cni.confDir`.

Whoever owns that file (the base CNI's installer) may write it anew at any time; then the plugin is put back. Where
others write it again and again this is done at a slow pace, and said: two who fight over a file help nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inotify_simple
import msgspec
import structlog

from spliceway.agent.cni import build, conflist
from spliceway.agent.configsections import CniConfig
from spliceway.agent.errors import AgentError
from spliceway.agent.state import write_atomic

#: What was put where, in the state directory: `spliceway cleanup` needs no configuration.
RECORD = "cni.json"
#: Where the chart's pods have directories of the node.
_MOUNTED = Path("/host")
#: So many times in PEACE seconds the plugin is put back at once, then every SLOW seconds.
QUICK, PEACE, SLOW = 5, 600.0, 60.0
#: Seconds after an event before the directory is looked at; between two looks without one; while it is not there.
SETTLE, INTERVAL, ABSENT = 0.1, 30.0, 2.0

_F = inotify_simple.flags
_MASK = (
    _F.CLOSE_WRITE | _F.MOVED_TO | _F.MOVED_FROM | _F.DELETE | _F.ATTRIB | _F.DELETE_SELF | _F.MOVE_SELF | _F.ONLYDIR
)

log = structlog.get_logger(__name__)


class Chain(msgspec.Struct, frozen=True, rename="camel"):
    """Where the plugin stands. `file`: empty when in none; `problem`: why; `put`: how often it was put there.

    `left`: directories of the node, configured before, in which it may still be, and which are not mounted for us.
    """

    file: str = ""
    problem: str = ""
    put: int = 0
    left: tuple[str, ...] = ()


class Places(msgspec.Struct, frozen=True, rename="camel"):
    """What `RECORD` holds. `node_conf_dir`: what the node calls `conf_dir`; `left`: as in `Chain`."""

    conf_dir: str
    bin_dir: str
    node_conf_dir: str = ""
    left: tuple[str, ...] = ()

    @property
    def on_node(self) -> Path:
        """`conf_dir` by its path on the node: an agent in a container wrote down where it is mounted there."""
        directory = Path(self.node_conf_dir or self.conf_dir)
        return Path("/") / directory.relative_to(_MOUNTED) if directory.is_relative_to(_MOUNTED) else directory

    @property
    def here(self) -> Path:
        """`conf_dir` by a path of now."""
        return directory if (directory := Path(self.conf_dir)).is_dir() else self.on_node


class Place:
    """Keeps the plugin where it belongs while `run` runs; it stays there afterwards, and `take_out` ends that."""

    def __init__(self, config: CniConfig, state_dir: Path) -> None:
        self._config = config
        self._state_dir = state_dir
        self._puts: deque[float] = deque(maxlen=QUICK)
        self._lock, self._left = threading.Lock(), False
        self.chain = Chain(problem="not looked yet")

    def __repr__(self) -> str:
        return f"Place({self.chain})"

    @property
    def entry(self) -> dict[str, Any]:
        """Our plugin in a list."""
        config = self._config
        seconds = int(config.timeout) if config.timeout == int(config.timeout) else config.timeout
        return {
            "type": build.NAME,
            "socket": str(config.socket),
            "timeout": seconds,
            "onFailure": config.on_failure,
            "exemptNamespaces": list(config.exempt_namespaces),
        }

    def install(self) -> None:
        """Put the binary in its place, in one step: a runtime may start it at any time. Blocks. Raises AgentError."""
        source = build.binary(self._state_dir)
        target = self._config.bin_dir / build.NAME
        try:
            self._record()
            target.parent.mkdir(parents=True, exist_ok=True)
            data = source.read_bytes()
            if not target.is_file() or target.read_bytes() != data or not os.access(target, os.X_OK):
                write_atomic(target, data, 0o755)
                target.chmod(0o755)
                log.info("CNI plugin installed", path=str(target), version=build.version())
        except OSError as error:
            raise AgentError(f"cni.binDir: {target} can't be written: {error}") from error

    def _record(self) -> None:
        """Write down where it will be put, and leave where it was before. Raises OSError or AgentError."""
        config = self._config
        places = Places(str(config.conf_dir), str(config.bin_dir), str(config.node_conf_dir or ""))
        before = _places(self._state_dir)
        left = set(before.left) if before else set()
        if before is not None and before.on_node != places.on_node:
            # A mount of the same path shows the new directory.
            if before.conf_dir != places.conf_dir and before.here.is_dir():
                take_out(self._state_dir)
            else:
                left.add(str(before.on_node))
        left -= {str(places.on_node)}
        places = msgspec.structs.replace(places, left=tuple(sorted(left)))
        write_atomic(self._state_dir / RECORD, msgspec.json.encode(places))

    def look(self) -> None:
        """Look at the chain, and put the plugin there where it is missing. Blocks."""
        with self._lock:
            chain = self.chain if self._left else self._look()
            places = _places(self._state_dir)  # `spliceway cleanup` on the node may have been there
            chain = msgspec.structs.replace(chain, left=places.left if places else ())
        if chain != self.chain:
            (log.warning if chain.problem else log.info)("CNI chain", file=chain.file, problem=chain.problem)
        self.chain = chain

    def _look(self) -> Chain:
        directory, put = self._config.conf_dir, self.chain.put
        try:
            wanted, problem = self._wanted(directory)
            if wanted is None:
                _drop_ours(directory, "")
                return Chain("", problem or f"no network configuration is in {directory}", put)
            path = directory / wanted.name
            there = path.read_text() if path.is_file() else None
            wanted = conflist.with_others(wanted, there)
            if there != wanted.text:
                if why := self._fights():
                    return Chain("", why, put)
                self._puts.append(time.monotonic())
                put += 1
                _replace(path, wanted.text, directory / (wanted.wraps or wanted.name))
            _drop_ours(directory, wanted.name)
            return Chain(str(path), "", put)
        except (OSError, UnicodeDecodeError) as error:
            return Chain("", f"cni.confDir {directory}: {error}", put)

    def _wanted(self, directory: Path) -> tuple[conflist.Wanted | None, str]:
        """The file with the plugin, of the first that can be read; and what is wrong with those before it."""
        problem = ""
        for name in conflist.candidates(_names(directory)):
            try:
                return conflist.with_plugin(name, _text(directory / name), self.entry), ""
            except (conflist.BadConfError, FileNotFoundError, UnicodeDecodeError) as error:
                problem = problem or f"{name} {error}"
        return None, problem

    def _fights(self) -> str:
        now = time.monotonic()
        if len(self._puts) < QUICK or now - self._puts[0] > PEACE or now - self._puts[-1] >= SLOW:
            return ""
        return f"somebody else takes the plugin out again and again; it is put back every {SLOW:g} s"

    def leave(self) -> list[Path]:
        """Take it out, and put it nowhere from now on. Blocks. Raises AgentError."""
        with self._lock:
            self._left = True
            return take_out(self._state_dir)

    async def run(self) -> None:
        """Keep it there, until cancelled."""
        while True:
            try:
                # Watch before looking: what changes between the two is seen. Each time anew: it may be another one.
                with _watching(self._config.conf_dir) as told:
                    await asyncio.to_thread(self.look)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SLOW / 4 if self.chain.problem else INTERVAL):
                            await told.wait()
                            await asyncio.sleep(SETTLE)
            except OSError:
                await asyncio.to_thread(self.look)
                await asyncio.sleep(ABSENT)


def placed(state_dir: Path) -> list[Path]:
    """Configurations that have our plugin, by what an agent wrote down. Blocks."""
    places = _places(state_dir)
    if places is None:
        return []
    return [path for directory in dict.fromkeys((places.here, *map(Path, places.left))) for path in _in(directory)]


def _in(directory: Path) -> list[Path]:
    """Those in one directory."""
    found = []
    for name in _names(directory) if directory.is_dir() else ():
        if not name.endswith(conflist.SUFFIXES):
            continue
        with contextlib.suppress(conflist.BadConfError, OSError, UnicodeDecodeError):
            if conflist.without_plugin(_text(directory / name)) is not None:
                found.append(directory / name)
    return found


def take_out(state_dir: Path) -> list[Path]:
    """Take the plugin out of all of them; the binary stays, since runtimes may still ask it to end what it began.

    Blocks. Raises AgentError.
    """
    found = placed(state_dir)
    for path in found:
        try:
            if conflist.is_ours(path.name):
                path.unlink(missing_ok=True)
                continue
            text = conflist.without_plugin(_text(path))
            if text is not None:
                _replace(path, text, path)
        except (OSError, conflist.BadConfError) as error:
            raise AgentError(f"{path}: the CNI plugin can't be taken out: {error}") from error
    places = _places(state_dir)
    if places is not None and (left := tuple(one for one in places.left if not Path(one).is_dir())) != places.left:
        try:
            write_atomic(state_dir / RECORD, msgspec.json.encode(msgspec.structs.replace(places, left=left)))
        except OSError as error:
            raise AgentError(f"{state_dir / RECORD} can't be written: {error}") from error
    return found


def _places(state_dir: Path) -> Places | None:
    try:
        return msgspec.json.decode((state_dir / RECORD).read_bytes(), type=Places)
    except (OSError, msgspec.MsgspecError):
        return None


def _drop_ours(directory: Path, wanted: str) -> None:
    """Remove lists that we made of a .conf that is gone, or is not the first any more."""
    for name in _names(directory):
        if conflist.is_ours(name) and name != wanted:
            (directory / name).unlink(missing_ok=True)


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(conflist.MAX_BYTES + 1)
    if len(data) > conflist.MAX_BYTES:
        raise conflist.BadConfError("is larger than 1 MiB")
    return data.decode()


def _replace(path: Path, text: str, like: Path) -> None:
    """Write a file in one step, with owner (where we may) and mode of another one (or of itself). Raises OSError."""
    path, status = path.resolve(), like.stat()
    beside = path.with_name(f".{path.name}.spliceway")  # runtimes look at names that end in .conf and the like
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            own = os.fstat(stream.fileno())
            if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
                # Without CAP_CHOWN it is ours, which whoever reads it there (root) does not notice.
                with contextlib.suppress(PermissionError):
                    os.fchown(stream.fileno(), status.st_uid, status.st_gid)
            os.fchmod(stream.fileno(), status.st_mode & 0o7777)
            os.fsync(stream.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _watching(directory: Path) -> Iterator[asyncio.Event]:
    """An event that is set when something changes in a directory. Raises OSError."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    inotify = inotify_simple.INotify(nonblocking=True)
    try:
        inotify.add_watch(directory, _MASK)

        def read() -> None:
            inotify.read(timeout=0)
            told.set()

        loop.add_reader(inotify.fileno(), read)
        try:
            yield told
        finally:
            loop.remove_reader(inotify.fileno())
    finally:
        inotify.close()
