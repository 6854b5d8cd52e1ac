"""What the node forgets of a pod's neighbours when an address goes to another pod: what was learned, and no more."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from spliceway.agent.testbed import netns
from spliceway.bpf import neighbours

pytestmark = pytest.mark.kernel

STATION = "02:00:00:00:00:99"
SETUP = f"""
link add pods type veth peer name other
link set other up
addr add 10.9.0.1/24 dev pods
addr add fd00:9::1/64 dev pods nodad
link set pods up
route add 10.10.0.0/16 via 10.9.0.2
route add fd00:10::/64 via fd00:9::2
route add 10.11.0.5/32 dev pods
neigh add 10.11.0.5 lladdr {STATION} nud stale dev pods
""" + "".join(
    f"neigh add {address} lladdr {STATION} nud {state} dev pods\n"
    for state, last in (("stale", 2), ("stale", 3), ("permanent", 4), ("noarp", 5), ("stale", 6))
    for address in (f"10.9.0.{last}", f"fd00:9::{last}")
)


@pytest.fixture
def place() -> Iterator[Path]:
    path = netns.DIRECTORY / "cni-neighbours"
    netns.create(path, lambda: None)
    try:
        ip(path, "-batch", "-", stdin=SETUP)
        yield path
    finally:
        netns.delete(path)


def ip(path: Path, *arguments: str, stdin: str = "") -> str:
    def run() -> str:
        done = subprocess.run(["ip", *arguments], input=stdin, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return netns.call(path, run)


def known(path: Path) -> set[str]:
    return {one["dst"] for one in json.loads(ip(path, "-json", "neigh", "show", "dev", "pods", "nud", "all"))}


def forget(path: Path, *addresses: str) -> None:
    netns.call(path, lambda: neighbours.forget([ip_address(one) for one in addresses]))


def test_what_was_learned_goes(place: Path) -> None:
    before = known(place)
    forget(place, "10.9.0.3", "fd00:9::3", "10.11.0.5")
    assert before - known(place) == {"10.9.0.3", "fd00:9::3", "10.11.0.5"}


def test_what_was_set_stays(place: Path) -> None:
    before = known(place)
    forget(place, "10.9.0.4", "fd00:9::4", "10.9.0.5", "fd00:9::5")
    assert known(place) >= before


def test_what_is_not_there_is_no_error(place: Path) -> None:
    """Nobody is known there, or it is the node's own, or there is no way to it, or it goes by a next hop."""
    before = known(place)
    forget(place, "10.9.0.77", "fd00:9::77", "10.9.0.1", "fd00:9::1", "192.0.2.1", "2001:db8::1")
    forget(place, "10.10.0.3", "fd00:10::3")
    assert before <= known(place)
    forget(place, "10.9.0.77", "10.9.0.3")  # and those after them are looked at all the same
    assert before - known(place) == {"10.9.0.3"}
