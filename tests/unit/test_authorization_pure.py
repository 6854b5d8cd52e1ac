"""What is ours of AuthorizationPolicies, what there should be of them, and that they are never read as policies."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import msgspec
import pytest
import yaml

from spliceway.agent.authorization.aims import World, aim, meshed, nothing
from spliceway.agent.authorization.marks import PodMarks
from spliceway.agent.authorization.objects import (
    EMITTED,
    Held,
    authentication,
    is_as_wanted,
    made,
    moved,
    others,
    own,
    recreated,
    restored,
)
from spliceway.agent.authorization.patience import Patience, crowded
from spliceway.agent.authorization.saying import conditions
from spliceway.agent.authorization.seen import Seen
from spliceway.agent.authorization.told import EmissionCollector, Figures, emission_status
from spliceway.agent.cli.writing import writing_line
from spliceway.agent.config import parse_config
from spliceway.agent.errors import ConfigError
from spliceway.agent.inventory import Inventory
from spliceway.agent.policystatus.ledger import Ledger
from spliceway.agent.sources.events import FileChanged, FileRemoved, ObjectChanged
from spliceway.agent.sources.kubernetes.connection import Connection
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.agent.sources.kubernetes.objects import Reader
from spliceway.policy.istio.objects import AuthorizationPolicy, AuthorizationRule, Operation, Source
from spliceway.policy.istio.rollout import bridge, bridge_policy, rollout, shape_of
from spliceway.policy.istio.translate import Options, translate
from support.istiopolicies import CLUSTER, STRICT, allow, policy, read

Json = dict[str, Any]
VERSION = "8f2c/3/aa"
ORIGIN = "CiliumNetworkPolicy shop/web"
KEY = ("CiliumNetworkPolicy", "shop/web")
ALLOW = AuthorizationPolicy(
    "shop", "spliceway-x", "ALLOW", (AuthorizationRule(operation=Operation((80,))),), (("app", "api"),), (), ORIGIN
)
REFUSED = allow("{path: '/[0-9]+'}")


def stored(document: Json, **metadata: Any) -> Json:
    """An object as the server has it."""
    return {**document, "metadata": {**document["metadata"], "uid": "u", "resourceVersion": "7", **metadata}}


def held(document: Json, **metadata: Any) -> Held:
    found = own(stored(document, **metadata))
    assert found is not None
    return found


def test_what_is_made_is_known_again() -> None:
    wanted = made(ALLOW, VERSION)
    found = held(wanted.document)
    assert found.shape == wanted.shape
    assert (found.source, found.version, found.uid, found.generation) == (KEY, VERSION, "8f2c", 3)
    assert found.is_whole
    assert is_as_wanted(found, wanted)
    assert not found.is_going
    assert held(wanted.document, deletionTimestamp="now").is_going
    over = made(bridge_policy(shape_of(ALLOW), ORIGIN), VERSION, bridge=True)
    assert held(over.document).shape.bridge
    assert over.document["spec"]["rules"] == [{}]
    # Another content, another name; another version of the policy, the same.
    other = made(AuthorizationPolicy("shop", "spliceway-x", "ALLOW", (), (), (), ORIGIN), VERSION)
    assert other.shape.name != wanted.shape.name
    assert made(ALLOW, "8f2c/4/bb").shape == wanted.shape
    long = made(AuthorizationPolicy("shop", "x" * 253, "DENY", (), (), (), ORIGIN), VERSION)
    assert len(long.shape.name) <= 253


@pytest.mark.parametrize("left_out", ["app.kubernetes.io/managed-by", "spliceway.io/translated-from", EMITTED])
def test_without_any_of_the_marks_it_is_somebodys(left_out: str) -> None:
    document = made(ALLOW, VERSION).document
    for field in ("labels", "annotations"):
        document["metadata"][field].pop(left_out, None)
    assert own(stored(document)) is None
    shape, foreign = others(stored(document))
    assert foreign is not None
    assert foreign.match_labels == {"app": "api"}
    assert shape.match_labels == (("app", "api"),)


@pytest.mark.parametrize(
    ("origin", "ours"),
    [
        ("CiliumNetworkPolicy shop/web", True),
        ("CiliumClusterwideNetworkPolicy web", True),
        ("CiliumNetworkPolicy bank/web", False),
        ("CiliumNetworkPolicy shop/web,metadata.namespace=bank", False),
        ("CiliumNetworkPolicy shop/a/web", False),
        ("CiliumNetworkPolicy ", False),
        ("Pod shop/web", False),
    ],
)
def test_who_writes_in_one_namespace_says_nothing_of_others_policies(origin: str, ours: bool) -> None:
    document = made(msgspec.structs.replace(ALLOW, origin=origin), VERSION).document
    assert (own(stored(document)) is not None) is ours


def test_marks_that_say_nothing_are_none() -> None:
    document = made(ALLOW, VERSION).document
    document["metadata"]["annotations"][EMITTED] = "what"
    assert own(stored(document)) is None


def test_what_cant_be_read_may_be_about_everybody() -> None:
    bad = {"metadata": {"name": "x", "namespace": "shop"}, "spec": {"selector": 7, "targetRefs": 7}}
    head = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
    _shape, foreign = others({**head, **bad})
    assert foreign is not None
    assert foreign.everybody
    assert not foreign.match_labels
    told = authentication({**head, "kind": "PeerAuthentication", **bad})
    assert told.mode == "PERMISSIVE"
    assert not told.match_labels
    ports = {"spec": {"mtls": {"mode": "STRICT"}, "portLevelMtls": {"9" * 5000: {"mode": "STRICT"}}}}
    assert authentication({**head, "kind": "PeerAuthentication", **bad, **ports}).mode == "PERMISSIVE"


def test_who_has_the_name_of_what_was_deleted_stays() -> None:
    seen = Seen(cast(Connection, None), "n1", Timing())  # nobody is asked
    document = made(ALLOW, VERSION).document
    name = ("shop", document["metadata"]["name"])
    for uid, there in (("u", False), ("v", True)):
        seen.took(stored(document))
        before = seen.own[name]
        seen.took(stored(document, uid=uid))
        seen.deleted(before)
        assert (name in seen.own) is there


def test_what_the_watch_tells_counts_unless_an_answer_was_ahead_of_it() -> None:
    seen = Seen(cast(Connection, None), "n1", Timing())
    document = made(ALLOW, VERSION).document
    name = ("shop", document["metadata"]["name"])
    edited = {**document, "spec": {**document["spec"], "rules": [{}]}}

    def tell(content: Json, revision: str) -> None:
        file = f"kubernetes:AuthorizationPolicy/{'/'.join(name)}"
        asyncio.run(seen._take([ObjectChanged(file, stored(content, resourceVersion=revision))]))

    seen.asked(name)
    seen.answered(stored(document, resourceVersion="1000"))
    tell(edited, "999")
    assert seen.own[name].spec == document["spec"], "the write that was answered is newer"
    tell(document, "1000")
    seen.asked(name)
    tell(document, "1001")
    seen.answered(stored(document, resourceVersion="1001"))
    # The server is set back to an older revision, and somebody edits what it has.
    tell(edited, "501")
    assert seen.own[name].spec == edited["spec"]
    assert seen.own[name].revision == "501", "or no write of ours would be taken"
    # Somebody is quicker than the answer, and may have taken the object.
    for bare in (edited, {**edited, "metadata": {**edited["metadata"], "labels": {}}}):
        seen.asked(name)
        tell(bare, "503")
        seen.answered(stored(document, resourceVersion="502"))
        assert name not in seen.own or seen.own[name].spec == edited["spec"]
        assert (name in seen.others) is (bare is not edited)


def test_restoring_leaves_what_others_have_added() -> None:
    wanted = made(ALLOW, VERSION)
    document = json.loads(json.dumps(wanted.document))
    document["spec"]["action"] = "DENY"
    document["metadata"]["labels"] = {**document["metadata"]["labels"], "team": "red"}
    document["metadata"]["annotations"][EMITTED] += "x"
    found = held(document, finalizers=["a/b"])
    assert not found.is_whole
    content = restored(wanted.document, found)
    assert content["spec"] == wanted.document["spec"]
    assert content["metadata"]["resourceVersion"] == "7"
    assert content["metadata"]["finalizers"] == ["a/b"]
    assert content["metadata"]["labels"]["team"] == "red"
    assert content["metadata"]["annotations"][EMITTED] == wanted.document["metadata"]["annotations"][EMITTED]
    assert "uid" not in recreated(found)["metadata"]


def world(*texts: str, version: str = VERSION, cluster: str = CLUSTER) -> World:
    found, mesh = read(cluster, STRICT, *texts)
    translation = translate(found, mesh)
    versions = dict.fromkeys(found.policies, version)
    return World(
        mesh.root_namespace, versions, frozenset(), translation.idle, meshed(found, mesh, translation, versions)
    )


def everything(*texts: str, **options: Any) -> dict[tuple[str, str], Held]:
    """What is there when it is all applied."""
    wanted = aim(world(*texts, **options), {}, (), {}).wanted
    return {name: held(one.document) for name, one in wanted.items()}


def test_what_is_wanted_and_what_goes() -> None:
    old = everything(allow("{path: /a}"))
    found = aim(world(allow("{path: /b}")), old, (), {})
    assert found.unwanted == old.keys()
    assert not found.kept
    assert not found.troubles
    assert [one.source for one in found.wanted.values()] == [KEY]
    assert nothing(old).unwanted == old.keys()


def test_what_is_refused_stays_as_it_was() -> None:
    old = everything(allow("{path: /a}"))
    found = aim(world(REFUSED), old, (), {})
    assert found.kept == old.keys()
    assert not found.unwanted
    assert not found.wanted
    assert found.troubles[KEY].reason == "Refused"
    assert found.troubles[KEY].field == "spec.ingress[0].toPorts[0].rules.http[0]"


def test_a_bridge_stays_only_as_long_as_its_policy_is_half_way() -> None:
    text = allow("{path: /a}")
    ((name, one),) = everything(text).items()
    over = held(made(bridge_policy(bridge(one.shape), ORIGIN), VERSION, bridge=True).document)
    there = {name: one, over.shape.key: over}
    asked = msgspec.structs.replace(world(text), newest=frozenset({KEY}))
    late = {name: msgspec.structs.replace(one, version="8f2c/4/bb"), over.shape.key: over}
    for now, all_of_ours, taken, failed, reason in (
        (world(REFUSED), there, (), {}, "Refused"),
        (world(text), there, (name,), {}, "Conflict"),
        (world(text), there, (), {name: "no"}, "NotWritten"),
        (world(text), late, (), {}, "Pending"),
        (asked, late, (), {}, ""),
    ):
        found = aim(now, all_of_ours, taken, failed)
        assert [each.reason for each in found.troubles.values()] == ([reason] if reason else [])
        assert (over.shape.key in found.kept) is (reason in ("NotWritten", "Pending"))
        assert (over.shape.key in found.unwanted) is (over.shape.key not in found.kept)
        assert (name in found.kept) is bool(reason)
    # One of a policy that is refused beside another that is half way goes, too; by its workloads, whosever it says.
    other = held(made(bridge_policy(bridge(one.shape), f"{ORIGIN}2"), VERSION, bridge=True).document)
    for now, failed, stays in ((world(text), {name: "no"}, True), (world(REFUSED), {name: "no"}, False)):
        assert (other.shape.key in aim(now, {other.shape.key: other}, (), failed).kept) is stays
    # What can't be read keeps what it has made, and no bridge.
    unread = msgspec.structs.replace(world(), unread=frozenset({KEY}))
    assert aim(unread, there, (), {}).kept == {name}
    # It is none of the last good translation.
    told = conditions(aim(world(REFUSED), there, (), {}), there, {})[KEY]
    assert "(1 AuthorizationPolicy of its last good translation in force)" in told.message


def test_what_stays_goes_with_the_mesh_into_another_trust_domain() -> None:
    deny = "spec:\n  ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '81', protocol: TCP}]}]}]"
    old = everything(allow("{path: /a}").replace("spec:", deny))
    now = msgspec.structs.replace(world(REFUSED), trust_domain="mesh.example")
    found = aim(now, old, (), {})
    assert found.unwanted == old.keys()
    assert not found.kept
    assert found.troubles[KEY].reason == "Refused"
    for one in found.wanted.values():
        (before,) = (each for each in old.values() if each.shape.action == one.shape.action)
        told = json.dumps(before.spec).replace("cluster.local/", "mesh.example/")
        assert told != json.dumps(before.spec)
        assert one.document["spec"] == json.loads(told)
        assert one.shape.name != before.shape.name
    steps = rollout({n: o.shape for n, o in old.items()}, {n: o.shape for n, o in found.wanted.items()}, old, "")
    assert [(one.verb, one.shapes[0].action) for one in steps] == [
        ("create", "DENY"),
        ("create", "ALLOW"),
        ("delete", "ALLOW"),
        ("delete", "DENY"),
    ]
    # Half of the way, and the end of it.
    new = {name: held(one.document) for name, one in found.wanted.items()}
    assert all(one.is_whole for one in new.values())
    half = aim(now, old | new, (), {})
    assert (half.kept, half.unwanted, half.wanted) == (new.keys(), old.keys(), {})
    assert aim(now, new, (), {}).kept == new.keys()
    # The translation itself comes to the same, names too.
    cluster, mesh = read(CLUSTER, STRICT, allow("{path: /a}").replace("spec:", deny))
    translation = translate(cluster, mesh, Options("mesh.example"))
    parts = meshed(cluster, mesh, translation, dict.fromkeys(cluster.policies, VERSION))
    assert {one.shape.key for part in parts for one in part.objects} == new.keys()
    # Where the new one can't be, the old one stays.
    (allowing,) = (name for name, one in found.wanted.items() if one.shape.action == "ALLOW")
    for taken, failed, closed in (((allowing,), {}, {}), ((), {allowing: "no"}, {}), ((), {}, {"shop": "no"})):
        stuck = aim(now, old, taken, failed, closed)
        assert allowing not in stuck.wanted
        assert {old[name].shape.action for name in stuck.kept} >= {"ALLOW"}
    # And nothing is allowed in the new one before it is denied.
    (denying,) = found.wanted.keys() - {allowing}
    for taken, failed, closed in (((denying,), {}, {}), ((), {denying: "no"}, {})):
        stuck = aim(now, old, taken, failed, closed)
        assert not stuck.wanted
        assert stuck.kept == old.keys()
    half = aim(now, old | {denying: new[denying]}, (), {denying: "no"})
    assert half.wanted.keys() == {allowing}


def test_nothing_is_allowed_in_another_trust_domain_before_what_is_held_up_denies_there() -> None:
    deny = "spec:\n  ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '81', protocol: TCP}]}]}]"
    old = everything(allow("{path: /a}").replace("spec:", deny))
    now = msgspec.structs.replace(world(REFUSED), trust_domain="mesh.example")
    new = {name: held(one.document) for name, one in aim(now, old, (), {}).wanted.items()}
    (denial,) = (name for name, one in old.items() if one.shape.action == "DENY")
    one = old[denial]
    gone = msgspec.structs.replace(one, metadata={**one.metadata, "deletionTimestamp": "now"})
    edited = msgspec.structs.replace(one, digest="0" * 16)
    for stuck, why in ((gone, "is being deleted, and something holds it up"), (edited, "was edited")):
        there = old | {denial: stuck}
        found = aim(now, there, (), {})
        assert not found.wanted
        assert found.kept == there.keys()
        told = conditions(found, there, {})[KEY]
        assert told.reason == "Refused"
        assert f"/{denial[1]} is not moved to trust domain mesh.example: it {why}" in told.message
    # That the new denial is there is enough.
    (denying,) = (name for name, each in new.items() if each.shape.action == "DENY")
    found = aim(now, old | {denial: gone, denying: new[denying]}, (), {})
    assert {each.shape.action for each in found.wanted.values()} == {"ALLOW"}
    assert not found.unmoved
    # Names that are taken and writes that fail are told, too, also of policies of which nothing else is.
    for taken, failed, why in (((denying,), {}, "that is not ours"), ((), {denying: "403: no"}, "403: no")):
        assert why in conditions(aim(now, old, taken, failed), old, {})[KEY].message
        unread = msgspec.structs.replace(world(), unread=frozenset({KEY}), trust_domain="mesh.example")
        said = conditions(aim(unread, old, taken, failed), old, {})[KEY]
        assert (said.status, said.reason) == ("False", "NotWritten")
        assert why in said.message
    # What is held up in a namespace stops what is allowed for the mesh nowhere.
    source = Source(("cluster.local/ns/shop/sa/a",), ())
    everywhere = "CiliumClusterwideNetworkPolicy wide"
    policy = AuthorizationPolicy("istio-system", "w", "ALLOW", (AuthorizationRule((source,)),), (), (), everywhere)
    wide = held(made(policy, VERSION).document)
    found = aim(now, {denial: gone, wide.shape.key: wide}, (), {})
    assert [each.shape.namespace for each in found.wanted.values()] == ["istio-system"]


def test_what_is_moved_means_the_same_in_another_trust_domain() -> None:
    source = Source(("cluster.local/ns/shop/sa/a",), ("*", "old/ns/shop/*"))
    policy = AuthorizationPolicy("shop", "x", "ALLOW", (AuthorizationRule((source,)),), (), (), ORIGIN)
    document = made(policy, VERSION).document
    told = moved(held(document), "new.example")
    assert told is not None
    (rule,) = told.document["spec"]["rules"]
    assert rule["from"] == [
        {"source": {"principals": ["new.example/ns/shop/sa/a"], "notPrincipals": ["*", "new.example/ns/shop/*"]}}
    ]
    assert "uid" not in told.document["metadata"]
    assert moved(held(told.document), "new.example") is None
    assert moved(held(made(bridge_policy(shape_of(ALLOW), ORIGIN), VERSION, bridge=True).document), "x") is None


def test_of_a_policy_that_is_gone_stays_what_is_about_the_workloads_of_a_refused_one() -> None:
    other = policy(
        """
        endpointSelector: {matchLabels: {app: front}}
        ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /x}]}}]}]
        """.replace("\n        ", "\n"),
        name="front",
    )
    old = everything(allow("{path: /a}").replace("name: web", "name: gone"), other)
    found = aim(world(REFUSED), old, (), {})
    assert {old[name].source[1] for name in found.kept} == {"shop/gone"}
    assert {old[name].source[1] for name in found.unwanted} == {"shop/front"}


def test_names_that_are_taken_and_writes_that_fail_are_refusals() -> None:
    text = allow("{path: /a}")
    (name,) = everything(text)
    for taken, failed, reason in (((name,), {}, "Conflict"), ((), {name: "403 Forbidden: no"}, "NotWritten")):
        found = aim(world(text), {}, taken, failed)
        assert not found.wanted
        assert found.troubles[KEY].reason == reason
        assert name[1] in found.troubles[KEY].message


def test_what_is_old_is_in_force_until_it_is_gone() -> None:
    now = world(allow("{path: /b}"))
    old = everything(allow("{path: /a}"))
    new = {name: held(one.document) for name, one in aim(now, old, (), {}).wanted.items()}
    both = old | new
    told = conditions(aim(now, both, (), {}), both, {})[KEY]
    assert (told.status, told.reason) == ("False", "Pending")
    assert told.message == "1 of 1 AuthorizationPolicy, 1 of earlier ones still in force"
    assert conditions(aim(now, new, (), {}), new, {KEY: told})[KEY].status == "True"


def test_where_many_writes_fail_nothing_new_is_tried() -> None:
    text = allow("{path: /a}")
    (name,) = everything(text)
    closed = crowded({("shop", str(number)): "403 Forbidden: no" for number in range(3)}, 3)
    found = aim(world(text), {}, (), {}, closed)
    assert found.troubles[KEY].reason == "NotWritten"
    assert name[1] in found.troubles[KEY].message
    assert not aim(world(text), everything(text), (), {}, closed).troubles, "what is there is as it should be"
    assert not crowded({("shop", "a"): "", ("bank", "b"): ""}, 2)


def test_who_has_seen_less_than_the_one_before_waits() -> None:
    old = everything(allow("{path: /a}"), version="8f2c/4/bb")
    found = aim(world(allow("{path: /b}")), old, (), {})
    assert found.kept == old.keys()
    assert not found.wanted
    assert found.troubles[KEY].reason == "Pending"
    # The server itself has nothing newer.
    sure = msgspec.structs.replace(world(allow("{path: /b}")), newest=frozenset({KEY}))
    assert not aim(sure, old, (), {}).troubles
    # One that was made anew begins again.
    assert not aim(world(allow("{path: /b}"), version="0000/1/cc"), old, (), {}).troubles


def test_without_a_pod_in_the_mesh_there_is_nothing_to_say() -> None:
    plain = CLUSTER.replace("istio-injection: enabled, ", "")
    for text in (allow("{path: /a}"), REFUSED):
        found = aim(world(text, cluster=plain), {}, (), {})
        assert not found.wanted
        assert not found.troubles


def test_pods_are_known_by_their_annotations() -> None:
    marks = PodMarks()
    pod = ObjectChanged("shop/api", {}, {"sidecar.istio.io/inject": "true"})
    assert marks.saw((pod,))
    assert not marks.saw((pod, ObjectChanged("kubernetes:Service/shop/api", {})))
    assert marks.annotations == {"shop/api": {"sidecar.istio.io/inject": "true"}}
    assert marks.saw((FileRemoved("shop/api"),))
    assert not marks.annotations


def test_of_a_pods_annotations_few_are_kept() -> None:
    annotations = {
        "sidecar.istio.io/status": json.dumps({"containers": ["istio-proxy"]}),
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
        "sidecar.istio.io/interceptionMode": "REDIRECT",
        "team": "red",
    }
    raw: Json = {
        "metadata": {"name": "api", "namespace": "shop", "annotations": annotations},
        "spec": {"nodeName": "n2"},
    }
    reader = Reader("Pod", "v1", "n1")
    told = reader.read(json.dumps(raw).encode())
    assert told.mesh == {"sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/excludeInboundPorts": "9000"}
    assert "annotations" not in told.content["metadata"], "which are of no interest on another node"
    annotations["sidecar.istio.io/interceptionMode"] = "NONE"
    assert reader.read(json.dumps(raw).encode()).mesh["sidecar.istio.io/interceptionMode"] == "NONE"
    del annotations["sidecar.istio.io/interceptionMode"]
    # Where its label says it, too, it need not be remembered.
    raw["metadata"]["labels"] = {"security.istio.io/tlsMode": "istio"}
    del annotations["traffic.sidecar.istio.io/excludeInboundPorts"]
    assert reader.read(json.dumps(raw).encode()).mesh == {}


def test_what_fails_again_and_again_is_tried_ever_more_rarely() -> None:
    patience = Patience((2.0, 120.0), 600.0)
    name, now, pauses = ("a", "b"), 0.0, []
    for _ in range(12):
        patience.put(name, now, "why")
        assert patience.waiting(now) == {name: "why"}
        pauses.append(patience.next(now) - now)
        now = patience.next(now)
        assert not patience.waiting(now)
    assert pauses[0] <= 2
    assert 90 <= pauses[-1] <= 120
    patience.sweep(now + 601)
    patience.put(name, now + 602)
    assert patience.next(now + 602) <= now + 604
    patience.forget(name)
    assert patience.next(now) == 0


@pytest.mark.parametrize("by_hand", [False, True])
def test_ours_are_never_read_as_policies(by_hand: bool) -> None:
    document = made(
        AuthorizationPolicy("shop", "x", "DENY", ALLOW.rules, (("app", "api"),), (), ORIGIN), VERSION
    ).document
    if by_hand:
        del document["metadata"]["annotations"][EMITTED]
        del document["metadata"]["labels"]["spliceway.io/emitted"]
    file = "kubernetes:AuthorizationPolicy/shop/x"
    theirs = stored({**document, "metadata": {"name": "x", "namespace": "shop"}})
    batch = (ObjectChanged(file, stored(document)),)
    inventory, ledger = Inventory("n1"), Ledger()
    for _ in range(2):
        inventory.feed(batch)
        ledger.saw(batch)
        assert inventory.names("AuthorizationPolicy") == []
        assert not inventory.refusals
        assert not ledger.written
        # One that loses its marks is one, and one that gets them is none any more.
        inventory.feed((ObjectChanged(file, theirs),))
        ledger.saw((ObjectChanged(file, theirs),))
        assert inventory.names("AuthorizationPolicy") == ["shop/x"]
        assert ledger.written
    listed = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [document]})
    inventory = Inventory("n1")
    inventory.feed((FileChanged("a.yaml", listed), FileChanged("b.yaml", yaml.safe_dump(document))))
    assert inventory.names("AuthorizationPolicy") == []
    assert not inventory.refusals


def test_the_line_of_status_says_what_is_applied() -> None:
    applied = {"mode": "emit", "emitted": 1, "kept": 2, "going": 0, "refused": 3}
    found = {"enabled": True, "reported": 1.0, "leads": True, "policies": 4, "nodes": 5, "authorization": applied}
    (line,) = writing_line(found, 2.0)
    assert line.endswith("; for Istio: 1 AuthorizationPolicy, 2 kept of refused translations, 3 policies refused")
    assert "Istio" not in writing_line({**found, "authorization": {**applied, "mode": "off"}}, 2.0)[0]
    assert "Istio" not in writing_line({**found, "leads": False, "writer": "n2"}, 2.0)[0]


def test_who_does_not_write_counts_what_it_has_written_and_no_objects() -> None:
    figures = Figures()
    now = ("emitted", "kept", "going", "refused")
    since = ("created", "updated", "restored", "deleted", "failures")
    for number, name in enumerate((*now, *since), 1):
        setattr(figures, name, number)
    figures.seconds, figures.settled = 0.5, True
    writer, another = (emission_status("emit", figures, leads=leads) for leads in (True, False))
    assert [getattr(writer, name) for name in (*now, *since)] == list(range(1, 10))
    assert (writer.mode, writer.seconds, writer.settled) == ("emit", 0.5, True)
    assert [getattr(another, name) for name in (*now, *since)] == [0, 0, 0, 0, 5, 6, 7, 8, 9]
    assert (another.mode, another.seconds, another.settled) == ("emit", 0.0, False)
    samples = [one for family in EmissionCollector(lambda: writer).collect() for one in family.samples]
    assert {
        (one.name.removeprefix("spliceway_authorization_"), *one.labels.values()): one.value for one in samples
    } == {
        **{("policies", name): number for number, name in enumerate(now[:3], 1)},
        ("refused",): 4,
        **{("writes_total", name): number for number, name in enumerate(since[:4], 5)},
        ("failures_total",): 9,
    }
    assert not list(EmissionCollector(lambda: emission_status("off", figures, leads=True)).collect())


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("istio: {authorizationPolicies: emit}", "istio.authorizationPolicies", "needs status.write"),
        ("istio: {authorizationPolicies: remove}", "istio.authorizationPolicies", "needs status.write"),
        ("istio: {authorizationPolicies: on}", "istio.authorizationPolicies", "'on' is none of emit, off, remove"),
        ("istio: {trustDomain: a b}", "istio.trustDomain", "is not a trust domain's name"),
        ("istio: {rootNamespace: A}", "istio.rootNamespace", "is not a namespace's name"),
        ("istio: {pathNormalization: base}", "istio.pathNormalization", "'base' is none of"),
    ],
)
def test_settings_that_cant_be_are_refused(text: str, field: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(f"source: {{kubernetes: {{}}}}\nnode: {{name: n1}}\n{text}", "agent.yaml")
    assert refused.value.field == field
    assert reason in refused.value.reason


def test_off_is_a_word() -> None:
    text = "source: {kubernetes: {}}\nnode: {name: n1}\nistio: {authorizationPolicies: off}"
    assert parse_config(text, "agent.yaml").istio.authorization_policies == "off"
