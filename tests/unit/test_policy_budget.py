"""Every table fits the kernel's maps: a change of policies that would not is refused whole, with the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from spliceway.policy.budget import BudgetError, Limits, Need
from spliceway.policy.engine import Engine, Options
from spliceway.policy.model import NetworkPolicy, Object, Pod
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_text
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Verdict

CNP = "CiliumNetworkPolicy"


def _pod(number: int, role: str) -> Pod:
    return Pod("default", f"pod{number}", {"role": role}, (ip_address(f"10.240.1.{number}"),), "node1")


def _policy(name: str, spec: str) -> NetworkPolicy:
    text = f"apiVersion: cilium.io/v2\nkind: {CNP}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    parsed = parse_text(text, "p.yaml")
    assert not parsed.errors
    (found,) = parsed.objects
    assert isinstance(found, NetworkPolicy)
    return found


def _allow(name: str, *ports: int) -> NetworkPolicy:
    """Egress to these ports of role b; next ports must not be neighbours, so that each is a row."""
    listed = ", ".join(f"{{port: '{port}', protocol: TCP}}" for port in ports)
    return _policy(
        name,
        "{endpointSelector: {matchLabels: {role: a}},"
        f" egress: [{{toEndpoints: [{{matchLabels: {{role: b}}}}], toPorts: [{{ports: [{listed}]}}]}}]}}",
    )


def _engine(objects: Iterable[Object] = (), **limits: int) -> tuple[Engine, PolicyTable]:
    engine = Engine(Options(node="node1", limits=Limits(**limits)), Numbering())
    return engine, engine.apply((_pod(1, "a"), _pod(2, "b"), *objects), revision=1)


def test_a_policy_that_would_overflow_is_refused_with_map_need_and_room() -> None:
    engine, before = _engine(rows=4)
    table = engine.apply([_allow("big", 1, 3, 5, 7, 9)], revision=2)
    assert {**table.rows} == {**before.rows}
    (refusal,) = engine.refused.values()
    assert refusal.policy == (CNP, "default/big")
    assert refusal.needs == (Need("rows", 5, 4),)
    assert str(refusal) == (
        f"{CNP} default/big: refused for want of room: rows would need 5 entries and has room for 4"
    )
    assert not engine.cluster.policies


def test_the_last_version_stays_in_force_and_other_objects_are_taken() -> None:
    engine, before = _engine([_allow("one", 1)], rows=3)
    assert len(before.rows) == 1
    table = engine.apply([_allow("one", 1, 3, 5, 7), _pod(3, "b")], revision=2)
    assert {**table.rows} == {**before.rows}
    assert len(table.endpoints) == 3
    assert set(engine.refused) == {(CNP, "default/one")}
    assert engine.cluster.policies[CNP, "default/one"] == _allow("one", 1)


def test_what_fits_is_in_force_whatever_came_with_it() -> None:
    """An agent that starts hands in all policies at once: one that is too large must not open the node."""
    for first in (_allow("big", 1, 3, 5, 7), _allow("small", 80)):
        engine, _ = _engine(rows=3)
        second = _allow("small", 80) if first.name == "big" else _allow("big", 1, 3, 5, 7)
        table = engine.apply([first, second], revision=2)
        assert {key.port for key in table.rows} == {80}
        assert set(engine.refused) == {(CNP, "default/big")}
        assert set(engine.cluster.policies) == {(CNP, "default/small")}


def test_what_is_removed_goes_whatever_came_with_it() -> None:
    engine, table = _engine([_allow("small", 80)], rows=3)
    assert len(table.rows) == 1
    table = engine.apply([_allow("big", 1, 3, 5, 7)], [(CNP, "default/small")], revision=2)
    assert not table.rows
    assert set(engine.refused) == {(CNP, "default/big")}


def test_a_removal_that_has_no_room_yet_is_tried_again() -> None:
    """Without the deny rule there are two rows where one was, and until that one has gone there are three."""
    deny = "egressDeny: [{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}]"
    policy = _policy("deny", f"{{endpointSelector: {{matchLabels: {{role: a}}}}, {deny}}}")
    engine, table = _engine([_allow("ports", 1, 3), policy], rows=2)
    assert len(table.rows) == 1
    engine.apply([], [(CNP, "default/deny")], revision=2)
    assert engine.refused[CNP, "default/deny"].needs == (Need("rows", 3, 2),)
    assert engine.cluster.policies[CNP, "default/deny"] == policy
    engine.apply([_pod(1, "other")], revision=3)
    engine.apply([], revision=4)  # the last row has gone
    assert not engine.refused
    assert (CNP, "default/deny") not in engine.cluster.policies
    table = engine.apply([_pod(1, "a")], revision=5)
    assert {row.verdict for row in table.rows.values()} == {Verdict.ALLOW}


def test_keys_that_go_need_room_as_long_as_those_that_come() -> None:
    """While a revision is staged the kernel has both."""
    engine, _ = _engine([_allow("one", 1, 3, 5)], rows=5)
    engine.apply([_allow("one", 11, 13, 15)], revision=2)
    assert engine.refused[CNP, "default/one"].needs == (Need("rows", 6, 5),)
    engine, _ = _engine([_allow("one", 1, 3, 5)], rows=6)
    table = engine.apply([_allow("one", 11, 13, 15)], revision=2)
    assert not engine.refused
    assert {key.port for key in table.rows} == {11, 13, 15}


def test_it_is_tried_again_when_there_is_room() -> None:
    engine, _ = _engine([_allow("one", 1, 3, 5)], rows=5)
    engine.apply([_allow("two", 11, 13, 15)], revision=2)
    assert set(engine.refused) == {(CNP, "default/two")}
    # The same again is no news; a smaller one is tried at once.
    assert engine.apply([_allow("two", 11, 13, 15)], revision=3).delta is not None
    assert set(engine.refused) == {(CNP, "default/two")}
    assert not engine.hopeful
    engine.apply([], [(CNP, "default/one")], revision=4)
    assert engine.hopeful
    table = engine.apply([], revision=5)
    assert not engine.refused
    assert {key.port for key in table.rows} == {11, 13, 15}


def test_what_is_withdrawn_is_refused_no_more() -> None:
    engine, _ = _engine(rows=2)
    engine.apply([_allow("big", 1, 3, 5)], revision=2)
    engine.apply([], [(CNP, "default/big")], revision=3)
    assert not engine.refused


@pytest.mark.parametrize(
    ("limits", "need"),
    [
        ({"endpoints": 2}, Need("endpoints", 3, 2)),
        ({"ipcache": 4}, Need("ipcache", 5, 4)),  # the world's two prefixes and three pods
        ({"classes": 1}, Need("classes", 2, 1)),
    ],
)
def test_pods_that_do_not_fit_are_an_error_and_the_last_table_stays(limits: dict[str, int], need: Need) -> None:
    engine, before = _engine([_allow("one", 80)], **limits)
    third = Pod("default", "pod3", {"role": "b", "more": "x"}, (ip_address("10.240.1.3"),), "node1")
    with pytest.raises(BudgetError) as caught:
        engine.apply([third], revision=2)
    assert caught.value.needs == (need,)
    assert str(caught.value) == f"the table does not fit: {need}"
    assert engine.table is before
    # The pod is not forgotten: once another one goes, it is there, and the delta is against the last table.
    table = engine.apply([], [("Pod", "default/pod2")], revision=3)
    assert set(table.endpoints) == {"default/pod1", "default/pod3"}
    assert table.delta is not None
    assert table.delta.base == 1
    assert table.delta.endpoints >= {"default/pod2", "default/pod3"}


def test_listeners() -> None:
    http = (
        "{endpointSelector: {matchLabels: {role: b}}, ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}],"
        " rules: {http: [{path: /%s}]}}]}]}"
    )
    engine, table = _engine([_policy("one", http % "a")], listeners=1)
    assert len(table.rule_sets) == 1
    table = engine.apply([_policy("two", http.replace("'80'", "'81'") % "b")], revision=2)
    assert engine.refused[CNP, "default/two"].needs == (Need("listeners", 2, 1),)
    assert len(table.rule_sets) == 1
