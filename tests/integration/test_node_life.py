"""What a node goes through, in one story, and no verdict is wrong in it: see docs/life.md."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.testbed import netns
from spliceway.bpf.abi import ABI_VERSION
from support.clusternode import MIRROR, STATIC, ClusterNode
from support.cninode import CniPod, bridge
from support.libcni import PluginError
from support.lifechurn import Churn
from support.lifeleft import in_step, pinned, sockets, there, traces
from support.lifenamespace import NAME, STAYS, Shop
from support.lifenode import FAR, LIMIT, POLICIES, TRY_AGAIN, VERSIONS, LifeNode, added_at_last, died
from support.lifeprober import NONE, Arrivals, Prober, Talk, Way, ask, memory
from support.lifeversion import other_version
from support.waiting import until

#: Seconds that the API server is away, and that the cluster churns.
AWAY = int(os.environ.get("SPLICEWAY_LIFE_AWAY", "20"))
CHURN = int(os.environ.get("SPLICEWAY_LIFE_CHURN", "15"))
#: Namespaces that are deleted.
SHOPS = int(os.environ.get("SPLICEWAY_LIFE_NAMESPACES", "4"))
#: Further upgrades and rollbacks.
ROLLBACKS = int(os.environ.get("SPLICEWAY_LIFE_ROLLBACKS", "0"))
#: Parts of the story, for trying one of them: the first is always told.
PARTS = os.environ.get("SPLICEWAY_LIFE_PARTS", "away reboot churn namespace upgrade end").split()

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200 + 2 * AWAY + 4 * CHURN)]

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
        self.prober = Prober(pace=0.03 if AWAY < 300 else 0.2)  # an hour of it is enough, however slow
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

    def ask(self, way: Way) -> None:
        """Once, now."""
        began = time.time()
        self.prober.note(way, began, netns.call(way.place, lambda: ask(way)))

    def judge(self, pod: CniPod, app: str) -> None:
        """Whether what a pod asks from now on is judged as its label wants it."""
        for ways in self.life.ways([app], {app: pod}):
            for way in ways:
                self.ask(way)

    def right_so_far(self) -> None:
        """No verdict was wrong."""
        assert not self.prober.wrong, self.prober.wrong[:20]
        denied = [pod for name, pod in self.life.pods.items() if name in ("other", "bad")]
        addresses = {pod.address(version) for pod in denied for version in VERSIONS}
        came = [one for each in self.arrivals for one in each.found if one[1] in addresses]
        assert not came, came[:20]


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
    life.first = traces(life)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: print(json.dumps(story.figures), flush=True))
        begins(story)
        parts = {"away": away, "reboot": reboot, "churn": churn, "namespace": namespace, "upgrade": upgrade}
        for name, tell in parts.items():
            if name in PARTS:
                tell(story)
                story.right_so_far()
        ends(story)
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
    life.proxied()
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
    story.judge(pod, "bad")
    died(site, pod)
    for each in life.pods.values():
        if each.name != "db":  # its result is one of the chain before
            each.check()


def settled(story: Story) -> None:
    story.life.site.settled()


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
    until(lambda: site.told()["source"]["kubernetes"]["lost"], LIMIT)
    samples = []
    while time.monotonic() - began < AWAY:
        samples.append(memory(life.pid))
        if len(samples) % 30 == 1:
            story.judge(young, "bad")
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
    # Each kind is looked at by itself: the mark of `settled` tells of Pods alone.
    until(lambda: not any(one["error"] for one in site.told()["source"]["kubernetes"]["resources"]), LIMIT)
    story.note(all_kinds_after_server=round(time.monotonic() - began, 2))
    settled(story)
    story.note(settled_after_server=round(time.monotonic() - began, 2))
    after = {"guest": 200, "visitor": NONE, "far": NONE}
    for way in before:
        now = way._replace(right=after[way.name.split("→")[0]])
        story.ask(now)
    story.judge(unseen, "good")
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


def numbers(story: Story) -> dict[str, Any]:
    """What things are called in the kernel, as the state on disk has it."""
    numbering = json.loads((story.life.state / "state.json").read_text())["numbering"]
    return {kind: pool["numbers"] for kind, pool in numbering.items() if isinstance(pool, dict) and "numbers" in pool}


def reboot(story: Story) -> None:
    """Power fails. Afterwards the same pods get each other's addresses."""
    life = story.life
    story.part("reboot")
    story.rest()
    settled(story)
    before, called = {name: pod.address() for name, pod in life.pods.items()}, numbers(story)
    uids = {name: pod.uid for name, pod in life.pods.items()}
    life.power_off()
    assert json.loads((life.state / "wirings.json").read_text())["wirings"]
    life.boot()
    life.first = traces(life)
    site = life.site
    # Static pods of what is exempt come first, without an agent, and all others wait for it.
    digest = uuid.uuid4().hex
    site.create("dns", {"app": "bad"}, namespace="kube-system", annotations={STATIC: digest, MIRROR: digest})
    static = site.sandbox("dns", namespace="kube-system", uid=digest)
    static.add()
    site.listen(static)
    site.report(static)
    assert static.address() == before["db"]
    waits = site.sandbox("other", uid=uids["other"])
    with pytest.raises(PluginError) as told:
        waits.add()
    assert told.value.code == TRY_AGAIN
    began = time.monotonic()
    life.start_agent()
    story.note(boot_to_in_force=round(time.monotonic() - began, 2))
    status = site.status()
    assert (status["wired"], status["found"]) == (1, 1), status  # of all others it is said that they are not wired
    assert {one.split(":")[0] for one in status["without"]} == {f"default/{name}" for name in before if name != "db"}
    for name, address in before.items():
        assert name == "db" or not site.identity(address), "nobody has this address yet"
    assert any("k8s:io.kubernetes.pod.namespace=kube-system" in one for one in site.identity(before["db"]))
    waits.delete()
    life.listen()
    for name in ("other", "api", "db", "good", "bad"):
        pod = site.sandbox(name, uid=uids[name])
        added_at_last(pod)
        life.pods[name] = pod
        if name in ("api", "db"):
            site.listen(pod)
            life.proxied()
        elif "db" in life.pods:
            story.judge(pod, name)  # from its first packet on
    now_theirs = [life.pods[name].address() for name in ("other", "api", "db")]
    assert now_theirs == [before[name] for name in ("good", "other", "bad")]
    story.judge(life.pods["other"], "other")
    for name, pod in life.pods.items():
        site.report(pod)
        for version in VERSIONS:
            assert f"k8s:app={name}" in site.identity(pod.address(version))
    story.probe()
    settled(story)
    until(lambda: not site.status()["without"], LIMIT)  # it is looked for now and then
    now = numbers(story)
    for kind, pool in called.items():
        changed = {name: number for name, number in pool.items() if name in now[kind] and now[kind][name] != number}
        assert not changed, (kind, changed)
    story.note(numbers_kept=sum(len(pool) for pool in called.values()))
    static.delete()
    static.gone()
    site.forget("dns", "kube-system")


