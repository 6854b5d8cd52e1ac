"""Which pods of this node are wired, and how: as runtimes said it, or as it was found. Kept over an agent's restart.

The file is replaced in one step, but not synced to disk: what it says ends with the machine's run anyway, and each pod
would wait for the disk. After a crash of the machine it is of another boot, or damaged, and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

import msgspec
import structlog

from spliceway.agent.cni.netconf import Container, IPAddress
from spliceway.agent.cni.veth import HostSide, boot_id
from spliceway.agent.errors import StateError

VERSION = 1
FILE = "wirings.json"

log = structlog.get_logger(__name__)


class Wiring(msgspec.Struct, frozen=True):
    """A pod and its interface. `pod` is «namespace/name», `inner` is CNI_IFNAME.

    `container` and `inner` are empty for a pod that was found. `side` without a name: no policy can be enforced there.
    """

    pod: str
    uid: str
    container: str
    inner: str
    netns: Path
    side: HostSide
    ips: tuple[str, ...]

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """`ips` as addresses."""
        return tuple(map(ip_address, self.ips))

    def is_of(self, container: Container, netns: int) -> bool:
        """Whether the runtime means this one. `netns`: inode of the namespace that it names, 0: none."""
        if self.container:
            return self.container == container.id
        return netns == self.side.netns if netns else self.pod == container.pod


class _File(msgspec.Struct, frozen=True):
    version: int
    boot: str
    wirings: tuple[Wiring, ...]
    released: tuple[int, ...]


class Wirings:
    """All of a node, one for each pod. `released`: namespaces that runtimes have taken back, and that may still be."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._all: dict[str, Wiring] = {}
        self._released: set[int] = set()

    def __repr__(self) -> str:
        return f"Wirings({sorted(self._all)})"

    @property
    def all(self) -> Mapping[str, Wiring]:
        """By «namespace/name»."""
        return self._all

    @property
    def released(self) -> frozenset[int]:
        """Inodes of namespaces in which nothing is looked for."""
        return frozenset(self._released)

    def put(self, wiring: Wiring) -> None:
        """The pod is wired so; whoever had its addresses, namespace or device before has nothing any more."""
        self._released.discard(wiring.side.netns)
        for name, other in list(self._all.items()):
            same = other.side.netns == wiring.side.netns or other.side.ifindex == wiring.side.ifindex != 0
            if name != wiring.pod and (same or set(other.ips) & set(wiring.ips)):
                log.warning("a pod has lost its wiring to another one", pod=name, to=wiring.pod)
                del self._all[name]
        self._all[wiring.pod] = wiring

    def release(self, container: Container, netns: int) -> Wiring | None:
        """The runtime takes this one back. None: nothing is known of it."""
        found = next((one for one in self._all.values() if one.is_of(container, netns)), None)
        if found is not None and found.inner and found.inner != container.interface:
            return None  # a further interface of the pod goes
        self._released |= {number for number in (netns, found.side.netns if found else 0) if number}
        return self._all.pop(found.pod) if found else None

    def forget(self, gone: Iterable[Wiring], kept: frozenset[int]) -> None:
        """These are there no more. `kept`: inodes of the namespaces that have a name."""
        for one in gone:
            del self._all[one.pod]
        self._released &= kept

    def is_free(self, wiring: Wiring) -> bool:
        """Whether nothing of it is another pod's, so that it may be put."""
        return wiring.side.netns not in self._released and not any(
            other.side.netns == wiring.side.netns or set(other.ips) & set(wiring.ips) for other in self._all.values()
        )

    def packed(self) -> bytes:
        """For `save`."""
        content = _File(VERSION, boot_id(), tuple(self._all.values()), tuple(sorted(self._released)))
        return msgspec.json.encode(content, enc_hook=str)

    def save(self, packed: bytes) -> None:
        """Write them down. Blocks. Raises StateError."""
        beside = self._path.with_name(f".{FILE}.new")
        try:
            beside.write_bytes(packed)
            beside.chmod(0o600)
            beside.rename(self._path)
        except OSError as error:
            raise StateError(f"{self._path} can't be written: {error.strerror}") from error

    def load(self) -> None:
        """What an earlier agent knew, as far as it is of this boot. Blocks. Raises StateError."""
        try:
            content = msgspec.json.decode(self._path.read_bytes(), type=_File, dec_hook=_decode)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"{self._path} can't be read: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            log.warning("the file of the pods' wirings is damaged; pods are looked for", error=str(error))
            return
        if content.version == VERSION and content.boot == boot_id():
            self._all.update((one.pod, one) for one in content.wirings)
            self._released = set(content.released)


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
