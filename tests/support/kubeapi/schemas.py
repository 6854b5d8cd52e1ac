"""What the server checks of an object that somebody writes: schemas of CRDs, owners, Events, Leases.

Source: apiextensions-apiserver pkg/apiserver/{schema/pruning,validation}; apimachinery
pkg/api/validation/objectmeta.go; kubernetes pkg/apis/core/validation/events.go (legacyValidateEvent),
pkg/apis/coordination/validation.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from support.kubeapi.errors import invalid
from support.kubeapi.resources import Served

Json = dict[str, Any]

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LENGTH = 253
_FORMATS = jsonschema.FormatChecker(())


@_FORMATS.checks("date-time", ValueError)  # type: ignore[untyped-decorator]
def _is_time(value: object) -> bool:
    if isinstance(value, str):
        if "T" not in value:
            return False
        datetime.fromisoformat(value)
    return True


def checked(served: Served, name: str, content: Json) -> Json:
    """The object as it is stored: without what no schema knows. Raises ApiError (422)."""
    if served.schema is not None:
        content = {**_pruned(served.schema, content), "metadata": content["metadata"]}
        _validate(served, name, content)
    if served.custom or served.resource in _CHECKS:
        _names(served, name)
        _owners(served, name, content["metadata"])
    if served.resource in _CHECKS:
        _CHECKS[served.resource](served, name, content)
    return content


def _pruned(schema: Json, value: Any) -> Any:
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_pruned(schema["items"], one) for one in value]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return value
    known, more = schema.get("properties", {}), schema.get("additionalProperties")
    if not known and more is None:
        return value if "type" not in schema else {}
    found = {}
    for key, part in value.items():
        below = known.get(key, more if isinstance(more, dict) else None)
        if below is not None and not (part is None and not below.get("nullable")):
            found[key] = _pruned(below, part)
    return found


def _validate(served: Served, name: str, content: Json) -> None:
    assert served.schema is not None
    for error in jsonschema.Draft202012Validator(served.schema, format_checker=_FORMATS).iter_errors(content):
        where = ".".join(map(str, error.absolute_path))
        raise invalid(served.kind, served.group, name, where, f"Invalid value: {error.message}")
    for kinds, found in _maps(served.schema, content):
        keys = [tuple(one.get(kind) for kind in kinds) for one in found]
        if len(set(keys)) < len(keys):
            raise invalid(served.kind, served.group, name, "", "Duplicate value")


def _maps(schema: Json, value: Any) -> list[tuple[list[str], list[Json]]]:
    found = []
    if schema.get("x-kubernetes-list-type") == "map" and isinstance(value, list):
        found.append((schema["x-kubernetes-list-map-keys"], value))
    if isinstance(value, dict):
        for key, part in schema.get("properties", {}).items():
            if key in value:
                found += _maps(part, value[key])
    return found


def _names(served: Served, name: str) -> None:
    if len(name) > _LENGTH or not _SUBDOMAIN.fullmatch(name):
        why = f'Invalid value: "{name}": must be a lowercase RFC 1123 subdomain of at most {_LENGTH} characters'
        raise invalid(served.kind, served.group, name, "metadata.name", why)


def _owners(served: Served, name: str, metadata: Json) -> None:
    for one in metadata.get("ownerReferences") or ():
        for field in ("apiVersion", "kind", "name", "uid"):
            if not one.get(field):
                why = "Invalid value: must not be empty"
                raise invalid(served.kind, served.group, name, f"metadata.ownerReferences.{field}", why)


def _event(served: Served, name: str, content: Json) -> None:
    regarding = content.get("involvedObject") or {}
    about, own = regarding.get("namespace", ""), content["metadata"]["namespace"]
    if about != own and (about or own != "default"):
        why = "Invalid value: does not match event.namespace"
        raise invalid(served.kind, served.group, name, "involvedObject.namespace", why)
    for field, most in (("reason", 128), ("message", 1024), ("reportingInstance", 128)):
        if content.get("eventTime") and len(content.get(field) or "") > most:
            raise invalid(served.kind, served.group, name, field, f"Invalid value: can have at most {most} characters")
    for field in ("firstTimestamp", "lastTimestamp"):
        if content.get(field):
            datetime.strptime(content[field], "%Y-%m-%dT%H:%M:%SZ")


def _lease(served: Served, name: str, content: Json) -> None:
    spec = content.get("spec") or {}
    if (spec.get("leaseDurationSeconds") or 1) <= 0 or spec.get("leaseDurationSeconds") == 0:
        why = "Invalid value: must be greater than 0"
        raise invalid(served.kind, served.group, name, "spec.leaseDurationSeconds", why)
    if (spec.get("leaseTransitions") or 0) < 0:
        why = "Invalid value: must be greater than or equal to 0"
        raise invalid(served.kind, served.group, name, "spec.leaseTransitions", why)
    for field in ("acquireTime", "renewTime"):
        if spec.get(field):
            datetime.strptime(spec[field], "%Y-%m-%dT%H:%M:%S.%fZ")  # MicroTime


_CHECKS = {("", "events"): _event, ("coordination.k8s.io", "leases"): _lease}
