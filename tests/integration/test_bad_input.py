"""Bad input: a clear error that names file, field and reason; the last good policy stays; commands exit non-zero."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spliceway.agent.testbed.agentprocess import agent_config
from support import load
from support.attack import Site, attacked_site
from support.node import http_status

pytestmark = pytest.mark.kernel

_CLI = [sys.executable, "-m", "spliceway.agent"]
_GOOD = load.POLICY


class Bad:
    """A file that is refused: `content`, and what the message must say beside the file's name."""

    def __init__(self, content: str | bytes, *says: str, file: str = "api.yaml") -> None:
        self.content = content.encode() if isinstance(content, str) else content
        self.says = says
        self.file = file


BAD = {
    "broken YAML": Bad(_GOOD.replace("spec:", "spec: ["), "YAML"),
    "tab": Bad(_GOOD.replace("  ingress:", "\tingress:"), "YAML"),
    "unknown field": Bad(_GOOD.replace("ingress:", "ingres:"), "spec.ingres", "unknown field"),
    "unknown field, deep": Bad(_GOOD.replace("method: GET", "methods: GET"), "http[0].methods", "unknown field"),
    "wrong CIDR": Bad(
        _GOOD.replace("fromEndpoints: [{matchLabels: {role: frontend}}]", "fromCIDR: [10.0.0.0/33]"),
        "spec.ingress[0].fromCIDR[0]",
        "10.0.0.0/33",
    ),
    "port 70000": Bad(_GOOD.replace('"80"', '"70000"'), "toPorts[0].ports[0].port", "70000"),
    "port 0": Bad(_GOOD.replace('"80"', '"-1"'), "toPorts[0].ports[0].port", "-1"),
    "invalid regex": Bad(_GOOD.replace('/articles/[0-9]+"', '/articles/[0-9+"'), "http[0].path", "/articles/[0-9+"),
    "regex with a look-ahead": Bad(_GOOD.replace('/articles/[0-9]+"', '/(?=a)"'), "http[0].path", "(?=a)"),
    "wrong type": Bad(_GOOD.replace("[{port:", "{port:").replace("TCP}]", "TCP}"), "toPorts[0].ports"),
    "two of one name": Bad(_GOOD + "---" + _GOOD, "twice"),
    "duplicate key": Bad(_GOOD.replace("spec:", "kind: Pod\nspec:"), "kind"),
    "alias bomb": Bad("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
    "empty file": Bad(b""),
    "only comments": Bad(b"# nothing\n---\n"),
    "binary file": Bad(bytes(range(256)), "UTF-8"),
    "NUL bytes": Bad(_GOOD + "\0"),
    "5 MiB": Bad(_GOOD + "#" * (5 << 20), "larger than"),
    "a list of text": Bad("- a\n- b\n"),
    "a number": Bad("42\n"),
    "deep nesting": Bad("[" * 3000),
    "unknown kind": Bad(_GOOD.replace("CiliumNetworkPolicy", "CiliumNetworkPolice"), "CiliumNetworkPolice"),
}
_K8S = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: api}\n"
    "spec: {podSelector: {}, ingress: [%s]}\n"
)
_ADMIN = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: api}\nspec: %s\n"
BAD |= {
    "NetworkPolicy: port": Bad(_K8S % "{ports: [{port: 70000}]}", "NetworkPolicy default/api", "port", "70000"),
    "NetworkPolicy: unknown field": Bad(_K8S % "{form: []}", "spec.ingress[0].form", "unknown field"),
    "ClusterNetworkPolicy: tier": Bad(
        _ADMIN % "{tier: Highest, priority: 1, subject: {namespaces: {}}, ingress: []}",
        "ClusterNetworkPolicy api",
        "spec.tier",
        "Highest",
    ),
    "audit annotation": Bad(
        _GOOD.replace("metadata: {", "metadata: {annotations: {spliceway.io/enforcement: later}, "),
        "spliceway.io/enforcement",
        "later",
    ),
    "Secret": Bad(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: token}\ndata: {token: 'not base64, and hush'}\n",
        "Secret default/token",
        "token",
    ),
}

