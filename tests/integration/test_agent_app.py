"""The whole agent with kernel and proxy in memory: source, reconcile, flows, admin API, CLI, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
import yaml

from spliceway.agent import hostaddresses
from spliceway.agent.cli.client import AgentClient
from spliceway.agent.errors import ClientError, StateError
from spliceway.agent.hostaddresses import Own, own_addresses
from spliceway.agent.listening import unix_listener
from spliceway.agent.preflight import proxy_admin_socket
from spliceway.bpf.types import Hook, KernelFlow, Leg, SpliceClasses
from spliceway.policy.errors import SplicewayError
from spliceway.policy.verdict import Reason, Verdict
from support.agent import NODE, MemoryProxyProcess, pod, policy, run, until
from support.agentsite import Site


def with_agent(tmp_path: Path, body: Callable[[Site], Awaitable[None]], *, cleanup: bool = False) -> Site:
    sites = []

    async def start() -> None:
        site = Site(tmp_path)
        sites.append(site)
        site.write("pods.yaml", pod("client", "10.240.1.10") + "---" + pod("server", "10.240.1.11"))
        site.write("web.yaml", policy("web", "server", 80))
        task = asyncio.create_task(site.agent().run(site.stop, cleanup=cleanup))
        try:
            await until(lambda: site.datapath.table is not None or task.done())
            await body(site)
        finally:
            site.stop.set()
            await task

    run(start)
    return sites[0]


def record(reason: Reason = Reason.DEFAULT_DENY) -> KernelFlow:
    return KernelFlow(
        time=time.monotonic_ns(), hook=Hook.FROM_POD, verdict=Verdict.DENY, reason=reason, rule=0, rule_set=0,
        source=ip_address("10.240.1.10"), source_port=40000, source_identity=256,
        destination=ip_address("10.240.1.11"), destination_port=81, destination_identity=257,
        protocol=6, length=60, leg=Leg.DIRECT,
    )  # fmt: skip


def test_views(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        assert stat.S_IMODE(site.socket.stat().st_mode) == 0o600
        assert site.proxies[0].socks == site.datapath.proxy_map
        status = await site.get("status")
        assert (status["node"], status["pid"]) == (NODE, os.getpid())
        assert (status["policy"]["revision"], status["policy"]["wanted"], status["policy"]["error"]) == (1, 1, "")
        assert status["source"] == {"directory": str(site.source), "files": 2, "objects": 3, "refusals": []}
        endpoints = await site.get("endpoints")
        assert [(one["name"], one["ingress"], one["ready"]) for one in endpoints] == [
            ("default/client", False, True),
            ("default/server", True, True),
        ]
        identities = await site.get("identities")
        host = next(one for one in identities if one["id"] == 1)
        own = await own_addresses()  # of the machine that this runs on
        assert (host["labels"], sorted(host["prefixes"])) == (
            ["reserved:host"],
            sorted(f"{address}/{address.max_prefixlen}" for address in own.host),
        )
        (server,) = await site.get("policy", endpoint="default/server")
        row = next(row for row in server["rows"] if row["ports"] == "80")
        assert (row["verdict"], row["protocol"], row["direction"]) == ("allow", "tcp", "ingress")
        assert row["rule"] == "CiliumNetworkPolicy default/web spec.ingress[0].toPorts[0]"
        assert (await site.get("bpf/reasons"))[0]["reason"] == "default-deny"
        assert await site.get("bpf/policy") == [{"policy": 1, "verdict": "allow"}]
        assert await site.get("bpf/ct") == []
        (sock,) = await site.get("socks")
        assert (sock["endpointPod"], sock["state"]) == ("default/client", "spliced")
        assert (await site.get("xds"))["clients"] == []

    with_agent(tmp_path, body)


def test_endpoints_are_shown_as_they_are_attached(tmp_path: Path) -> None:
    """Not as they shall be: what could not be attached is not ready."""

    async def body(site: Site) -> None:
        async def shown() -> dict[str, tuple[bool, list[int]]]:
            return {one["name"]: (one["ready"], one["unsplicedPorts"]) for one in await site.get("endpoints")}

        site.datapath.fail["set_endpoints"] = "no such device"
        text = pod("late", "10.240.1.12") + "---" + pod("client", "10.240.1.10") + "---" + pod("server", "10.240.1.11")
        site.write("pods.yaml", text)
        await until(lambda: site.datapath.table and "default/late" in site.datapath.table.endpoints)
        assert await shown() == {
            "default/client": (True, []),
            "default/late": (False, []),
            "default/server": (True, []),
        }
        del site.datapath.fail["set_endpoints"]
        site.write("pods.yaml", text.replace("app: late", "app: later"))

        async def ready() -> bool:
            return (await shown())["default/late"] == (True, [])

        await until(ready)

    with_agent(tmp_path, body)


def test_addresses_do_not_bring_a_source_into_force_that_has_no_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is not mounted yet looks like this: what an earlier agent left must stay."""
    seen = [Own(), Own(frozenset({ip_address("192.0.2.1")})), Own(frozenset({ip_address("192.0.2.2")}))]
    looks = []

    async def look() -> Own:
        looks.append(min(len(looks), len(seen) - 1))
        return seen[looks[-1]]

    monkeypatch.setattr(hostaddresses, "own_addresses", look)
    monkeypatch.setattr(hostaddresses, "INTERVAL", 0.01)

    async def start() -> None:
        site = Site(tmp_path)
        site.datapath.knows_endpoints = lambda: True  # type: ignore[method-assign]
        task = asyncio.create_task(site.agent().run(site.stop))
        try:
            await until(lambda: len(looks) > 3 or task.done())
            assert [entry for entry in site.datapath.journal if entry.startswith(("endpoints", "apply"))] == []
            site.write("pods.yaml", pod("client", "10.240.1.10"))
            await until(lambda: site.datapath.table is not None)
            assert str(next(p for p, number in site.datapath.table.ipcache.items() if number == 1)) == "192.0.2.2/32"
        finally:
            site.stop.set()
            await task

    run(start)


