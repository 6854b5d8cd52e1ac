"""The agent dies under load: verdicts, proxy and splices go on without it, and the next one takes over."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.inventory import Inventory
from spliceway.agent.sources.scan import Tree
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import HttpRequest
from spliceway.policy.verdict import Verdict
from support import load
from support.attack import Site, attack, attacked_site, seconds
from support.node import http_status
from support.waiting import LIMIT, until

pytestmark = pytest.mark.kernel

DOWN = float(os.environ.get("SPLICEWAY_DOWN_SECONDS", "5"))


@pytest.fixture
def site() -> Iterator[Site]:
    with attacked_site() as built:
        yield built


def assert_verdicts(site: Site) -> None:
    """New connections: allowed, refused by HTTP rules, denied in the kernel; both families."""
    for version in (4, 6):
        assert http_status(site.testbed, "frontend", "api", "/articles/1", version=version) == 200
        assert http_status(site.testbed, "frontend", "api", "/private", version=version) == 403
        assert http_status(site.testbed, "frontend", "backend", "/", version=version) == 200
        assert http_status(site.testbed, "intruder", "api", "/articles/1", version=version, timeout=1) == 0
        assert http_status(site.testbed, "intruder", "backend", "/", version=version, timeout=1) == 0


def proxy_of(status: dict[str, Any]) -> int:
    return int(status["proxy"]["process"]["pid"])


def edit_and_check(site: Site) -> None:
    """Edits of HTTP and kernel rules take effect, and are taken back."""
    site.node.write_policy("api", load.POLICY.replace('/articles/[0-9]+"', '/changed/[0-9]+"'))
    wait_revision(site)
    assert http_status(site.testbed, "frontend", "api", "/changed/1") == 200
    assert http_status(site.testbed, "frontend", "api", "/articles/1") == 403
    site.node.write_policy("api", load.POLICY.replace('port: "80"', 'port: "81"'))
    wait_revision(site)
    assert http_status(site.testbed, "frontend", "api", "/articles/1", timeout=1) == 0
    site.node.write_policy("api", load.POLICY)
    wait_revision(site)
    assert_verdicts(site)


def wait_revision(site: Site) -> None:
    """Until what lies in the directory is in force: compiled from the same files, the revision's rows are ours."""
    deadline = time.monotonic() + 10
    wanted = (site.node.info.policies / "api.yaml").read_text()
    rule = "/changed" if "/changed" in wanted else "/articles/[0-9]+"
    port = "81" if 'port: "81"' in wanted else "80"
    while time.monotonic() < deadline:
        (policy,) = site.control.client.get("policy", endpoint="default/api")
        rows = [row for row in policy["rows"] if row["http"]]
        status = site.control.client.get("status")["policy"]
        settled = status["revision"] == status["wanted"] and not status["waiting"] and not status["error"]
        if settled and any(row["ports"] == port and row["http"][0]["path"].startswith(rule) for row in rows):
            return
        time.sleep(0.02)
    raise AssertionError(f"not in force: {site.control.client.get('status')}")


@pytest.mark.timeout(900)
def test_killed_and_started_again_under_load(site: Site) -> None:
    proxy = proxy_of(site.control.wait_in_force())
    with site.load(requests=100_000) as held, site.load(fresh=True, connections=2) as fresh:
        time.sleep(0.5)
        site.control.kill()
        deadline = time.monotonic() + DOWN
        while time.monotonic() < deadline:
            assert_verdicts(site)
        begin = time.monotonic()
        site.start_agent()
        took = time.monotonic() - begin
        status = site.control.wait_in_force()
        time.sleep(1.0)
        held.flawless(200)
        fresh.flawless(50)
    assert status["datapath"]["takenOver"]
    assert proxy_of(status) == proxy
    assert status["proxy"]["process"]["adopted"]
    assert "compil" not in site.control.log_tail(40)
    assert took < LIMIT
    # Flows go on: what the proxy and the kernel say of new requests arrives at the new agent.
    seen = status["flows"]["published"]
    assert_verdicts(site)
    until(lambda: site.control.client.get("status")["flows"]["published"] > seen)
    edit_and_check(site)
    assert proxy_of(site.control.client.get("status")) == proxy


@pytest.mark.timeout(600)
def test_ended_and_started_again_under_load(site: Site) -> None:
    proxy = proxy_of(site.control.wait_in_force())
    with site.load(requests=100_000) as held:
        assert site.control.stop() == 0
        assert_verdicts(site)
        site.start_agent()
        status = site.control.wait_in_force()
        held.flawless(50)
    assert status["datapath"]["takenOver"]
    assert proxy_of(status) == proxy
    edit_and_check(site)


@pytest.mark.timeout(900)
def test_killed_in_the_middle_of_edits(site: Site) -> None:
    """SIGKILL at any moment of an apply. The next agent brings exactly what the files say into force."""
    generator = random.Random(1)
    backend = (site.node.info.policies / "1-backend-ingress.yaml").read_text()
    variants = [
        {"api": load.POLICY, "1-backend-ingress": backend},
        {"api": load.POLICY.replace("role: frontend", "role: intruder"), "1-backend-ingress": backend},
        {"api": load.POLICY.replace('port: "80"', 'port: "8080"'), "1-backend-ingress": backend},
        {"api": load.POLICY, "1-backend-ingress": backend.replace("role: frontend", "role: intruder")},
    ]
    rounds = max(3, round(seconds()))
    for turn in range(rounds):
        for _ in range(generator.randrange(1, 5)):
            for name, text in generator.choice(variants).items():
                site.node.write_policy(name, text)
            time.sleep(generator.random() * 0.03)
        site.control.kill()
        if turn % 3 == 2:  # also changes while nobody looks
            for name, text in generator.choice(variants).items():
                site.node.write_policy(name, text)
        site.start_agent()
        assert_rows_are_those_of_the_files(site)
    for name, text in variants[0].items():
        site.node.write_policy(name, text)
    wait_revision(site)
    site.control.wait_in_force()
    assert_verdicts(site)


def assert_rows_are_those_of_the_files(site: Site) -> None:
    """A request of each pod to each server gets what the reference interpreter says of the files."""
    inventory = Inventory(site.node.name)
    inventory.feed(tuple(Tree(site.node.info.manifests).changes()))
    assert inventory.refusals == ()
    servers = [address for pod in (site.api, site.backend) for address in pod.addresses]
    for client in (site.frontend, site.intruder):
        wanted = {}
        for address in servers:
            connection = Connection(client.address(address.version), address, 6, 80)
            found = evaluate(inventory.cluster, connection, HttpRequest.of("GET", "/articles/1"))
            wanted[str(address)] = found.verdict is not Verdict.DENY and (
                found.http is None or found.http.verdict is not Verdict.DENY
            )
        targets = [[address, 80] for address in wanted]
        request = "GET /articles/1 HTTP/1.1\r\nHost: api\r\n\r\n"
        report = attack(client, "dial", targets=targets, marks=[0], wait=1.5, request=request)
        got = {line.split()[0] for line in report["answered"] if "HTTP/1.1 200" in line}
        assert got == {address for address, passes in wanted.items() if passes}, (client.name, wanted, report)
