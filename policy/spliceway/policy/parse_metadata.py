"""ObjectMeta: name, namespace, labels, and the annotations of policies that count.

Source: Kubernetes API reference, ObjectMeta.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spliceway.policy.fields import DNS_LABEL, DNS_SUBDOMAIN, Fields, Where, shown
from spliceway.policy.parse_selector import check_label_key, check_label_value

#: Whether a policy is enforced, or only says what it would do.
ENFORCEMENT = "spliceway.io/enforcement"
#: Of a CiliumNetworkPolicy: who asks its HTTP rules where a sidecar of Istio's sees the requests.
HTTP_RULES = "spliceway.io/http-rules"

#: What ObjectMeta may hold besides name, namespace, labels and annotations.
_META = (
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
_MODES = {"enforce": False, "audit": True}
#: The one form in which the API server writes times: as text they sort by age.
_TIME = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z")


class Metadata:
    """Name, namespace and labels of an object, and the place of its errors from here on.

    `audit` is what a policy's annotation says; `annotations` are as they were read, a policy's a mapping or None,
    another object's of any type: what they mean is told elsewhere. `created` is creationTimestamp (UTC, RFC 3339),
    empty unless it is what an API server writes.
    """

    __slots__ = ("annotations", "audit", "created", "labels", "name", "namespace", "where")

    def __init__(
        self, fields: Fields, where: Where, kind: str, *, namespaced: bool = True, policy: bool = False
    ) -> None:
        inner = Fields(fields.need("metadata", dict), where.at("metadata"))
        self.name = inner.need_name("name", DNS_SUBDOMAIN if kind != "Namespace" else DNS_LABEL)
        self.namespace = ""
        if namespaced:
            given = inner.raw("namespace")
            self.namespace = "default"
            if given is not None:
                self.namespace = Fields({"namespace": given}, inner.where).need_name("namespace", DNS_LABEL)
        title = f"{kind} {self.namespace}/{self.name}" if namespaced else f"{kind} {self.name}"
        self.where = Where(where.file, title, where.field)
        fields.where = self.where
        inner.where = self.where.at("metadata")
        if not namespaced and inner.raw("namespace") is not None:
            inner.where.at("namespace").refuse(f"a {kind} has no namespace")
        self.labels = parse_labels(inner.take("labels", dict, {}), inner.where.at("labels"))
        self.annotations: Any = inner.raw("annotations")
        self.audit = policy and _audit(self.annotations, inner.where.at("annotations"))
        created = inner.raw("creationTimestamp")
        self.created = created if isinstance(created, str) and _TIME.fullmatch(created) else ""
        inner.ignore(*_META)
        inner.done()


def parse_labels(value: Mapping[str, Any], where: Where) -> dict[str, str]:
    """Labels of an object."""
    for key, text in value.items():
        place = where.at(shown(key))
        check_label_key(key, place)
        check_label_value(place.typed(text, str), place)
    return dict(value)


def _audit(told: Any, where: Where) -> bool:
    annotations = Fields({} if told is None else told, where)
    mode = annotations.take(ENFORCEMENT, str, "enforce")
    if mode not in _MODES:
        annotations.where.at(ENFORCEMENT).refuse(f"{shown(mode)} is not a mode ({', '.join(_MODES)})")
    return _MODES[mode]
