"""Filters of access log entries and of answers: which requests they are for, by what the HTTP filters found."""

from __future__ import annotations

from spliceway.xds.resources.names import RBAC_METADATA


def denied_by(key: str, if_absent: bool) -> dict[str, object]:
    """The requests whose RBAC result under this key is «denied»."""
    return metadata_filter(RBAC_METADATA, key, {"string_match": {"exact": "denied"}}, if_absent)


def has_metadata(namespace: str, key: str) -> dict[str, object]:
    """The requests that have metadata under this key."""
    return metadata_filter(namespace, key, {"present_match": True}, False)


def metadata_filter(namespace: str, key: str, value: dict[str, object], if_absent: bool) -> dict[str, object]:
    """The requests whose metadata under this key is that value (`ValueMatcher`)."""
    matcher = {"filter": namespace, "path": [{"key": key}], "value": value}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": {"value": if_absent}}}
