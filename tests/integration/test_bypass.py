"""The hunt: nothing reaches a port with HTTP rules past the proxy, whichever way it is sent.

`make bypass` takes every profile, with both proxies; here there is one of each kind, and some with Envoy.
docs/security.md has the table of ways.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from itertools import count

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason
from support.bypass import CHOSEN, FAR, KNOWN, POLICIES, WEB, Hunt, Token, cluster_ip, hunt
from support.bypassdials import DIRECT, Dial, complaints, denied, dials, run
from support.bypassframes import KERNEL, STEERED, WAYS, Scene
from support.profiled import PROFILES

pytestmark = pytest.mark.kernel

_PORTS = count(41000)
_ANSWER = re.compile(rb"content-length: (\d+)(?:\r\n[^\r\n]+)*\r\n\r\n(.*)", re.DOTALL | re.IGNORECASE)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, proxy), id=f"{name}-{proxy}", marks=pytest.mark.envoy if proxy == "envoy" else ())
        for name, proxy in (*CHOSEN, *KNOWN)
    ],
)
def site(request: pytest.FixtureRequest) -> Iterator[Hunt]:
    name, proxy = request.param
    name, _, known = name.partition("+")
    with hunt(PROFILES[name], proxy, known=bool(known)) as made:
        yield made


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", [4, 6])
def test_dials(site: Hunt, version: int) -> None:
    """By every address that leads to a pod, from everywhere: proxied, or dropped for a reason."""
    before = site.node.flows_seen()
    found = run(site, dials(site, version))
    wrong = [text for done in found for text in complaints(site, done, before)]
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize(
    ("way", "version"), [(name, version) for name, way in WAYS.items() for version in way.versions]
)
def test_frames(site: Hunt, way: str, version: int) -> None:
    """Frames made by hand. The server's view decides: nothing of them arrives."""
    wanted = WAYS[way]
    if (wanted.bridged and not site.profile.bridged) or (wanted.services and site.profile.kube_proxy == "none"):
        pytest.skip("not on this profile")
    token = Token()
    scene = Scene(site, wanted.sender, version, token, next(_PORTS))
    denied, steered = site.denied(), site.steered()
    sent = 0
    for frame in wanted.make(scene):
        site.send(wanted.sender, frame)
        sent += 1
    assert sent
    time.sleep(0.05)  # what does not come can't be waited for
    assert not (found := site.arrived(token)), f"{len(found)} frames arrived, the first: {found[0].hex()}"
    seen = {reason for reason, packets in site.denied().items() if packets != denied.get(reason, 0)}
    ends = seen | ({STEERED} if site.steered() != steered else set())
    assert KERNEL in wanted.ends or ends & wanted.ends, f"counted: {sorted(map(str, ends))}"


#: What leads nowhere without our programs either: the kernel refuses it, or nothing in the testbed takes it.
_NOWHERE = {"the_listener_itself", "a_hidden_header", "routing_headers", "source_routes", "ethertypes_that_lie"}


def test_without_our_programs_the_frames_arrive() -> None:
    with hunt(PROFILES["vxlan"], programs=False) as bare:
        tokens = {}
        for name, wanted in WAYS.items():
            for version in wanted.versions:
                token = tokens[name, version] = Token()
                for frame in wanted.make(Scene(bare, wanted.sender, version, token, next(_PORTS))):
                    bare.send(wanted.sender, frame)
        time.sleep(0.2)
        missing = {name for (name, _), token in tokens.items() if not bare.arrived(token)}
        assert missing <= _NOWHERE | {"errors_and_redirects"}, missing


def test_a_connection_older_than_the_policy(site: Hunt) -> None:
    """Direct until the policy comes: to a pod here, and by a Service to one elsewhere."""
    ways = [("client", "server", 80)]
    if site.profile.kube_proxy != "none":
        ways += [("buyer", str(cluster_ip(FAR, 4)), 80), ("walker", site.node_address(4), 30000 + FAR)]
    with contextlib.ExitStack() as stack:
        site.node.apply()
        try:
            socks = [stack.enter_context(_connected(site, *way)) for way in ways]
            tokens = [Token() for _ in socks]
            for sock in socks:
                assert _asks(sock, f"/closed/{Token().text}").startswith(b"HTTP/1.1 200")
        finally:
            site.node.apply(POLICIES)
        before = site.denied()
        for sock, token in zip(socks, tokens, strict=True):
            sock.settimeout(0.3)
            assert _asks(sock, f"/closed/{token.text}") == b""
        assert not any(site.arrived(token) for token in tokens)
        reasons = {reason for reason, count in site.denied().items() if count > before.get(reason, 0)}
        assert reasons & {Reason.RULE_SET_CHANGED, Reason.NOT_STEERED}, reasons


@pytest.mark.parametrize("version", [4, 6])
def test_a_policy_that_goes(site: Hunt, version: int) -> None:
    """What was steered behind a translation ends, at the uplink and at a pod."""
    if site.profile.kube_proxy == "none":
        pytest.skip("nobody translates")
    without = "---".join(text for text in POLICIES.split("---") if "name: buyer" not in text)
    nothing = (
        without
        + """
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: buyer, namespace: default}
spec: {endpointSelector: {matchLabels: {role: buyer}}, egress: [{toEntities: [host, remote-node, world]}]}
"""
    )
    with contextlib.ExitStack() as stack:
        socks = [
            stack.enter_context(_connected(site, "buyer", str(cluster_ip(number, version)), 80))
            for number in (FAR, WEB)
        ]
        for sock in socks:
            assert _asks(sock, f"/open/{Token().text}").startswith(b"HTTP/1.1 200")
        site.node.apply(nothing)
        try:
            for sock in socks:
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b"", "it ends by itself"
        finally:
            site.node.apply(POLICIES)


