"""The parts of telling what becomes of policies that ask nobody: names, versions, counts, conditions, Events."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliceway.agent.policystatus.conditions import Status, status_of
from spliceway.agent.policystatus.events import event, news
from spliceway.agent.policystatus.ledger import Ledger, Version, Written, version_of
from spliceway.agent.policystatus.naming import event_name, path_of, status_name
from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.policystatus.report import MOST_MESSAGES, REASONS, Report, Trouble, as_object, of_object, report
from spliceway.agent.policystatus.resources import CLUSTERWIDE, NAMESPACED
from spliceway.agent.policystatus.tally import Count, Tally
from spliceway.agent.sources.events import FileRemoved, ObjectChanged
from support.kubeapi.schemas import _LENGTH, _SUBDOMAIN

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=9).map(lambda parts: ".".join(parts)[:253].rstrip("-."))
KIND = st.sampled_from(["NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"])


def written(generation: int = 1, *, uid: str = "u", digest: str = "d", since: int = 5) -> Written:
    return Written(Version(uid, generation, digest), "cilium.io/v2", since)


@given(st.lists(st.tuples(KIND, NAME), min_size=2, max_size=5, unique=True))
def test_no_two_policies_have_the_same_name(keys: list[tuple[str, str]]) -> None:
    found = {status_name((kind, f"shop/{name}")) for kind, name in keys}
    assert len(found) == len(keys)
    for _resource, namespace, name in found:
        assert namespace == "shop"
        assert len(name) <= _LENGTH
        assert _SUBDOMAIN.fullmatch(name)


def test_a_name_made_to_meet_a_shortened_one_does_not() -> None:
    """Whoever may make policies can choose the second one's name."""
    for length in range(215, 254):
        long = "w" * length
        _, _, short = status_name(("CiliumNetworkPolicy", f"shop/{long}"))
        crafted = short.removeprefix("ciliumnetworkpolicy.")
        _, _, other = status_name(("CiliumNetworkPolicy", f"shop/{crafted}"))
        assert (other == short) is (crafted == long)
    dotted = "a." * 120 + "a"
    assert _SUBDOMAIN.fullmatch(status_name(("CiliumClusterwideNetworkPolicy", dotted))[2])


def test_paths() -> None:
    assert path_of(NAMESPACED, "shop", "x") == "/apis/spliceway.io/v1alpha1/namespaces/shop/policystatuses/x"
    assert path_of(CLUSTERWIDE, "", "x") == "/apis/spliceway.io/v1alpha1/clusterpolicystatuses/x"
    assert path_of(CLUSTERWIDE, "") == "/apis/spliceway.io/v1alpha1/clusterpolicystatuses"
    assert event_name("w" * 253, "m") != event_name("w" * 253, "n")
    assert _SUBDOMAIN.fullmatch(event_name("a." * 126 + "a", "m"))


def document(name: str = "web", *, revision: str = "7", **more: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "generation": 1, "resourceVersion": revision}
    metadata |= more.pop("metadata", {})
    return {
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": {"a": 1}, **more,
    }  # fmt: skip


def test_what_counts_of_a_policy_makes_its_version() -> None:
    version = version_of(document())
    same = (
        document(revision="8"),
        document(status={"x": 1}),
        document(apiVersion="cilium.io/v9"),
        document(metadata={"labels": {"a": "b"}, "annotations": {"a": "b"}}),
        dict(reversed(document().items())),
    )
    assert {version_of(one) for one in same} == {version}
    others = (
        document(spec={"a": 2}),
        document(specs=[{}]),
        document(metadata={"uid": "other"}),
        document(metadata={"generation": 2}),
        document(metadata={"annotations": {"spliceway.io/enforcement": "audit"}}),
    )
    assert len({version_of(one) for one in others} | {version}) == len(others) + 1
    assert Version.parse(version.text) == version