def churn(story: Story) -> None:
    """The cluster changes without end, and addresses go from hand to hand."""
    life, prober = story.life, story.prober
    story.part("churn")
    site = life.site
    began, used = memory(life.pid), processor(life.pid)
    with Churn(life, prober, seed=8) as run:
        time.sleep(CHURN)
    caught_up = time.monotonic()
    settled(story)
    story.note(
        seconds=CHURN,
        elsewhere=run.elsewhere,
        on_this_node=len(run.added),
        refused_at_first=run.refused,
        add_median=round(statistics.median(run.added), 3),
        add_most=round(max(run.added), 3),
        addresses_handed_on=run.handed,
        connections_ended=run.ended,
        settled=round(time.monotonic() - caught_up, 2),
        processor_seconds=round(processor(life.pid) - used, 1),
        memory_begins=began[0],
        memory_ends=memory(life.pid)[0],
        descriptors=(began[1], memory(life.pid)[1]),
        slowest_allowed=round(prober.slowest.get("churn", 0.0), 2),
    )
    arrived = [one for each in story.arrivals for one in each.found]
    assert all(one.count for one in story.arrivals)
    assert arrived, "pods of the node came, and were let in"
    welcome = {pod.address(version) for pod in life.pods.values() for version in VERSIONS}
    assert not [one for one in arrived if one[1] in welcome]
    holes = run.holders.holes([one for one in arrived if one[1] not in FAR.values()], ["good"])
    assert not holes, holes[:20]
    assert len(run.added) > CHURN / 2
    assert site.status()["wired"] == len(life.pods)