#: An empty file defines nothing: it is no mistake for `validate`.
_NOTHING = {"empty file", "only comments"}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with attacked_site() as built:
        yield built


def cli(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_CLI, *arguments], capture_output=True, text=True, timeout=timeout, check=False)


def assert_clear(done: subprocess.CompletedProcess[str], *says: str) -> None:
    """Exit status 1, one short message on stderr with these words, and no traceback."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    for text in says:
        assert text in done.stderr, done.stderr


@pytest.mark.parametrize("name", BAD)
def test_validate_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    bad = BAD[name]
    (tmp_path / bad.file).write_bytes(bad.content)
    done = cli("policy", "validate", str(tmp_path))
    if name in _NOTHING:
        assert done.returncode == 0, done.stderr
    else:
        assert_clear(done, bad.file, *bad.says)
        assert "hush" not in done.stdout + done.stderr


def test_validate_of_two_files_with_one_object(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(_GOOD)
    assert_clear(cli("policy", "validate", str(tmp_path)), "b.yaml", "default/api", "is already in a.yaml")


def test_validate_of_what_is_not_there(tmp_path: Path) -> None:
    done = cli("policy", "validate", str(tmp_path / "none"))
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_the_last_good_policy_stays(site: Site) -> None:
    """With real traffic, for every bad file in turn; and a good one heals it."""
    file = site.node.info.policies / "api.yaml"
    generation = site.control.client.get("status")["policy"]["generation"]
    with site.load() as traffic:
        for name, bad in BAD.items():
            if name in _NOTHING:
                continue  # it takes the policy away, as its author said
            beside = file.with_name(".new")
            beside.write_bytes(bad.content)
            beside.rename(file)
            refusals = _refusals(site)
            assert all("api.yaml" in one["file"] for one in refusals), name
            text = json.dumps(refusals)
            assert "hush" not in text
            assert all(json.dumps(word)[1:-1] in text for word in bad.says), (name, refusals)
            if name != "two of one name":  # there the first of the two is in force
                assert any(one["kept"] for one in refusals), (name, refusals)
            assert http_status(site.testbed, "frontend", "api", "/private") == 403, name
        assert http_status(site.testbed, "intruder", "api", "/articles/1", timeout=1) == 0
        assert site.control.client.get("status")["policy"]["generation"] == generation
        done = cli("status", "--socket", str(site.control.socket))
        assert done.returncode == 1
        assert "the last good version stays in force" in " ".join(done.stdout.split())
        site.node.write_policy("api", _GOOD)
        _refusals(site, there=False)
        traffic.flawless()


def test_a_second_file_does_not_take_an_object_over(site: Site) -> None:
    other = _GOOD.replace("role: frontend", "role: intruder")
    site.node.write_policy("aaa-first-by-name", other)
    try:
        (refusal,) = _refusals(site)
        assert refusal["file"] == "policies/aaa-first-by-name.yaml"
        assert "is already in policies/api.yaml" in refusal["reason"]
        assert http_status(site.testbed, "intruder", "api", "/articles/1", timeout=1) == 0
        assert http_status(site.testbed, "frontend", "api", "/articles/1") == 200
    finally:
        site.node.remove_policy("aaa-first-by-name")
        _refusals(site, there=False)


def test_a_file_that_cannot_be_read(site: Site) -> None:
    """Root reads everything, so what it can't read is a dangling link, a directory, a FIFO."""
    directory = site.node.info.policies
    (directory / "loop.yaml").symlink_to("loop.yaml")
    os.mkfifo(directory / "fifo.yaml")
    try:
        refusals = _refusals(site)
        assert "is not a regular file" in json.dumps(refusals)
        assert http_status(site.testbed, "frontend", "api", "/articles/1") == 200
    finally:
        (directory / "loop.yaml").unlink()
        (directory / "fifo.yaml").unlink()
        _refusals(site, there=False)


def _refusals(site: Site, *, there: bool = True) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 5
    time.sleep(0.1)
    while time.monotonic() < deadline:
        found = site.control.client.get("status")["source"]["refusals"]
        if bool(found) == there:
            return list(found)
        time.sleep(0.02)
    raise AssertionError(f"refusals: {found}")