def test_what_is_in_force_is_what_its_intent_has_reached() -> None:
    ledger = Ledger()
    key = ("CiliumNetworkPolicy", "shop/web")
    file = "kubernetes:CiliumNetworkPolicy/shop/web"
    first, second = document(), document(revision="9", metadata={"generation": 2})
    ledger.saw((ObjectChanged(file, first),))
    ledger.asked(1, {key: first}.get)
    assert ledger.in_force == {}
    ledger.reached(1)
    assert ledger.in_force == {key: version_of(first)}
    assert ledger.positions == {"CiliumNetworkPolicy": 7}
    # What others write into it is no news, and it stays as old as it is.
    ledger.saw((ObjectChanged(file, document(revision="8", status={"x": 1})),))
    ledger.asked(2, {key: first}.get)
    ledger.reached(2)
    assert ledger.positions == {"CiliumNetworkPolicy": 7}
    assert ledger.heard == {"CiliumNetworkPolicy": 8}  # told with the next report
    assert ledger.written[key].since == 7
    # The second one is refused: the first stays in force, and nobody needs to wait for a look at it.
    ledger.saw((ObjectChanged(file, second),))
    assert ledger.heard == {"CiliumNetworkPolicy": 7}  # not before all of it is in force
    ledger.asked(3, {key: first}.get)
    assert ledger.positions == ledger.heard == {"CiliumNetworkPolicy": 7}
    ledger.reached(3)
    assert ledger.in_force == {key: version_of(first)}
    assert ledger.positions == {"CiliumNetworkPolicy": 9}
    assert ledger.written[key].version.generation == 2
    ledger.saw((FileRemoved(file),))
    ledger.asked(4, lambda _key: None)
    ledger.reached(4)
    assert (ledger.in_force, ledger.written) == ({}, {})


def test_a_report_is_the_same_when_it_was_read_again() -> None:
    troubles = [Trouble("u/1/d", "NoRoom", message="m" * 5000, selects=True), Trouble("v/1/d", "Document", "f", "x")]
    made = report("audit", {"B": 2, "A": 1}, ["z/1/d", "a/1/d"], troubles)
    assert made.applied == ("a/1/d", "z/1/d")
    assert [one.reason for one in made.exceptions] == ["Document", "NoRoom"]
    assert len(made.exceptions[1].message) == 1000
    text = msgspec.json.decode(msgspec.json.encode(as_object(made, "n1", "uid-1")))
    assert of_object(text) == ("uid-1", made)
    many = report("enforce", {}, [], [Trouble(f"{n:04}/1/d", "NoRoom", message="m") for n in range(500)])
    assert sum(bool(one.message) for one in many.exceptions) == MOST_MESSAGES
    assert len(many.exceptions) == 500


def test_counts_are_those_of_all_reports_however_they_changed() -> None:
    draw = random.Random(5)
    tally, reports = Tally(), {}
    uids = [f"u{number}" for number in range(6)]
    for _turn in range(600):
        node = f"n{draw.randrange(5)}"
        if draw.random() < 0.15:
            told = None
            reports.pop(node, None)
        else:
            chosen = draw.sample(uids, draw.randrange(5))
            split = draw.randrange(len(chosen) + 1)
            troubles = [
                Trouble(f"{uid}/2/d", draw.choice(REASONS), selects=draw.random() < 0.5) for uid in chosen[split:]
            ]
            told = report(
                draw.choice(["enforce", "audit", "off"]),  # type: ignore[arg-type]
                {"K": draw.randrange(10)},
                [f"{uid}/{draw.randrange(1, 4)}/d" for uid in chosen[:split]],
                troubles,
            )
            reports[node] = told
        before = {uid: tally.count("K", written(2, uid=uid)) for uid in uids}
        touched = tally.put(node, told)
        for uid in uids:
            count = tally.count("K", written(2, uid=uid))
            assert count == counted(reports, written(2, uid=uid)), uid
            assert touched is None or uid in touched or count == before[uid]


def test_a_report_that_has_a_policy_twice_is_counted_out_again() -> None:
    tally, twice = Tally(), Trouble("u/2/d", "NoRoom", selects=True)
    told = Report(applied=("u/2/d", "u/2/d"), exceptions=(twice, msgspec.structs.replace(twice, reason="Document")))
    tally.put("n1", told)
    tally.put("n1", msgspec.structs.replace(told, enforcement="audit"))
    tally.put("n1", None)
    assert tally.count("K", written(2)) == Count()


def test_a_cluster_is_in_audit_where_no_node_enforces_anything() -> None:
    tally = Tally()
    for node, told, in_audit in (
        ("n1", Report("audit"), True),
        ("n2", Report("off"), True),  # the kill switch of one node begins nothing
        ("n3", Report("enforce"), False),
        ("n3", Report("off"), True),
        ("n2", Report("enforce"), False),
        ("n2", None, True),
    ):
        tally.put(node, told)
        assert tally.in_audit is in_audit


def test_a_node_whose_agent_is_away_does_not_have_all_nodes_looked_at_for_each_policy() -> None:
    class Watched(dict[str, dict[str, int]]):
        looks = 0

        def items(self) -> Any:
            self.looks += 1
            return super().items()

        def values(self) -> Any:
            self.looks += 1
            return super().values()

    tally = Tally()
    tally._positions = watched = Watched()
    for number in range(20):
        tally.put(f"n{number}", report("enforce", {"K": 9 if number else 3}, [], []))
    for since in range(1, 12):
        unseen = tally.count("K", written(since=since)).unseen
        assert set(unseen) == {f"n{number}" for number in range(20) if (9 if number else 3) < since}
        assert unseen == tuple(sorted(unseen))
    assert watched.looks == 1


