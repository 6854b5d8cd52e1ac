"""Fifty pods a second in a cluster, some on the node, each with an address that another one has had just now."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from spliceway.agent.testbed import netns
from support.cninode import CniPod, bridge
from support.libcni import PluginError
from support.lifenode import FAR, LifeNode, died
from support.lifeprober import NONE, Holders, Prober, Talk, Way, ask
from support.waiting import until

#: Pods elsewhere: so many come in a second, and each lives for so long.
RATE, SECONDS = 50, 1.0
#: So few addresses are there for this node's: each is the next pod's at once.
_RANGES = (
    ("10.240.1.128/25", "10.240.1.200", "10.240.1.203"),
    ("fd00:240:1::1:0/112", "fd00:240:1::1:c8", "fd00:240:1::1:cb"),
)
_APPS = ("good", "other", "bad")
_WORKERS = 2


class Churn:
    """Runs while the context lasts. `holders`: who had the node's addresses; `added`: seconds of each ADD."""

    def __init__(self, life: LifeNode, prober: Prober, seed: int) -> None:
        self.holders = Holders()
        self.added: list[float] = []
        self.refused = 0
        self.elsewhere = 0
        self.handed = 0
        self.ended = 0
        self._life, self._prober = life, prober
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        tasks: list[Callable[[], None]] = [self._cluster, self._hands, *([self._pods] * _WORKERS)]
        self._threads = [threading.Thread(target=self._guarded, args=(task,)) for task in tasks]

    def __enter__(self) -> Churn:
        site = self._life.site
        ranges = [[{"subnet": net, "rangeStart": first, "rangeEnd": last}] for net, first, last in _RANGES]
        site.write_conf(bridge(self._life.ipam, ranges=ranges))
        site.wait_chained()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._life.site.write_conf(bridge(self._life.ipam))
        self._life.site.wait_chained()
        if self._failed:
            raise self._failed[0]

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                task()
        except BaseException as error:
            self._failed.append(error)
            self._stop.set()

    # ---- elsewhere ----

    def _cluster(self) -> None:
        """One life of many pods: at the end none is left."""
        api = self._life.site.api
        free = deque(range(1, 250))
        alive: deque[tuple[float, str, int]] = deque()
        began, made = time.monotonic(), 0
        while not self._stop.wait(0.1):
            now = time.monotonic()
            documents = []
            # What goes gives its address to what comes in the same moment, before it or after it.
            gone = []
            while alive and alive[0][0] < now - SECONDS:
                _, name, number = alive.popleft()
                gone.append(name)
                free.appendleft(number)
            late = self._random.random() < 0.5
            if not late:
                self._drop(gone)
            for _ in range(min(int((now - began) * RATE) - made, len(free))):
                number, name = free.popleft(), f"far-{made}"
                made += 1
                documents.append(_elsewhere(name, self._random.choice(_APPS), number))
                alive.append((now, name, number))
            if documents:
                api.put(*documents)
            if late:
                self._drop(gone)
        self.elsewhere += made
        self._drop([name for _, name, _ in alive])

    def _drop(self, names: list[str]) -> None:
        for name in names:
            self._life.site.api.drop("v1", "Pod", f"default/{name}")

    # ---- one machine elsewhere, whose addresses are those of pods of two namespaces in turn ----

    def _hands(self) -> None:
        life, api = self._life, self._life.site.api
        old, talks = "", list[Talk]()
        for namespace, welcome in (("default", True), ("foreign", False)):
            name = f"hand-{uuid.uuid4().hex[:6]}"
            late = self._random.random() < 0.5
            if old and not late:
                api.drop("v1", "Pod", old)
            life.far(name, {"app": "good"}, namespace)
            if old and late:
                api.drop("v1", "Pod", old)
            old = f"{namespace}/{name}"
            self._known(f"k8s:io.kubernetes.pod.namespace={namespace}")
            ways = self._far_ways(welcome)
            if welcome:
                talks = [life.talk("far", way.name, way.address, way.path) for way in ways if way.right == 200]
                until(lambda: all(talk.answers > 1 for talk in talks), 20.0)  # noqa: B023
            else:
                self._judge_talks(talks)
            for way in ways:
                began_at = time.time()
                self._prober.note(way, began_at, netns.call(way.place, partial(ask, way)))
            self.handed += 1
        api.drop("v1", "Pod", old)

    def _judge_talks(self, talks: list[Talk]) -> None:
        """Connections that another pod's address has left: nothing more is said on them."""
        before = [talk.answers for talk in talks]
        time.sleep(0.4)
        for talk, answers in zip(talks, before, strict=True):
            # One answer may have been under way.
            self._prober.note(talk.way._replace(right=NONE), time.time(), 200 if talk.answers > answers + 1 else NONE)
            self.ended += not talk.lives
            talk.stop()

    def _known(self, label: str) -> None:
        deadline = time.monotonic() + 20.0
        while not all(any(label in one for one in self._life.site.identity(address)) for address in FAR.values()):
            assert time.monotonic() < deadline, label
            time.sleep(0.02)

    def _far_ways(self, welcome: bool) -> list[Way]:
        found = []
        for version in FAR:
            api, db = (self._life.pods[name].address(version) for name in ("api", "db"))
            rights = [("db", db, "/", 200), ("api", api, "/articles/1", 200), ("private", api, "/private", 403)]
            for what, address, path, right in rights if welcome else rights[:2]:
                name = f"far ({'ours' if welcome else 'of another namespace'})→{what} v{version}"
                found.append(self._life.way("far", name, address, path, right if welcome else NONE))
        return found

    # ---- on the node ----

    def _pods(self) -> None:
        site = self._life.site
        with self._lock:
            app, order = self._random.choice(_APPS), self._random.random()
            name = f"churn-{uuid.uuid4().hex[:8]}"
            pod = site.sandbox(name, uid=site.create(name, {"app": app}))
        began = time.monotonic()
        try:
            pod.add()
        except PluginError as error:
            if "no IP addresses available" not in str(error) and error.code != 11:
                raise
            self.refused += 1
            pod.delete()
            died(site, pod)
            return
        self.added.append(time.monotonic() - began)
        has = time.time()
        self._judge(pod, app)
        if order < 0.7:  # the kubelet is not always so quick
            site.report(pod)
        if order < 0.3:
            self._judge(pod, app)
        if order > 0.8:  # removed by force: the sandbox is there longer than its object
            site.forget(name)
            if app != "good":
                time.sleep(self._random.uniform(0.0, 0.5))
                self._judge(pod, app)
        pod.delete()
        for version in FAR:
            self.holders.put(pod.address(version), has, time.time(), app)
        died(site, pod)

    def _judge(self, pod: CniPod, app: str) -> None:
        ways = self._life.ways([app], {app: pod})
        flat = [way for one in ways for way in one]
        began = time.time()
        with ThreadPoolExecutor(len(flat)) as pool:
            found = pool.map(lambda way: netns.call(way.place, lambda: ask(way)), flat)
        for way, one in zip(flat, found, strict=True):
            self._prober.note(way, began, one)


def _elsewhere(name: str, app: str, number: int) -> dict[str, Any]:
    born = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    metadata = {"name": name, "namespace": "default", "labels": {"app": app}, "uid": str(uuid.uuid4())}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "creationTimestamp": born},
        "spec": {"nodeName": "elsewhere"},
        "status": {"phase": "Running", "podIPs": [{"ip": f"10.240.7.{number}"}, {"ip": f"fd00:240:7::{number:x}"}]},
    }
