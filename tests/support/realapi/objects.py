"""A client of a real API server for tests: objects go in whole, status included, as they do with the double."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpx2
import msgspec
import yaml

Json = dict[str, Any]
#: Seconds for anything to come about.
LIMIT = 120.0
#: So many writes are asked for at once, and so often is one tried that others are in the way of.
_WRITES, _TRIES = 16, 20
#: Of an object's metadata what whoever puts it decides.
_OURS = ("labels", "annotations", "finalizers", "ownerReferences")


class Objects:
    """Of one server, by somebody who may do everything. Names are «namespace/name», or «name»."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._kinds: dict[str, dict[str, Json]] = {}  # path of a version → kind, or kind and «/status» → resource
        self._records: list[asyncio.Task[None]] = []

    async def ask(
        self, method: str, path: str, body: Json | list[Json] | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Anything: status and answer."""
        content = None if body is None else msgspec.json.encode(body)
        kind = {"content-type": "application/json"} if body is not None else {}
        deadline = time.monotonic() + LIMIT
        while True:
            answer = await self._client.request(method, path, content=content, headers={**kind, **headers})
            # Its watch cache is being made anew, say.
            if answer.status_code != 429 or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status_code, msgspec.json.decode(answer.content) if is_json else answer.text

    async def put(self, documents: Iterable[Json | str]) -> None:
        """Make or change objects and their namespaces; `str`: YAML of any number."""
        every: list[Json] = []
        for document in documents:
            several = yaml.safe_load_all(document) if isinstance(document, str) else (document,)
            for one in several:
                every += [] if one is None else one["items"] if one["kind"] == "List" else [one]
        every = list({_name(one): one for one in every}.values())  # the last word on each
        for name in dict.fromkeys(one["metadata"].get("namespace", "") for one in every):
            if name and await self.get("v1", "Namespace", name) is None:
                await self._put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        gate = asyncio.Semaphore(_WRITES)

        async def put(one: Json) -> None:
            async with gate:
                await self._put(one)

        first = [one for one in every if one["kind"] in ("Namespace", "CustomResourceDefinition")]
        for one in first:
            await self._put(one)
        await asyncio.gather(*(put(one) for one in every if one not in first))

    async def get(self, api_version: str, kind: str, name: str) -> Json | None:
        """One; None: there is none."""
        status, found = await self.ask("GET", await self._path(api_version, kind, name))
        assert status in (200, 404), found
        return found if status == 200 else None

    async def all(self, api_version: str, kind: str) -> list[Json]:
        """All of a kind, by name; none of one that is not served."""
        try:
            base, resource = await self._resource(api_version, kind)
        except LookupError:
            return []
        found = await self._good("GET", f"{base}/{resource['name']}")
        items = [{"apiVersion": api_version, "kind": kind, **one} for one in found["items"] if not _is_its_own(one)]
        return sorted(items, key=lambda one: (one["metadata"].get("namespace", ""), one["metadata"]["name"]))

    async def drop(self, api_version: str, kind: str, name: str) -> None:
        """Delete one at once, whatever holds it, a namespace with what tests have put into it.

        Raises LookupError when it is not there.
        """
        path = await self._path(api_version, kind, name)
        if kind == "Namespace":
            await self._empty(name)
        status, answer = await self.ask("DELETE", f"{path}?gracePeriodSeconds=0")
        if status == 404:
            raise LookupError(f"{kind} {name}: {answer}")
        assert status in (200, 202), answer
        # What holds definitions is the server itself, which deletes what is of them first.
        if kind != "CustomResourceDefinition" and answer.get("metadata", {}).get("finalizers"):
            patch = {"content-type": "application/merge-patch+json"}
            status, answer = await self.ask("PATCH", path, {"metadata": {"finalizers": None}}, **patch)
            assert status in (200, 404), answer
        if kind == "Namespace":
            found = await self._good("GET", path)
            await self._good("PUT", f"{path}/finalize", {**found, "spec": {"finalizers": []}})

    async def collect(self) -> list[str]:
        """Delete what has lost its owner, as kube-controller-manager does; what that was, by name."""
        gone = []
        for base, kinds in list(self._kinds.items()):
            for kind in [
                one for one, each in kinds.items() if "/" not in one and {"list", "delete"} <= {*each["verbs"]}
            ]:
                api_version = base.removeprefix("/apis/").removeprefix("/api/")
                for one in await self.all(api_version, kind):
                    metadata = one["metadata"]
                    owners = metadata.get("ownerReferences") or ()
                    namespace = metadata.get("namespace", "")
                    if owners and not any([await self._is_there(namespace, each) for each in owners]):
                        name = "/".join(filter(None, (namespace, metadata["name"])))
                        await self.drop(api_version, kind, name)
                        gone.append(f"{kind}/{name}")
        return sorted(gone)

    async def record(self, api_version: str, kind: str) -> list[list[Json]]:
        """What there is of a kind after each write of any of it: a watch tells of every one."""
        base, resource = await self._resource(api_version, kind)
        path = f"{base}/{resource['name']}"
        found = await self._good("GET", path)
        states: list[list[Json]] = []
        query = {"watch": "1", "resourceVersion": found["metadata"]["resourceVersion"]}
        self._records.append(asyncio.create_task(self._follow(path, query, found["items"], states)))
        return states

    async def _follow(
        self, path: str, query: Mapping[str, str], items: Iterable[Json], states: list[list[Json]]
    ) -> None:
        there = {one["metadata"]["uid"]: one for one in items}
        async with self._client.stream("GET", path, params=dict(query), timeout=None) as answer:
            async for line in answer.aiter_lines():
                event = msgspec.json.decode(line)
                assert event["type"] in ("ADDED", "MODIFIED", "DELETED"), event
                there[event["object"]["metadata"]["uid"]] = event["object"]
                if event["type"] == "DELETED":
                    del there[event["object"]["metadata"]["uid"]]
                states.append(list(there.values()))

    async def _is_there(self, namespace: str, owner: Json) -> bool:
        _base, resource = await self._resource(owner["apiVersion"], owner["kind"])
        name = f"{namespace}/{owner['name']}" if resource["namespaced"] else owner["name"]
        found = await self.get(owner["apiVersion"], owner["kind"], name)
        return found is not None and found["metadata"]["uid"] == owner["uid"]

    async def _good(self, method: str, path: str, body: Json | None = None) -> Json:
        status, answer = await self.ask(method, path, body)
        assert status in (200, 201, 202), (method, path, status, answer)
        found: Json = answer
        return found

    async def _resource(self, api_version: str, kind: str) -> tuple[str, Json]:
        """Path of the version, and the resource. Raises LookupError."""
        base = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        for fresh in (False, True):
            if fresh or base not in self._kinds:
                status, answer = await self.ask("GET", base)
                kinds = self._kinds[base] = {}
                for one in answer["resources"] if status == 200 else ():
                    resource, _, sub = one["name"].partition("/")
                    if sub in ("", "status"):
                        kinds["/".join(filter(None, (one["kind"], sub)))] = {**one, "name": resource}
            if kind in self._kinds[base]:
                return base, self._kinds[base][kind]
        raise LookupError(f"{api_version} {kind} is not served")

    async def _path(self, api_version: str, kind: str, name: str) -> str:
        base, resource = await self._resource(api_version, kind)
        namespace, _, short = name.rpartition("/")
        within = f"/namespaces/{namespace or 'default'}" if resource["namespaced"] else ""
        return f"{base}{within}/{resource['name']}/{short}"

    async def _put(self, document: Json) -> None:
        wanted = _as_servers_want_it(document)
        api_version, kind, metadata = wanted["apiVersion"], wanted["kind"], wanted["metadata"]
        base, resource = await self._resource(api_version, kind)
        if resource["namespaced"]:
            metadata.setdefault("namespace", "default")
        path = await self._path(api_version, kind, "/".join((metadata.get("namespace", ""), metadata["name"])))
        for _ in range(_TRIES):
            status, found = await self.ask("GET", path)
            if status == 200 and kind == "Pod" and _containers(found) != _containers(wanted):
                await self.ask("DELETE", f"{path}?gracePeriodSeconds=0")  # another pod of that name
                status = 404
            if status == 404:
                status, found = await self.ask("POST", path.rpartition("/")[0], wanted)
            else:
                own = {**found["metadata"], **{key: metadata.get(key) for key in _OURS}}
                spec = {"spec": found["spec"]} if kind == "Pod" else {}  # next to nothing of it may be changed
                status, found = await self.ask("PUT", path, {**found, **wanted, "metadata": own, **spec})
            if status in (200, 201) and "status" in wanted and f"{kind}/status" in self._kinds[base]:
                status, found = await self.ask("PUT", f"{path}/status", {**found, "status": wanted["status"]})
            if status != 409:  # somebody else may write it meanwhile: the agent, say
                break
        assert status in (200, 201), (kind, metadata, status, found)
        if kind == "CustomResourceDefinition":
            await self._established(path, wanted["spec"])

    async def _established(self, path: str, spec: Json) -> None:
        """Return when the kind is served in each of its versions."""
        deadline = time.monotonic() + LIMIT
        versions = [f"{spec['group']}/{one['name']}" for one in spec["versions"] if one.get("served", True)]
        while time.monotonic() < deadline:
            found = await self._good("GET", path)
            conditions = found.get("status", {}).get("conditions") or ()
            if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
                with contextlib.suppress(LookupError):
                    for version in versions:
                        self._kinds.pop(f"/apis/{version}", None)
                        await self._resource(version, spec["names"]["kind"])
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{path}: not established")

    async def _empty(self, namespace: str) -> None:
        for base, kinds in list(self._kinds.items()):
            for kind, one in kinds.items():
                if one["namespaced"] and "/" not in kind and "deletecollection" in one["verbs"]:
                    await self.ask("DELETE", f"{base}/namespaces/{namespace}/{one['name']}?gracePeriodSeconds=0")


def _name(one: Json) -> tuple[str, ...]:
    return (one["apiVersion"], one["kind"], one["metadata"].get("namespace", "default"), one["metadata"]["name"])


def _containers(pod: Json) -> list[str]:
    return [one["name"] for group in ("initContainers", "containers") for one in pod["spec"].get(group) or ()]


def _is_its_own(one: Json) -> bool:
    """Events that distributions' servers tell of themselves."""
    return str(one.get("involvedObject", {}).get("name", "")).startswith("openshift")


def _as_servers_want_it(document: Mapping[str, Any]) -> Json:
    """A copy with what a real server insists on, and without what it decides itself."""
    made: Json = msgspec.json.decode(msgspec.json.encode(document))
    kind, metadata = made["kind"], made["metadata"]
    for field in ("uid", "creationTimestamp", "resourceVersion", "generation", "managedFields"):
        metadata.pop(field, None)
    if kind == "Pod":
        for one in made.setdefault("spec", {}).setdefault("containers", [{"name": "c"}]):
            one.setdefault("image", "none.example/none:1")
        if "podIPs" in made.get("status", {}):
            ips = made["status"]["podIPs"]
            made["status"]["podIP"] = ips[0]["ip"] if ips else ""
    if kind == "CustomResourceDefinition" and made["spec"]["group"].endswith("k8s.io"):
        metadata.setdefault("annotations", {})["api-approved.kubernetes.io"] = "unapproved, a test's"
    return made
