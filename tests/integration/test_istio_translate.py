"""AuthorizationPolicies from the table of cases and from random clusters, in real Envoy: the interpreter's verdicts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spliceway.policy.istio.httprules import Ambiguous, Normalization
from support.cases import ROOT
from support.istiobed import IstioBed
from support.istiocases import WAYS, Asked, MeshFile, Way, asked, mesh_file, reason_of, reduced
from support.istiojudge import Found, chains_of, judge, status_of
from support.istiorandom import random_file
from support.tables import FILES

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

#: First seed and number of random clusters; `make istio-random` has more.
SEEDS = range(int(os.environ.get("SPLICEWAY_ISTIO_SEED", "0")), int(os.environ.get("SPLICEWAY_ISTIO_SEED", "0")) + 8)
LONG = int(os.environ.get("SPLICEWAY_ISTIO_CLUSTERS", "0"))
#: As docs/istio-policy.md counts: the policies as they are, and without the HTTP rules that are refused for themselves.
MAKERS = (mesh_file, reduced)
IDS = [f"{way.normalization.value}-{way.ambiguous.value}" for way in WAYS]
#: Of random clusters, too: an EnvoyFilter must do whatever the mesh makes of paths.
MORE = (*WAYS, Way(Normalization.NONE, Ambiguous.DENY), Way(Normalization.DECODE_AND_MERGE_SLASHES, Ambiguous.DENY))
DOC = ROOT / "docs" / "istio-policy.md"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IstioBed]:
    addresses = {one for file in FILES.values() for case in file.cases for one in (case.source, case.destination)}
    with IstioBed(tmp_path_factory.mktemp("istio"), addresses) as found:
        yield found


def cases_of(make: Callable[..., MeshFile], way: Way) -> list[Asked]:
    return [one for file in FILES.values() for one in asked(make(file, way))]


@pytest.mark.parametrize("make", MAKERS, ids=["as it is", "reduced"])
@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_the_table_of_cases(bed: IstioBed, make: Callable[..., MeshFile], way: Way) -> None:
    cases = cases_of(make, way)
    found = judge(bed, cases, way)
    assert found.wrong == []
    translated = sum(not one.refused for one in cases)
    assert found.same + found.other.total() == translated
    assert counted(make, way) == (len(cases), translated, found.same, found.other.total())


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_refusals_are_counted_by_reason(way: Way) -> None:
    reasons = Counter(reason_of(one.refused) for one in cases_of(mesh_file, way) if one.refused)
    column = WAYS.index(way)
    told = {}
    for line in DOC.read_text().splitlines():
        if match := re.fullmatch(r"\| refused: (.+?) \|" + r" ([0-9]+) \|" * len(WAYS), line):
            told[match[1]] = int(match[2 + column])
    assert {name: count for name, count in told.items() if count} == dict(reasons)


def test_without_the_filter_no_http_rule_matches(bed: IstioBed) -> None:
    """As where an EnvoyFilter was not applied, or another one has thrown ours out."""
    there = asked(reduced(FILES["http-rules.yaml"], WAYS[0]))
    cases = [one for one in there if not one.refused and one.http is not None and one.passes][:30]
    chains, patched = chains_of(cases)
    with bed.serving(chains, "BASE", patches=patched):
        assert {status_of(bed, one) for one in cases} == {200}
    with bed.serving(chains, "BASE"):
        assert {status_of(bed, one) for one in cases} == {403}


@pytest.mark.parametrize("way", MORE, ids=str)
def test_random_clusters(tmp_path: Path, way: Way) -> None:
    found = run_random(tmp_path, way, SEEDS)
    assert found.wrong == []
    assert found.same > 50


@pytest.mark.skipif(not LONG, reason="SPLICEWAY_ISTIO_CLUSTERS says how many (make istio-random)")
@pytest.mark.timeout(0)
def test_many_random_clusters(tmp_path: Path) -> None:
    for first in range(SEEDS[0], SEEDS[0] + LONG, 40):
        for index, way in enumerate(MORE):
            directory = tmp_path / f"{first}-{index}"
            directory.mkdir()
            found = run_random(directory, way, range(first, min(first + 40, SEEDS[0] + LONG)))
            assert found.wrong == []
            how = f"{way.normalization.value} {way.ambiguous.value}"
            print(f"seeds {first} on, {how}: {found.same} same, {dict(found.other)}")


def run_random(directory: Path, way: Way, seeds: range) -> Found:
    files = [random_file(seed, way) for seed in seeds]
    addresses = {one for file in files for case in file.cases for one in (case.source, case.destination)}
    with IstioBed(directory, addresses) as bed:
        return judge(bed, [one for file in files for one in asked(file)], way)


def counted(make: Callable[..., MeshFile], way: Way) -> tuple[int, ...]:
    """What the documentation counts: cases, translated, the same verdict, listed differences."""
    name = "as they are" if make is mesh_file else "without those HTTP rules"
    row = rf"\| {name} \| `{way.ambiguous.value}` \| {way.normalization.value} \|" + r" ([0-9]+) \|" * 4
    found = re.search(row, DOC.read_text())
    assert found is not None
    return tuple(map(int, found.groups()))
