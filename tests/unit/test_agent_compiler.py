"""The engine in the agent: what has no room is refused and told, numbers live as long as what they name."""

from __future__ import annotations

import pytest

from spliceway.agent.compiler import Compiler
from spliceway.policy.budget import BudgetError, Limits
from spliceway.policy.engine import Options
from spliceway.policy.model import Object, object_key
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_text
from support.agent import NODE, pod, policy

PODS = pod("client", "10.240.1.10") + "---" + pod("server", "10.240.1.11")
ROOM = Limits(endpoints=10, ipcache=100, classes=100, rows=30, listeners=10, pairs=10)


def changes(*texts: str) -> dict[tuple[str, str], Object | None]:
    parsed = parse_text("\n---\n".join(texts), "test.yaml")
    assert not parsed.errors
    return {object_key(item): item for item in parsed.objects}


def test_a_policy_without_room_is_refused_and_its_version_before_stays() -> None:
    compiler = Compiler(Options(NODE, limits=ROOM), Numbering())
    before = compiler.apply(changes(PODS, policy("web", "server", 80)), 1)
    assert compiler.refused == ()
    # Odd ports: none can share a prefix with another.
    large = policy("web", "server", *range(1, 79, 2))
    after = compiler.apply(changes(large, policy("new", "client", *range(1, 79, 2), peer="server")), 2)
    assert after.rows == before.rows
    told = {one.key: (one.kept, one.reason) for one in compiler.refused}
    assert {key: kept for key, (kept, _reason) in told.items()} == {
        ("CiliumNetworkPolicy", "default/new"): False,
        ("CiliumNetworkPolicy", "default/web"): True,
    }
    for _kept, reason in told.values():
        assert reason.startswith("refused for want of room: rows would need ")
        assert reason.endswith(" entries and has room for 30")
    compiler.apply(changes(policy("web", "server", 81), policy("new", "client", 82, peer="server")), 3)
    assert compiler.refused == ()


def test_numbers_of_an_earlier_agent_are_kept_or_forgotten() -> None:
    first = Numbering()
    before = Compiler(Options(NODE), first).apply(changes(PODS, pod("gone", "10.240.1.12")), 1)
    again = Numbering.from_dict(first.to_dict())
    compiler = Compiler(Options(NODE), again)
    after = compiler.apply(changes(PODS), 1)
    assert after.endpoints["default/server"] == before.endpoints["default/server"]
    assert len(again.to_dict()["identities"]["numbers"]) == 3
    compiler.settle(after)
    assert len(again.to_dict()["identities"]["numbers"]) == 2


def test_load_balancing_follows_the_same_changes() -> None:
    compiler = Compiler(Options(NODE, limits=ROOM), Numbering())
    assert compiler.balance.services == 0
    service = (
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}"
    )
    compiler.apply(changes(PODS, service), 1)
    before = compiler.balance
    assert [str(frontend) for frontend in before.frontends] == ["10.96.0.10:80/TCP"]
    # Pods that the maps have no room for do not keep Services from changing.
    many = [pod(f"p{number}", f"10.240.2.{number}") for number in range(1, 20)]
    with pytest.raises(BudgetError):
        compiler.apply(changes(*many, service.replace("0.10", "0.11")), 2)
    assert [str(frontend) for frontend in compiler.balance.frontends] == ["10.96.0.11:80/TCP"]
    assert [str(frontend) for frontend in before.frontends] == ["10.96.0.10:80/TCP"]


def test_only_given_numbers_must_be_saved() -> None:
    compiler = Compiler(Options(NODE), Numbering())
    compiler.settle(compiler.apply(changes(PODS), 1))
    given = compiler.given
    compiler.settle(compiler.apply(changes(pod("twin", "10.240.1.13", app="server")), 2))
    assert compiler.given == given
    compiler.settle(compiler.apply({("Pod", "default/client"): None}, 3))
    assert compiler.given == given
    compiler.settle(compiler.apply(changes(pod("other", "10.240.1.14")), 4))
    assert compiler.given > given
