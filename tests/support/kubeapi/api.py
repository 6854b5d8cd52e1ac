"""What a request means, and what is answered: paths, discovery, verbs. All but the wire and the watches' time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from support.kubeapi import protobuf
from support.kubeapi.errors import ApiError, bad_request
from support.kubeapi.listing import listed, read_options
from support.kubeapi.openapi import openapi
from support.kubeapi.patches import APPLY, body_of
from support.kubeapi.resources import CRDS, Registry, Served
from support.kubeapi.rights import Asked, Rights
from support.kubeapi.store import Name, Store
from support.kubeapi.watches import Watch
from support.kubeapi.writes import NAMESPACES, Writes, _namespace

Json = dict[str, Any]
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_HEALTH = ("/healthz", "/livez", "/readyz")
_FIRST = ("default", "kube-system", "kube-public", "kube-node-lease")
VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"}


class Request(msgspec.Struct, frozen=True):
    """One request, read whole; header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


class Answer(msgspec.Struct, frozen=True):
    """Status and body."""

    code: int
    body: bytes
    kind: str = "application/json"


class _Target(msgspec.Struct, frozen=True):
    served: Served
    namespace: str
    name: str
    subresource: str

    @property
    def key(self) -> Name:
        return (self.namespace, self.name)


class Api:
    """The server without its sockets."""

    def __init__(self) -> None:
        self.store = Store()
        self.registry = Registry(self.store)
        self.writes = Writes(self.store, self.registry)
        self.rights = Rights()
        self.watch_list = True
        self.oldest = 0  # before this revision the watch cache knows nothing
        for name in _FIRST:
            self.writes.put(self._need("v1", "Namespace"), _namespace(name))

    def answer(self, request: Request) -> Answer | Watch:
        """What to send. Raises ApiError."""
        user = self.rights.who(request.headers.get("authorization", ""))
        if request.path in _HEALTH:
            return Answer(200, b"ok", "text/plain")
        accepts = request.headers.get("accept", "*/*")
        if not any(
            kind.split(";")[0].strip() in ("application/json", "*/*", "application/*") for kind in accepts.split(",")
        ):
            raise ApiError(406, "NotAcceptable", "only the following media types are accepted: application/json")
        found = self._discovery(request.path) or openapi(request.path, self.registry.served())
        if found is not None:
            return Answer(200, msgspec.json.encode(found))
        target = self._target(request.path)
        if target is None:
            return Answer(404, b"404 page not found\n", "text/plain; charset=utf-8")
        self.rights.check(user, _asked(request, target))
        return self._do(request, target)

    def put(self, content: Json) -> int:
        """Store an object as it is; its revision."""
        return self.writes.put(self._need(content["apiVersion"], content["kind"]), content).revision

    def drop(self, kind: Served, name: Name) -> None:
        """Remove an object at once, whatever holds it."""
        self.writes.need(kind, name)
        self.store.write(kind.resource, name, None)

    def _need(self, api_version: str, kind: str) -> Served:
        return self.registry.of_kind(api_version, kind)

    def _do(self, request: Request, target: _Target) -> Answer | Watch:
        served, writes = target.served, self.writes
        if target.subresource and target.name and request.method not in ("GET", "PUT", "PATCH"):
            raise _not_allowed()
        status = target.subresource == "status"
        match request.method, bool(target.name):
            case "GET", True if "watch" not in request.query:
                return Answer(200, writes.need(served, target.key).text(served.api_version))
            case "GET", _:
                options = read_options(request.query, served, target.namespace, target.name, watch_list=self.watch_list)
                if options.watch:
                    return Watch(self.store, served, options, oldest=self.oldest)
                return Answer(200, listed(self.store, served, options))
            case "POST", False:
                item = writes.create(served, target.namespace, _body(request, served))
                return Answer(201, item.text(served.api_version))
            case "PUT", True:
                item = writes.update(served, target.key, _body(request, served), status=status)
                return Answer(200, item.text(served.api_version))
            case "PATCH", True:
                kind = request.headers.get("content-type", "").split(";")[0]
                item, made = writes.patch(
                    served,
                    target.key,
                    kind,
                    body_of(kind, request.body),
                    manager=request.query.get("fieldManager", "" if kind == APPLY else "unknown"),
                    force=request.query.get("force", "") == "true",
                    status=status,
                )
                return Answer(201 if made else 200, item.text(served.api_version))
            case "DELETE", True:
                going = writes.delete(served, target.key, self._delete_options(request))
                if going is not None:
                    return Answer(200, going.text(served.api_version))
                return Answer(200, msgspec.json.encode(_success(target)))
            case "DELETE", False:
                options = read_options(request.query, served, target.namespace)
                for name, item in sorted(self.store.objects(served.resource).items()):
                    if options.selects(name, item):
                        writes.delete(served, name, self._delete_options(request))
                return Answer(200, msgspec.json.encode(_success(target)))
        raise _not_allowed()

    def _delete_options(self, request: Request) -> Json:
        options: Json = _read(request) if request.body else {}
        if "gracePeriodSeconds" in request.query:
            options["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
        return options

    def _target(self, path: str) -> _Target | None:
        parts = path.strip("/").split("/")
        match parts:
            case ["api", version, *rest]:
                group = ""
            case ["apis", group, version, *rest]:
                pass
            case _:
                return None
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2 and (group or rest[2] not in ("status", "finalize")):
            namespace, rest = rest[1], rest[2:]
        if not rest or len(rest) > 3:
            return None
        served = self.registry.find(group, version, rest[0])
        if served is None or (namespace and not served.namespaced):
            return None
        name, subresource = (*rest[1:], "", "")[:2]
        if name and served.namespaced and not namespace:
            return None
        if subresource and not (subresource == "status" and served.status):
            return None
        return _Target(served, namespace, name, subresource)

    def _discovery(self, path: str) -> Json | None:
        groups = self.registry.groups()
        match path.strip("/").split("/"):
            case ["version"]:
                return VERSION
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
            case ["apis"]:
                listed = [_group(group, versions) for group, versions in groups.items()]
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
            case ["apis", group] if group in groups:
                return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, groups[group])}
            case ["api", "v1"]:
                return self._resources("", "v1")
            case ["apis", group, version] if version in groups.get(group, ()):
                return self._resources(group, version)
        return None

    def _resources(self, group: str, version: str) -> Json:
        listed: list[Json] = []
        for one in self.registry.served():
            if (one.group, one.version) != (group, version):
                continue
            common = {"namespaced": one.namespaced, "kind": one.kind}
            listed.append({"name": one.plural, "singularName": one.kind.lower(), **common, "verbs": _VERBS})
            if one.status:
                verbs = ["get", "patch", "update"]
                listed.append({"name": f"{one.plural}/status", "singularName": "", **common, "verbs": verbs})
        title = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": title, "resources": listed}