# ---- the agent's own start ----


@pytest.fixture(scope="module")
def bare() -> Iterator[Site]:
    """A node on which no agent has ever run: nothing is pinned that could be taken over."""
    with attacked_site(agent=False) as built:
        yield built


def start(site: Site, overrides: dict[str, Any], *wrap: str, raw: str = "") -> subprocess.CompletedProcess[str]:
    """Start an agent on the node with a configuration of its own (another state directory and socket); it must end."""
    with tempfile.TemporaryDirectory(dir=site.testbed.directory) as directory:
        base = {"stateDir": f"{directory}/state", "admin": {"socket": f"{directory}/agent.sock"}}
        config = agent_config(site.node, {**base, **overrides})
        path = Path(directory) / "agent.yaml"
        path.write_text(raw or yaml.safe_dump(config))
        return site.node.run_on_node([*wrap, *_CLI, "agent", "--config", str(path)], timeout=25)


_ENVOY = {"kind": "envoy"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"proxy": {**_ENVOY, "binary": "/nowhere/e"}}, ("proxy.binary", "/nowhere/e", "is not an executable file")),
        ({"proxy": {**_ENVOY, "binary": "/bin/true"}}, ("/bin/true", "version of Envoy")),
        ({"proxy": {"binary": "/bin/true"}}, ("proxy.binary", "is for proxy.kind envoy only, and that is embedded")),
        ({"cgroups": {"pods": "/tmp"}}, ("cgroups.pods", "/tmp", "cgroup2")),
        ({"cgroups": {"proxy": "/tmp"}}, ("cgroups.proxy", "/tmp", "cgroup2")),
        ({"bpffs": "/tmp"}, ("bpffs", "/tmp", "mount -t bpf")),
        ({"bpffs": "/nowhere"}, ("bpffs", "/nowhere", "mount -t bpf")),
        ({"proxy": {"colour": "blue"}}, ("agent.yaml", "proxy.colour", "unknown field")),
        ({"proxy": {"listenerPorts": "9-5"}}, ("agent.yaml", "proxy.listenerPorts", "9-5")),
        ({"datapath": {"devices": ["no/such"]}}, ("agent.yaml", "datapath.devices[0]", "no/such")),
        ({"source": {"directory": "/proc/nowhere"}}, ("source.directory", "/proc/nowhere")),
        ({"admin": {"socket": "/proc/agent.sock"}}, ("/proc/agent.sock",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_agent_does_not_start(bare: Site, overrides: dict[str, Any], says: tuple[str, ...]) -> None:
    assert_clear(start(bare, overrides), *says)


def test_the_agent_does_not_start_with_broken_yaml(bare: Site) -> None:
    assert_clear(start(bare, {}, raw="node: [\n"), "agent.yaml", "YAML")


def test_the_agent_does_not_start_without_rights() -> None:
    """No capabilities at all, and only those for BPF missing, on a node where nothing is loaded yet."""
    with attacked_site(agent=False) as site:
        _without_rights(site)


def _without_rights(bare: Site) -> None:
    for wrap in (
        ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
        ("setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon", "--inh-caps=-bpf,-sys_admin,-perfmon"),
        ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"),
    ):
        done = start(bare, {}, *wrap)
        assert_clear(done)
        assert any(word in done.stderr for word in ("CAP_", "permitted", "root")), (wrap, done.stderr)


def test_a_second_agent_on_the_same_state(site: Site) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "second.yaml"
        path.write_text(yaml.safe_dump(agent_config(site.node, {"admin": {"socket": f"{directory}/second.sock"}})))
        for command in (("agent",), ("cleanup", "--yes")):
            done = site.node.run_on_node([*_CLI, *command, "--config", str(path)], timeout=60)
            assert_clear(done, str(site.node.info.state), "running agent")
    assert http_status(site.testbed, "frontend", "api", "/articles/1") == 200


def test_commands_without_an_agent(tmp_path: Path) -> None:
    for command in (("status",), ("endpoint", "list"), ("sock", "list"), ("flows",)):
        assert_clear(cli(*command, "--socket", str(tmp_path / "none.sock")), "none.sock")
