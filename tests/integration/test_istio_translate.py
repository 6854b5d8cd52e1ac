"""AuthorizationPolicies from the table of cases and from random clusters, in real Envoy: the interpreter's verdicts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spliceway.policy.istio.httprules import Normalization
from support.cases import ROOT
from support.istiobed import IstioBed
from support.istiocases import WAYS, Asked, MeshFile, asked, mesh_file, reason_of, reduced
from support.istiojudge import Found, judge
from support.istiorandom import random_file
from support.tables import FILES

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

#: First seed and number of random clusters; `make istio-random` has more.
SEEDS = range(int(os.environ.get("SPLICEWAY_ISTIO_SEED", "0")), int(os.environ.get("SPLICEWAY_ISTIO_SEED", "0")) + 8)
LONG = int(os.environ.get("SPLICEWAY_ISTIO_CLUSTERS", "0"))
#: As docs/istio-policy.md counts: the policies as they are, and without the HTTP rules that are refused for themselves.
MAKERS = (mesh_file, reduced)
DOC = ROOT / "docs" / "istio-policy.md"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IstioBed]:
    addresses = {one for file in FILES.values() for case in file.cases for one in (case.source, case.destination)}
    with IstioBed(tmp_path_factory.mktemp("istio"), addresses) as found:
        yield found


def cases_of(make: Callable[..., MeshFile], way: tuple[Normalization, bool]) -> list[Asked]:
    return [one for file in FILES.values() for one in asked(make(file, *way))]


@pytest.mark.parametrize("make", MAKERS, ids=["as it is", "reduced"])
@pytest.mark.parametrize("way", WAYS, ids=["base", "decoded"])
def test_the_table_of_cases(bed: IstioBed, make: Callable[..., MeshFile], way: tuple[Normalization, bool]) -> None:
    cases = cases_of(make, way)
    found = judge(bed, cases, way[0])
    assert found.wrong == []
    translated = sum(not one.refused for one in cases)
    assert found.same + found.other.total() == translated
    assert counted(make, way) == (len(cases), translated, found.same, found.other.total())


@pytest.mark.parametrize("way", WAYS, ids=["base", "decoded"])
def test_refusals_are_counted_by_reason(way: tuple[Normalization, bool]) -> None:
    reasons = Counter(reason_of(one.refused) for one in cases_of(mesh_file, way) if one.refused)
    column = WAYS.index(way)
    told = {}
    for line in DOC.read_text().splitlines():
        if match := re.fullmatch(r"\| refused: (.+?) \| ([0-9]+) \| ([0-9]+) \|", line):
            told[match[1]] = int(match[2 + column])
    assert {name: count for name, count in told.items() if count} == dict(reasons)


@pytest.mark.parametrize("way", WAYS, ids=["base", "decoded"])
def test_random_clusters(tmp_path: Path, way: tuple[Normalization, bool]) -> None:
    found = run_random(tmp_path, way, SEEDS)
    assert found.wrong == []
    assert found.same > 50


@pytest.mark.skipif(not LONG, reason="SPLICEWAY_ISTIO_CLUSTERS says how many (make istio-random)")
@pytest.mark.timeout(0)
def test_many_random_clusters(tmp_path: Path) -> None:
    for first in range(SEEDS[0], SEEDS[0] + LONG, 40):
        for way in WAYS:
            directory = tmp_path / f"{first}-{way[0].value}"
            directory.mkdir()
            found = run_random(directory, way, range(first, min(first + 40, SEEDS[0] + LONG)))
            assert found.wrong == []
            print(f"seeds {first} on, {way[0].value}: {found.same} same, {dict(found.other)}")


def run_random(directory: Path, way: tuple[Normalization, bool], seeds: range) -> Found:
    files = [random_file(seed, way[0], ambiguous=way[1]) for seed in seeds]
    addresses = {one for file in files for case in file.cases for one in (case.source, case.destination)}
    with IstioBed(directory, addresses) as bed:
        return judge(bed, [one for file in files for one in asked(file)], way[0])


def counted(make: Callable[..., MeshFile], way: tuple[Normalization, bool]) -> tuple[int, ...]:
    """What the documentation counts: cases, translated, the same verdict, listed differences."""
    name = "as they are" if make is mesh_file else "without those HTTP rules"
    row = rf"\| {name} \| {way[0].value} \| ([0-9]+) \| ([0-9]+) \| ([0-9]+) \| ([0-9]+) \|"
    found = re.search(row, DOC.read_text())
    assert found is not None
    return tuple(map(int, found.groups()))