def _asked(request: Request, target: _Target) -> Asked:
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}
    verb = verbs.get(request.method, request.method.lower())
    if verb == "get" and request.query.get("watch", "").lower() in ("1", "true"):
        verb = "watch"
    elif verb == "get" and not target.name:
        verb = "list"
    elif verb == "delete" and not target.name:
        verb = "deletecollection"
    name = target.name
    # A list or watch of one object by its name counts as one of that object.
    if not name and (text := request.query.get("fieldSelector", "")).startswith("metadata.name=") and "," not in text:
        name = text.removeprefix("metadata.name=").removeprefix("=")
    namespace = target.name if target.served.resource == NAMESPACES else target.namespace
    return Asked(verb, target.served.group, target.served.plural, namespace, name, target.subresource)


def _body(request: Request, served: Served) -> Json:
    try:
        content = _read(request, custom=served.custom)
    except (msgspec.MsgspecError, ValueError) as error:
        raise bad_request(f"the object provided is unrecognized (must be of type {served.kind}): {error}") from error
    if (
        content.get("kind", served.kind) != served.kind
        or content.get("apiVersion", served.api_version) != served.api_version
    ):
        raise bad_request(
            f"the API version in the data ({content.get('apiVersion')}) does not match the expected API version "
            f"({served.api_version})"
        )
    return content


def _read(request: Request, *, custom: bool = False) -> Json:
    kind = request.headers.get("content-type", "application/json").split(";")[0]
    if kind == "application/json":
        content: Json = msgspec.json.decode(request.body, type=dict)
        return content
    with contextlib.suppress(LookupError):
        if kind == protobuf.KIND and not custom:
            return protobuf.decoded(request.body)
    raise ApiError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format - {kind}")


def _group(group: str, versions: list[str]) -> Json:
    found = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": found, "preferredVersion": found[0]}


def _success(target: _Target) -> Json:
    details = {"name": target.name, "group": target.served.group, "kind": target.served.plural}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def crd_ended(registry: Registry, watch_of: Served) -> bool:
    """Whether what a watch is of is served no more."""
    return registry.find(watch_of.group, watch_of.version, watch_of.plural) is None


__all__ = ["CRDS", "Answer", "Api", "Request", "crd_ended"]
