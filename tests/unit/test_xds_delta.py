"""The delta machine as a table: what the client says, and what it is sent thereupon."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import pytest

from spliceway.xds.protocol.delta import ANSWERS, DeltaRequest, DeltaSubscription
from spliceway.xds.protocol.ledger import Kind, Response
from spliceway.xds.protocol.snapshot import Resource, TypeSet
from spliceway.xds.protocol.typeurls import TYPES

BY_SHORT = {info.short: info for info in TYPES.values()}


def held(text: str, before: TypeSet | None = None) -> TypeSet:
    """`a b:2`: resource a, and b with other content. The version of a resource is its content.

    `before`: the set tells in which names it differs from that one.
    """
    pairs = [(name, revision) for name, _, revision in (item.partition(":") for item in text.split())]
    made = {name: Resource(name, revision, b"", digest=f"#{revision}") for name, revision in pairs}
    if before is None:
        return TypeSet(text, made)
    old = before.resources
    changed = frozenset(name for name in old.keys() | made.keys() if old.get(name) != made.get(name))
    return TypeSet(text, made, base=before.serial, changed=changed) if changed else before


class Client:
    """Does one step of a row after the other. A step is a word with arguments.

    `state a b:2` (what it shall have from now on), `ask +a -b` (a request without nonce; `have:a#1` is of the first),
    `stale +a` (with a nonce from before), `ack`, `nack`, `ack+ +a` (an answer that subscribes as well). `chained`: each
    state tells in which names it differs from the one before.
    """

    def __init__(self, short: str, chained: bool = True) -> None:
        numbers = count(1)
        self.machine = DeltaSubscription(BY_SHORT[short], lambda: f"n{next(numbers)}")
        self.state = held("")
        self.pending: Response | None = None
        self._chained = chained

    def step(self, text: str) -> str:
        """Do it; what is sent: `a b -c`, `()` for a response with nothing in it, empty for no response."""
        word, _, rest = text.partition(" ")
        if word == "state":
            self.state = held(rest, self.state if self._chained else None)
        else:
            self._request(word, rest.split())
        response = self.machine.due(self.state)
        if response is None:
            return ""
        assert self.pending is None, "two are outstanding"
        self.pending = response
        names = [resource.name for resource in response.resources]
        assert len(set(names) | set(response.removed)) == len(names) + len(response.removed)
        return " ".join([*names, *(f"-{name}" for name in response.removed)]) or "()"

    def _request(self, word: str, items: list[str]) -> None:
        nonce, error = "", None
        if word in ("ack", "ack+", "nack"):
            assert self.pending is not None, "nothing to answer"
            nonce, self.pending = self.pending.nonce, None
            error = "no" if word == "nack" else None
        elif word == "stale":
            nonce = "n0"
        have = dict(item[5:].split("#") for item in items if item.startswith("have:"))
        kind = self.machine.receive(
            DeltaRequest(
                self.machine.info.url,
                subscribe=tuple(item[1:] for item in items if item[0] == "+"),
                unsubscribe=tuple(item[1:] for item in items if item[0] == "-"),
                initial={name: f"#{revision}" for name, revision in have.items()},
                nonce=nonce,
                error=error,
            )
        )
        expected = {"ack": Kind.ACK, "ack+": Kind.ACK, "nack": Kind.NACK, "stale": Kind.STALE}
        assert kind is expected.get(word, kind)


Rows = tuple[tuple[str, str], ...]

#: Name -> (types, steps and what is sent after each).
ROWS: Mapping[str, tuple[str, Rows]] = {
    "02 a stale nonce subscribes": (
        "CDS EDS",
        (("state a b", ""), ("ask +a", "a"), ("ack", ""), ("stale +b", "b"), ("ack", "")),
    ),
    "02 a stale nonce unsubscribes": (
        "EDS",
        (("state a", ""), ("ask +a", "a"), ("ack", ""), ("stale -a", ""), ("state a:2", "")),
    ),
    "04 changes come alone": (
        "CDS EDS RDS",
        (("state a b", ""), ("ask +a +b", "a b"), ("ack", ""), ("state a b:2", "b"), ("ack", ""), ("state b:2 a", "")),
    ),
    "05 a refused one is not sent again": (
        "CDS EDS RDS",
        (
            *(("state a b", ""), ("ask +a +b", "a b"), ("ack", ""), ("state a:2 b", "a"), ("nack", "")),
            *(("state a:2 b:2", "b"), ("ack", ""), ("state a:3 b:2", "a"), ("ack", "")),
        ),
    ),
    "05 of several refused ones each comes alone, once": (
        "EDS RDS",
        (
            *(("state a b c", ""), ("ask +a +b +c", "a b c"), ("nack", "a"), ("nack", "b"), ("ack", "c")),
            *(("ack", ""), ("state a b c:2", "c"), ("ack", "")),
        ),
    ),
    "05 a refused one that goes is removed": (
        "CDS EDS",
        (("state a", ""), ("ask +a", "a"), ("ack", ""), ("state a:2", "a"), ("nack", ""), ("state", "-a"), ("ack", "")),
    ),
    "05 asked for again, a refused one comes again": (
        "CDS EDS",
        (("state a", ""), ("ask +a", "a"), ("nack", ""), ("ask +a", "a"), ("ack", "")),
    ),
    "08 nothing is everything": ("CDS LDS", (("state a b", ""), ("ask", "a b"), ("ack", ""), ("state a", "-b"))),
    "08 nothing is nothing": ("EDS SDS RDS ECDS", (("state a b", ""), ("ask", ""), ("ask +a", "a"))),
    "08 everything ends, a name goes on": (
        "CDS",
        (
            *(("state a b", ""), ("ask", "a b"), ("ack", ""), ("ask +a", "a"), ("ack", ""), ("ask -*", "")),
            *(("state a:2 b:2", "a"), ("ack", ""), ("ask -a", ""), ("state a:3 b:3", ""), ("ask", "")),
            *(("ask +*", "a b"), ("ack", "")),
        ),
    ),
    "08 everything again is everything again": (
        "CDS",
        (("state a b", ""), ("ask +*", "a b"), ("ack", ""), ("ask +*", "a b"), ("ack", "")),
    ),
    "10 what isn't there is removed, and watched": (
        "CDS EDS",
        (
            *(("state a", ""), ("ask +a +b", "a -b"), ("ack", ""), ("state a b", "b"), ("ack", "")),
            *(("state a", "-b"), ("ack", ""), ("state a b", "b"), ("ack", "")),
        ),
    ),
    "10 what isn't there and is refused as such": (
        "EDS",
        (("state", ""), ("ask +a", "-a"), ("nack", ""), ("state a", "a"), ("ack", "")),
    ),
    "11 asked for again": (
        "CDS EDS RDS",
        (("state a", ""), ("ask +a", "a"), ("ack", ""), ("ask +a", "a"), ("ack+ +a", "a"), ("ack", "")),
    ),
    "11 asked for again while it is on its way": (
        "EDS",
        (("state a", ""), ("ask +a", "a"), ("ask +a", ""), ("ack", "a"), ("ack", "")),
    ),
    "11 asked for by name, whatever it has": (
        "CDS EDS",
        (("state a:1 b:1", ""), ("ask +a +b have:a#1 have:b#1", "a b"), ("ack", "")),
    ),
    "12 the difference to what it has": (
        "CDS LDS",
        (("state a:2 same:1 new", ""), ("ask have:a#1 have:same#1 have:b#1", "a new -b"), ("ack", "")),
    ),
    "12 no difference is an answer": ("CDS", (("state a:1", ""), ("ask have:a#1", "()"), ("ack", ""))),
    "12 nothing is an answer": ("CDS", (("state", ""), ("ask", "()"), ("ack", ""), ("state a", "a"))),
    "12 what it has counts in the first request only": (
        "CDS",
        (("state a", ""), ("ask", "a"), ("ack", ""), ("ask have:b#1", ""), ("state a:2", "a")),
    ),
    "12 what it has from elsewhere is refused by nobody": (
        "CDS",
        (("state a:2", ""), ("ask have:a#x", "a"), ("nack", ""), ("state a:3", "a"), ("ack", "")),
    ),
    "13 beside everything, a name's end is answered": (
        "CDS",
        (("state a b", ""), ("ask +* +a", "a b"), ("ack", ""), ("ask -a", "a"), ("ack", ""), ("state a:2 b", "a")),
    ),
    "13 beside everything, the end of what isn't there": (
        "CDS",
        (("state b", ""), ("ask +* +a", "b -a"), ("ack", ""), ("ask -a", "-a"), ("ack", ""), ("state a b", "a")),
    ),
    "13 phantoms": (
        "CDS",
        (("state a b", ""), ("ask", "a b"), ("ack", ""), ("ask -a -x", ""), ("state a:2 b", "a")),
    ),
    "14 no name twice": ("CDS EDS", (("state a", ""), ("ask +a +a +b +b", "a -b"), ("ack", ""))),
    "17 versions in between coalesce": (
        "CDS EDS RDS",
        (("state a", ""), ("ask +a", "a"), ("state a:2", ""), ("state a:3", ""), ("ack", "a"), ("ack", "")),
    ),
    "17 what came and went is not spoken of": (
        "CDS",
        (("state a", ""), ("ask", "a"), ("state a b", ""), ("state a", ""), ("ack", "")),
    ),
    "17 what went and came back the same is not spoken of": (
        "CDS",
        (("state a", ""), ("ask", "a"), ("state", ""), ("state a", ""), ("ack", "")),
    ),
    "17 unsubscribed while it is on its way, and asked for again": (
        "EDS",
        (
            ("state a", ""),
            ("ask +a", "a"),
            ("ask -a", ""),
            ("state a:2", ""),
            ("ack", ""),
            ("ask +a", "a"),
            ("ack", ""),
        ),
    ),
    "17 refused while it changes": (
        "EDS",
        (("state a", ""), ("ask +a", "a"), ("state a:2", ""), ("nack", "a"), ("ack", ""), ("state a:2", "")),
    ),
    "17 everything ends while it is on its way": (
        "CDS",
        (("state a b", ""), ("ask", "a b"), ("ask -* +a", ""), ("ack", "a"), ("ack", ""), ("state a b:2", "")),
    ),
    "22 the last one goes and comes back": (
        "LDS",
        (("state l", ""), ("ask", "l"), ("ack", ""), ("state", "-l"), ("ack", ""), ("state l", "l"), ("ack", "")),
    ),
}


CASES = [
    pytest.param(short, rows, id=f"{name} ({short})")
    for name, (shorts, rows) in ROWS.items()
    for short in shorts.split()
]


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize(("short", "rows"), CASES)
def test_row(short: str, rows: Rows, chained: bool) -> None:
    client = Client(short, chained)
    for number, (step, expected) in enumerate(rows):
        sent = client.step(step)
        assert sent == expected, f"step {number + 1}, {step!r}"
    for _ in range(3):  # and then there is nothing more to say
        if client.pending is not None:
            assert client.step("ack") == ""


def test_the_table_of_answers_is_complete() -> None:
    assert set(ANSWERS) == {(pending, error) for pending in (True, False) for error in (True, False)}


def test_an_edit_has_its_turn_beside_one_that_changes_all_the_time() -> None:
    client = Client("RDS")
    client.step("state a:0 b:0 c:0")
    assert client.step("ask +a +b +c +new") == "a b c -new"
    client.step("ack")
    assert client.step("state a:1 b:1 c:1 new") == "a"
    sent = []
    for turn in range(2, 7):
        client.step(f"state a:{turn} b:1 c:1 new")
        sent.append(client.step("ack"))
    assert sent == ["b", "c", "new", "a", "a"]


def test_what_a_client_has_already_comes_together_after_a_reconnect() -> None:
    client = Client("RDS")
    client.step("state a:1 b:2 c:1 d:1")
    assert client.step("ask +a +b +c +d have:a#1 have:b#1 have:c#1") == "b"
    assert client.step("ack") == "a c d"


def test_what_was_refused_stays_on_record_beside_what_was_acknowledged() -> None:
    client = Client("EDS")
    for step in ("state a b", "ask +a +b", "ack", "state a:2 b", "nack"):
        client.step(step)
    machine = client.machine
    assert machine.refused(client.state) == machine.missing(client.state) == ("a",)
    assert {name: resource.version for name, resource in machine.acked.items()} == {"a": "", "b": ""}
    assert machine.last_error is not None
    assert (machine.last_error.resources, machine.last_error.message) == (("a",), "no")
    for step in ("state a:3 b", "ack"):
        client.step(step)
    assert machine.refused(client.state) == machine.missing(client.state) == ()
    assert machine.last_error is not None
