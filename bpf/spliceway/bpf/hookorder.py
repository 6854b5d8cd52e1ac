"""Which program a packet meets first at a hook, and what is to be done when that is not ours. Pure.

Ours are first on both sides. At the ingress of a veth packets must be judged before anybody passes, redirects or
changes them. At its egress a place behind all others would be the very last word, but none that is sure to be heard: a
program in front that accepts (TC_ACT_OK, as Cilium's do) or redirects ends the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

TCX, CLSACT = "tcx", "clsact"
#: So often ours goes back to the front of one hook, until it was there in peace for so many seconds.
ROUNDS, PEACE = 5, 600.0
#: What judges packets that leave the node by another device than a pod's.
LEAVING = frozenset({"to_network", "to_network_l3"})
_EGRESS = frozenset({"to_pod", *LEAVING})


class Place(NamedTuple):
    """A hook of an interface where a program of ours belongs. `program` is its name, which has one side."""

    ifindex: int
    program: str

    @property
    def is_egress(self) -> bool:
        """Whether it is the interface's egress; else its ingress."""
        return self.program in _EGRESS

    @property
    def side(self) -> str:
        """For people."""
        return "egress" if self.is_egress else "ingress"


class Seen(NamedTuple):
    """Something attached. `kind`: tcx or clsact; `name` for people; `program` is its id, 0: no BPF program."""

    kind: str
    name: str
    program: int
    ours: bool = False

    def __str__(self) -> str:
        number = f", program id {self.program}" if self.program else ""
        return f"{self.name or 'a program without a name'} ({self.kind}{number})"


class State(Enum):
    """How it is at a hook."""

    GOOD = "good"
    MISSING = "missing"
    BEHIND = "behind"


class Finding(NamedTuple):
    """`front`: what packets meet before ours. `can_move`: whether ours could go in front of some of that."""

    state: State
    front: tuple[Seen, ...] = ()
    can_move: bool = False


def judge(found: Sequence[Seen], kind: str) -> Finding:
    """From what is at a hook, in the order in which packets meet it. `kind`: how ours is to be attached."""
    own = [number for number, one in enumerate(found) if one.ours and one.kind == kind]
    if not own:
        return Finding(State.MISSING)
    front = tuple(one for one in found[: own[0]] if not one.ours)
    if not front:
        return Finding(State.GOOD)
    return Finding(State.BEHIND, front, any(one.kind == kind for one in front))


class Contest:
    """Keeps two agents that both want to be first from pushing each other aside for ever. Times in seconds."""

    def __init__(self) -> None:
        self._moves: dict[Place, tuple[int, float]] = {}

    def may_move(self, place: Place) -> bool:
        """Whether ours may go to the front there once more."""
        return self._moves.get(place, (0, 0.0))[0] < ROUNDS

    def moved(self, place: Place, now: float) -> None:
        """It did."""
        self._moves[place] = (self._moves.get(place, (0, 0.0))[0] + 1, now)

    def good(self, place: Place, now: float) -> None:
        """It was seen in front."""
        if place in self._moves and now - self._moves[place][1] >= PEACE:
            del self._moves[place]

    def keep(self, places: Sequence[Place]) -> None:
        """Forget all others."""
        self._moves = {place: moves for place, moves in self._moves.items() if place in set(places)}


def listed(front: Sequence[Seen]) -> str:
    """What is in front, for people."""
    told = ", ".join(map(str, front[:3]))
    return told + (f" and {len(front) - 3} more" if len(front) > 3 else "")