def test_what_the_api_refuses(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        for target, query, message in (
            ("nothing", {}, "the agent has no path /v1/nothing"),
            ("status", {"color": "red"}, "unknown parameter color"),
            ("policy", {"endpoint": "default/x"}, "no endpoint 'default/x' on this node"),
            ("flows", {"last": "-1"}, "last must not be negative"),
            ("flows", {"color": "red"}, "unknown filter color"),
            ("services", {"color": "red"}, "unknown parameter color"),
            ("bpf/lb", {"color": "red"}, "unknown parameter color"),
            ("names", {"color": "red"}, "unknown parameter color"),
        ):
            with pytest.raises(ClientError, match=message):
                await site.get(target, **query)
        for body in ({"mode": "fast"}, {"mode": 5}, []):
            with pytest.raises(ClientError, match=r"is not a splice mode|the body must be"):
                await asyncio.to_thread(AgentClient(site.socket).put, "splice", body)
        assert site.datapath.splice == SpliceClasses()

    with_agent(tmp_path, body)


def test_edits_come_into_force_and_bad_ones_do_not(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.write("web.yaml", policy("web", "server", 81))
        await until(lambda: site.datapath.generation == 2)
        site.write("web.yaml", policy("web", "server", 81).replace("'81'", "'70000'"))
        while not (status := await site.get("status"))["source"]["refusals"]:
            pass
        assert status["source"]["refusals"][0]["field"] == "spec.ingress[0].toPorts[0].ports[0].port"
        assert site.datapath.generation == 2
        output = await site.cli("status", status=1)
        assert "70000 is not a port (1 to 65535) (the last good version stays in force)" in output

    site = with_agent(tmp_path, body)
    assert site.datapath.closed
    assert not site.datapath.removed
    assert not site.proxies[0].stopped


def test_held_documents_survive_a_restart(tmp_path: Path) -> None:
    async def broken(site: Site) -> None:
        site.write("web.yaml", "a: [")
        while not (await site.get("status"))["source"]["refusals"]:
            pass

    with_agent(tmp_path, broken)

    async def restarted() -> None:
        site = Site(tmp_path)
        task = asyncio.create_task(site.agent().run(site.stop))
        await until(lambda: site.datapath.table is not None)
        assert site.datapath.table is not None
        assert 80 in {row.port for row in site.datapath.table.rows}
        site.stop.set()
        await task

    run(restarted)


def test_flows_are_followed(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.datapath.flows.put_nowait(record())
        await until(lambda: site.datapath.flows.empty())
        lines = AgentClient(site.socket).lines("flows", follow="1", last="1", verdict="deny")
        first = await asyncio.to_thread(next, lines)
        assert (first["source"]["pod"], first["destination"]["pod"]) == ("default/client", "default/server")
        assert first["reason"] == "default-deny"
        site.datapath.flows.put_nowait(record(Reason.SPOOFED_SOURCE))
        assert (await asyncio.to_thread(next, lines))["reason"] == "spoofed-source"
        site.stop.set()
        assert await asyncio.to_thread(next, lines, None) is None

    with_agent(tmp_path, body)


def test_audits_are_told_and_summed(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.write(
            "web.yaml",
            policy("web", "server", 80).replace(
                "metadata: {name: web,", "metadata: {annotations: {spliceway.io/enforcement: audit}, name: web,"
            ),
        )
        while (await site.get("status"))["enforcement"] != {"mode": "enforce", "policies": 1, "policiesInAudit": 1}:
            pass
        assert "enforce: 1 policy, 1 of them in audit" in await site.cli("status", status=1)
        for _ in range(3):
            site.datapath.flows.put_nowait(msgspec.structs.replace(record(), verdict=Verdict.ALLOW))
        reply = msgspec.structs.replace(
            record(), verdict=Verdict.ALLOW, reply=True, source_identity=257, destination_identity=256,
            source=record().destination, source_port=81, destination=record().source, destination_port=40000,
        )  # fmt: skip
        site.datapath.flows.put_nowait(reply)  # a live connection, whose policy changed
        again = msgspec.structs.replace(record(), verdict=Verdict.ALLOW, hook=Hook.TO_POD)
        site.datapath.flows.put_nowait(again)  # of a packet that from-pod has told of
        site.datapath.flows.put_nowait(record())
        await until(lambda: site.datapath.flows.empty())
        told = await site.get("audit")
        ((entry,), lost) = told["entries"], told["lost"]
        assert (entry["reason"], entry["port"], entry["count"]) == ("default-deny", 81, 4)
        assert (entry["source"]["pod"], entry["destination"]["pod"]) == ("default/client", "default/server")
        assert lost == {"kernel": 4, "access-log": 0}
        flows = (await site.cli("flows", "--verdict", "audit")).splitlines()
        assert len(flows) == 5
        assert " audit default-deny" in flows[0]
        output = await site.cli("policy", "audit", "--reset")
        assert "default: k8s:app=client" in output
        assert "! 4 records were lost (kernel)" in output
        anew = msgspec.json.decode(await site.cli("policy", "audit", "-o", "json"))
        assert (anew["entries"], anew["lost"]["kernel"]) == ([], 0)
        assert "spliceway_audit_records_total 4.0" in await asyncio.to_thread(_metrics, site.socket)
        assert "spliceway_policies_in_audit 1.0" in await asyncio.to_thread(_metrics, site.socket)

    with_agent(tmp_path, body)


def test_enforcement_audit_is_for_every_policy(tmp_path: Path) -> None:
    async def body() -> None:
        site = Site(tmp_path, "enforcement: audit")
        site.write("pods.yaml", pod("client", "10.240.1.10") + "---" + pod("server", "10.240.1.11"))
        site.write("web.yaml", policy("web", "server", 80))
        task = asyncio.create_task(site.agent().run(site.stop))
        await until(lambda: site.datapath.table is not None or task.done())
        table = site.datapath.table
        assert table is not None
        assert {row.verdict for row in table.rows.values()} == {Verdict.ALLOW}
        assert Reason.DEFAULT_DENY in {row.reason for row in table.rows.values()}
        assert "audit: nothing is denied by any policy (1 policy)" in await site.cli("status", status=1)
        (server,) = await site.get("policy", endpoint="default/server")
        assert {row["verdict"] for row in server["rows"]} == {"allow", "audit"}
        site.stop.set()
        await task

    run(body)


def test_a_policy_without_room_is_told_like_a_refused_document(tmp_path: Path) -> None:
    async def body() -> None:
        site = Site(tmp_path)
        site.datapath.room["rows"] = 30
        site.write("pods.yaml", pod("client", "10.240.1.10") + "---" + pod("server", "10.240.1.11"))
        site.write("web.yaml", policy("web", "server", 80))
        task = asyncio.create_task(site.agent().run(site.stop))
        await until(lambda: site.datapath.table is not None or task.done())
        # Odd ports share no prefix: a row for each.
        site.write(
            "web.yaml", policy("web", "server", *range(1, 79, 2)) + "---" + policy("web2", "client", *range(1, 79, 2))
        )
        while not (refusals := (await site.get("status"))["source"]["refusals"]):
            pass
        assert [(one["file"], one["document"], one["kept"]) for one in refusals] == [
            ("web.yaml", "CiliumNetworkPolicy default/web", True),
            ("web.yaml", "CiliumNetworkPolicy default/web2", False),
        ]
        said = "refused for want of room: rows would need "
        assert refusals[0]["reason"].startswith(said)
        assert f"CiliumNetworkPolicy default/web: {said}" in " ".join((await site.cli("status", status=1)).split())
        assert f"CiliumNetworkPolicy default/web2: {said}" in " ".join((await site.cli("policy", "get")).split())
        assert "spliceway_refused_documents 2.0" in await asyncio.to_thread(_metrics, site.socket)
        assert {row.port for row in site.datapath.table.rows if row.port_bits == 16} == {80}  # type: ignore[union-attr]
        site.write("web.yaml", policy("web", "server", 81))
        while (await site.get("status"))["source"]["refusals"]:
            pass
        assert {row.port for row in site.datapath.table.rows if row.port_bits == 16} == {81}  # type: ignore[union-attr]
        site.stop.set()
        await task

    run(body)


def test_a_follower_that_goes_is_forgotten(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        reader, writer = await asyncio.open_unix_connection(site.socket)
        writer.write(b"GET /v1/flows?follow=1 HTTP/1.1\r\nHost: agent\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        assert (await site.get("status"))["flows"]["followers"] == 1
        writer.close()
        await writer.wait_closed()
        while (await site.get("status"))["flows"]["followers"]:
            pass

    with_agent(tmp_path, body)


def test_metrics(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        text = await asyncio.to_thread(_metrics, site.socket)
        for line in (
            'spliceway_verdicts_total{hook="from-pod",reason="default-deny",verdict="deny"} 7.0',
            'spliceway_splice_connections_total{reason="sent-first",result="tcp-only"} 2.0',
            'spliceway_splice_enabled{class="servers"} 1.0',
            'spliceway_splice_bytes_total{path="redirected"} 1000.0',
            'spliceway_lost_events_total{where="kernel"} 4.0',
            "spliceway_policy_revision 1.0",
            "spliceway_refused_documents 0.0",
            'spliceway_xds_nacks_total{type="RDS"} 0.0',
            "spliceway_proxy_restarts_total 0.0",
            "spliceway_proxy_worker_restarts_total 3.0",
            "spliceway_reconcile_duration_seconds_count 1.0",
        ):
            assert line in text.splitlines()

    with_agent(tmp_path, body)


def _metrics(path: Path) -> str:
    from spliceway.agent.cli.client import _UnixConnection

    with contextlib.closing(_UnixConnection(path, 5.0)) as connection:
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        answer: http.client.HTTPResponse = connection.getresponse()
        return answer.read().decode()


def test_sock_list_filters_watches_and_counts(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        for chosen in (("--pod", "client"), ("--state", "spliced"), ("--pod", "default/client", "--state", "spliced")):
            assert "default/client" in await site.cli("sock", "list", *chosen)
        for chosen in (("--pod", "server"), ("--state", "tcp-only"), ("--reason", "sent-first")):
            empty = await site.cli("sock", "list", *chosen)
            assert "default/client" not in empty
            assert "no redirected connection like this is open now; `" in empty
        assert "there are default/client, default/server on this node" in (
            await site.cli("sock", "list", "--pod", "nobody", status=2)
        )
        assert "no state 'fast'" in await site.cli("sock", "list", "--state", "fast", status=2)
        assert "no reason 'x'" in await site.cli("sock", "list", "--reason", "x", status=2)
        watched = await site.cli("sock", "list", "--watch", "--interval", "0.1", "--count", "3", "-o", "json")
        looks = [msgspec.json.decode(line) for line in watched.splitlines()]
        rates = [look["socks"][0]["toProxyBytesPerSecond"] for look in looks]
        assert rates == [None, 0.0, 0.0]
        assert all(datetime.fromisoformat(look["time"]).tzinfo == UTC for look in looks)
        watched = await site.cli("sock", "list", "--watch", "--interval", "0.1", "--count", "2")
        assert watched.count("1 connection: 1 spliced; 0 B/s spliced\n") == 2
        counted = (await site.cli("sock", "summary")).splitlines()
        assert [line.split() for line in counted] == [
            ["STATE", "REASON", "TOTAL", "NOW"],
            ["spliced", "-", "3", "1"],
            ["revoked", "-", "1", "0"],
            ["tcp-only", "sent-first", "2", "0"],
        ]

    with_agent(tmp_path, body)


def test_every_command(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.datapath.flows.put_nowait(record())
        await until(lambda: site.datapath.flows.empty())
        output = await site.cli("status", status=1)
        assert "none is connected over xDS" in output
        assert "embedded 0.1.0, 2 workers (3 replaced), pid 7 of before drains for " in output
        assert "default/server" in await site.cli("endpoint", "list")
        assert "reserved:world-ipv4" in await site.cli("identity", "list")
        assert await site.cli("service", "list") == "SERVICE  PORT  KIND  FRONTEND  COUNT  BACKENDS\n"
        assert "spec.ingress[0].toPorts[0]" in await site.cli("policy", "get")
        assert "no policy selects it" in await site.cli("policy", "get", "default/client")
        assert "no policy selects it" in await site.cli("policy", "get", "client")
        assert "no endpoint" in await site.cli("policy", "get", "default/nobody", status=1)
        assert "pod nobody: there are default/client" in await site.cli("policy", "get", "nobody", status=2)
        assert "spliced" in await site.cli("sock", "list")
        assert "TYPE" in await site.cli("xds", "dump")
        for table in ("policy", "ipcache", "ct", "reasons", "lb"):
            await site.cli("bpf", table, "list")
        assert "default/client(10.240.1.10:40000) -> default/server(10.240.1.11:81) TCP deny default-deny" in (
            await site.cli("flows")
        )
        assert "stay as they are (after a restart of the agent: auto)\n" in await site.cli("splice", "off")
        assert site.datapath.splice == SpliceClasses(clients=False, servers=False, wanted=False)
        assert "no mode 'fast'" in await site.cli("splice", "fast", status=2)
        for command in (
            ("status",), ("endpoint", "list"), ("identity", "list"), ("policy", "get"), ("sock", "list"),
            ("service", "list"), ("xds", "dump"), ("bpf", "policy", "list"), ("bpf", "ct", "list"),
            ("bpf", "lb", "list"), ("flows",),
        ):  # fmt: skip
            output = await site.cli(*command, "-o", "json", status=1 if command == ("status",) else 0)
            msgspec.json.decode(output.splitlines()[0] if command == ("flows",) else output)

    with_agent(tmp_path, body)


SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, externalIPs: [198.51.100.1], ports: [{name: http, port: 80}], sessionAffinity: ClientIP}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: other}
spec: {clusterIP: 10.96.0.11, externalIPs: [198.51.100.1], loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}, {addresses: [10.1.0.3]}, {addresses: [10.1.0.4]}]
"""


def test_services(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        assert (await site.get("status"))["services"]["services"] == 0
        site.write("services.yaml", SERVICES)
        while not (status := await site.get("status"))["services"]["services"]:
            pass
        assert status["services"] == {
            "services": 2, "frontends": 3, "withoutBackends": 2, "conflicts": 1, "leftOut": 1,
        }  # fmt: skip
        said = await site.cli("status", status=1)
        assert "2 Services, 3 frontends (2 without backends)" in said
        assert "(warning) services: several Services want the same address and port (1 frontend)" in said
        found = await site.get("services")
        assert [(one["service"], one["kind"], one["address"]) for one in found["frontends"]] == [
            ("other/web", "ClusterIP", "10.96.0.11"),
            ("other/web", "ExternalIP", "198.51.100.1"),
            ("shop/web", "ClusterIP", "10.96.0.10"),
        ]
        assert found["frontends"][1]["conflicts"] == [
            {"service": "shop/web", "portName": "http", "kind": "ExternalIP"},
        ]
        assert found["frontends"][2] == {
            "service": "shop/web", "portName": "http", "kind": "ClusterIP", "address": "10.96.0.10", "port": 80,
            "protocol": "TCP", "backends": [{"address": f"10.1.0.{last}", "port": 8080} for last in (1, 2, 3, 4)],
            "affinitySeconds": 10800, "conflicts": [],
        }  # fmt: skip
        table = await site.cli("service", "list")
        assert "10.96.0.10:80/TCP    4      10.1.0.1:8080, 10.1.0.2:8080, 10.1.0.3:8080, 1 more\n" in table
        notes = (
            "! 198.51.100.1:80/TCP: shop/web (ExternalIP) wants it, too; other/web (ExternalIP) has it\n",
            "(no frontend) other/web: 192.0.2.1: loadBalancerSourceRanges says who may dial it\n",
        )
        assert all(note in table for note in notes)
        wide = await site.cli("service", "list", "-o", "wide")
        assert "10.1.0.3:8080, 10.1.0.4:8080  10800 s\n" in wide
        # Of a namespace: also what it lost to another one.
        of_shop = await site.cli("service", "list", "-n", "shop")
        assert notes[0] in of_shop
        assert "10.96.0.11" not in of_shop
        assert notes[1] not in of_shop
        assert yaml.safe_load(await site.cli("service", "list", "-o", "yaml")) == found
        assert msgspec.json.decode(await site.cli("service", "list", "-o", "json")) == found
        assert "is not a name of a namespace" in await site.cli("service", "list", "-n", "Shop", status=2)

    with_agent(tmp_path, body)


def test_cleanup_leaves_nothing(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        assert (tmp_path / "state" / "state.json").exists()

    site = with_agent(tmp_path, body, cleanup=True)
    assert site.datapath.removed
    assert site.proxies[0].stopped
    assert not (tmp_path / "state" / "state.json").exists()
    assert not site.socket.exists()


def test_a_second_agent_does_not_start(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        with pytest.raises(StateError, match=r"belongs to a running agent"):
            await site.agent().run(asyncio.Event())
        assert (await site.get("status"))["node"] == NODE

    with_agent(tmp_path, body)


def test_a_component_that_fails_ends_the_agent(tmp_path: Path) -> None:
    async def body() -> None:
        site = Site(tmp_path)

        async def broken() -> None:
            raise SplicewayError("the proxy can't run")

        agent = site.agent(make_proxy=lambda config, on_exit: _with_run(site.make_proxy(config, on_exit), broken))
        with pytest.raises(BaseExceptionGroup) as caught:
            await agent.run(site.stop)
        assert caught.group_contains(SplicewayError, match="the proxy can't run")
        assert site.datapath.closed
        assert not site.socket.exists()

    run(body)


def _with_run(process: MemoryProxyProcess, body: Callable[[], Awaitable[None]]) -> MemoryProxyProcess:
    process.run = body  # type: ignore[method-assign,assignment]
    return process


def test_a_path_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("text")
    with pytest.raises(SplicewayError, match=r"is there and is not a socket"):
        unix_listener(precious)
    assert precious.read_text() == "text"
    with pytest.raises(SplicewayError, match=r"longer than the 107 bytes"):
        unix_listener(tmp_path / ("x" * 120))


async def _tell_metrics(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    status = b"200 OK" if head.startswith(b"GET /stats/prometheus ") else b"404 Not Found"
    writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 7\r\n\r\nup_x 1\n")
    await writer.drain()
    writer.close()


def test_metrics_over_tcp(tmp_path: Path) -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            site = Site(tmp_path, f"metrics: {{listen: '127.0.0.1:{port}'}}")
            with pytest.raises(SplicewayError, match=rf"metrics.listen 127.0.0.1:{port}: .*ddress already in use"):
                await site.agent().run(site.stop)
        task = asyncio.create_task(site.agent().run(site.stop))
        await until(lambda: site.datapath.table is not None)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        assert b"spliceway_policy_revision" in await reader.read()
        writer.close()
        await writer.wait_closed()
        answers = []
        for running in (False, True):
            if running:
                proxy = await asyncio.start_unix_server(_tell_metrics, proxy_admin_socket(site.config))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics/proxy HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
            answers.append((await reader.read()).decode())
            writer.close()
            await writer.wait_closed()
        proxy.close()
        assert answers[0].startswith("HTTP/1.1 502 ")
        assert "\r\n\r\nthe proxy does not tell its metrics: " in answers[0]
        assert (answers[1][:13], answers[1][-11:]) == ("HTTP/1.1 200 ", "\r\n\r\nup_x 1\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        assert b"404" in await reader.readline()
        writer.close()
        await writer.wait_closed()
        site.stop.set()
        await task

    run(body)
