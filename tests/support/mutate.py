"""Random edits of documents: what a typo, a bad template or an attacker makes of a valid one."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import yaml

from support.documents import FULL, Path, at, places

#: Values that readers stumble over: limits of numbers, near misses of addresses, ports, names and expressions.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    65535,
    65536,
    1 << 31,
    -(1 << 63) - 1,
    (1 << 64) + 1,
    10**400,
    1.5,
    -0.0,
    1e308,
    "",
    " ",
    "0",
    "-0",
    "١",
    "²",
    "0x50",
    "010",
    "null",
    "\x00",
    "\x1b[2J",
    "\u2028",
    "\U0001f600",
    "é" * 300,
    "a" * 254,
    "a." * 127,
    "0.0.0.0/0",
    "::/0",
    "::ffff:10.0.0.1/128",
    "fe80::1%eth0",
    "10.0.0.1/33",
    "10.0.0.0/-1",
    "1.2.3.4/",
    "/8",
    "10.0.0.0/" + "9" * 5000,
    "1" * 5000,
    "(",
    "(a*)*" * 100,
    "[a-z]{1000}" * 3,
    "\\C",
    "k8s:",
    ":a",
    "any:any:a",
    "reserved:world",
    "io.kubernetes.pod.namespace",
    "io.cilium.k8s.namespace.labels.",
    "X: ",
    "X:  y",
    "X\r\nY: z",
    "!!!",
    {},
    [],
    [None],
    [[]],
    {"": ""},
    {"matchLabels": None},
    [{}] * 50,
)
#: Characters that mean something to YAML, and some that it does not allow.
PIECES = ("", "\n", "  ", "\t", ": ", "- ", "&a ", "*a", "<<: ", "!!str ", "'", '"', "{", "]", "|\n", "\x07", "---\n")
#: Keys of all documents: what an edit may put where it does not belong.
KEYS = sorted({key for document in FULL.values() for path in places(document) for key in path if isinstance(key, str)})
TITLES = sorted(FULL)


def random_document(random: Random) -> dict[str, Any]:
    """A document with one to five edits, now and then with parts of another kind."""
    document = copy.deepcopy(FULL[random.choice(TITLES)])
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        _edit(document, random)
    return document


def random_text(random: Random) -> str:
    """Text of one to three documents, as block or flow YAML, or in a List; sometimes with characters that are off."""
    documents: list[Any] = [random_document(random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    if random.random() < 0.1:
        documents = [{"apiVersion": "v1", "kind": "List", "items": documents}]
    style = random.choice(("block", "flow", "json"))
    if style == "json":
        text = "\n---\n".join(json.dumps(document) for document in documents)
    else:
        text = yaml.dump_all(documents, default_flow_style=style == "flow", allow_unicode=random.random() < 0.5)
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        text = _edit_text(text, random)
    return text


def _edit(document: dict[str, Any], random: Random) -> None:
    path = _place(document, random)
    container, key = at(document, path[:-1]), path[-1]
    match random.randrange(8):
        case 0:
            del container[key]
        case 1:
            container[key] = copy.deepcopy(random.choice(HOSTILE))
        case 2 if isinstance(container, dict):
            container[random.choice(KEYS)] = container.pop(key)
        case 3:
            other = FULL[random.choice(TITLES)]
            container[key] = copy.deepcopy(at(other, _place(other, random)))
        case 4:
            container[key] = random.choice(([container[key]], {random.choice(KEYS): container[key]}))
        case 5 if isinstance(container, list):
            container.extend(copy.deepcopy(container[: random.choice((1, 50))]) * random.choice((1, 1, 60)))
        case 6 if isinstance(container[key], str) and container[key]:
            text: str = container[key]
            cut = random.randrange(len(text))
            container[key] = text[:cut] + random.choice(("", "-", ".", "/", ":", " ", "\n", "é", "0")) + text[cut + 1 :]
        case _:
            new: Any = random.choice((None, {}, [], "x", 1, copy.deepcopy(container[key])))
            if isinstance(container, dict):
                container[random.choice(KEYS)] = new
            else:
                container.insert(random.randrange(len(container) + 1), new)


def _place(document: dict[str, Any], random: Random) -> Path:
    found = list(places(document))
    if not found:
        document["kind"] = None
        return ("kind",)
    return random.choice(found)


def _edit_text(text: str, random: Random) -> str:
    cut = random.randrange(len(text) + 1)
    end = min(len(text), cut + random.choice((0, 1, 1, 5, 200)))
    piece = random.choice(PIECES)
    return text[:cut] + piece + text[end:]
