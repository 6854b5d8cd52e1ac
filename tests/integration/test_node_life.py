"""What a node goes through, in one story, and no verdict is wrong in it: see docs/life.md."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.testbed import netns
from support.cninode import wait
from support.libcni import PluginError
from support.lifenode import LIMIT, POLICIES, TRY_AGAIN, VERSIONS, LifeNode, added_at_last, died
from support.lifeprober import NONE, Arrivals, Prober, ask, memory

#: Seconds that the API server is away, and that the cluster churns.
AWAY = int(os.environ.get("SPLICEWAY_LIFE_AWAY", "20"))
CHURN = int(os.environ.get("SPLICEWAY_LIFE_CHURN", "15"))
#: Parts of the story, for trying one of them: the first is always told.
PARTS = os.environ.get("SPLICEWAY_LIFE_PARTS", "away reboot churn namespace upgrade end").split()

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600 + 2 * AWAY + 4 * CHURN)]

#: What an agent's own memory may grow by while nothing can be learned, in bytes.
_GROWTH = 4 << 20
GUESTS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %s, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: %s}}}], ports: [{port: 80}]}]
"""


class Story:
    """The node, its prober, and the figures."""

    def __init__(self, directory: Path) -> None:
        self.life = LifeNode(directory)
        self.prober = Prober(pace=0.03 if AWAY < 300 else 0.2)
        self.figures: dict[str, Any] = {}
        self.arrivals: list[Arrivals] = []

    def part(self, name: str) -> None:
        """A part of the story begins."""
        self.prober.phase = name
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)

    def note(self, **figures: Any) -> None:
        """Figures of this part."""
        self.figures.setdefault(self.prober.phase, {}).update(figures)
        print(f"  {figures}", flush=True)

    def probe(self) -> None:
        """Ask all the time by all ways that the policies speak of, and watch who comes."""
        fine = [self.life.pods["good"].address(version) for version in VERSIONS]
        self.arrivals = [Arrivals(self.life.pods[name].netns, fine) for name in ("api", "db")]
        for ways in self.life.ways():
            self.prober.add(ways)

    def rest(self) -> None:
        """Ask no more."""
        self.prober.end()
        for one in self.arrivals:
            one.end()

    def right_so_far(self) -> None:
        """No verdict was wrong."""
        assert not self.prober.faults(), self.prober.faults()[:20]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path)
    try:
        yield made
    finally:
        made.prober.end()
        made.life.close()


def test_a_nodes_life(story: Story) -> None:
    life = story.life
    life.boot()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: print(json.dumps(story.figures), flush=True))
        begins(story)
        parts = {"away": away}
        for name, tell in parts.items():
            if name in PARTS:
                tell(story)
                story.right_so_far()
        story.rest()
    story.right_so_far()
    print(story.prober.counts)


def begins(story: Story) -> None:
    """An agent before its API server: on a node that has had none, and on one that had one."""
    life = story.life
    story.part("begins")
    site = life.site
    site.policy("all", POLICIES)
    # A pod that is there before everything: no chain guards it yet.
    db = life.add("db", {"app": "db"})
    site.listen(db)
    site.api.stop(abrupt=True)
    with life.starting():
        time.sleep(1.0)
        began = time.monotonic()
        site.api.start()
    story.note(first_start_after_server=round(time.monotonic() - began, 2))
    status = site.status()
    assert (status["wired"], status["found"], status["without"]) == (1, 1, []), status
    for name in ("api", "good", "other", "bad"):
        life.add(name, {"app": name})
    site.listen(life.pods["api"])
    life.listen()
    story.probe()
    early = site.create("early", {"app": "bad"})
    settled(story)
    assert site.agent is not None
    site.agent.kill()
    site.api.stop(abrupt=True)
    with life.starting():
        pod = site.sandbox("early", uid=early)
        with pytest.raises(PluginError) as told:
            pod.add()
        assert told.value.code == TRY_AGAIN
        time.sleep(1.0)
        began = time.monotonic()
        site.api.start()
    story.note(next_start_after_server=round(time.monotonic() - began, 2))
    pod.delete()
    added_at_last(pod)
    for way in life.ways(["good", "bad"])[1::2]:
        for one in way:
            found = ask_from(pod, one)
            story.prober.note(one, time.time(), found)
    died(site, pod)
    for each in life.pods.values():
        if each.name != "db":  # its result is one of the chain before
            each.check()


