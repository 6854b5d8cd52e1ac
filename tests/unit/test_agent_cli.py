"""The command line without an agent: help, usage, errors and policy files."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from spliceway.agent import log, nodecleanup
from spliceway.agent.admin import admin_app
from spliceway.agent.cli import common
from spliceway.agent.cli.client import AgentClient
from spliceway.agent.cli.options import flow_pod, flow_service, known_namespace
from spliceway.agent.cli.render import labels_text
from spliceway.agent.cli.root import app
from spliceway.agent.cli.ruletext import flow_line, policy_rows
from spliceway.agent.cli.summary import _place
from spliceway.agent.errors import ClientError, WrongUsageError
from spliceway.agent.flowlog import FlowLog
from spliceway.bpf.abi import ABI_VERSION
from support.agent import pod, policy


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from spliceway.agent.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'grpc', 'bcc', 'pyroute2', 'starlette', 'uvicorn', 'google.protobuf', 'yaml'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Time of the CPU: how busy the machine is says nothing of us.
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert min(times) < 0.5
    for command in ("agent", "status", "flows", "testbed", "demo", "bench", "cleanup", "preflight"):
        assert command in done.stdout


def test_it_tells_its_version() -> None:
    wanted = metadata.version("spliceway")
    assert invoke("--version") == (0, f"spliceway {wanted}\n", "")
    assert json.loads(invoke("version", "-o", "json")[1]) == {"version": wanted, "abi": ABI_VERSION}
    assert invoke("version")[1].split() == ["VERSION", "ABI", wanted, str(ABI_VERSION)]


def test_usage_errors_end_with_2(tmp_path: Path) -> None:
    assert invoke("nothing")[0] == 2
    assert invoke("agent")[0] == 2
    assert invoke("agent", "--config", str(tmp_path / "nothing"))[0] == 2
    assert invoke("status", "-o", "xml")[0] == 2
    assert invoke("policy", "validate", str(tmp_path / "nothing"))[0] == 2
    served = ("xds", "serve", "--static", str(tmp_path), "--socket", str(tmp_path / "x"))
    status, _output, errors = invoke(*served, "--log-level", "loud")
    assert (status, "no level 'loud'" in errors) == (2, True)


@pytest.mark.parametrize("command", ["demo", "bench", "bench policy-latency", "testbed", "testbed up", "policy get"])
def test_both_options_for_help(command: str) -> None:
    short, long = (invoke(*command.split(), option) for option in ("-h", "--help"))
    assert (short[0], short[1]) == (0, long[1])
    assert "Usage: spliceway " + command in short[1] or "Usage: root " + command in short[1]


@pytest.mark.parametrize("command", ["proxy", "testbed up", "sock list", "xds status"])
def test_lines_of_help_are_as_wide_as_the_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke(*command.split(), "--help")[1].partition("╭")[0]
    lines = [line.split() for line in text.splitlines()]
    for line, following in itertools.pairwise(lines):
        if line and following:
            assert len(" ".join([*line, following[0]])) > 76, line


def test_a_proxys_pod_needs_a_directory_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("source: {directory: /x}\nproxy: {managed: false}\n")
    for own, why in ((tmp_path / "none", "does not exist"), (config, "is a file")):
        status, _output, errors = invoke("proxy-pod", "--config", str(config), "--own", str(own))
        assert (status, why in " ".join(errors.replace("│", " ").split())) == (2, True), errors


def test_a_bad_config_ends_with_1_and_its_field(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("proxy: {kind: nginx}")
    status, _output, errors = invoke("agent", "--config", str(config))
    assert (status, errors) == (1, f"spliceway: {config}: proxy.kind: 'nginx' is none of embedded, envoy\n")


def test_no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "DEFAULT_SOCKET", tmp_path / "agent.sock")
    monkeypatch.setattr(common, "TESTBEDS", tmp_path / "testbeds")
    status, _output, errors = invoke("status")
    assert status == 1
    assert re.match(
        r"spliceway: no agent at .*agent.sock: is it running, or still starting\? --socket or SPLICEWAY_SOCKET", errors
    )
    status, _output, errors = invoke("endpoint", "list", "--socket", str(tmp_path / "x"))
    assert (status, errors) == (1, f"spliceway: no agent at {tmp_path}/x: is it running, or still starting?\n")


def test_status_waits_for_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([None, None, ClientError("an agent that refuses")])

    def pause(_seconds: float) -> None:
        if (error := next(waits)) is not None:
            monkeypatch.setattr(AgentClient, "get", lambda *_arguments: _raise(error))

    monkeypatch.setattr("spliceway.agent.cli.show.time.sleep", pause)
    absent = ("status", "--socket", str(tmp_path / "x"))
    assert invoke(*absent, "--wait", "60") == (1, "", "spliceway: an agent that refuses\n")
    assert next(waits, "all") == "all"
    assert invoke(*absent) == (1, "", "spliceway: an agent that refuses\n")


def test_the_testbeds_agent_is_named_once_and_missed_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "testbeds" / "run" / "node1" / "state"
    state.mkdir(parents=True)
    (state.parents[1] / "kept").touch()
    monkeypatch.setattr(common, "DEFAULT_SOCKET", tmp_path / "agent.sock")
    monkeypatch.setattr(common, "TESTBEDS", tmp_path / "testbeds")
    status, _output, errors = invoke("status")
    assert (status, f"no agent at {state}/agent.sock (testbed): is it running" in errors) == (1, True)

    looks = iter([False, False, True])
    monkeypatch.setattr(AgentClient, "get", lambda *_arguments: {"policy": {}, "splice": {"decided": next(looks)}})
    monkeypatch.setattr("spliceway.agent.cli.summary.problems", lambda _found: [])
    monkeypatch.setattr("spliceway.agent.cli.show.time.sleep", lambda _seconds: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state / "agent.sock"))
        status, _output, errors = invoke("status", "--wait", "60", "-o", "json")
    assert (status, errors) == (0, f"spliceway: using the testbed's agent at {state}/agent.sock\n")
    assert next(looks, "all") == "all"


def test_preflight_beside_a_testbed_tells_the_command_for_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "testbeds" / "sw1" / "node1"
    (node / "state").mkdir(parents=True)
    (node / "agent.yaml").touch()
    monkeypatch.setattr(common, "TESTBEDS", tmp_path / "testbeds")
    monkeypatch.setattr("spliceway.agent.nodecheck.runner.CHECKS", {})
    assert "testbed" not in invoke("preflight")[2]
    (node.parent / "kept").touch()
    told = invoke("preflight")[2]
    assert "testbed exec --run sw1 node/node1 -- " in told
    assert told.endswith(f" preflight --config {node}/agent.yaml\n")


def _raise(error: Exception) -> None:
    raise error


def test_policy_validate(tmp_path: Path) -> None:
    (tmp_path / "pods.yaml").write_text(pod("a", "10.0.0.1"))
    (tmp_path / "good.yaml").write_text(policy("web", "a", 80))
    status, output, _errors = invoke("policy", "validate", str(tmp_path))
    assert (status, output) == (0, "2 files: 1 CiliumNetworkPolicy, 1 Pod; 0 refused\n")
    assert invoke("policy", "validate", str(tmp_path / "pods.yaml"))[1] == "1 file: 1 Pod; 0 refused\n"
    (tmp_path / "more.yaml").write_text(
        "{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {a: hush}}\n---\n"
        "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80}]}}\n---\n"
        "{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: g}, spec: {externalCIDRs: [192.0.2.0/24]}}"
    )
    status, output, _errors = invoke("policy", "validate", str(tmp_path))
    assert output == "3 files: 1 CiliumCIDRGroup, 1 CiliumNetworkPolicy, 1 Pod, 1 Secret, 1 Service; 0 refused\n"
    (tmp_path / "more.yaml").unlink()
    (tmp_path / "bad.yaml").write_text(policy("bad", "a", 80).replace("toPorts", "toPort"))
    status, output, errors = invoke("policy", "validate", str(tmp_path))
    assert status == 1
    assert "1 refused" in output
    assert errors.startswith("bad.yaml: CiliumNetworkPolicy default/bad: spec.ingress[0].toPort: ")
    status, output, _errors = invoke("policy", "validate", str(tmp_path / "bad.yaml"), "-o", "json")
    assert status == 1
    assert msgspec.json.decode(output)["refusals"][0]["field"] == "spec.ingress[0].toPort"
    (tmp_path / "notes.txt").write_text("x")
    assert invoke("policy", "validate", str(tmp_path / "notes.txt"))[0] == 1


def test_labels_have_their_namespace_and_derived_ones_only_where_they_matter() -> None:
    shop = ("k8s:io.kubernetes.pod.namespace=shop", "k8s:io.cilium.k8s.policy.cluster=default")
    api = ("block:10.240.0.0/12", "k8s:app=api", *shop, "port:tcp/http=8080")
    assert labels_text(api) == "shop: block:10.240.0.0/12, k8s:app=api, port:tcp/http=8080"
    assert labels_text(api, derived=False) == "shop: k8s:app=api"
    assert labels_text(("block:10.0.0.0/8",), derived=False) == "block:10.0.0.0/8"
    assert labels_text(("reserved:host",), derived=False) == "reserved:host"
    assert labels_text(shop) == ", ".join(shop)
    assert labels_text(()) == ""

    four, six = {"id": 300, "labels": api}, {"id": 301, "labels": ("k8s:app=api", *shop)}
    row = {
        "direction": "ingress", "class": 1, "peers": "these", "protocol": "tcp", "ports": "80", "verdict": "allow",
        "reason": "policy-allowed", "rule": "r", "http": [], "identities": [four, six], "state": "applied",
    }  # fmt: skip
    policy = {"endpoints": ["shop/web"], "ingress": True, "egress": True, "rows": [row]}
    assert [told[2] for told in policy_rows([policy])] == ["shop: k8s:app=api"]
    # Only one of the addresses is in the block: the two must be told apart.
    policy["rows"] = [{**row, "identities": [four]}, {**row, "class": 2, "identities": [six]}]
    assert [told[2] for told in policy_rows([policy])] == [
        "shop: block:10.240.0.0/12, k8s:app=api, port:tcp/http=8080",
        "shop: k8s:app=api",
    ]


def test_the_row_of_the_source() -> None:
    assert _place({"directory": "/m", "files": 1, "objects": 2}) == "/m: 1 file, 2 objects"
    kinds = [
        {"state": "listed", "error": "pods: gone"},
        {"state": "listed", "error": "nodes: gone"},
        {"state": "absent", "error": ""},
    ]
    found = {"kubernetes": {"server": "https://a", "resources": kinds}, "objects": 1}
    assert _place(found) == "kubernetes https://a: 2 kinds listed, 1 not served, 1 object; pods: gone"


def test_flow_lines() -> None:
    end = {"address": "fd00::1", "port": 80, "identity": 9, "pod": "", "labels": ["reserved:world-ipv6"]}
    flow = {
        "time": "T", "hook": "proxy", "source": end, "destination": {**end, "pod": "default/a", "port": 0},
        "reply": False, "protocol": "HTTP/1.1", "verdict": "deny", "reason": "http-denied", "rule": "",
        "nearestMiss": "rule x: path",
        "http": {"method": "GET", "path": "/x", "status": 403, "duration": 0.2},
    }  # fmt: skip
    assert flow_line(flow) == (
        "T proxy reserved:world-ipv6([fd00::1]:80) -> default/a(fd00::1) HTTP/1.1 deny http-denied "
        "GET /x 403 0.2 ms [rule x: path]"
    )
    denied = {**flow, "reason": "default-deny", "nearestMiss": "", "http": None, "direction": "egress"}
    assert flow_line(denied).endswith(" deny default-deny (egress)")
    assert flow_line({"lost": 3}) == "(3 flows lost: this reader is too slow)"


@pytest.mark.parametrize(
    ("arguments", "there_are"),
    [
        (("flows", "--verdict", "drop"), "allow, redirect"),
        (("flows", "--reason", "default_deny"), "default-deny"),
        (("flows", "--hook", "lo"), "from-pod"),
        (("xds", "dump", "--type", "VHDS"), "LDS or listeners, RDS or routes, CDS or clusters"),
        (("xds", "watch", "--type", "listner"), "LDS or listeners"),
        (("xds", "dump", "--stage", "live"), "desired, sent, acked"),
    ],
)
def test_a_filter_that_nothing_can_match_is_a_usage_error(arguments: tuple[str, ...], there_are: str) -> None:
    status, _output, errors = invoke(*arguments, "--socket", "/nowhere/agent.sock")
    assert status == 2
    errors = " ".join(errors.replace("│", " ").split())  # out of its box
    assert f"no {arguments[-2].removeprefix('--')} '{arguments[-1]}'" in errors
    assert there_are in errors


class Asked(AgentClient):
    """Answers as an agent that knows pods and Services, and has a flow of others."""

    def get(self, target: str, **query: str | None) -> Any:
        assert (target, query) == ("names", {})
        return {
            "pods": ["default/a", "default/b", "default/elsewhere", "other/b"],
            "services": ["default/shop", "other/shop", "other/web"],
            "namespaces": ["default", "empty", "other"],
        }

    def lines(self, target: str, **query: str | None) -> Iterator[dict[str, Any]]:
        assert target == "flows"
        yield {"source": {"pod": ""}, "destination": {"pod": "default/far"}, "services": ["default/gone"]}


def test_pods_of_flows_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    agent = Asked(Path("/nowhere"))
    for name, key in (
        ("a", "default/a"),
        ("other/b", "other/b"),
        ("far", "default/far"),
        ("elsewhere", "default/elsewhere"),
    ):
        assert flow_pod(agent, name, follow=False) == key
    with pytest.raises(WrongUsageError, match="pod b: several namespaces have one: default/b, other/b"):
        flow_pod(agent, "b", follow=True)
    for name, follow in (("default/c", False), ("c", True)):
        with pytest.raises(
            WrongUsageError,
            match=f"pod {name}: there are default/a, default/b, default/elsewhere, default/far, other/b",
        ):
            flow_pod(agent, name, follow=follow)
    assert flow_pod(agent, "default/c", follow=True) == "default/c"
    assert flow_pod(agent, "elsewhere", follow=True) == "default/elsewhere"
    assert "in no flow yet" in capsys.readouterr().err


def test_services_of_flows_by_name() -> None:
    agent = Asked(Path("/nowhere"))
    for name, key in (("web", "other/web"), ("default/shop", "default/shop"), ("gone", "default/gone")):
        assert flow_service(agent, name, follow=False) == key
    with pytest.raises(WrongUsageError, match="service shop: several namespaces have one: default/shop, other/shop"):
        flow_service(agent, "shop", follow=False)
    there = "there are default/gone, default/shop, other/shop, other/web"
    with pytest.raises(WrongUsageError, match=f"service default/none: {there}"):
        flow_service(agent, "default/none", follow=False)
    assert flow_service(agent, "default/none", follow=True) == "default/none"


def test_a_namespace_that_nobody_knows() -> None:
    agent = Asked(Path("/nowhere"))
    assert known_namespace(agent, "empty") == "empty"
    with pytest.raises(WrongUsageError, match="namespace sho: there are default, empty, other"):
        known_namespace(agent, "sho")


@pytest.mark.parametrize("query", ["verdict=drop", "reason=x", "hook=lo", "color=red"])
def test_the_api_refuses_values_that_no_flow_has(query: str) -> None:
    app = admin_app({}, {}, flows=FlowLog(8), registry=CollectorRegistry(), splice=NoSwitch())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://agent") as client:
            return await client.get(f"/v1/flows?{query}")

    answer = asyncio.run(ask())
    assert answer.status_code == 400
    assert "there are" in answer.json()["error"]


def test_a_path_that_there_is_none_of_is_told_as_all_errors_are() -> None:
    app = admin_app({"status": lambda _: {}}, {}, flows=FlowLog(8), registry=CollectorRegistry(), splice=NoSwitch())

    async def ask(method: str, path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://agent") as client:
            return await client.request(method, path)

    answer = asyncio.run(ask("GET", "/v1/stats"))
    assert (answer.status_code, answer.json()) == (404, {"error": "the agent has no path /v1/stats"})
    answer = asyncio.run(ask("PATCH", "/v1/status"))
    assert (answer.status_code, answer.json()) == (405, {"error": "PATCH: Method Not Allowed"})
    assert "GET" in answer.headers["allow"]
    assert answer.headers["content-type"] == "application/json"


class NoSwitch:
    async def set_mode(self, mode: str) -> object:
        raise AssertionError(mode)


def test_cleanup_says_that_it_may_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "configure", lambda _level: None)

    async def nothing(_settings: object) -> list[object]:
        return []

    async def refused(_settings: object) -> list[object]:
        raise PermissionError(13, "Permission denied", "/bpf/spliceway")

    places = ("cleanup", "--bpffs", str(tmp_path), "--state-dir", str(tmp_path), "--yes")
    monkeypatch.setattr(nodecleanup, "_find", nothing)
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    for more in ((), ("-o", "json")):
        status, output, errors = invoke(*places, *more)
        assert (status, output) == (1, "")
        assert errors.startswith("spliceway: only root can see all that agents left")
    monkeypatch.setattr(nodecleanup, "_find", refused)
    status, _output, errors = invoke(*places)
    assert (status, errors) == (1, "spliceway: /bpf/spliceway: Permission denied: run it as root\n")


def test_cleanup_refuses_a_bpffs_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "configure", lambda _level: None)  # it would write to this runner's stderr for ever
    for name in ("bpf/spliceway/v3", "source"):
        (tmp_path / name).mkdir(parents=True)
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"node: {{name: node1}}\nstateDir: {tmp_path}/state\nbpffs: {tmp_path}/bpf\n"
        f"cgroups: {{pods: {tmp_path}/pods, proxy: {tmp_path}/proxy}}\n"
        f"source: {{directory: {tmp_path}/source}}\n"
    )
    status, _output, errors = invoke("cleanup", "--config", str(config), "--yes")
    assert status == 1
    assert errors == f"spliceway: bpffs: {tmp_path}/bpf/spliceway is not on a bpffs: nothing of it is ours\n"
    assert (tmp_path / "bpf/spliceway/v3").is_dir()
    assert not (tmp_path / "state").exists()


def test_a_command_of_a_group_is_told() -> None:
    status, _, errors = invoke("validate", "policies")
    assert status == 2
    assert "There is 'policy validate'." in " ".join(errors.replace("│", " ").split())
    status, _, errors = invoke("nonsense")
    assert (status, "There is" in errors) == (2, False)


def test_an_agent_without_its_directory_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"source: {{directory: {tmp_path}/none}}\ncgroups: {{pods: {tmp_path}}}\n")
    status, _, errors = invoke("agent", "--config", str(file))
    assert (status, errors) == (1, f"spliceway: {file}: source.directory: {tmp_path}/none is not a directory\n")
