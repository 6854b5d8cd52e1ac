"""What Istio makes of EnvoyFilters at a sidecar: the HTTP connection manager of an inbound chain with their patches.

Written from Istio's reference alone (EnvoyFilter): only what is asked for here is known. `MERGE` is protobuf's: what is
given takes the place of what was there, messages are merged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

Doc = dict[str, Any]
_MANAGER = "envoy.filters.network.http_connection_manager"


class BadFilterError(Exception):
    """What Istio's API would refuse, or what is not known here."""


def patches(documents: Iterable[Doc], namespace: str, labels: Mapping[str, str], root: str) -> list[Doc]:
    """The patches for the inbound listener of a workload with a sidecar; those of the root namespace first."""
    found = []
    for one in documents:
        if one["kind"] != "EnvoyFilter" or one["metadata"]["namespace"] not in (namespace, root):
            continue
        if one["apiVersion"] != "networking.istio.io/v1alpha3" or set(one["spec"]) - {
            "workloadSelector",
            "configPatches",
        }:
            raise BadFilterError(str(one))
        if one["spec"].get("workloadSelector", {"labels": {}})["labels"].items() <= labels.items():
            found.append(one)
    found.sort(key=lambda one: one["metadata"]["namespace"] != root)
    return [patch for one in found for patch in one["spec"]["configPatches"]]


def patched(manager: Doc, asked: Iterable[Doc], port: int) -> Doc:
    """The connection manager of the chain for a port. Raises BadFilterError."""
    asked, found = list(asked), copy.deepcopy(manager)
    for one in asked:
        chain = one["match"]["listener"]["filterChain"]
        if one["match"]["context"] != "SIDECAR_INBOUND" or chain["filter"] != {"name": _MANAGER}:
            raise BadFilterError(str(one["match"]))
        if chain.get("destinationPort", port) != port:
            continue
        value = copy.deepcopy(one["patch"]["value"])
        match one["applyTo"], one["patch"]["operation"]:
            case "HTTP_FILTER", "INSERT_FIRST":
                found["http_filters"].insert(0, value)
            case "NETWORK_FILTER", "MERGE":
                if value["name"] != _MANAGER or value["typed_config"]["@type"] != manager["@type"]:
                    raise BadFilterError(str(value))
                _merge(found, value["typed_config"])
            case other:
                raise BadFilterError(str(other))
    return found


def _merge(there: Doc, more: Doc) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(there.get(key), dict):
            _merge(there[key], value)
        else:
            there[key] = value
