"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2): the object and its specifications.

Sources: Cilium's CRDs ciliumnetworkpolicies.yaml and ciliumclusterwidenetworkpolicies.yaml, pkg/policy/api and
pkg/k8s/apis/cilium.io/utils (scopes of selectors).
"""

from __future__ import annotations

from typing import Any

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import NetworkPolicy, Rule, Spec
from spliceway.policy.parse_metadata import HTTP_RULES, Metadata
from spliceway.policy.parse_rule import parse_rule
from spliceway.policy.parse_selector import parse_selector, scope_subject
from spliceway.policy.verdict import Direction

_SECTIONS = (
    ("ingress", Direction.INGRESS, False),
    ("egress", Direction.EGRESS, False),
    ("ingressDeny", Direction.INGRESS, True),
    ("egressDeny", Direction.EGRESS, True),
)


def parse_cilium_policy(fields: Fields, where: Where) -> NetworkPolicy:
    """A CiliumNetworkPolicy with `spec`, `specs` or both: about endpoints of its own namespace."""
    return _policy(fields, where, "CiliumNetworkPolicy", namespaced=True)


def parse_clusterwide_policy(fields: Fields, where: Where) -> NetworkPolicy:
    """A CiliumClusterwideNetworkPolicy with `spec`, `specs` or both: about endpoints of every namespace."""
    return _policy(fields, where, "CiliumClusterwideNetworkPolicy", namespaced=False)


def _policy(fields: Fields, where: Where, kind: str, *, namespaced: bool) -> NetworkPolicy:
    meta = Metadata(fields, where, kind, namespaced=namespaced, policy=True)
    where = meta.where
    prefix = f"{where.field}." if where.field else ""
    specs: list[Spec] = []
    if (spec := fields.take("spec", dict)) is not None:
        specs.append(_spec(spec, where.at("spec"), meta.namespace, prefix))
    for place, item in where.at("specs").items(fields.take("specs", list, []), dict):
        specs.append(_spec(item, place, meta.namespace, prefix))
    fields.ignore("status")
    fields.done()
    if not specs:
        where.at("spec").refuse("is missing (spec, specs or both)")
    return NetworkPolicy(
        kind, meta.namespace, meta.name, tuple(specs), where.file, meta.audit, _left_to_istio(meta.annotations, where)
    )


def _left_to_istio(annotations: Any, where: Where) -> bool:
    """What the annotation says of HTTP rules; without any it means nothing."""
    found = Fields(annotations or {}, where.at("metadata.annotations"))
    who = found.take(HTTP_RULES, str)
    if who not in (None, "istio"):
        found.where.at(HTTP_RULES).refuse(f"HTTP rules can't be left to {shown(who)} (istio, or leave it out)")
    return who is not None


def _spec(value: Any, where: Where, namespace: str, prefix: str) -> Spec:
    fields = Fields(value, where)
    fields.unsupported(("nodeSelector", "log"))
    subject = parse_selector(fields.need("endpointSelector", dict), where.at("endpointSelector"))
    if namespace:
        subject = scope_subject(subject, namespace, where.at("endpointSelector"))
    description = fields.take("description", str, "")
    for place, item in where.at("labels").items(fields.take("labels", list, []), dict):
        _rule_label(Fields(item, place))
    given = _default_deny(fields)

    rules: list[Rule] = []
    named = False
    for section, direction, deny in _SECTIONS:
        entries = fields.take(section, list)
        if entries is None:
            continue
        named = True
        for place, item in where.at(section).items(entries, dict):
            # Rules are named by their place in the object, wherever in a List the object stands.
            path = place.field.removeprefix(prefix)
            rules.append(parse_rule(Fields(item, place), path, direction, deny=deny, namespace=namespace))
    fields.done()
    if not named:
        where.refuse(f"needs one of {', '.join(section for section, _, _ in _SECTIONS)}")

    has_rules = tuple(any(rule.direction is direction for rule in rules) for direction in Direction)
    default_deny = tuple(has if want is None else want for has, want in zip(has_rules, given, strict=True))
    applies = tuple(has or bool(deny) for has, deny in zip(has_rules, default_deny, strict=True))
    return Spec(
        where.field.removeprefix(prefix),
        subject,
        tuple(rules),
        (default_deny[0], default_deny[1]),
        (applies[0], applies[1]),
        description,
    )


def _default_deny(fields: Fields) -> tuple[bool | None, bool | None]:
    """What enableDefaultDeny says for each Direction; None: whatever follows from the rules."""
    inner = Fields(fields.take("enableDefaultDeny", dict, {}), fields.where.at("enableDefaultDeny"))
    found = inner.take("ingress", bool), inner.take("egress", bool)
    inner.done()
    return found


def _rule_label(fields: Fields) -> None:
    """A label of the rule itself. It names the rule in Cilium's tools and has no part in verdicts."""
    fields.need("key", str)
    fields.take("value", str)
    fields.take("source", str)
    fields.done()