def namespace(story: Story) -> None:
    """A namespace is deleted, in several orders."""
    life = story.life
    story.part("namespace")
    site = life.site
    site.policy("shop", STAYS)
    for seed in range(SHOPS):
        shop = Shop(life, story.prober, seed)
        settled(story)
        addresses = [pod.address(version) for pod in shop.pods.values() for version in VERSIONS]
        told = shop.goes()
        settled(story)
        assert site.agent is not None
        left = [one["name"] for one in site.agent.client.get("endpoints") if one["name"].startswith(f"{NAME}/")]
        assert not left, told
        assert not [one for one in addresses if site.identity(one)], told
        assert site.status()["wired"] == len(life.pods)
        story.right_so_far()
    site.api.drop("networking.k8s.io/v1", "NetworkPolicy", "default/shop")
    story.note(deleted=SHOPS)


def upgrade(story: Story) -> None:
    """Agents of another version come and go: asked to end, or killed. The last is of this one."""
    life, site = story.life, story.life.site
    story.part("upgrade")
    life.add("plain", {"app": "good"}, annotations={"spliceway.io/splice": "false"})
    life.far("far-good", {"app": "good"})
    settled(story)
    other = other_version(life.directory / "other")
    called = numbers(story)
    talks: list[Talk] = []
    starts = []
    steps = [("term", None), ("term", other), ("kill", None), *([("kill", other), ("term", None)] * ROLLBACKS)]
    for how, source in steps:
        begun = talked(life)
        answered(begun)
        spliced(story, begun)
        talks += begun
        same, proxy = source == life.source, site.told()["proxy"]["process"]["pid"]
        assert site.agent is not None
        site.agent.stop() if how == "term" else site.agent.kill()
        time.sleep(0.5)
        life.source = source
        began = time.monotonic()
        life.start_agent()
        starts.append(round(time.monotonic() - began, 1))
        counts = [talk.answers for talk in begun]
        if not same:  # what goes through the one before meanwhile ends with it
            until(lambda old=proxy: handed_over(site, old), LIMIT, lambda: str(site.told()))  # type: ignore[misc]
        until(
            lambda talks=begun, counts=counts: all(  # type: ignore[misc]
                talk.end or talk.answers > count for talk, count in zip(talks, counts, strict=True)
            ),
            LIMIT,
        )
        for talk, count in zip(begun, counts, strict=True):
            # What goes through the proxy is told to come again when that is of another version, and all else stays.
            told_to_close = talk.announced and not same and "api" in talk.way.name
            assert (talk.lives and talk.answers > count) or told_to_close, (how, source, talk.way, talk.end)
        assert not [talk.wrong for talk in talks if talk.wrong]
        assert all(talk.lives or talk.announced for talk in talks), [talk.end for talk in talks]
        assert site.told()["datapath"]["takenOver"]
        assert numbers(story) == called
        story.right_so_far()
    story.note(
        agents=len(starts),
        slowest_start=max(starts),
        connections=len(talks),
        told_to_close=sum(talk.announced for talk in talks),
        went_on=sum(talk.lives for talk in talks),
        slowest_allowed=round(story.prober.slowest.get("upgrade", 0.0), 2),
    )
    for talk in talks:
        talk.stop()
    versions = site.node.info.bpffs / "spliceway"
    until(lambda: [path.name for path in versions.glob("v*")] == [f"v{ABI_VERSION}"], LIMIT)
    died(site, life.pods.pop("plain"))
    site.api.drop("v1", "Pod", "default/far-good")
    settled(story)


