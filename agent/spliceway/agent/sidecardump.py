"""What the sidecar of a pod of this node has, asked at its admin port inside of the pod's network namespace.

Whoever is in the pod may stand behind that port: the answer is bounded in time and size, one is asked at a time, and
only names, versions and states are read of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spliceway.agent import boundedget
from spliceway.bpf.netns import call_in
from spliceway.bpf.types import LocalEndpoint
from spliceway.xds.debug.meshview import Seen, of_sidecar

#: Where a sidecar's Envoy has its admin interface.
HOST, PORT = "127.0.0.1", 15000
TARGET = "/config_dump?include_eds"


class SidecarDump:
    """The view /v1/xds/sidecar. `endpoints`: the pods of this node, as they are now."""

    def __init__(self, endpoints: Callable[[], Sequence[LocalEndpoint]], *, wait: float = boundedget.WAIT) -> None:
        """`wait`: seconds that a sidecar has for its whole answer."""
        self._endpoints = endpoints
        self._wait = wait
        self._one = asyncio.Lock()

    async def __call__(self, query: dict[str, str]) -> list[Seen]:
        """Resources of the sidecar of `pod`, «namespace/name». Raises ValueError, LookupError, GetError, AdminError."""
        if query.keys() != {"pod"}:
            raise ValueError("the parameter pod is NAMESPACE/POD, and there are no others")
        endpoint = self._of(query["pod"])
        async with self._one:
            return await asyncio.to_thread(_read, endpoint.netns, endpoint.name, self._wait)

    def _of(self, name: str) -> LocalEndpoint:
        endpoint = next((one for one in self._endpoints() if one.name == name), None)
        if endpoint is None:
            raise LookupError(f"no pod {name!r} on this node")
        if "sidecar" not in endpoint.mesh:
            how = f"its mesh is {endpoint.mesh}" if endpoint.mesh else "it has none of Istio's annotations"
            raise LookupError(f"{name} has no sidecar: {how}")
        return endpoint


def _read(netns: Path, name: str, wait: float) -> list[Seen]:
    body = call_in(netns, lambda: boundedget.get(HOST, PORT, TARGET, wait=wait))
    return of_sidecar(boundedget.checked(body, name), name)


def asks(endpoints: Callable[[], Sequence[LocalEndpoint]]) -> dict[str, Any]:
    """Path below /v1/ → what answers it."""
    return {"xds/sidecar": SidecarDump(endpoints)}
