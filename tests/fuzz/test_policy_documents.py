"""No document crashes the parser: it is accepted, or refused with file, document and field.

`SPLICEWAY_FUZZ_SECONDS` says how long (5), `SPLICEWAY_FUZZ_SEED` which documents (1). A failure names the number of its
text: `random_text(Random("1/815"))` makes it again.
"""

from __future__ import annotations

import os
import time
from random import Random

import msgspec

from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Cluster, NetworkPolicy
from spliceway.policy.parse import READERS, parse_document, parse_text
from spliceway.policy.terms import policy_terms
from support.documents import FULL, places, replaced, written
from support.mutate import HOSTILE, random_text

FILE = "fuzz.yaml"
SECONDS = float(os.environ.get("SPLICEWAY_FUZZ_SECONDS", "5"))
SEED = os.environ.get("SPLICEWAY_FUZZ_SEED", "1")
#: Longest time for one text, in seconds of CPU.
LIMIT = 1.0


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


def test_edited_documents() -> None:
    end = time.monotonic() + SECONDS
    accepted: set[str] = set()
    refused = number = 0
    while time.monotonic() < end or number < 200:
        text = random_text(Random(f"{SEED}/{number}"))
        begin = time.process_time()
        try:
            policies, errors = check(text)
        except Exception as error:
            raise AssertionError(f"text {SEED}/{number}:\n{text[:4000]}") from error
        took = time.process_time() - begin
        assert took < LIMIT, f"text {SEED}/{number} took {took:.1f} s"
        accepted.update(policy.kind for policy in policies)
        refused += len(errors)
        number += 1
    # The edits are neither all harmless nor all fatal.
    assert accepted == {kind for _, kind in READERS if kind.endswith("Policy")}
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
        begin = time.process_time()
        try:
            items = parse_document(document)
        except PolicyError as error:
            refused(error)
        except Exception as error:
            raise AssertionError(f"{title} {written(path)}: {value!r}") from error
        else:
            assert len(items) == 1
        took = time.process_time() - begin
        assert took < LIMIT, f"{title} {written(path)}: {value!r} took {took:.1f} s"


def test_documents_without_edits_are_accepted() -> None:
    for document in FULL.values():
        _, errors = check(msgspec.json.encode(document).decode())
        assert errors == []
