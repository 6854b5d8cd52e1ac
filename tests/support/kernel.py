"""A datapath inside a virtual node's network namespace, driven from a test.

An event loop runs in a thread that has entered the namespace; the loader's process and the worker threads inherit it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from spliceway.agent.hostaddresses import Own, own_addresses, with_own
from spliceway.agent.testbed.agentprocess import PROGRAMS
from spliceway.agent.testbed.node import Node
from spliceway.bpf import libbpf
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.install import pin_root
from spliceway.bpf.types import DatapathSettings, Hook, KernelFlow, LocalEndpoint
from spliceway.policy.compile import compile_table
from spliceway.policy.documents import load_documents
from spliceway.policy.model import Cluster, Pod
from spliceway.policy.model import Node as NodeObject
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_document
from spliceway.policy.table import PolicyTable
from support.waiting import LIMIT

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


class NamespaceLoop:
    """An event loop in a thread that lives in another network namespace."""

    def __init__(self, netns: Path) -> None:
        self._netns = netns
        self._loop: asyncio.AbstractEventLoop | None = None
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(started,), daemon=True)
        self._thread.start()
        started.result(LIMIT)

    def _main(self, started: Future[None]) -> None:
        descriptor = os.open(self._netns, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                started.set_exception(OSError(ctypes.get_errno(), "setns"))
                return
        finally:
            os.close(descriptor)
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(started.set_result, None)
            self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 10 * LIMIT) -> T:
        """Run a coroutine there and return its result."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function there."""

        async def work() -> T:
            return function(*arguments)

        return self.run(work())

    def stop(self) -> None:
        """End the thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


def cluster_of(*texts: str) -> Cluster:
    """A Cluster from YAML texts."""
    objects = [
        item for text in texts for document in load_documents(text, "test.yaml") for item in parse_document(document)
    ]
    return Cluster().with_objects(objects)


def node_cluster(node: Node, own: Own | None = None) -> tuple[Cluster, list[LocalEndpoint]]:
    """What the node's manifests say, its `own` addresses added as the agent does, and its local endpoints."""
    objects, endpoints = [], []
    for file in sorted(node.info.manifests.rglob("*.yaml")):
        for document in load_documents(file.read_text(), file.name):
            for item in parse_document(document):
                if isinstance(item, NodeObject) and item.name == node.name:
                    item = with_own(item, own or Own())
                objects.append(item)
                notes = document.content["metadata"].get("annotations", {})
                if isinstance(item, Pod) and "spliceway.io/interface" in notes:
                    endpoints.append(
                        LocalEndpoint(
                            item.key, notes["spliceway.io/interface"], Path(notes["spliceway.io/netns"]), item.addresses
                        )
                    )
    return Cluster().with_objects(objects), endpoints


#: A datapath in which rows run out soon; the same for all tests, since each has its programs compiled.
SMALL = {"max_rows": 256, "max_ipcache": 150_000}


class KernelNode:
    """A virtual node with a datapath and no agent: tests set endpoints and policies themselves."""

    def __init__(self, node: Node, *, test_defines: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.node = node
        info = node.info
        self.settings = DatapathSettings(
            bpffs=info.bpffs,
            state_dir=info.state,
            pods_cgroup=info.cgroups.pods,
            proxy_cgroup=info.cgroups.proxy,
            **{"program_cache": PROGRAMS, **settings},
        )
        self.loop = NamespaceLoop(info.netns)
        self.flows: list[KernelFlow] = []
        self._arrived = asyncio.Event()
        self.numbering = Numbering()
        self.table: PolicyTable | None = None
        self._revision = 0
        try:
            self.datapath = self.run(Datapath.open(self.settings, test_defines=test_defines))
            self.cluster, self.endpoints = node_cluster(node, self.run(own_addresses()))
            self.run(self.datapath.set_endpoints(self.endpoints))
        except BaseException:
            self.loop.stop()
            raise
        self._reader = self.loop.call(lambda: asyncio.get_running_loop().create_task(self._read()))

    async def _read(self) -> None:
        async for flow in self.datapath.events():
            self.flows.append(flow)
            self._arrived.set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the node."""
        return self.loop.run(work)

    def apply(self, *policies: str, cluster: Cluster | None = None) -> PolicyTable:
        """Compile the node's cluster (or another) with these policies (YAML) and make it live."""
        objects = [o for text in policies for d in load_documents(text, "test.yaml") for o in parse_document(d)]
        self._revision += 1
        whole = (cluster or self.cluster).with_objects(objects)
        self.table = compile_table(whole, node=self.node.name, numbering=self.numbering, revision=self._revision)
        self.run(self.datapath.apply(self.table))
        return self.table

    def ifindex(self, endpoint: str) -> int:
        """Interface index of an endpoint's veth in the node."""
        return self.datapath._attached[endpoint].ifindex

    def judge(
        self, hook: str, packet: bytes, *, endpoint: str = "", ingress_ifindex: int = 0, gso_size: int = 0
    ) -> int:
        """Run the pinned program on a frame as if it came by the endpoint's veth: -1 is pass, 2 drop.

        `gso_size`: bytes of each of its segments, 0: it is one.
        """

        def work() -> int:
            program = libbpf.open_pin(pin_root(self.settings) / "programs" / hook)
            try:
                index = self.ifindex(endpoint) if endpoint else 0
                how = {"ifindex": index, "ingress_ifindex": ingress_ifindex, "gso_size": gso_size}
                return libbpf.run_on_packet(program, packet, **how)[0]
            finally:
                os.close(program)

        return self.loop.call(work)

    def endpoints_now(self) -> list[LocalEndpoint]:
        """What is attached."""
        return [one.endpoint for one in self.datapath._attached.values()]

    def flows_seen(self, pause: float = 0.03) -> int:
        """How many records there are, once none came for `pause` seconds."""

        async def settle() -> int:
            while True:
                count = len(self.flows)
                await asyncio.sleep(pause)
                if len(self.flows) == count:
                    return count

        return self.run(settle())

    def flow_after(
        self, seen: int, timeout: float = LIMIT, *, port: int | None = None, hook: Hook | None = None
    ) -> KernelFlow:
        """The first record behind the `seen` ones that were there before; of those from this source port, at this hook.

        After a change of policy there are records about other connections, too: those that lost their verdict.
        """

        async def wait() -> KernelFlow:
            async with asyncio.timeout(timeout):
                while True:
                    for flow in self.flows[seen:]:
                        if port in (None, flow.source_port) and hook in (None, flow.hook):
                            return flow
                    self._arrived.clear()
                    await self._arrived.wait()

        return self.run(wait())

    def close(self) -> None:
        """Take the datapath out."""

        async def work() -> None:
            self._reader.cancel()
            await self.datapath.remove()

        try:
            self.run(work())
        finally:
            self.loop.stop()

    def __enter__(self) -> KernelNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
