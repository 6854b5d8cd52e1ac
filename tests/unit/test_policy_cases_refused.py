"""Documents of the table of cases that are refused: whole, with a reason, at the field where they are wrong."""

from __future__ import annotations

from typing import Any

import pytest

from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.parse import parse_document
from support.cases import CASES

FILE = CASES / "refused" / "documents.yaml"
(CONTENT,) = (document.content for document in load_documents(FILE.read_text(encoding="utf-8"), FILE.name))


@pytest.mark.parametrize("case", CONTENT["cases"], ids=lambda case: str(case["name"]))
def test_refused(case: dict[str, Any]) -> None:
    assert case["spec"] in CONTENT["sources"]
    with pytest.raises(PolicyError) as refused:
        list(parse_document(Document("refused.yaml", 1, 1, case["manifest"])))
    assert refused.value.field == case["field"], str(refused.value)
    assert refused.value.file == "refused.yaml"
    assert refused.value.document.startswith(case["manifest"]["kind"])
    assert refused.value.reason


def test_every_source_is_used() -> None:
    assert {case["spec"] for case in CONTENT["cases"]} == set(CONTENT["sources"])