def ask_from(pod: Any, way: Any) -> int:
    """What becomes of a way when it begins in that pod."""
    return netns.call(pod.netns, lambda: ask(way))


def settled(story: Story) -> None:
    """Return when what the double has now is in force: a pod elsewhere that goes by is the mark."""
    site = story.life.site
    name = f"mark-{time.monotonic_ns()}"
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"mark": name}},
        "spec": {"nodeName": "elsewhere"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.240.9.9"}]},
    }
    site.api.put(document)
    wait(lambda: any(name in label for label in site.identity("10.240.9.9")), LIMIT)
    site.api.drop("v1", "Pod", f"default/{name}")
    wait(lambda: not site.identity("10.240.9.9"), LIMIT)


def away(story: Story) -> None:
    """The API server is gone; much happens meanwhile."""
    life, site, prober = story.life, story.life.site, story.prober
    story.part("away")
    for name in ("guest", "visitor", "leaving"):
        life.add(name, {"app": name})
    site.policy("visitors", GUESTS % ("visitors", "visitor"))
    life.far("far-good", {"app": "good"})
    seen = site.create("seen", {"app": "bad"})
    settled(story)
    before = [
        life.way(name, f"{name}→db v{version}", life.pods["db"].address(version), "/", right)
        for name, right in (("guest", NONE), ("visitor", 200), ("far", 200))
        for version in VERSIONS
    ]
    ends = [prober.add([way]) for way in before]
    site.api.stop(abrupt=True)
    began = time.monotonic()
    # What the cluster does meanwhile, and nobody here can know.
    site.policy("guests", GUESTS % ("guests", "guest"))
    site.api.drop("networking.k8s.io/v1", "NetworkPolicy", "default/visitors")
    site.api.drop("v1", "Pod", "default/far-good")
    life.far("far-other", {"app": "other"})
    unseen = site.sandbox("unseen", uid=site.create("unseen", {"app": "good"}))
    with pytest.raises(PluginError) as told:
        unseen.add()
    assert told.value.code == TRY_AGAIN
    # What runtimes do meanwhile needs no server.
    young = site.sandbox("seen", uid=seen)
    young.add()
    leaving = life.pods.pop("leaving")
    leaving.delete()
    leaving.gone()
    site.forget("leaving")
    assert not site.identity(leaving.address())
    wait(lambda: site.told()["source"]["kubernetes"]["lost"], LIMIT)
    samples = []
    while time.monotonic() - began < AWAY:
        samples.append(memory(life.pid))
        if len(samples) % 30 == 1:
            for way in life.ways(["bad"]):
                for one in way:
                    prober.note(one, time.time(), ask_from(young, one))
        if len(samples) % 600 == 0:
            story.note(seconds=round(time.monotonic() - began), memory=samples[-1][0], descriptors=samples[-1][1])
            story.right_so_far()
        time.sleep(min(1.0, AWAY / 20))
    for end in ends:
        end()
    began = time.monotonic()
    site.api.start(forget=True)
    unseen.delete()
    added_at_last(unseen)
    story.note(new_pod_after_server=round(time.monotonic() - began, 2))
    settled(story)
    story.note(settled_after_server=round(time.monotonic() - began, 2))
    after = {"guest": 200, "visitor": NONE, "far": NONE}
    for way in before:
        now = way._replace(right=after[way.name.split("→")[0]])
        prober.note(now, time.time(), netns.call(now.place, lambda now=now: ask(now)))
    for ways in life.ways(["good"]):
        for one in ways:
            prober.note(one, time.time(), ask_from(unseen, one))
    early, late = samples[len(samples) // 4], samples[-1]
    story.note(
        seconds=AWAY,
        memory_begins=early[0],
        memory_ends=late[0],
        descriptors_begin=early[1],
        descriptors_end=late[1],
        most_descriptors=max(one[1] for one in samples),
    )
    assert late[0] - early[0] < _GROWTH
    assert abs(late[1] - early[1]) <= 3
    died(site, unseen, young, *(life.pods.pop(name) for name in ("guest", "visitor")))
    site.api.drop("networking.k8s.io/v1", "NetworkPolicy", "default/guests")
    site.api.drop("v1", "Pod", "default/far-other")
    settled(story)