def talked(life: LifeNode) -> list[Talk]:
    """Connections for long, of each kind: spliced, at one end, not, and without a proxy."""
    found = []
    for version in VERSIONS:
        api, db = (life.pods[name].address(version) for name in ("api", "db"))
        found += [life.talk(name, f"{name}→api v{version}", api) for name in ("good", "plain", "far")]
        found += [life.talk(name, f"{name}→db v{version}", db, "/") for name in ("good", "far")]
    return found


def answered(talks: list[Talk]) -> None:
    """Return when each of them goes on."""
    until(
        lambda: all(talk.answers > 3 for talk in talks),
        LIMIT,
        lambda: str([(talk.way.name, talk.answers, talk.end) for talk in talks]),
    )


def handed_over(site: ClusterNode, old: int) -> bool:
    """Whether nothing goes by this proxy any more, nor by the kernel programs of the version before."""
    told = site.told()
    process = told["proxy"]["process"]
    return process["pid"] not in (0, old) and not process["draining"] and not told["datapath"]["draining"]


def spliced(story: Story, talks: list[Talk]) -> None:
    """Those that are to be are, and no others."""
    agent = story.life.site.agent
    assert agent is not None
    found = agent.client.get("socks")
    at = {
        name: {one["state"] for one in found if one["endpointPod"] == f"default/{name}"} for name in ("good", "plain")
    }
    ends = {talk.way.name: (talk.answers, talk.end) for talk in talks}
    assert "spliced" in at["good"], (found, ends, story.life.site.told())
    assert "spliced" not in at["plain"], found


def ends(story: Story) -> None:
    """All goes: pods, policies, the agent. Nothing is left behind."""
    life, site = story.life, story.life.site
    story.part("end")
    settled(story)
    in_step(life)
    story.rest()
    for name in list(life.pods):
        died(site, life.pods.pop(name))
    for kind in (("cilium.io/v2", "CiliumNetworkPolicy"), ("networking.k8s.io/v1", "NetworkPolicy")):
        for one in site.api.all(*kind):
            site.api.drop(*kind, f"{one['metadata']['namespace']}/{one['metadata']['name']}")
    settled(story)
    in_step(life)
    ours = pinned(life)
    assert {kind for kind, _ in ours} >= {"prog", "map"}
    assert ours <= there()
    assert site.agent is not None
    assert site.agent.stop() == 0
    config = life.testbed.node.info.directory / "agent.yaml"
    done = life.command("cleanup", "--yes", "--state", "--config", str(config), "-o", "json")
    assert (done.returncode, done.stderr) == (0, ""), done
    said = json.loads(done.stdout)
    assert not said["kept"], said["kept"]
    until(lambda: not ours & there(), LIMIT)
    left = traces(life) - life.first
    assert not left, [line + told(line) for line in left]
    assert not life.first - traces(life)
    assert not sockets(life, life.directory)
    assert [path.name for path in life.state.iterdir() if path.name != "agent.lock"] == []
    (conflist,) = site.conf_dir.iterdir()
    assert json.loads(conflist.read_text()) == bridge(life.ipam)
    story.note(removed=len(said["removed"]), programs_maps_links=len(ours))


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(line: str) -> str:
    """Which process it is."""
    with contextlib.suppress(OSError):
        return " " + Path(f"/proc/{line.removeprefix('process ')}/cmdline").read_text().replace("\0", " ")
    return ""
