"""`spliceway policy evaluate` as users run it: files, directories, pipes, refusals, exit status, many queries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.questions import write_world

CLI = [sys.executable, "-m", "spliceway.agent", "policy", "evaluate"]
PODS = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node1}
status: {podIP: 10.240.1.10}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: node1}
status: {podIP: 10.240.1.11}
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
"""
CLOSED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{}]}
"""
QUERIES = [
    {"from": "shop/web", "to": "shop/db", "protocol": "TCP", "port": 5432},
    {"from": "shop/web", "to": "shop/db", "protocol": "TCP", "port": 5433},
    {"from": "shop/db", "to": "shop/web", "protocol": "TCP", "port": 80},
]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two directories and a file of queries."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "inventory" / "pods").mkdir(parents=True)
    (tmp_path / "policies" / "db.yaml").write_text(POLICY)
    (tmp_path / "inventory" / "pods" / "shop.yaml").write_text(PODS)
    (tmp_path / "queries.jsonl").write_text("".join(f"{json.dumps(query)}\n" for query in QUERIES))
    return tmp_path


def run(*arguments: str | Path, stdin: str | None = None, cwd: Path) -> tuple[int, list[str], str]:
    done = subprocess.run(
        [*CLI, *map(str, arguments)], input=stdin, capture_output=True, text=True, cwd=cwd, timeout=60, check=False
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def verdicts(lines: list[str]) -> list[str]:
    return [json.loads(line).get("verdict", "error") for line in lines]


SITE = ("--policies", "policies", "--inventory", "inventory", "-o", "json")


def test_directories_and_a_file_of_queries(site: Path) -> None:
    status, lines, errors = run(*SITE, "--queries", "queries.jsonl", cwd=site)
    assert (status, errors, verdicts(lines)) == (0, "", ["allow", "deny", "allow"])
    for line, query in zip(lines, QUERIES, strict=True):
        found: dict[str, Any] = json.loads(line)
        assert {key: found[key] for key in query} == query
        assert set(found) - set(query) == {"verdict", "ingress", "egress", "reason", "rules"}


def test_several_paths_files_too_and_queries_from_stdin(site: Path) -> None:
    """An option may be repeated or take several values; what is named twice is read once."""
    (site / "closed.yaml").write_text(CLOSED)
    text = (site / "queries.jsonl").read_text()
    for policies in (
        ("--policies", "policies", "closed.yaml"),
        ("--policies", "policies", "--policies", "closed.yaml"),
        ("--policies=closed.yaml", "--policies", "policies/db.yaml", "policies"),
    ):
        inventory = ("--inventory", "inventory", "inventory/pods/shop.yaml", "policies")
        status, lines, errors = run(*policies, *inventory, "--queries", "-", "-o", "json", stdin=text, cwd=site)
        assert (status, errors, verdicts(lines)) == (0, "", ["allow", "deny", "deny"])


def test_directories_are_read_to_the_bottom(site: Path) -> None:
    """Also through symbolic links, which may be loops; hidden files are editors' and ConfigMaps' own."""
    deep = site / "policies" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "closed.yaml").write_text(CLOSED)
    (deep / "loop").symlink_to(site / "policies")
    (site / "inventory" / "linked").symlink_to(site / "policies")
    (site / "policies" / ".hidden.yaml").write_text("[")
    (site / "policies" / "notes.txt").write_text("[")
    status, lines, errors = run(*SITE, "--queries", "queries.jsonl", cwd=site)
    assert (status, errors, verdicts(lines)) == (0, "", ["allow", "deny", "deny"])


def test_what_is_no_file_is_refused(site: Path) -> None:
    os.mkfifo(site / "policies" / "pipe.yaml")
    (site / "policies" / "gone.yaml").symlink_to("nowhere")
    status, lines, errors = run(*SITE, "--queries", "queries.jsonl", cwd=site)
    assert (status, lines) == (1, [])
    assert errors.splitlines() == [
        "policies/gone.yaml: is not a regular file",
        "policies/pipe.yaml: is not a regular file",
        "spliceway: 2 documents are refused, so no query is answered (--skip-refused leaves them out)",
    ]


def test_a_reader_that_goes_is_no_error(site: Path) -> None:
    (site / "queries.jsonl").write_text(f"{json.dumps(QUERIES[0])}\n" * 20_000)
    command = " ".join([*CLI, *SITE, "--queries queries.jsonl | head -1"])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=site, timeout=60, check=False)
    assert (done.stderr, verdicts(done.stdout.splitlines())) == ("", ["allow"])


def test_an_inventory_from_a_pipe(site: Path) -> None:
    command = " ".join(
        [*CLI, "--policies policies --inventory <(cat inventory/pods/*) --queries queries.jsonl -o json"]
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=site, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert verdicts(done.stdout.splitlines()) == ["allow", "deny", "allow"]


def test_refused_documents(site: Path) -> None:
    (site / "policies" / "bad.yaml").write_text(CLOSED.replace("ingress", "ingres") + "---" + CLOSED)
    says = "policies/bad.yaml: CiliumNetworkPolicy shop/closed: spec.ingres: "
    status, lines, errors = run(*SITE, "--queries", "queries.jsonl", cwd=site)
    assert (status, lines) == (1, [])
    assert errors.startswith(says)
    status, lines, errors = run(*SITE, "--queries", "queries.jsonl", "--skip-refused", cwd=site)
    assert (status, verdicts(lines)) == (0, ["allow", "deny", "deny"])
    assert errors.startswith(says)
    assert errors.endswith("spliceway: 1 document is left out\n")


def test_no_policy_at_all_is_told(site: Path) -> None:
    (site / "policies" / "db.yaml").unlink()
    status, lines, errors = run(*SITE, "--queries", "queries.jsonl", cwd=site)
    assert (status, verdicts(lines)) == (0, ["allow"] * 3)
    assert errors == "spliceway: there is no policy in these files, so everything is allowed\n"


def test_a_large_inventory(site: Path) -> None:
    """More than an agent takes in one file (4 MiB): the caller's own files may be as kubectl prints them."""
    (site / "inventory" / "pods" / "shop.yaml").write_text(PODS + f"# {'x' * 1000}\n" * 5000)
    status, lines, errors = run(*SITE, "--queries", "queries.jsonl", cwd=site)
    assert (status, errors, verdicts(lines)) == (0, "", ["allow", "deny", "allow"])
    (site / "all.yaml").write_text(PODS + f"# {'x' * 1000}\n" * 5000)
    status, lines, errors = run(
        "--policies", "policies", "--inventory", "all.yaml", "--queries", "queries.jsonl", "-o", "json", cwd=site
    )
    assert (status, errors, verdicts(lines)) == (0, "", ["allow", "deny", "allow"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"kind: [", "bad.yaml: line 2: not YAML"),
        (b"\xff", "bad.yaml: is not UTF-8 (byte 0)"),
        (POLICY.encode(), "bad.yaml: NetworkPolicy shop/db: is already in policies/db.yaml"),
        (b"{apiVersion: v1, kind: Pod, metadata: {name: x}, status: {podIP: 10.0.0.256}}",
         "bad.yaml: Pod default/x: status.podIP: 10.0.0.256 is not an IP address"),
    ],
)  # fmt: skip
def test_refused_files(site: Path, content: bytes, says: str) -> None:
    (site / "bad.yaml").write_bytes(content)
    status, lines, errors = run(*SITE, "--inventory", "bad.yaml", "--queries", "queries.jsonl", cwd=site)
    assert (status, lines) == (1, [])
    assert errors.startswith(says)
    assert [line.startswith("spliceway: 1 document is refused") for line in errors.splitlines()] == [False, True]


