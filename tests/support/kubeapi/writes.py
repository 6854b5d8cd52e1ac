"""Creating, changing and deleting objects, with what the API server adds to them.

Source: apiserver pkg/registry/generic/registry/store.go, pkg/registry/rest.
"""

from __future__ import annotations

import copy
import secrets
import uuid
from datetime import UTC, datetime
from typing import Any

from support.kubeapi.errors import bad_request, conflict, exists, invalid, not_found
from support.kubeapi.patches import APPLY, JSON_PATCH, applied, json_patched, merged
from support.kubeapi.resources import CRDS, Registry, Served
from support.kubeapi.schemas import checked
from support.kubeapi.store import Item, Name, Store

Json = dict[str, Any]

NAMESPACES = ("", "namespaces")
#: Metadata that only the server writes.
_SERVERS = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
_FINISHED = ("Succeeded", "Failed")


class Writes:
    """Everything that changes the store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def create(self, served: Served, namespace: str, content: Json) -> Item:
        """POST. Raises ApiError."""
        content = copy.deepcopy(content)
        metadata = content.setdefault("metadata", {})
        if prefix := metadata.pop("generateName", ""):
            metadata.setdefault("name", prefix + secrets.token_hex(3)[:5])
            metadata["generateName"] = prefix
        if not metadata.get("name"):
            raise invalid(
                served.kind, served.group, "", "metadata.name", "Required value: name or generateName is required"
            )
        if metadata.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if served.status:
            content.pop("status", None)
            if served.kind == "Pod":
                content["status"] = {"phase": "Pending"}
        name = self._name(served, namespace, content)
        if namespace and self._store.get(NAMESPACES, ("", namespace)) is None:
            raise not_found("namespaces", "", namespace)
        if self._store.get(served.resource, name) is not None:
            raise exists(served.plural, served.group, name[1])
        for key in _SERVERS:
            metadata.pop(key, None)
        return self._put(served, name, self._born(served, checked(served, name[1], content)))

    def put(self, served: Served, content: Json) -> Item:
        """Store an object as it is, status and all, whatever was there: what a whole cluster has come to."""
        content = copy.deepcopy(content)
        namespace = content["metadata"].setdefault("namespace", "default") if served.namespaced else ""
        name = self._name(served, namespace, content)
        if namespace and self._store.get(NAMESPACES, ("", namespace)) is None:
            self._store.write(NAMESPACES, ("", namespace), self._born(None, _namespace(namespace)))
        old = self._store.get(served.resource, name)
        if old is None:
            return self._put(served, name, self._born(served, content))
        kept = {key: old.content["metadata"][key] for key in _SERVERS[:3] if key in old.content["metadata"]}
        if "generation" in kept and content.get("spec") != old.content.get("spec"):
            kept["generation"] += 1
        content["metadata"] = {**kept, **content["metadata"]}
        return self._put(served, name, content)

    def update(self, served: Served, name: Name, content: Json, *, status: bool = False) -> Item:
        """PUT, of the whole object or of its status. Raises ApiError."""
        given = content.get("metadata", {})
        if served.put_makes and not status and self._store.get(served.resource, name) is None:
            fresh = {**content, "metadata": {**given, "name": name[1], "resourceVersion": ""}}
            return self.create(served, name[0], fresh)
        old = self.need(served, name)
        if given.get("name", name[1]) != name[1] or given.get("namespace", name[0]) != name[0]:
            raise bad_request("the name of the object does not match the name on the URL")
        revision = given.get("resourceVersion", "")
        if not revision and served.custom:
            why = "Invalid value: 0: must be specified for an update"
            raise invalid(served.kind, served.group, name[1], "metadata.resourceVersion", why)
        if revision and revision != str(old.revision):
            raise conflict(served.plural, served.group, name[1])
        if given.get("uid", old.content["metadata"]["uid"]) != old.content["metadata"]["uid"]:
            raise conflict(served.plural, served.group, name[1], "Precondition failed: UID in precondition differs")
        return self._change(served, name, old, content, status=status)

    def patch(
        self, served: Served, name: Name, kind: str, patch: Any, *, manager: str, force: bool, status: bool = False
    ) -> tuple[Item, bool]:
        """PATCH, and whether that made the object. Raises ApiError."""
        old = self._store.get(served.resource, name)
        if kind == APPLY:
            if not manager:
                raise bad_request('PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value')
            if old is None and not status:
                content: Json = {
                    "apiVersion": served.api_version,
                    "kind": served.kind,
                    "metadata": {"name": name[1], **({"namespace": name[0]} if name[0] else {})},
                }
                return self.create(served, name[0], applied(content, patch, manager, force=force)), True
        if old is None:
            raise not_found(served.plural, served.group, name[1])
        if kind == APPLY:
            content = applied(old.content, patch, manager, force=force)
        elif kind == JSON_PATCH:
            content = json_patched(old.content, patch)
        else:
            # Of a strategic patch only what is no list; lists are replaced.
            content = merged(old.content, patch)
        content["metadata"].setdefault("resourceVersion", str(old.revision))
        return self.update(served, name, content, status=status), False

    def delete(self, served: Served, name: Name, options: Json) -> Item | None:
        """DELETE; the object if it only begins to go. Raises ApiError."""
        old = self.need(served, name)
        metadata = old.content["metadata"]
        conditions = options.get("preconditions") or {}
        if conditions.get("uid", metadata["uid"]) != metadata["uid"]:
            raise conflict(served.plural, served.group, name[1], "Precondition failed: UID in precondition differs")
        if conditions.get("resourceVersion", str(old.revision)) != str(old.revision):
            raise conflict(served.plural, served.group, name[1])
        grace = self._grace(served, old.content, options)
        if not metadata.get("finalizers") and not grace:
            self._remove(served, name, old)
            return None
        if "deletionTimestamp" in metadata and metadata.get("deletionGracePeriodSeconds", 0) <= grace:
            return old
        going = {**metadata, "deletionTimestamp": metadata.get("deletionTimestamp", _now())}
        going["deletionGracePeriodSeconds"] = grace
        return self._store.write(served.resource, name, {**old.content, "metadata": going})

    def need(self, served: Served, name: Name) -> Item:
        """An object that must be there. Raises ApiError (404)."""
        found = self._store.get(served.resource, name)
        if found is None:
            raise not_found(served.plural, served.group, name[1])
        return found

    def _grace(self, served: Served, content: Json, options: Json) -> int:
        """Seconds that a pod which runs has left; the kubelet then deletes it with 0."""
        if served.kind != "Pod" or served.group:
            return 0
        if not content.get("spec", {}).get("nodeName") or content.get("status", {}).get("phase") in _FINISHED:
            return 0
        wanted = options.get("gracePeriodSeconds")
        return int(content["spec"].get("terminationGracePeriodSeconds", 30) if wanted is None else wanted)

    def _remove(self, served: Served, name: Name, old: Item) -> None:
        if served.resource == NAMESPACES:
            for one in {each.resource: each for each in self._registry.served() if each.namespaced}.values():
                for below in [key for key in self._store.objects(one.resource) if key[0] == name[1]]:
                    self._store.write(one.resource, below, None)
        if served.resource == CRDS:
            spec = old.content["spec"]
            resource = (spec["group"], spec["names"]["plural"])
            for below in list(self._store.objects(resource)):
                self._store.write(resource, below, None)
        self._store.write(served.resource, name, None)

    def _change(self, served: Served, name: Name, old: Item, content: Json, *, status: bool) -> Item:
        content = copy.deepcopy(content)
        before = old.content
        if status:
            metadata = {**before["metadata"], "managedFields": content["metadata"].get("managedFields")}
            if metadata["managedFields"] is None:
                metadata.pop("managedFields")
            content = {**before, "metadata": metadata, "status": content.get("status", {})}
        else:
            if served.status:
                content.pop("status", None)
                if "status" in before:
                    content["status"] = before["status"]
            metadata = content["metadata"]
            for key in _SERVERS:
                metadata.pop(key, None)
                if key in before["metadata"]:
                    metadata[key] = before["metadata"][key]
            metadata.setdefault("managedFields", before["metadata"].get("managedFields"))
            if metadata["managedFields"] is None:
                metadata.pop("managedFields")
            metadata["name"] = name[1]
            if name[0]:
                metadata["namespace"] = name[0]
        content["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
        content["apiVersion"], content["kind"] = before["apiVersion"], served.kind
        content = checked(served, name[1], content)
        if content == before:
            return old  # what changes nothing makes no revision
        rest = (
            {key: value for key, value in one.items() if key not in ("metadata", "status")} for one in (content, before)
        )
        if next(rest) != next(rest) and "generation" in content["metadata"]:
            content["metadata"]["generation"] += 1
        gone = "deletionTimestamp" in content["metadata"] and not content["metadata"].get("finalizers")
        if gone and not content["metadata"].get("deletionGracePeriodSeconds"):
            self._remove(served, name, old)
            return old
        return self._put(served, name, content)

    def _put(self, served: Served, name: Name, content: Json) -> Item:
        content["kind"], content["apiVersion"] = served.kind, served.api_version
        item = self._store.write(served.resource, name, content)
        assert item is not None
        return item

    def _born(self, served: Served | None, content: Json) -> Json:
        metadata = content["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", _now())
        if served is not None and "spec" in content:
            metadata.setdefault("generation", 1)
        return content

    def _name(self, served: Served, namespace: str, content: Json) -> Name:
        metadata = content["metadata"]
        if served.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            return namespace, metadata["name"]
        metadata.pop("namespace", None)
        return "", metadata["name"]


def _namespace(name: str) -> Json:
    labels = {"kubernetes.io/metadata.name": name}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