@pytest.mark.parametrize("version", [4, 6])
def test_the_ports_of_a_proxied_connection(site: Hunt, version: int) -> None:
    """Segments with the ends of a connection that the proxy has, and of one that has ended."""
    first, token = Token(), Token()
    scene = Scene(site, "client", version, token, next(_PORTS))
    with _connected(site, "client", site.address("server", version), 80, scene.port) as sock:
        assert _asks(sock, f"/open/{first.text}").startswith(b"HTTP/1.1 200")
        for packet in scene.packets():
            site.send("client", scene.frame(packet))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for packet in scene.packets():
        site.send("client", scene.frame(packet))
    time.sleep(0.05)
    assert not site.arrived(token)
    assert site.logged(first, 200)


@pytest.mark.parametrize("version", [4, 6])
def test_urgent_data(site: Hunt, version: int) -> None:
    """A byte out of band is in no request, or in the one that is judged."""
    token = Token()
    with _connected(site, "client", site.address("server", version), 80) as sock:
        sock.send(b"GET /open/../clos")
        sock.send(b"e", socket.MSG_OOB)
        sock.send(f"d/{token.text} HTTP/1.1\r\nHost: hunt\r\n\r\n".encode())
        assert re.match(rb"HTTP/1.1 40[03] ", sock.recv(65536))
    assert not site.arrived(token)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("client", ["walker", "stranger", "outside"])
def test_notes_that_others_write(site: Hunt, client: str, version: int) -> None:
    """As if another pod had sent it, or as if it were an answer: a pod's own, and what comes from another node."""
    if site.profile.kube_proxy == "none":
        pytest.skip("nobody translates")
    index = site.node.ifindex("default/client")
    pod, way = site.pod(client), "NodePort" if client == "walker" else ""
    wanted = [one for one in dials(site, version) if one.client == client and way in one.name]
    assert wanted
    pod.run(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
    try:
        for note in (index & 0x3FFF, index & 0x3FFF | 0x8000, index & 0x3FFF | 0xC000):
            match = ["u32", "match", "u32", "0", "0", "classid", f"1:{note:x}"]
            done = pod.run(["tc", "filter", "replace", "dev", "eth0", "egress", "prio", "1", "protocol", "all", *match])
            assert done.returncode == 0, done.stderr
            before = site.node.flows_seen()
            wrong = [text for one in run(site, wanted) for text in complaints(site, one, before)]
            assert wrong == [], "\n".join(wrong)
    finally:
        pod.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"])


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_of_the_node_itself(site: Hunt, version: int) -> None:
    """Its backend is a process of the node, which no hook of a device is in front of: `tourist` may not reach nodes."""
    family, virtual, node = ("ip", "10.96.0.90", site.node_address(4)) if version == 4 else (
        "ip6", "fd00:96::90", f"[{site.node_address(6)}]"
    )  # fmt: skip
    table = f"""table {family} hunt {{
        chain prerouting {{
            type nat hook prerouting priority dstnat - 1
            {family} daddr {virtual} tcp dport 80 dnat to {node}:9080
        }}
    }}"""
    place = site.bed.node.info.netns
    server = site.bed.node.spawn_on_node([sys.executable, "-m", "spliceway.agent.testbed.server", "--port", "9080"])
    try:
        netns.call(place, lambda: command("nft", "-f", "-", stdin=table))
        deadline = time.monotonic() + 10
        while 9080 not in netns.call(place, netns.listening_ports):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        refused = denied(Hook.SK_LOOKUP, Reason.DEFAULT_DENY)
        before = site.node.flows_seen()
        found = run(
            site,
            [Dial("client", "client", virtual, 80, "", DIRECT), Dial("tourist", "tourist", virtual, 80, "", refused)],
        )
        # Calico's own rules accept what its pods send to the node, before any DROP.
        dropped = "INPUT" in site.profile.drop and site.profile.name != "calico-like"
        expected = (0, 0) if dropped else (200, 200)
        assert [one.statuses for one in found] == [expected, (0, 0)]
        reasons = {(one.hook, one.reason) for one in site.flows(before) if one.destination_port == 9080}
        assert expected == (0, 0) or (Hook.SK_LOOKUP, Reason.DEFAULT_DENY) in reasons, reasons
    finally:
        server.kill()
        server.wait(10)
        netns.call(place, lambda: command("nft", "delete", "table", family, "hunt"))


def _connected(site: Hunt, client: str, server: str, port: int, own: int = 0) -> socket.socket:
    address = site.address(server, 4) if server in ("server", "far") else server

    def made() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # another connection had the port, by chance
        sock.bind(("", own))
        sock.connect((address, port))
        return sock

    return netns.call(site.pod(client).netns, made)


def _asks(sock: socket.socket, path: str) -> bytes:
    """The whole answer; nothing when none comes in time."""
    answer = b""
    try:
        sock.send(f"GET {path} HTTP/1.1\r\nHost: hunt\r\n\r\n".encode())
        while not (found := _ANSWER.search(answer)) or len(found[2]) < int(found[1]):
            if not (piece := sock.recv(65536)):
                return b""
            answer += piece
    except OSError:
        return b""
    return answer
