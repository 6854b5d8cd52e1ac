"""docs/proxy.md has the rows of differences that the tests know, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.differences import DIFFERENCES
from support.sent import SENT

PAGE = Path(__file__).parents[2] / "docs" / "proxy.md"
TABLES = {
    "| request | embedded | Envoy | why |": [(row.request, row.embedded, row.envoy, row.why) for row in DIFFERENCES],
    "| head | embedded | Envoy |": list(SENT),
}


@pytest.mark.parametrize("head", TABLES)
def test_rows(head: str) -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index(head)
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("| "):
            break
        found.append(tuple(line.removeprefix("| ").removesuffix(" |").split(" | ")))
    assert found == TABLES[head]
