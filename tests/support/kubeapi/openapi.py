"""What clients ask of OpenAPI v3 before they write: which groups there are, and that writes take `fieldValidation`.

A real server describes every field besides; objects have no schemas here. Source: kube-openapi pkg/handler3, kubectl
pkg/util/openapi, k8s.io/cli-runtime pkg/resource/query_param_verifier_v3.go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from support.kubeapi.resources import Served

Json = dict[str, Any]
_ROOT = "/openapi/v3"
_VERBS = {"post": "", "put": "/{name}", "patch": "/{name}"}


def openapi(path: str, served: Iterable[Served]) -> Json | None:
    """The index, or the description of a group's version; None when the path is neither."""
    if path.rstrip("/") == _ROOT:
        groups = sorted({_path(one) for one in served})
        return {"paths": {group: {"serverRelativeURL": f"{_ROOT}/{group}?hash={_hash(group)}"} for group in groups}}
    group = path.removeprefix(f"{_ROOT}/")
    found = [one for one in served if _path(one) == group]
    if group == path or not found:
        return None
    paths: Json = {}
    for one in found:
        below = "/namespaces/{namespace}" if one.namespaced else ""
        for verb, name in _VERBS.items():
            paths.setdefault(f"/{group}{below}/{one.plural}{name}", {})[verb] = _operation(one, verb)
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths}


def _operation(served: Served, verb: str) -> Json:
    kind = {"group": served.group, "version": served.version, "kind": served.kind}
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}} for name in ("fieldManager", "fieldValidation")
    ]
    responses = {"200": {"description": "OK"}}
    return {
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": kind,
        "parameters": parameters,
        "responses": responses,
    }


def _path(served: Served) -> str:
    return f"apis/{served.group}/{served.version}" if served.group else f"api/{served.version}"


def _hash(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest().upper()