def test_wrong_queries_are_answered_and_told_at_the_end(site: Path) -> None:
    text = '{"from": "shop/nobody", "to": "shop/db", "port": 1}\n\n' + (site / "queries.jsonl").read_text() + "junk"
    status, lines, errors = run(*SITE, "--queries", "-", stdin=text, cwd=site)
    assert (status, verdicts(lines)) == (1, ["error", "allow", "deny", "allow", "error"])
    assert errors == ("spliceway: 2 of 5 queries are wrong; query 1: from: the inventory has no pod shop/nobody\n")


def test_usage(site: Path) -> None:
    assert run(*SITE, cwd=site)[0] == 2
    assert run(*SITE, "--queries", "nothing", cwd=site)[0] == 2
    assert run("--policies", "nothing", "--inventory", "inventory", "--queries", "queries.jsonl", cwd=site)[0] == 2
    assert run(*SITE, "--queries", "queries.jsonl", "--colour", cwd=site)[0] == 2


def test_a_table_for_people(site: Path) -> None:
    text = (site / "queries.jsonl").read_text() + '{"from": "shop/x", "to": "shop/db", "port": 1}\n'
    status, lines, _errors = run(*SITE[:4], "--queries", "-", stdin=text, cwd=site)
    assert status == 1
    assert [line.split() for line in lines] == [
        ["FROM", "TO", "PORT", "REQUEST", "VERDICT", "REASON", "RULES"],
        ["shop/web", "shop/db", "5432/tcp", "-", "allow", "policy-allowed",
         "NetworkPolicy", "shop/db", "spec.ingress[0]"],
        ["shop/web", "shop/db", "5433/tcp", "-", "deny", "default-deny", "(ingress)"],
        ["shop/db", "shop/web", "80/tcp", "-", "allow", "no-policy", "-"],
        ["shop/x", "shop/db", "1/tcp", "-", "error", "from:", "the", "inventory", "has", "no", "pod", "shop/x", "-"],
    ]  # fmt: skip


def test_the_table_says_why_no_http_rule_matched(site: Path) -> None:
    port = '{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /a}]}}'
    (site / "policies" / "http.yaml").write_text(CLOSED.replace("ingress: [{}]", f"ingress: [{{toPorts: [{port}]}}]"))
    text = '{"from": "shop/db", "to": "shop/web", "port": 80, "http": {"path": "/b"}}'
    _status, lines, _errors = run(*SITE[:4], "--queries", "-", stdin=text, cwd=site)
    assert lines[1].endswith(
        "deny     http-denied  rule CiliumNetworkPolicy shop/closed spec.ingress[0].toPorts[0].rules.http[0]: "
        "method matches, path /b does not match /a"
    )


def test_fifty_thousand_queries_over_a_thousand_pods(tmp_path: Path) -> None:
    """What CI of many policies asks: every query has its answer, in its order (how long it takes: bench_evaluate)."""
    write_world(tmp_path, queries=50_000)
    status, lines, errors = run(
        "--policies", "all.json", "--inventory", "all.json", "--queries", "queries.jsonl", "-o", "json", cwd=tmp_path
    )
    assert (status, errors, len(lines)) == (0, "", 50_000)
    assert set(verdicts(lines[:1000])) == {"allow", "deny"}
