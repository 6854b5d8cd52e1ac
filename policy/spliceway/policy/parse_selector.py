"""Label selectors of policies, with Cilium's prefixes and its scoping to a namespace.

Sources: Kubernetes «Labels and Selectors»; Cilium pkg/k8s/apis/cilium.io/utils (getEndpointSelector).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.labels import (
    DERIVED_PREFIX,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    SELECTOR_SOURCES,
    Operator,
    Requirement,
    Selector,
)

_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_OPERATORS = {operator.value: operator for operator in Operator}


def check_label_key(key: str, where: Where) -> None:
    """Refuse what is not a qualified name: `[prefix/]name`, prefix a DNS subdomain, name at most 63 characters."""
    # The labels of a namespace appear as `io.cilium.k8s.namespace.labels.<key>`: the rest is a key of its own.
    key = key.removeprefix(NAMESPACE_LABELS_PREFIX)
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix)):
        where.refuse(f"{shown(key)} is not a label key (prefix)")
    if len(name) > 63 or not _NAME.fullmatch(name):
        where.refuse(f"{shown(key)} is not a label key")


def check_label_value(value: str, where: Where) -> None:
    """Refuse what is not a label value: at most 63 letters, digits, `-`, `_` and `.`."""
    if len(value) > 63 or not _VALUE.fullmatch(value):
        where.refuse(f"{shown(value)} is not a label value (at most 63 letters, digits, «-», «_», «.»)")


def parse_selector(value: Any, where: Where) -> Selector:
    """A selector of Cilium's policies. Keys may have the prefix k8s:, any: or reserved:."""
    return _selector(value, where, _prefixed_key)


def parse_plain_selector(value: Any, where: Where) -> Selector:
    """A selector on labels of nodes, Services or CIDR groups: keys without prefix, the source is «any»."""
    return _selector(value, where, _plain_key)


def parse_pod_selector(value: Any, where: Where) -> Selector:
    """A podSelector of Kubernetes: on labels that pods themselves have."""
    return _selector(value, where, _pod_key)


def parse_namespace_selector(value: Any, where: Where) -> Selector:
    """A namespaceSelector of Kubernetes, as a selector of the pods in those namespaces."""
    return in_any_namespace(_selector(value, where, _namespace_key))


def _selector(value: Any, where: Where, read_key: Callable[[str, Where], tuple[str, str]]) -> Selector:
    fields = Fields(value, where)
    requirements: list[Requirement] = []
    labels_where = where.at("matchLabels")
    for key, text in fields.take("matchLabels", dict, {}).items():
        place = labels_where.at(shown(key))
        source, name = read_key(key, place)
        check_label_value(place.typed(text, str), place)
        requirements.append(Requirement(source, name, Operator.IN, (text,)))
    expressions = fields.take("matchExpressions", list, [])
    for place, item in where.at("matchExpressions").items(expressions, dict):
        requirements.append(_expression(Fields(item, place), read_key))
    fields.done()
    return Selector(tuple(requirements))


def scope_peer(selector: Selector, namespace: str) -> Selector:
    """Cilium's scope of a peer selector: the policy's namespace, unless it names a namespace or a reserved label.

    In a clusterwide policy (namespace empty) the scope is every pod, as far as it names no namespace and no reserved
    label: only pods have a namespace.
    """
    for requirement in selector.requirements:
        if requirement.source == "reserved" or requirement.key == NAMESPACE_KEY:
            return selector
        if namespace and requirement.key.startswith(NAMESPACE_LABELS_PREFIX):
            return selector
    return in_namespace(selector, namespace) if namespace else in_any_namespace(selector)


def scope_subject(selector: Selector, namespace: str, where: Where) -> Selector:
    """A policy is about endpoints of its own namespace only. A selector that says otherwise is refused."""
    for requirement in selector.requirements:
        if (
            requirement.key == NAMESPACE_KEY
            and requirement.operator is Operator.IN
            and namespace not in requirement.values
        ):
            where.refuse(f"selects another namespace; a policy is about endpoints of its own namespace {namespace}")
    return in_namespace(selector, namespace)


def in_namespace(selector: Selector, namespace: str) -> Selector:
    """The pods of a namespace that the selector selects."""
    return Selector((*selector.requirements, Requirement("k8s", NAMESPACE_KEY, Operator.IN, (namespace,))))


def in_any_namespace(selector: Selector) -> Selector:
    """What the selector selects, pods only."""
    return Selector((*selector.requirements, Requirement("k8s", NAMESPACE_KEY, Operator.EXISTS)))


def _plain_key(text: str, where: Where) -> tuple[str, str]:
    check_label_key(text, where)
    return "any", text


def _pod_key(text: str, where: Where) -> tuple[str, str]:
    check_label_key(text, where)
    if text == NAMESPACE_KEY or text.startswith((NAMESPACE_LABELS_PREFIX, DERIVED_PREFIX)):
        where.refuse("is no label of the pod itself (use namespaceSelector, or a CiliumNetworkPolicy)")
    return "k8s", text


def _namespace_key(text: str, where: Where) -> tuple[str, str]:
    check_label_key(text, where)
    return "k8s", NAMESPACE_LABELS_PREFIX + text


def _prefixed_key(text: str, where: Where) -> tuple[str, str]:
    source, colon, key = text.partition(":")
    if not colon:
        # `reserved.host` is an older way to write `reserved:host` (Cilium, labels.ParseSource).
        reserved = text.startswith("reserved.")
        source, key = ("reserved", text.removeprefix("reserved.")) if reserved else ("any", text)
    if source not in SELECTOR_SOURCES:
        where.refuse(f"unknown label source {shown(source)} (known: {', '.join(SELECTOR_SOURCES)})")
    check_label_key(key, where)
    return source, key


def _expression(fields: Fields, read_key: Callable[[str, Where], tuple[str, str]]) -> Requirement:
    where = fields.where
    source, key = read_key(fields.need("key", str), where.at("key"))
    name = fields.need("operator", str)
    if name not in _OPERATORS:
        where.at("operator").refuse(f"{shown(name)} is not an operator ({', '.join(_OPERATORS)})")
    operator = _OPERATORS[name]
    values = fields.take("values", list, [])
    for place, value in where.at("values").items(values, str):
        check_label_value(value, place)
    if operator in (Operator.IN, Operator.NOT_IN):
        if not values:
            where.at("values").refuse(f"{name} needs at least one value")
    elif values:
        where.at("values").refuse(f"{name} takes no values")
    fields.done()
    return Requirement(source, key, operator, tuple(sorted(set(values))))
