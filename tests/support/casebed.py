"""A testbed of two nodes that has every address of the table of cases, on real wires: who sends, and what arrives.

Pods of `node1` and `node2` are the files' own, one for each set of addresses that they give a pod. Where others live:

- nodes' addresses: on `eth0` of the first node or the second one; of nodes that the testbed has not, in the world;
- addresses of the pods' range that are nobody's here: in pods of `node1` and `node2` that no file knows;
- all else: in one namespace outside the cluster, to which nodes have a route for each.

Files agree on whose an address is, so that one testbed is for all of them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from spliceway.agent.testbed import netfilter, netns
from spliceway.agent.testbed.linkparts import BOND, UPLINK, UPLINK_BRIDGE, command, mac_address
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.plan import CLUSTER_PREFIXES, UNDERLAY_PREFIXES, IPAddress
from spliceway.agent.testbed.podlinks import CNI_BRIDGE
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.testbed import Testbed
from support.caseears import Ears
from support.cases import NODE, POD_CIDRS, CaseFile
from support.linked import up_or_skip
from support.node import pod_manifest
from support.raw import raw_socket

#: Of the files' nodes, those that are nodes of the testbed; others are hosts of the world.
NODES = (NODE, "node2")
#: Pods that no file knows, and the namespace outside.
UNMANAGED, STRAY, WORLD = "unmanaged", "stray", "world"
_WORLD = ("10.10.9.9", "fd00:10:9::9")


class Home(NamedTuple):
    """Where an address lives: a pod or a node of the testbed, or the world. `node`: its node's name."""

    kind: Literal["pod", "node", "world"]
    node: str
    netns: Path
    interface: str = ""


class Layout(msgspec.Struct, frozen=True):
    """Which addresses of the table live where. Pure."""

    pods: tuple[tuple[IPAddress, ...], ...]
    unmanaged: tuple[IPAddress, ...]
    strays: tuple[IPAddress, ...]
    nodes: dict[str, tuple[IPAddress, ...]]
    world: tuple[IPAddress, ...]


def layout(files: Iterable[CaseFile]) -> Layout:
    """Where all addresses of these files live."""
    files = list(files)
    sets: list[set[IPAddress]] = []
    nodes: dict[str, set[IPAddress]] = {name: set() for name in NODES}
    seen: set[IPAddress] = {
        address for file in files for case in file.cases for address in (case.source, case.destination)
    }
    for file in files:
        for name in NODES:
            if name in file.cluster.nodes:
                nodes[name].update(file.cluster.nodes[name].addresses)
        for pod in file.cluster.pods.values():
            if pod.host_network:
                nodes[pod.node].update(pod.addresses)
            elif pod.addresses and all(_number(address) == NODES.index(pod.node) + 1 for address in pod.addresses):
                _join(sets, set(pod.addresses))
            else:
                seen.update(pod.addresses)
    left = seen.difference(*sets, *nodes.values())
    cluster = {address for address in left if any(address in prefix for prefix in CLUSTER_PREFIXES)}
    unmanaged = {address for address in cluster if _number(address) == 1}
    return Layout(
        pods=tuple(_sorted(one) for one in sets),
        unmanaged=_sorted(unmanaged),
        strays=_sorted(cluster - unmanaged),
        nodes={name: _sorted(found) for name, found in nodes.items()},
        world=_sorted(left - cluster),
    )


class CaseBed:
    """The testbed. Packets are sent from any address of the table; `ears` hear what arrives at any of them."""

    def __init__(self, bed: Testbed, plan: Layout) -> None:
        self.bed, self.profile = bed, bed.profile
        self._homes: dict[IPAddress, Home] = {}
        for number, addresses in enumerate(plan.pods):
            self._move_in(addresses, _home(bed.pod(_pod_name(number))))
        if plan.unmanaged:
            self._move_in(plan.unmanaged, _home(bed.pod(UNMANAGED)))
        self._move_in(plan.strays, _home(bed.pod(STRAY)))
        self._move_in(plan.world, _home(bed.pod(WORLD)))
        for node in bed.nodes:
            self._move_in(plan.nodes[node.name], Home("node", node.name, node.info.netns))
        _wire(bed, plan)
        self.ears = Ears(self._homes_by_place())
        places = {home.netns for home in self._homes.values()}
        self._mouths = {(place, version): raw_socket(place, version) for place in places for version in (4, 6)}

    def home(self, address: IPAddress) -> Home:
        """Where an address of the table lives."""
        return self._homes[address]

    def send(self, source: IPAddress, packet: bytes) -> bool:
        """Send an IP packet from where that address lives, by the routes there. False: its own rules forbid it."""
        at = slice(16, 20) if source.version == 4 else slice(24, 40)
        try:
            self._mouths[self.home(source).netns, source.version].sendto(packet, (str(ip_address(packet[at])), 0))
        except PermissionError:  # a DROP in OUTPUT
            return False
        return True

    def introduce(self) -> None:
        """Have a bridge's unmanaged pod and the others know each other's stations: what it says of them is dropped."""
        if not self.profile.bridged or UNMANAGED not in {pod.name for pod in self.bed.node.pods.values()}:
            return
        unmanaged = self.bed.pod(UNMANAGED)
        others = [pod for pod in self.bed.node.pods.values() if pod is not unmanaged]
        _ip(unmanaged.netns, [line for pod in others for line in _neighbours(pod)])
        for pod in others:
            _ip(pod.netns, _neighbours(unmanaged))

    def close(self) -> None:
        """Close all sockets."""
        for mouth in self._mouths.values():
            mouth.close()
        self.ears.close()

    def _move_in(self, addresses: Iterable[IPAddress], home: Home) -> None:
        for address in addresses:
            assert address not in self._homes, f"{address} lives twice"
            self._homes[address] = home

    def _homes_by_place(self) -> dict[Path, tuple[bool, frozenset[IPAddress]]]:
        """Namespace → whether it is a node's, and the addresses that live there."""
        found: dict[Path, tuple[bool, frozenset[IPAddress]]] = {}
        for address, home in self._homes.items():
            _, others = found.get(home.netns, (False, frozenset()))
            found[home.netns] = home.kind == "node", others | {address}
        return found


