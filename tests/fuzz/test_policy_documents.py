"""No document crashes the parser: it is accepted, or refused with file, document and field.

`SPLICEWAY_FUZZ_SECONDS` says how long (5, and longer where that is too short to see each kind of policy accepted),
`SPLICEWAY_FUZZ_SEED` which documents (1). A failure names the number of its text: `random_text(Random("1/815"))` makes
it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TypeVar

import msgspec

from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Cluster, NetworkPolicy
from spliceway.policy.parse import READERS, parse_document, parse_text
from spliceway.policy.terms import policy_terms
from support.documents import FULL, places, replaced, written
from support.mutate import HOSTILE, random_text

T = TypeVar("T")
FILE = "fuzz.yaml"
SECONDS = float(os.environ.get("SPLICEWAY_FUZZ_SECONDS", "5"))
SEED = os.environ.get("SPLICEWAY_FUZZ_SEED", "1")
#: Longest time for one text, in seconds of CPU. What takes longer is asked again: a CPU that is shared with others is
#: slow now and then, and a text that takes too long does so each time.
LIMIT, TRIES = 1.0, 3
#: After so many texts each kind of policy has been accepted, whatever the seed.
ENOUGH = 5000


def read(text: str) -> tuple[list[Document], str]:
    """The documents of a text, or why it is no YAML."""
    try:
        return load_documents(text, FILE), ""
    except PolicyError as error:
        return [], str(error)


def refused(error: PolicyError, *, is_yaml: bool = True) -> None:
    """The error says where and why, in one line that a terminal can show."""
    assert error.file == FILE
    assert error.reason
    assert str(error).isprintable()
    assert len(str(error)) < 1500
    if is_yaml:
        assert error.document
        assert error.field or error.reason.startswith("must be a mapping"), str(error)


def check(text: str) -> tuple[list[NetworkPolicy], list[PolicyError]]:
    """Read a text as an agent does, and what is accepted as the compiler and the agent's store do."""
    parsed = parse_text(text, FILE)
    cluster = Cluster().with_objects(parsed.objects)
    documents, broken = read(text)
    if broken:
        assert [str(error) for error in parsed.errors] == [broken]
        assert not parsed.objects
    for error in parsed.errors:
        refused(error, is_yaml=not broken)
    for document in documents:
        msgspec.json.encode(document.content)
    for item in parsed.objects:
        assert repr(item)
    for policy in cluster.policies.values():
        policy_terms(policy)
    return list(cluster.policies.values()), list(parsed.errors)


def parsed(document: Document) -> Sequence[object] | PolicyError:
    """Its objects, or why it is refused."""
    try:
        return parse_document(document)
    except PolicyError as error:
        return error


def in_time(work: Callable[[], T], what: str) -> T:
    """What it returns."""
    for _ in range(TRIES):
        begin = time.process_time()
        found = work()
        took = time.process_time() - begin
        if took < LIMIT:
            return found
    raise AssertionError(f"{what} took {took:.1f} s")


def test_edited_documents() -> None:
    end = time.monotonic() + SECONDS
    wanted = {kind for _, kind in READERS if kind.endswith("Policy")}
    accepted: set[str] = set()
    refused = number = 0
    while time.monotonic() < end or number < 200 or (accepted < wanted and number < ENOUGH):
        text = random_text(Random(f"{SEED}/{number}"))
        try:
            policies, errors = in_time(partial(check, text), f"text {SEED}/{number}")
        except Exception as error:
            raise AssertionError(f"text {SEED}/{number}:\n{text[:4000]}") from error
        accepted.update(policy.kind for policy in policies)
        refused += len(errors)
        number += 1
    # The edits are neither all harmless nor all fatal.
    assert accepted == wanted
    assert refused > number // 4


def test_hostile_values_anywhere() -> None:
    """Every place of every document with every hostile value, in random order as far as time goes (20 s: all)."""
    whole = [(title, path, value) for title in FULL for path in places(FULL[title]) for value in HOSTILE]
    Random(SEED).shuffle(whole)
    end = time.monotonic() + SECONDS
    for title, path, value in whole:
        if time.monotonic() > end:
            break
        document = Document(FILE, 1, 1, replaced(FULL[title], path, value))
        try:
            found = in_time(partial(parsed, document), f"{title} {written(path)}: {value!r}")
        except Exception as error:
            raise AssertionError(f"{title} {written(path)}: {value!r}") from error
        if isinstance(found, PolicyError):
            refused(found)
        else:
            assert len(found) == 1


def test_documents_without_edits_are_accepted() -> None:
    for document in FULL.values():
        _, errors = check(msgspec.json.encode(document).decode())
        assert errors == []