def counted(reports: dict[str, Report], policy: Written) -> Count:
    """From the start."""
    desired = applied = in_audit = off = 0
    troubles, unseen = {}, []
    for node, told in reports.items():
        if told.positions.get("K", 0) < policy.since:
            unseen.append(node)
        for text in told.applied:
            version = Version.parse(text)
            if version.uid == policy.version.uid:
                desired += 1
                if version.generation >= policy.version.generation:
                    off += told.enforcement == "off"
                    applied += told.enforcement != "off"
                    in_audit += told.enforcement == "audit"
        for one in told.exceptions:
            if one.policy.startswith(f"{policy.version.uid}/"):
                desired += one.selects
                troubles[node] = one
    return Count(desired, applied, in_audit, off, troubles, tuple(sorted(unseen)))


def conditions(count: Count, before: Status | None = None, now: datetime = NOW) -> dict[str, tuple[str, str, str]]:
    found = status_of(written(3), count, before, now)
    return {one.type: (one.status, one.reason, one.last_transition_time) for one in found.conditions}


@pytest.mark.parametrize(
    ("count", "applied"),
    [
        (Count(2, 2), ("True", "InForce")),
        (Count(0, 0), ("True", "SelectsNothing")),
        (Count(2, 2, in_audit=1), ("True", "InAudit")),
        (Count(2, 1), ("False", "Pending")),
        (Count(2, 1, off=1), ("False", "Disabled")),
        (Count(2, 2, unseen=("n3",)), ("Unknown", "NotSeen")),
        (Count(0, 0, unseen=("n3",)), ("Unknown", "NotSeen")),
        (Count(2, 1, unseen=("n3",)), ("False", "Pending")),
        *(
            (Count(2, 1, troubles={"n1": Trouble("u/3/d", reason, selects=True)}), ("False", reason))
            for reason in REASONS[1:]
        ),
        (Count(1, 1, troubles={"n1": Trouble("u/3/d", "Document", kept=True)}), ("False", "Refused")),
    ],
)
def test_applied_is_true_only_where_nothing_is_missing(count: Count, applied: tuple[str, str]) -> None:
    assert conditions(count)["Applied"][:2] == applied


def test_times_are_those_of_the_last_change() -> None:
    first = status_of(written(3), Count(2, 1), None, NOW)
    later = datetime(2026, 11, 22, 13, tzinfo=UTC)
    found = conditions(Count(2, 2), first, later)
    assert found["Applied"][2] == "2026-11-22T13:00:00Z"
    assert found["Valid"][2] == "2026-11-22T12:00:00Z"
    assert status_of(written(3), Count(2, 1), first, later) == first


def test_news_are_told_once() -> None:
    trouble = {"n1": Trouble("u/3/d", "Document", "spec.x", "is wrong", kept=True)}
    good, bad = (status_of(written(3), count, None, NOW) for count in (Count(1, 1), Count(1, 0, troubles=trouble)))
    assert news(None, good) is None
    assert news(good, good) is None
    refused = news(None, bad)
    assert refused is not None
    assert (refused.type, refused.reason) == ("Warning", "PolicyRefused")
    assert refused.message == "spec.x: is wrong (the last good version stays in force)"
    more = status_of(written(3), Count(2, 0, troubles={**trouble, "n2": trouble["n1"]}), bad, NOW)
    assert news(bad, more) is None, "another node says the same"
    again = status_of(written(4, digest="e"), Count(1, 0, troubles=trouble), bad, NOW)
    assert news(bad, again) == refused, "another version is refused, too"
    accepted = news(bad, good)
    assert accepted is not None
    assert (accepted.type, accepted.reason) == ("Normal", "PolicyAccepted")
    key = ("CiliumClusterwideNetworkPolicy", "all")
    namespace, content = event(refused, key, written(3), "n" * 200, NOW)
    assert namespace == content["metadata"]["namespace"] == "default"
    assert "namespace" not in content["involvedObject"]
    assert len(content["reportingInstance"]) == 128
    other = event(refused, key, written(4), "another", NOW)[1]["metadata"]["name"]
    assert (
        event(refused, key, written(3), "another", NOW)[1]["metadata"]["name"] == content["metadata"]["name"] != other
    )


def test_a_large_cluster_asks_and_writes_as_often_as_a_small_one() -> None:
    pacing = Pacing()
    assert (pacing.report_every(3), pacing.look_every(3)) == (2.0, 2.0)
    for nodes in (1000, 5000):
        assert nodes / pacing.report_every(nodes) == pytest.approx(100)
        assert nodes / pacing.look_every(nodes) == pytest.approx(50)
