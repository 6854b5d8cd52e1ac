"""What runtimes ask, as metrics: bounded, documented; and what preflight says of the node's CNI side."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from spliceway.agent.cni import build
from spliceway.agent.cni.metrics import CniMetrics
from spliceway.agent.cni.netconf import NO_HOST_SIDE, TRY_AGAIN, CniError
from spliceway.agent.configsections import CniConfig
from spliceway.agent.nodecheck import cni
from spliceway.agent.nodecheck.model import Status
from spliceway.agent.nodecheck.runner import target_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def ask(metrics: CniMetrics, command: str, error: Exception | None = None) -> None:
    with contextlib.suppress(CniError, RuntimeError), metrics.asked(command):
        if error is not None:
            raise error


def test_what_is_asked_is_counted_by_its_result() -> None:
    chained = [False]
    registry, metrics = CollectorRegistry(), CniMetrics(lambda: chained[0])
    registry.register(metrics)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    def asked(command: str, result: str) -> float | None:
        return value("spliceway_cni_requests_total", command=command, result=result)

    ask(metrics, "ADD")
    ask(metrics, "ADD", CniError(TRY_AGAIN, "later"))
    ask(metrics, "ADD", CniError(NO_HOST_SIDE, "never"))
    ask(metrics, "DEL", RuntimeError("a fault"))
    for number in range(50):
        ask(metrics, f"NONSENSE-{number}")
    assert [asked("ADD", one) for one in ("done", "try-again", "refused", "failed")] == [1, 1, 1, None]
    assert asked("DEL", "failed") == 1
    assert asked("other", "done") == 50, "who dials the socket makes no series"
    assert value("spliceway_cni_add_seconds_count") == 1, "of those that may start"
    with metrics.asked("ADD"), metrics.asked("DEL"):
        assert value("spliceway_cni_waiting_pods") == 1
    assert value("spliceway_cni_waiting_pods") == 0
    assert value("spliceway_cni_in_chain") == 0
    chained[0] = True
    assert value("spliceway_cni_in_chain") == 1


def test_they_are_those_that_are_documented() -> None:
    metrics = CniMetrics(lambda: True)
    ask(metrics, "ADD")
    families = list(metrics.collect())
    found = {one.name + ("_total" if one.type == "counter" else "") for one in families}
    # In the table; the text around it names them all by their prefix.
    assert found == set(re.findall(r"^\| `(spliceway_cni_\w+)`", DOCUMENT.read_text(), re.MULTILINE))
    labels = {label for one in families for sample in one.samples for label in sample.labels}
    assert labels == {"command", "result", "le"}


@pytest.fixture
def config(tmp_path: Path) -> CniConfig:
    made = CniConfig(enabled=True, conf_dir=tmp_path / "net.d", bin_dir=tmp_path / "bin")
    made.conf_dir.mkdir()
    return made


def found(config: CniConfig | None) -> dict[str, tuple[Status, str]]:
    target = msgspec.structs.replace(target_of(None), cni=config)
    return {one.name: (one.status, one.found) for one in cni.cni(target)}


def test_preflight_tells_chain_and_plugin(config: CniConfig) -> None:
    assert found(None)["cni"][0] is Status.SKIPPED
    status, text = found(config)["cni"]
    assert (status, "no network configuration" in text) == (Status.WARN, True)
    (config.conf_dir / "05-bad.conflist").write_text("{")
    assert "05-bad.conflist" in found(config)["cni"][1]
    (config.conf_dir / "10-a.conflist").write_text(
        '{"name": "a", "plugins": [{"type": "calico"}, {"type": "portmap"}]}'
    )
    status, text = found(config)["cni"]
    assert (status, text.endswith("10-a.conflist: calico, portmap")) == (Status.OK, True)
    assert found(config)["cni-plugin"][0] is Status.INFO

    config.bin_dir.mkdir()
    plugin = config.bin_dir / build.NAME
    for version, status in (("0.0.0-other", Status.INFO), (build.version(), Status.OK)):
        plugin.write_text(f"#!/bin/sh\necho spliceway-cni {version}\n")
        plugin.chmod(0o755)
        assert found(config)["cni-plugin"][0] is status
        assert version in found(config)["cni-plugin"][1]
    plugin.write_text("no program")
    assert "unknown" in found(config)["cni-plugin"][1]


def test_preflight_tells_where_no_plugin_can_be(config: CniConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def flagged(flag: int) -> None:
        def statvfs(path: Path) -> os.statvfs_result:
            values = list(real(path))
            values[8] |= flag
            return os.statvfs_result(values)

        monkeypatch.setattr(os, "statvfs", statvfs)

    flagged(os.ST_NOEXEC)
    status, text = found(config)["cni-plugin"]
    assert (status, "noexec" in text) == (Status.FAIL, True)
    assert found(config)["cni"][0] is not Status.FAIL
    flagged(os.ST_RDONLY)
    assert [status for status, _ in found(config).values()] == [Status.FAIL, Status.FAIL]
