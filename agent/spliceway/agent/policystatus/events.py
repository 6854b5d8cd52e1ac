"""Events about policies: when one is refused, and when one that was is accepted. Pure.

They are core/v1, which is what `kubectl describe` looks for, by the policy's uid. The name is made of what is told, so
that no writer tells the same twice while the API server remembers it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.conditions import Status
from spliceway.agent.policystatus.ledger import Written
from spliceway.agent.policystatus.naming import event_name

#: As the API server has it.
MOST_CHARACTERS = 1024
_MOST_INSTANCE = 128
#: Where Events about objects of the cluster are.
_NO_NAMESPACE = "default"
COMPONENT = "spliceway"


class Told(msgspec.Struct, frozen=True):
    """What is to be told of a policy."""

    type: str
    reason: str
    message: str


def news(before: Status | None, now: Status) -> Told | None:
    """What changed that somebody should see."""
    refused, was = now.condition("Refused"), before.condition("Refused") if before is not None else None
    assert refused is not None
    if refused.status == "True":
        same = was is not None and was.status == "True" and was.reason == refused.reason
        if same and before is not None and before.revision == now.revision:
            return None  # on more nodes, or on fewer
        where = f"{refused.field}: " if refused.field else ""
        return Told("Warning", "PolicyRefused", f"{where}{refused.message}")
    if was is not None and was.status == "True":
        return Told("Normal", "PolicyAccepted", f"generation {now.observed_generation} is accepted")
    return None


def translation_news(before: Status | None, now: Status) -> Told | None:
    """The same of the translation for Istio."""
    told, was = now.condition("Translated"), before.condition("Translated") if before is not None else None
    was_bad = was is not None and was.status == "False" and was.reason != "Pending"
    if told is None or told.reason == "Pending":
        return None
    if told.status == "False":
        if was_bad and was and was.reason == told.reason and before and before.revision == now.revision:
            return None  # of another pod, maybe
        where = f"{told.field}: " if told.field else ""
        return Told("Warning", "PolicyNotTranslated", f"{where}{told.message}")
    if was_bad:
        return Told("Normal", "PolicyTranslated", f"generation {now.observed_generation}: {told.message}")
    return None


def event(told: Told, key: Key, policy: Written, instance: str, now: datetime) -> tuple[str, dict[str, Any]]:
    """Namespace and object. `instance`: who tells it."""
    kind, path = key
    namespace, _, name = path.rpartition("/")
    version = policy.version
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    regarding = {"apiVersion": policy.api_version, "kind": kind, "name": name, "uid": version.uid}
    mark = "/".join((version.text, told.reason, told.message))
    return namespace or _NO_NAMESPACE, {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(name, mark), "namespace": namespace or _NO_NAMESPACE},
        "involvedObject": {**regarding, **({"namespace": namespace} if namespace else {})},
        "type": told.type,
        "reason": told.reason,
        "message": told.message[:MOST_CHARACTERS],
        "source": {"component": COMPONENT, "host": instance},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance[:_MOST_INSTANCE],
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