@contextmanager
def case_bed(profile: Profile, files: Sequence[CaseFile]) -> Iterator[CaseBed]:
    """Build one of this profile for these files; skip the test where the kernel has not the devices for it."""
    plan = layout(files)
    manifests = [_manifest(_pod_name(number), NODES[_number(one[0]) - 1], one) for number, one in enumerate(plan.pods)]
    if plan.unmanaged:
        manifests.append(_manifest(UNMANAGED, NODE, plan.unmanaged))
    manifests += [_manifest(STRAY, "node2"), pod_manifest(WORLD, outside=True, addresses=_WORLD)]
    manifests.sort(key=_node_of)
    with up_or_skip(manifests, profile) as bed:
        if plan.unmanaged:  # of which its node is never told
            (bed.node.info.manifests / "pods" / f"pod-default_{UNMANAGED}.yaml").unlink()
        made = CaseBed(bed, plan)
        made.introduce()
        try:
            yield made
        finally:
            made.close()


def _wire(bed: Testbed, plan: Layout) -> None:
    """Addresses, and the ways between them."""
    first, second = bed.nodes
    world, stray = bed.pod(WORLD), bed.pod(STRAY)
    _ip(world.netns, [*_add(plan.world), *_routes(address for own in plan.nodes.values() for address in own)])
    _ip(stray.netns, _add(plan.strays))
    door = CNI_BRIDGE if bed.profile.bridged else stray.interface
    over = {4: _way_to(first.info.netns, 4), 6: _way_to(first.info.netns, 6)}
    far = [address for address in plan.world if not any(address in prefix for prefix in UNDERLAY_PREFIXES)]
    uplink = {"bond": BOND, "bridge": UPLINK_BRIDGE, "plain": UPLINK}[bed.profile.uplink]
    for node, other in ((first, second), (second, first)):
        lines = [*_add(plan.nodes[node.name], uplink), *_routes([*far, *plan.nodes[other.name]], uplink)]
        if node is first:
            lines += [f"route replace {_host(address)} {over[address.version]}" for address in plan.strays]
        else:
            lines += _routes(plan.strays, door)
        _ip(node.info.netns, lines)
    if bed.profile.bridged:
        # The table says from which address a node or a stray sends: flannel on the second node would take another one.
        for version in (4, 6):
            keep = [address for address in (*plan.nodes[second.name], *plan.strays) if address.version == version]
            rules = "".join(f"-I POSTROUTING -s {_host(address)} -j ACCEPT\n" for address in keep)
            netfilter.apply(second.info.netns, f"*nat\n{rules}COMMIT\n", version, bed.profile.iptables)


def _way_to(node: Path, version: int) -> str:
    """How the first node reaches pods of the second one, as `ip` writes it: for strays it is the same."""
    prefix = next(str(one) for one in POD_CIDRS[2:] if one.version == version)
    what = ("ip", f"-{version}", "route", "show", prefix)
    shown = netns.call(node, lambda: subprocess.run(what, capture_output=True, text=True, check=True, timeout=10))
    return shown.stdout.strip().removeprefix(prefix)


def _ip(place: Path, lines: Sequence[str]) -> None:
    """Lines of `ip -batch` in a namespace."""
    netns.call(place, lambda: command("ip", "-batch", "-", stdin="\n".join(lines) + "\n"))


def _add(addresses: Iterable[IPAddress], device: str = UPLINK) -> list[str]:
    return [f"addr add {_host(one)} dev {device}{' nodad' if one.version == 6 else ''}" for one in addresses]


def _routes(addresses: Iterable[IPAddress], device: str = UPLINK) -> list[str]:
    return [f"route replace {_host(address)} dev {device}" for address in addresses]


def _neighbours(pod: Pod) -> list[str]:
    station = mac_address(f"pod {pod.key}")
    return [f"neigh replace {one} lladdr {station} dev {UPLINK} nud permanent" for one in pod.addresses]


def _host(address: IPAddress) -> str:
    return f"{address}/{address.max_prefixlen}"


def _number(address: IPAddress) -> int:
    """Of the node in whose pod range it is, from 1; 0: in none."""
    return next((at // 2 + 1 for at, prefix in enumerate(POD_CIDRS) if address in prefix), 0)


def _join(sets: list[set[IPAddress]], one: set[IPAddress]) -> None:
    """Add a pod's addresses; those of one family and those of both are one pod's."""
    for each in [each for each in sets if each & one]:
        sets.remove(each)
        one |= each
    sets.append(one)


def _sorted(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    return tuple(sorted(addresses, key=lambda one: (one.version, one)))


def _pod_name(number: int) -> str:
    return f"p{number}"


def _home(pod: Pod) -> Home:
    return Home("pod" if pod.node else "world", pod.node, pod.netns, pod.interface)


def _manifest(name: str, node: str, addresses: Sequence[IPAddress] = ()) -> dict[str, Any]:
    document = pod_manifest(name, addresses=[str(one) for one in addresses])
    document["spec"]["nodeName"] = node
    return document


def _node_of(document: dict[str, Any]) -> str:
    """Sorts the first node's pods first, so that it gets the number 1; the world comes last."""
    return str(document["spec"].get("nodeName", "~"))
