"""Labels that controllers make unique are no identities, unless a selector names them."""

from __future__ import annotations

from ipaddress import ip_address

from spliceway.policy.engine import Engine, Options
from spliceway.policy.labelfilter import UNIQUE_KEYS, LabelFilter
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Object, Pod, Service
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_text
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Direction, Verdict

NAME = "statefulset.kubernetes.io/pod-name"
PODS = tuple(
    Pod("default", f"db-{n}", {"app": "db", NAME: f"db-{n}"}, (ip_address(f"10.240.1.{n + 1}"),), "node1")
    for n in range(4)
)


def _policy(spec: str) -> list[Object]:
    parsed = parse_text(
        f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: a}}\nspec: {spec}\n", "x"
    )
    assert not parsed.errors
    return parsed.objects


def _identities(table: PolicyTable) -> list[int]:
    return [identify(table.ipcache, pod.addresses[0]) for pod in PODS]


def test_what_counts() -> None:
    default = LabelFilter()
    assert not any(default.counts(key) for key in UNIQUE_KEYS)
    assert default.counts("app")
    only = LabelFilter(include=("app", "team/*"), exclude=("team/secret",))
    assert [only.counts(key) for key in ("app", "apps", "team/x", "team/secret", "zone")] == [
        True,
        False,
        True,
        False,
        False,
    ]
    # A dot is a dot.
    assert LabelFilter(exclude=("a.b",)).counts("axb")


def test_pods_of_a_statefulset_are_one_identity() -> None:
    table = Engine(Options(node="node1"), Numbering()).apply(PODS, revision=1)
    assert len(set(_identities(table))) == 1
    assert not any(NAME in label for labels in table.identities.values() for label in labels)
    table = Engine(Options(node="node1", labels=LabelFilter(exclude=())), Numbering()).apply(PODS, revision=1)
    assert len(set(_identities(table))) == 4


def test_a_key_that_a_selector_names_counts_as_long_as_it_does() -> None:
    engine = Engine(Options(node="node1"), Numbering())
    engine.apply(PODS, revision=1)
    peer = f"{{matchLabels: {{'{NAME}': db-2}}}}"
    policy = _policy(f"{{endpointSelector: {{matchLabels: {{app: db}}}}, ingress: [{{fromEndpoints: [{peer}]}}]}}")
    table = engine.apply(policy, revision=2)
    assert len(set(_identities(table))) == 4
    endpoint = table.endpoints["default/db-0"]
    found = [lookup(table, endpoint, Direction.INGRESS, number, 6, 80).verdict for number in _identities(table)]
    assert [verdict is Verdict.ALLOW for verdict in found] == [False, False, True, False]
    table = engine.apply([], [("CiliumNetworkPolicy", "default/a")], revision=3)
    assert len(set(_identities(table))) == 1


def test_the_subject_may_be_chosen_by_such_a_key() -> None:
    engine = Engine(Options(node="node1"), Numbering())
    policy = _policy(f"{{endpointSelector: {{matchLabels: {{'{NAME}': db-1}}}}, ingress: [{{}}]}}")
    table = engine.apply([*PODS, *policy], revision=1)
    assert [table.endpoints[pod.key].ingress for pod in PODS] == [False, True, False, False]


def test_the_selector_of_a_service_that_a_policy_means_names_keys_too() -> None:
    engine = Engine(Options(node="node1"), Numbering())
    service = Service("default", "db-3", {NAME: "db-3"})
    policy = _policy(
        "{endpointSelector: {}, egress: [{toServices: [{k8sService: {serviceName: db-3, namespace: default}}]}]}"
    )
    assert len(set(_identities(engine.apply([*PODS, service], revision=1)))) == 1
    table = engine.apply(policy, revision=2)
    endpoint = table.endpoints["default/db-0"]
    found = [lookup(table, endpoint, Direction.EGRESS, number, 6, 80).verdict for number in _identities(table)]
    assert [verdict is Verdict.ALLOW for verdict in found] == [False, False, False, True]
    assert len(set(_identities(engine.apply([], [("Service", "default/db-3")], revision=3)))) == 1


def test_two_pods_with_one_address_that_differ_in_such_a_label_only_are_unmanaged() -> None:
    twin = Pod("default", "db-9", {"app": "db", NAME: "db-9"}, PODS[0].addresses, "node2")
    engine = Engine(Options(node="node1"), Numbering())
    assert _identities(engine.apply([*PODS, twin], revision=1))[0] == 3
    same = Pod("default", "db-9", dict(PODS[0].labels), PODS[0].addresses, "node2")
    assert _identities(engine.apply([same], revision=2))[0] == _identities(engine.table)[1]  # type: ignore[arg-type]
