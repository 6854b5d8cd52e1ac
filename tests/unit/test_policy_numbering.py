"""Numbers stay: across edits, restarts and pruning, and freed ones are not given again soon."""

from __future__ import annotations

import json

import pytest

from spliceway.policy.compile import compile_table
from spliceway.policy.errors import NumberingError
from spliceway.policy.model import Cluster, NetworkPolicy, Pod
from spliceway.policy.numbering import FIRST_CIDR_IDENTITY, Numbering
from spliceway.policy.parse import parse_text
from spliceway.policy.table import PolicyTable, RuleRef
from spliceway.policy.verdict import Direction

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {role: %s}}
spec: {nodeName: node1}
status: {podIP: 10.240.1.%d}
"""
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api}
spec:
  endpointSelector: {matchLabels: {role: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: front}}]
    toPorts:
    - ports: [{port: "%d", protocol: TCP}]
      rules: {http: [%s]}
"""


def _cluster(port: int = 80, http: str = "{path: /a}", pods: tuple[str, ...] = ("api", "front")) -> Cluster:
    text = "---".join(PODS % (role, role, index + 1) for index, role in enumerate(pods))
    return Cluster().with_objects(parse_text(text + "---" + POLICY % (port, http), "x").objects)


def _compile(cluster: Cluster, numbering: Numbering) -> PolicyTable:
    return compile_table(cluster, node="node1", numbering=numbering, revision=1)


def test_an_edit_of_rules_keeps_everything_else() -> None:
    numbering = Numbering()
    before = _compile(_cluster(), numbering)
    after = _compile(_cluster(http="{method: GET, path: /b}, {path: /c}"), numbering)
    assert after.rows == before.rows
    assert after.classes == before.classes
    assert after.identities == before.identities
    assert after.endpoints == before.endpoints
    (old,), (new,) = before.rule_sets.values(), after.rule_sets.values()
    assert (new.id, new.name) == (old.id, old.name) == (old.id, "default/api:ingress[0].toPorts[0]")
    assert new.rules[0].rule == old.rules[0].rule
    assert len(new.rules) == 2


def test_an_edit_of_ports_keeps_the_rule_set_and_the_class() -> None:
    numbering = Numbering()
    before, after = _compile(_cluster(), numbering), _compile(_cluster(port=81), numbering)
    assert after.rule_sets == before.rule_sets
    assert after.classes == before.classes


def test_a_restart_keeps_all_numbers() -> None:
    numbering = Numbering()
    before = _compile(_cluster(pods=("x", "api", "front")), numbering)
    restored = Numbering.from_dict(json.loads(json.dumps(numbering.to_dict())))
    assert restored.to_dict() == numbering.to_dict()
    assert _compile(_cluster(pods=("x", "api", "front")), restored) == before
    # A new pod in front of the others takes a new number.
    after = _compile(_cluster(pods=("x", "api", "front", "aaa")), restored)
    assert after.endpoints["default/aaa"].identity == max(e.identity for e in after.endpoints.values())
    assert after.endpoints["default/api"] == before.endpoints["default/api"]


def test_the_table_does_not_depend_on_the_order_of_mappings() -> None:
    cluster = _cluster(pods=("x", "api", "front"))
    turned = Cluster(
        dict(reversed(cluster.namespaces.items())),
        dict(reversed(cluster.pods.items())),
        dict(reversed(cluster.nodes.items())),
        dict(reversed(cluster.policies.items())),
    )
    assert _compile(cluster, Numbering()) == _compile(turned, Numbering())


def test_pruned_numbers_are_not_given_again_soon() -> None:
    numbering = Numbering()
    before = _compile(_cluster(pods=("api", "front", "x")), numbering)
    smaller = _compile(_cluster(pods=("api",)), numbering)
    numbering.prune(smaller)
    again = _compile(_cluster(pods=("api", "front", "x")), numbering)
    freed = {before.endpoints[f"default/{name}"].identity for name in ("front", "x")}
    assert freed.isdisjoint(endpoint.identity for endpoint in again.endpoints.values())
    assert again.endpoints["default/api"] == before.endpoints["default/api"]
    numbering.prune(again)
    assert _compile(_cluster(pods=("api", "front", "x")), numbering) == again


def test_ranges() -> None:
    numbering = Numbering()
    assert numbering.identity(("reserved:host",)) == 1
    assert numbering.identity(("k8s:a=b",)) == 256
    assert numbering.identity(("cidr:10.0.0.0/8", "reserved:world-ipv4")) == FIRST_CIDR_IDENTITY
    assert numbering.policy(("k8s:a=b",)) == 1
    assert numbering.peer_class(1, Direction.EGRESS, "x") == numbering.peer_class(2, Direction.EGRESS, "y") == 1
    ref, other = RuleRef("K a/b", "spec.ingress[0]"), RuleRef("K a/b", "spec.ingress[1]")
    assert numbering.rule_set([ref, other]) == numbering.rule_set([other, ref]) != numbering.rule_set([ref])
    assert "identities=1" in repr(numbering)


def test_numbers_run_out_with_an_error_and_wrap_around() -> None:
    numbering = Numbering()
    saved = numbering.to_dict()
    saved["rule_sets"] = {"next": 65535, "numbers": {"a": 1, "b": 3}}
    numbering = Numbering.from_dict(saved)
    found = [numbering.rule_set([RuleRef("K", str(index))]) for index in range(3)]
    assert found == [65535, 2, 4]
    saved["rule_sets"] = {"next": 1, "numbers": {str(n): n for n in range(1, 65536)}}
    with pytest.raises(NumberingError, match="all 65535 numbers for rule sets are taken"):
        Numbering.from_dict(saved).rule_set([RuleRef("K", "x")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "not of format 1"),
        ({"rules": None}, "saved numbers for rules are damaged"),
        ({"rules": {"next": 1, "numbers": {"a": 0}}}, "not all from 1"),
        ({"rules": {"next": 1, "numbers": {"a": "1"}}}, "not all from 1"),
        ({"rules": {"next": 1, "numbers": {"a": 1, "b": 1}}}, "not unique"),
        ({"rules": {"numbers": {}}}, "not all from 1"),
        ({"classes": {}}, "classes are damaged"),
        ({"classes": [[1, 7, {}]]}, "classes are damaged"),
        ({"classes": [[1, 0, {}]]}, "classes are damaged"),
    ],
)
def test_damaged_state_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(NumberingError, match=message):
        Numbering.from_dict({**Numbering().to_dict(), **change})


def test_with_and_without_objects() -> None:
    cluster = _cluster()
    assert set(cluster.pods) == {"default/api", "default/front"}
    smaller = cluster.without("Pod", "default/front").without("Pod", "default/none").without("Namespace", "x")
    assert set(smaller.pods) == {"default/api"}
    assert set(cluster.without("CiliumNetworkPolicy", "default/api").policies) == set()
    replaced = cluster.with_objects([Pod("default", "api", {"role": "other"})])
    assert replaced.pods["default/api"].labels == {"role": "other"}
    assert cluster.pods["default/api"].labels == {"role": "api"}
    assert isinstance(cluster.policies["CiliumNetworkPolicy", "default/api"], NetworkPolicy)
