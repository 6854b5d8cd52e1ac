"""The demo from nothing to its result."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from spliceway.agent.bench.measure import Sample
from spliceway.agent.bench.progress import Say
from spliceway.agent.bench.site import require_programs
from spliceway.agent.configsections import ProxyKind
from spliceway.agent.demo.ask import ask_all
from spliceway.agent.demo.evidence import gather
from spliceway.agent.demo.judge import Row, judge, rule_on
from spliceway.agent.demo.plan import Chapter, examples, load_chapters
from spliceway.agent.demo.speed import measure_speed
from spliceway.agent.envoyprocess import find_envoy
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent, takes_long
from spliceway.agent.testbed.node import Node
from spliceway.agent.testbed.testbed import Testbed
from spliceway.policy.documents import load_documents
from spliceway.policy.model import Cluster
from spliceway.policy.parse import parse_document


class DemoResult(msgspec.Struct, frozen=True):
    """What came out. When the node was left running, `kept` is the testbed's id and `policies` its policy directory."""

    rows: list[Row]
    samples: Sequence[Sample]
    kept: str = ""
    policies: str = ""


def run_demo(proxy: ProxyKind, *, quick: bool, keep: bool, say: Say) -> DemoResult:
    """Build, ask, look up, measure, and leave nothing behind unless `keep`. Raises an AgentError when it can't."""
    chapters = load_chapters()
    manifests, policies = [examples("demo"), examples("demo-outside")], examples("demo/policies")
    require_programs()
    if proxy == "envoy":
        find_envoy()
    say("building a virtual node with four pods, and two hosts outside of it")
    with Testbed.up(manifests, policies=[policies]) as testbed:
        say(f"starting the agent and the proxy ({proxy}) on it (testbed {testbed.run_id}){takes_long()}")
        agent = start_agent(testbed.node, {"proxy": {"kind": proxy, "workers": 1}})
        try:
            result = _try(testbed, agent, proxy, chapters, quick=quick, say=say)
        except BaseException:
            agent.kill()
            raise
        if keep:
            testbed.keep()
            return msgspec.structs.replace(result, kept=testbed.run_id, policies=str(testbed.node.info.policies))
        say("taking the node down")
        agent.kill()
    return result


def _try(
    testbed: Testbed, agent: AgentProcess, proxy: ProxyKind, chapters: Sequence[Chapter], *, quick: bool, say: Say
) -> DemoResult:
    say(f"making {2 * sum(len(chapter.requests) for chapter in chapters)} requests, over IPv4 and IPv6")
    asked, said = ask_all(testbed, agent.client, chapters)
    cluster = cluster_of(testbed.node)
    rows = [
        judge(
            one.chapter,
            one.request,
            one.family,
            one.answer,
            one.body,
            gather(one.connection, said.flows, said.socks),
            rule_on(cluster, one.request, one.connection),
        )
        for one in asked
    ]
    say("measuring pod to pod, through the proxy, and through the proxy with spliced sockets, in turn")
    return DemoResult(rows, measure_speed(testbed, agent, proxy, quick=quick, say=say))


def cluster_of(node: Node) -> Cluster:
    """What the agent of a node reads, for the interpreter."""
    return Cluster().with_objects(
        item
        for file in sorted(node.info.manifests.rglob("*.yaml"))
        for document in load_documents(file.read_text(), file.name)
        for item in parse_document(document)
    )
