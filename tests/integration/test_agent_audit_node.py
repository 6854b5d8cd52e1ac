"""A node in audit: nothing of what would be denied is, and all of it is told; without a proxy, too."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.testbed.agentprocess import AgentProcess
from support.node import python_in
from support.switched import Stream, Switched, switched
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

VERSIONS = (4, 6)
#: Addresses that no pod has.
FOREIGN = {4: "198.18.0.7", 6: "fd00:bad::7"}

_LISTEN = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as s:
    s.bind((sys.argv[1], int(sys.argv[2])))
    s.settimeout(10)
    print("ready", flush=True)
    print(s.recvfrom(100)[1][0], flush=True)
"""
_SEND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as s:
    s.setsockopt(*((socket.IPPROTO_IPV6, 75) if ":" in sys.argv[1] else (socket.IPPROTO_IP, 19)), 1)  # TRANSPARENT
    s.bind((sys.argv[3], 0))
    for _ in range(3):
        s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
"""

_SAY = """
import socket, sys
with socket.create_connection((sys.argv[1], 80), timeout=10) as s:
    s.sendall(bytes.fromhex(sys.argv[2]))
    s.shutdown(socket.SHUT_WR)
    print(b"".join(iter(lambda: s.recv(4096), b"")).partition(b"\\r\\n")[0])
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Switched]:
    with switched({"enforcement": "audit"}) as found:
        found.start()
        yield found


def all_pass(site: Switched) -> None:
    for version in VERSIONS:
        assert site.ask("frontend", "backend", version=version) == 200
        assert site.ask("intruder", "backend", version=version) == 200
        assert site.ask("frontend", "api", "/private", version=version) == 200
        assert site.ask("intruder", "api", "/articles/1", version=version) == 200
        assert site.ask("backend", "outside", version=version) == 200


def agent_of(site: Switched) -> AgentProcess:
    assert site.agent is not None
    return site.agent


def audits(site: Switched) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = agent_of(site).client.get("audit")["entries"]
    return found


def test_nothing_is_denied_and_all_of_it_is_told(site: Switched) -> None:
    """Each with the policies that would, the pair, the port and how often."""
    all_pass(site)
    wanted = {
        ("default-deny", "ingress", "role=intruder", "role=backend", 80, "CiliumNetworkPolicy default/backend-ingress"),
        ("default-deny", "ingress", "role=intruder", "role=api", 80, "CiliumNetworkPolicy default/api-http"),
        ("http-denied", "", "role=frontend", "role=api", 80, "CiliumNetworkPolicy default/api-http"),
        ("default-deny", "egress", "role=backend", "cidr", 80, "CiliumNetworkPolicy default/backend-egress-cidr"),
    }

    def told() -> bool:
        seen = set()
        for entry in audits(site):
            source, destination = ("".join(entry[end]["labels"]) for end in ("source", "destination"))
            for want in wanted:
                ends = want[2] in source and (want[3] in destination or want[3] == "cidr")
                first = (entry["reason"], entry["direction"], entry["port"]) == (want[0], want[1], want[4])
                if (
                    ends
                    and first
                    and want[5] in entry["policies"]
                    and entry["count"] >= (1 if want[3] == "cidr" else 2)
                ):
                    seen.add(want)
        return seen == wanted

    until(told)
    socket_option = ("--socket", str(agent_of(site).socket))
    by_policy = site.cli("policy", "audit", "--by", "policy", *socket_option)
    assert by_policy.splitlines()[0].split()[:2] == ["COUNT", "POLICIES"]
    assert "CiliumNetworkPolicy default/api-http" in by_policy
    assert json.loads(site.cli("policy", "audit", "--by", "pair", "-o", "json", *socket_option))["records"] > 0
    assert "audit: nothing is denied by any policy" in site.cli("status", *socket_option)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_no_policys_passes_and_is_told(site: Switched, version: int) -> None:
    """Without an agent a pod may send by any address that its network lets it: so it may in audit."""
    backend, port = str(site.testbed.pod("backend").address(version)), str(9990 + version)
    listener = site.testbed.spawn("backend", ["python", "-c", _LISTEN, backend, port], stdout=-1, text=True)
    assert listener.stdout is not None
    assert listener.stdout.readline() == "ready\n"
    sent = python_in(site.testbed.pod("intruder"), _SEND, backend, port, FOREIGN[version])
    assert sent.returncode == 0, sent.stderr
    assert listener.communicate(timeout=20)[0].strip() == FOREIGN[version]

    def spoofed() -> list[dict[str, Any]]:
        return [one for one in audits(site) if (one["reason"], one["port"]) == ("spoofed-source", int(port))]

    until(spoofed)
    (entry,) = spoofed()
    assert (entry["count"], entry["policies"], entry["direction"]) == (1, [], "")  # told once for three packets
    assert entry["source"]["address"] == FOREIGN[version]
    assert ["intruder" in "".join(entry["source"]["labels"]), "backend" in "".join(entry["destination"]["labels"])] == [
        True,
        True,
    ]
    assert 'reason="spoofed-source",verdict="audit"' in site.metrics()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("said", "reason"), [(b"\x16\x03\x01\r\n\r\n", "http-tls"), (b"EHLO x\r\n\r\n", "http-malformed")]
)
def test_what_is_no_http_passes_unread(site: Switched, version: int, said: bytes, reason: str) -> None:
    """What the server says to it is what the client gets."""
    api, direct = str(site.testbed.pod("api").address(version)), {4: "127.0.0.1", 6: "::1"}[version]
    there = python_in(site.testbed.pod("api"), _SAY, direct, said.hex())
    assert there.returncode == 0, there.stderr
    proxied = python_in(site.testbed.pod("frontend"), _SAY, api, said.hex())
    assert (proxied.returncode, proxied.stdout, proxied.stderr) == (0, there.stdout, "")
    until(lambda: [one for one in audits(site) if one["reason"] == reason])


def test_a_listener_is_not_dialled_directly_in_audit_either(site: Switched) -> None:
    """It is ours, and would take the dialler for a steered one."""
    port = next(iter(site.status()["proxy"]["listeners"].values()))
    code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)"
    done = site.node.run_on_node(["python", "-c", code, "127.0.0.1", str(port)], timeout=20)
    assert done.returncode != 0


def test_without_a_proxy_connections_go_on_directly(site: Switched) -> None:
    """Neither agent nor proxy: what HTTP rules in audit would have steered."""
    agent = agent_of(site)
    proxy = site.status()["proxy"]["process"]["pid"]
    agent.kill()
    os.kill(proxy, signal.SIGKILL)
    until(lambda: not _runs(proxy))
    all_pass(site)
    streams = [Stream(site, "frontend", "api", version) for version in VERSIONS]
    site.start()
    all_pass(site)
    told = [stream.stop() for stream in streams]
    assert [set(one) for one in told] == [{200}, {200}]


def test_from_enforcing_to_audit_and_back(site: Switched) -> None:
    """By a restart: what was denied passes from then on, and the other way round."""
    agent_of(site).stop()
    site.overrides = {**site.overrides, "enforcement": "enforce"}
    site.start()
    assert site.ask("intruder", "backend") == 0
    agent_of(site).stop()
    site.overrides = {**site.overrides, "enforcement": "audit"}
    site.start()
    all_pass(site)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
