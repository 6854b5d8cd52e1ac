"""`spliceway testbed` without a testbed: what it suggests, and where `--run` may stand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from spliceway.agent.cli.common import program
from spliceway.agent.config import parse_config
from spliceway.agent.testbed import commands, linkparts, manifests, runs
from spliceway.agent.testbed.agentprocess import config_text
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.hints import hints, places
from spliceway.agent.testbed.node import Cgroups, NodeInfo
from spliceway.agent.testbed.plan import make_plan


def manifest(name: str, ip: str, port: int = 0, outside: bool = False) -> dict[str, Any]:
    ports = [{"containerPort": port}] if port else []
    annotations = {"testbed.spliceway.io/outside": "true"} if outside else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "main", "command": ["serve"], "ports": ports}]},
        "status": {"podIPs": [{"ip": ip}]},
    }


CLIENT, OTHER = manifest("client", "10.240.1.11"), manifest("other", "10.240.1.12", 8080)
WEB, WEB6 = manifest("web", "10.240.1.13", 80), manifest("web6", "fd00:240:1::13", 80)
HOST = manifest("host", "10.10.1.5", 80, outside=True)


@pytest.mark.parametrize(
    ("pods", "tried"),
    [
        ([CLIENT, OTHER, WEB], "default/client -- curl -i http://10.240.1.13/"),
        ([WEB, CLIENT], "default/client -- curl -i http://10.240.1.13/"),
        ([CLIENT, OTHER], "default/client -- curl -i http://10.240.1.12:8080/"),
        ([manifest("six", "fd00:240:1::9"), WEB6], "default/six -- curl -i 'http://[fd00:240:1::13]/'"),
        ([CLIENT, WEB6], "default/client -- ip address"),
        ([CLIENT, HOST], "default/client -- curl -i http://10.10.1.5/"),
        ([WEB], "default/web -- ip address"),
    ],
)
def test_one_pod_asks_another_that_listens(pods: list[dict[str, Any]], tried: str) -> None:
    plan = make_plan(manifests.load(pods))
    found = hints("bin/spliceway", "", [*plan.pods, *plan.hosts])
    assert found == [f"Try:  bin/spliceway testbed exec {tried}", "End:  bin/spliceway testbed down"]
    found = hints("bin/spliceway", "sw1", [*plan.pods, *plan.hosts])
    assert found == [f"Try:  bin/spliceway testbed exec --run sw1 {tried}", "End:  bin/spliceway testbed down sw1"]


def test_the_program_is_called_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "spliceway"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [".venv/bin/spliceway"])
    assert program() == ".venv/bin/spliceway"
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == str(script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == "spliceway"
    monkeypatch.setattr(sys, "argv", ["/x/spliceway/agent/__main__.py"])
    assert program() == f"{sys.executable} -m spliceway.agent"


@pytest.mark.parametrize(
    ("run", "words", "expected"),
    [
        ("", ["--", "id"], ("", ["id"])),
        ("", ["id", "--run", "x"], ("", ["id", "--run", "x"])),
        ("", ["--run", "x", "--", "id", "--", "a"], ("x", ["id", "--", "a"])),
        ("", ["--run=x", "id"], ("x", ["id"])),
        ("x", ["--run", "x", "--", "id"], ("x", ["id"])),
        ("", ["--", "--run", "x"], ("", ["--run", "x"])),
        ("", ["--run", "x"], ("x", [])),
    ],
)
def test_run_may_stand_after_the_pod(run: str, words: list[str], expected: tuple[str, list[str]]) -> None:
    assert commands._run_after_pod(run, words) == expected


@pytest.mark.parametrize(("run", "words"), [("y", ["--run", "x", "id"]), ("", ["--run"]), ("", ["--run", "--", "id"])])
def test_run_must_name_one(run: str, words: list[str]) -> None:
    with pytest.raises(typer.BadParameter, match="one testbed"):
        commands._run_after_pod(run, words)


@pytest.mark.parametrize("words", [("sw1",), ("--run", "sw1")])
def test_down_takes_the_run_in_either_way(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(commands.app, ["down", *words])
    assert isinstance(done.exception, TestbedError)
    assert str(done.exception).startswith("sw1: no such testbed")


def test_exec_reaches_the_run_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DIRECTORY", tmp_path)
    for arguments in (["--run", "sw1", "a", "--", "id"], ["a", "--run", "sw1", "--", "id"]):
        result = CliRunner().invoke(commands.app, ["exec", *arguments])
        assert "sw1: no such testbed" in str(result.exception)
    assert CliRunner().invoke(commands.app, ["exec", "a", "--run", "sw1"]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- enforcement: audit", "config.yaml: is not a mapping of fields"),
        ("a: 1\n---\nb: 2", "config.yaml: broken YAML: line 2: "),
        ("", "config.yaml: is not a mapping of fields"),
        ("a: [", "config.yaml: broken YAML: line 1: "),
        ("datapath: {socketLb: yes}", "config.yaml: datapath.socketLb: 'yes' is none of auto, off, on"),
        ("uplinks: [eth0]", "config.yaml: uplinks: unknown field"),
        ("proxy: {apiType: GRPC}", "config.yaml: proxy.apiType: is for proxy.kind envoy only"),
    ],
)
def test_a_configuration_that_is_none_is_refused_before_anything_is_built(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "pods.yaml").write_text("")
    done = CliRunner().invoke(
        commands.app, ["up", str(tmp_path / "pods.yaml"), "--config", str(tmp_path / "config.yaml")]
    )
    assert done.exit_code == 1
    assert message in str(done.exception)


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_words_that_are_booleans_of_yaml_1_1_stay_words(word: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"datapath: {{socketLb: {word}}}\nsplice: {{mode: off}}\n")
    overrides = commands._overrides(file, "envoy")
    text = config_text({"source": {"directory": "/"}} | overrides)
    config = parse_config(text, "agent.yaml")
    assert (config.datapath.socket_lb, config.splice.mode, config.proxy.kind) == (word, "off", "envoy")


@pytest.mark.parametrize(
    "more", [["none.yaml"], ["pods.yaml", "--policies", "none"], ["pods.yaml", "--config", "none"]]
)
def test_a_path_that_is_not_there_is_wrong_usage(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pods.yaml").write_text("")
    assert CliRunner().invoke(commands.app, ["up", *more]).exit_code == 2


def test_each_nodes_own_places_are_told(tmp_path: Path) -> None:
    def node(name: str) -> NodeInfo:
        return NodeInfo(name, 1, (), tmp_path, Cgroups(tmp_path, tmp_path, tmp_path), tmp_path / name)

    one, two = node("node1"), node("node2")
    assert places([one]) == [f"Edit policies in {one.policies}; logs are in {one.logs}."]
    told = places([one, two])
    assert told[1] == f"node2: policies in {two.policies}, logs in {two.logs}"
    assert "each node's agent reads its own directory" in told[2].lower()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Error: Unknown device type.",
            "wg0: can't make a device of kind wireguard: the kernel needs CONFIG_WIREGUARD",
        ),
        ("RTNETLINK answers: Operation not supported", "wg0: can't make a device of kind wireguard: the kernel needs"),
        ("RTNETLINK answers: File exists", "RTNETLINK answers: File exists"),
    ],
)
def test_a_kind_of_device_that_the_kernel_has_not(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_argv: str) -> None:
        raise TestbedError(said)

    monkeypatch.setattr(linkparts, "command", refuse)
    with pytest.raises(TestbedError) as caught:
        linkparts.add_device("wg0", "wireguard")
    assert str(caught.value).startswith(told)
