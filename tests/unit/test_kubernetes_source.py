"""The source on an API server's double: what it says is what the server has, whatever happens in between."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spliceway.agent.errors import SourceError
from spliceway.agent.inventory import Inventory
from spliceway.agent.sources.choice import make_source
from spliceway.agent.sources.events import MoreToCome, SourceLost
from spliceway.agent.sources.kubernetes import connection
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection
from spliceway.agent.sources.kubernetes.discovery import Discovery
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.agent.sources.kubernetes.kinds import FILE, Kinds
from spliceway.agent.sources.kubernetes.reflector import Reflector
from spliceway.agent.sources.kubernetes.resources import NOT_WATCHED, RESOURCES, rights
from spliceway.agent.sources.kubernetes.source import KubernetesSource
from spliceway.agent.sourceviews import SourceCollector
from spliceway.policy.model import NetworkPolicy, Pod
from spliceway.policy.parse import READERS
from support.agent import run, until
from support.agentsite import Site
from support.certificates import Authority
from support.kubeapi import KubeApi, Rule, crd
from support.kubesource import CILIUM, CRDS, QUICK, Followed, ask, followed, fresh, pod, policy

Body = Callable[[KubeApi, Followed], Awaitable[None]]


def follow(tmp_path: Path, body: Body, *before: Any, timing: Timing = QUICK, watch_list: bool = True) -> None:
    """Run a test with a source that follows a double with these objects."""

    async def main() -> None:
        with KubeApi() as api:
            api.put(*before)
            api.watch_list(watch_list)
            async with followed(api.kubeconfig(tmp_path / "kubeconfig"), timing) as it:
                await until(lambda: it.inventory.synced)
                await body(api, it)

    run(main)


def port_of(it: Followed, name: str = "default/web") -> int:
    item = it.item("CiliumNetworkPolicy", name)
    assert isinstance(item, NetworkPolicy)
    return item.specs[0].rules[0].to_ports[0].ports[0].first


def test_every_kind_that_policy_reads_is_watched() -> None:
    assert {one.kind for one in RESOURCES} | NOT_WATCHED == {kind for _version, kind in READERS}
    for one in RESOURCES:
        assert all((one.api_version(version), one.kind) in READERS for version in one.versions)


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "pages"])
def test_the_first_look_is_whole_or_nothing(tmp_path: Path, watch_list: bool) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        assert len(it.names()) == 1200
        whole = [batch for batch in it.batches if MoreToCome() not in batch]
        assert len(whole) == 1, "parts say that they are parts"
        assert it.names("CiliumNetworkPolicy") == ["default/web"]
        assert it.source.status().whole
        assert (it.figures("Pod").state, it.figures("AdminNetworkPolicy").state) == ("listed", "absent")
        lists = [query for _method, path, query in api.requests if path == "/api/v1/pods" and "limit=" in query]
        assert len(lists) == (0 if watch_list else 3), "pages of 500"
        await ask(api.put, pod("late", "10.9.9.9"))
        await until(lambda: "default/late" in it.names())

    pods = [pod(f"p{n}", f"10.1.{n >> 8}.{n & 255}") for n in range(1200)]
    follow(tmp_path, body, *pods, CILIUM, policy("web"), watch_list=watch_list)


def test_changes_come_as_they_are(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.put, pod("a", "10.0.0.1", labels={"app": "new"}), pod("b", "10.0.0.2"))
        await until(lambda: it.names() == ["default/a", "default/b"])
        a = it.item("Pod", "default/a")
        assert isinstance(a, Pod)
        assert (a.labels, a.addresses) == ({"app": "new"}, (ip_address("10.0.0.1"),))
        await ask(api.drop, "v1", "Pod", "default/a")
        await until(lambda: it.names() == ["default/b"])
        # A pod that has ended has no address, and one of which nothing runs any more while it is being deleted neither.
        await ask(api.put, pod("b", "10.0.0.2", phase="Succeeded"))
        await until(lambda: not it.item("Pod", "default/b").addresses)  # type: ignore[union-attr]
        assert fresh(api).count("/api/v1/pods") == 1

    follow(tmp_path, body, pod("a", "10.0.0.1"))


def test_a_watch_that_ends_goes_on_where_it_was(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        for number in range(12):
            await ask(api.drop_watches, abrupt=number % 2 == 0)
            await ask(api.put, pod(f"p{number}", f"10.0.1.{number}"))
            await until(lambda number=number: f"default/p{number}" in it.names())  # type: ignore[misc]
        assert fresh(api).count("/api/v1/pods") == 1, "nothing was looked at again"
        assert it.figures("Pod").watches > 10

    follow(tmp_path, body, pod("a", "10.0.0.1"))


def test_half_a_line_is_no_event(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.faults, cut_lines=1)
        await ask(api.put, pod("b", "10.0.0.2"))
        await until(lambda: it.names() == ["default/a", "default/b"])
        assert fresh(api).count("/api/v1/pods") == 1

    follow(tmp_path, body, pod("a", "10.0.0.1"))


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "pages"])
@pytest.mark.parametrize("how", ["compacted", "forgotten"])
def test_what_vanished_while_history_was_lost_is_gone(tmp_path: Path, how: str, watch_list: bool) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.stop, abrupt=True)
        await ask(api.put, pod("new", "10.0.0.9"), pod("b", "10.0.0.2", labels={"app": "other"}))
        await ask(api.drop, "v1", "Pod", "default/a")
        if how == "compacted":
            await ask(api.compact)
        batches = len(it.batches)
        await ask(api.start, forget=how == "forgotten")
        await until(lambda: it.names() == ["default/b", "default/c", "default/new"])
        assert it.item("Pod", "default/b").labels == {"app": "other"}  # type: ignore[union-attr]
        files = [event.file for batch in it.batches[batches:] for event in batch if hasattr(event, "file")]
        assert "default/c" not in files, "what is the same is passed over"
        of_pods = [
            batch for batch in it.batches[batches:] if any(getattr(e, "file", "").startswith("default/") for e in batch)
        ]
        assert len(of_pods) == 1, "what changed meanwhile is one change"

    pods = [pod(name, f"10.0.0.{n}") for n, name in enumerate("abc", 1)]
    follow(tmp_path, body, *pods, watch_list=watch_list)


def test_a_server_without_history_is_looked_at_at_once_however_long_it_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, pauses = Reflector._failed, []

    def told(self: Reflector, failure: ApiFailure) -> float:
        pause = failed(self, failure)
        if failure.is_expired:
            pauses.append((self.resource.kind, pause))
        return pause

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Reflector, "_failed", told)
        await ask(api.stop, abrupt=True)
        kinds = [one.kind for one in it.source.status().resources if one.state == "listed"]
        await until(lambda: all(it.figures(kind).failures > 2 for kind in kinds))
        await ask(api.put, *(pod(name, "10.0.0.2") for name in ("b", "c")))
        await ask(api.start, forget=True)
        await until(lambda: it.names() == ["default/a", "default/b", "default/c"])
        await until(lambda: not any(it.figures(kind).error for kind in kinds))
        assert pauses, "at least one went on with its watch"
        assert not [one for one in pauses if one[1]], pauses

    follow(tmp_path, body, CILIUM, pod("a", "10.0.0.1"), policy("web"))


def test_a_list_whose_pages_expire_begins_anew(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        assert len(it.names()) == 50

    async def main() -> None:
        with KubeApi() as api:
            api.put(*(pod(f"p{n}", f"10.1.0.{n + 1}") for n in range(50)))
            api.watch_list(False)
            api.faults(delay=0.01)
            timing = msgspec.structs.replace(QUICK, page=10)
            async with followed(api.kubeconfig(tmp_path / "kubeconfig"), timing) as it:
                await until(lambda: any("continue=" in query for _m, _p, query in api.requests))
                await ask(api.drop, "v1", "Pod", "default/p0")
                await ask(api.compact)
                await until(lambda: it.inventory.synced)
                assert len(it.names()) == 49
                assert "default/p0" not in it.names()

    run(main)


def test_a_look_that_never_ends_well_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """History is forgotten faster than all of it can be read, say."""
    get, expires = Connection.get, [True]

    async def other(self: Connection, path: str, query: Any = None, *rest: Any) -> bytes:
        if query and path.endswith("/pods") and expires[0]:
            raise ApiFailure(410, "Expired", "too old")
        return await get(self, path, query, *rest)

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Connection, "get", other)
        await ask(api.stop, abrupt=True)
        await ask(api.put, pod("b", "10.0.0.2"))
        await ask(api.compact)
        await ask(api.start)
        await until(lambda: "pods: 410 Expired" in it.source.status().lost)
        assert it.names() == ["default/a"], "what is in force stays"
        expires[0] = False
        await until(lambda: not it.source.status().lost and it.names() == ["default/a", "default/b"])

    follow(tmp_path, body, pod("a", "10.0.0.1"), watch_list=False)


def test_a_watch_that_expires_after_each_good_look_is_not_asked_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look costs the server all objects of the kind, and ends well: only the watch behind it fails."""
    stream, expired = Connection.stream, [0]

    def other(self: Connection, path: str, query: Any = None, *rest: Any) -> Any:
        if path.endswith("/pods") and query and "watch" in query:
            expired[0] += 1
            raise ApiFailure(410, "Expired", "too old")
        return stream(self, path, query, *rest)

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Connection, "stream", other)
        await ask(api.drop_watches)
        await until(lambda: expired[0] > 2)
        await asyncio.sleep(2.0)
        assert expired[0] < 9, f"{expired[0]} looks"
        monkeypatch.setattr(Connection, "stream", stream)
        await ask(api.put, pod("b", "10.0.0.2"))
        await until(lambda: it.names() == ["default/a", "default/b"])

    slow = Timing(again=0.2, gone=0.3, lost=0.3, retry=(0.5, 5.0))
    follow(tmp_path, body, pod("a", "10.0.0.1"), timing=slow, watch_list=False)


def test_an_answer_that_is_no_list_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something between us and the server may answer 200 with a text of its own."""
    get = Connection.get
    answers = [b'{"kind": "Status", "metadata": {}, "status": "Failure"}', b'{"metadata": {}, "items": null}']

    async def other(self: Connection, path: str, query: Any = None, *rest: Any, **more: Any) -> bytes:
        if query and path.endswith("/ciliumnetworkpolicies") and answers:
            return answers.pop()
        return await get(self, path, query, *rest, **more)

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Connection, "get", other)
        await ask(api.stop, abrupt=True)
        await ask(api.put, policy("more"))
        await ask(api.compact)
        await ask(api.start)
        await until(lambda: not answers)
        await until(lambda: it.names("CiliumNetworkPolicy") == ["default/more", "default/web"])
        removed = [event for batch in it.batches for event in batch if type(event).__name__ == "FileRemoved"]
        assert not removed

    follow(tmp_path, body, CILIUM, policy("web"), watch_list=False)


def test_with_the_server_gone_everything_stays(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.stop, abrupt=True)
        await until(lambda: it.source.status().lost)
        assert it.names() == ["default/a"]
        (refusal,) = it.inventory.refusals
        assert refusal.kept
        assert api.url in refusal.reason
        said = sum(isinstance(event, SourceLost) for batch in it.batches for event in batch)
        await asyncio.sleep(1.0)
        assert sum(isinstance(event, SourceLost) for batch in it.batches for event in batch) <= said + 1
        await ask(api.start)
        await until(lambda: not it.source.status().lost)
        await until(lambda: not it.inventory.refusals)
        assert it.names() == ["default/a"]

    follow(tmp_path, body, pod("a", "10.0.0.1"))


def test_a_silent_server_is_left(tmp_path: Path) -> None:
    """No byte for longer than bookmarks take: the connection may be dead, whatever TCP thinks."""

    async def body(api: KubeApi, it: Followed) -> None:
        before = it.figures("Pod").watches
        await ask(api.faults, stalled=True)
        await ask(api.put, pod("b", "10.0.0.2"))
        await until(lambda: it.figures("Pod").watches > before + 1)
        await ask(api.faults, stalled=False)
        await until(lambda: it.names() == ["default/a", "default/b"])

    follow(tmp_path, body, pod("a", "10.0.0.1"), timing=msgspec.structs.replace(QUICK, idle=0.3))


def test_a_server_that_takes_no_notice_of_watch_list(tmp_path: Path) -> None:
    """Older ones pass over what they do not know, and wait for changes."""

    async def main() -> None:
        with KubeApi() as api:
            api.put(pod("a", "10.0.0.1"))
            api.faults(stalled=True)
            timing = msgspec.structs.replace(QUICK, first_idle=0.2)
            async with followed(api.kubeconfig(tmp_path / "kubeconfig"), timing) as it:
                await until(lambda: it.inventory.synced)
                assert it.names() == ["default/a"]

    run(main)


def test_bookmarks_keep_the_place(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.put, *(policy(f"p{n}") for n in range(20)))
        await until(lambda: len(it.names("CiliumNetworkPolicy")) == 20)
        for _ in range(2):  # who comes back goes on at the one before the last
            heard = it.figures("Pod").heard
            await ask(api.bookmark)
            await until(lambda heard=heard: it.figures("Pod").heard > heard)  # type: ignore[misc]
        await ask(api.compact)
        await ask(api.drop_watches)
        await ask(api.put, pod("b", "10.0.0.2"))
        await until(lambda: it.names() == ["default/a", "default/b"])
        assert fresh(api).count("/api/v1/pods") == 1, "its place is after what was compacted"

    follow(tmp_path, body, pod("a", "10.0.0.1"), CILIUM)


def test_a_kind_that_comes_and_goes(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        assert it.figures("CiliumNetworkPolicy").state == "absent"
        await ask(api.put, CILIUM, policy("web"))
        await until(lambda: it.names("CiliumNetworkPolicy") == ["default/web"])
        await ask(api.drop, "apiextensions.k8s.io/v1", "CustomResourceDefinition", "ciliumnetworkpolicies.cilium.io")
        await until(lambda: not it.names("CiliumNetworkPolicy"))
        assert it.figures("CiliumNetworkPolicy").state == "absent"
        assert not it.source.status().lost

    follow(tmp_path, body, pod("a", "10.0.0.1"))


def test_a_kind_that_is_away_for_a_moment_keeps_its_objects(tmp_path: Path) -> None:
    """An API server that has just begun says 404 of kinds whose definitions it has not read yet."""

    async def body(api: KubeApi, it: Followed) -> None:
        definition = "ciliumnetworkpolicies.cilium.io"
        await ask(api.faults, refuse={"readyz": (500, 0)})
        await ask(api.drop, "apiextensions.k8s.io/v1", "CustomResourceDefinition", definition)
        await until(lambda: it.source.status().lost)
        await asyncio.sleep(3 * QUICK.gone)
        assert it.names("CiliumNetworkPolicy") == ["default/web"]
        await ask(api.put, CILIUM)
        await ask(api.faults, refuse={})
        await until(lambda: not it.source.status().lost)
        assert port_of(it) == 80
        removed = [event for batch in it.batches for event in batch if type(event).__name__ == "FileRemoved"]
        assert not removed

    follow(tmp_path, body, CILIUM, policy("web"))


def test_a_kind_is_gone_only_when_it_is_away_without_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment before an outage and one after it are two moments, however long it was."""
    plurals, said = Discovery._ask, ["there"]

    async def other(self: Discovery, path: str) -> frozenset[str]:
        if path == "/apis/cilium.io/v2" and said[-1] == "away":
            return frozenset()
        if path == "/apis/cilium.io/v2" and said[-1] == "down":
            raise ApiFailure(503, "ServiceUnavailable", "not now")
        return await plurals(self, path)

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Discovery, "_ask", other)
        for each in ("away", "down", "away"):
            said.append(each)
            await asyncio.sleep(1.1)  # what discovery remembers is old by then
            await ask(api.drop_watches)
            await asyncio.sleep(0.5)
        said.append("there")
        await until(lambda: not it.figures("CiliumNetworkPolicy").error)
        removed = [event for batch in it.batches for event in batch if type(event).__name__ == "FileRemoved"]
        assert not removed

    timing = msgspec.structs.replace(QUICK, gone=2.5)
    follow(tmp_path, body, CILIUM, policy("web"), timing=timing)


DEFINITION = "ciliumnetworkpolicies.cilium.io"


def test_at_a_start_a_kind_that_had_objects_may_be_away_for_a_moment(tmp_path: Path) -> None:
    """One whose definition is made anew, say: an agent that takes over would take its policies out of the kernel."""
    timing = msgspec.structs.replace(QUICK, gone=2.0)

    async def main() -> None:
        with KubeApi() as api:
            place = api.kubeconfig(tmp_path / "kubeconfig")
            api.put(CILIUM, policy("web"), pod("a", "10.0.0.1"))
            async with followed(place, timing, state_dir=tmp_path) as it:
                await until(lambda: it.inventory.synced)
            stored = api.get("cilium.io/v2", "CiliumNetworkPolicy", "default/web")
            assert stored is not None
            await ask(api.drop, "apiextensions.k8s.io/v1", "CustomResourceDefinition", DEFINITION)
            async with followed(place, timing, state_dir=tmp_path) as it:
                await until(lambda: it.figures("Pod").state == "listed")
                await asyncio.sleep(0.5)
                assert not it.inventory.synced
                await ask(api.put, CILIUM, stored)
                await until(lambda: it.inventory.synced)
                assert it.names("CiliumNetworkPolicy") == ["default/web"]

    run(main)


def test_at_a_start_a_kind_that_had_objects_and_stays_away_is_gone(tmp_path: Path) -> None:
    """And the next agent does not wait for it. One without objects is nobody's business at any time."""
    timing = msgspec.structs.replace(QUICK, gone=2.0)

    async def starts(place: Path) -> float:
        began = asyncio.get_running_loop().time()
        async with followed(place, timing, state_dir=tmp_path) as it:
            await until(lambda: it.inventory.synced)
            assert it.names() == ["default/a"]
            return asyncio.get_running_loop().time() - began

    async def main() -> None:
        with KubeApi() as api:
            place = api.kubeconfig(tmp_path / "kubeconfig")
            api.put(CILIUM, pod("a", "10.0.0.1"))
            assert await starts(place) < timing.gone
            await ask(api.drop, "apiextensions.k8s.io/v1", "CustomResourceDefinition", DEFINITION)
            assert await starts(place) < timing.gone
            await ask(api.put, CILIUM, policy("web"))
            assert await starts(place) < timing.gone
            await ask(api.drop, "apiextensions.k8s.io/v1", "CustomResourceDefinition", DEFINITION)
            assert await starts(place) > timing.gone
            assert await starts(place) < timing.gone
            (tmp_path / FILE).write_text("{")  # nobody knows: any kind may have had some
            assert await starts(place) > timing.gone

    run(main)


def test_the_first_version_that_is_served_is_read(tmp_path: Path) -> None:
    group = {"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"}}
    group["spec"] = {"externalCIDRs": ["192.0.2.0/24"]}
    old = crd("cilium.io", "CiliumCIDRGroup", "ciliumcidrgroups", ["v2alpha1"], namespaced=False)
    both = crd("cilium.io", "CiliumCIDRGroup", "ciliumcidrgroups", ["v2", "v2alpha1"], namespaced=False)

    async def body(api: KubeApi, it: Followed) -> None:
        assert it.names("CiliumCIDRGroup") == ["g"]
        await ask(api.put, both)
        # The next watch after an answer that is some seconds old is of the newer version.
        async with asyncio.timeout(10):
            while not any("/v2/ciliumcidrgroups" in path for _m, path, _q in api.requests):
                await ask(api.drop_watches)
                await asyncio.sleep(0.2)
        assert it.names("CiliumCIDRGroup") == ["g"]

    follow(tmp_path, body, old, group)


def test_a_bad_edit_keeps_the_last_good_version(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        bad = policy("web", 70_000)
        await ask(api.put, bad)
        await until(lambda: it.inventory.refusals)
        (refusal,) = it.inventory.refusals
        assert (refusal.file, refusal.kept) == ("kubernetes:CiliumNetworkPolicy/default/web", True)
        assert refusal.field == "spec.ingress[0].toPorts[0].ports[0].port"
        assert port_of(it) == 80
        assert list(it.inventory.held.documents) == [refusal.file]
        await ask(api.put, policy("web", 81))
        await until(lambda: not it.inventory.refusals)
        assert port_of(it) == 81
        await ask(api.put, bad)
        await until(lambda: it.inventory.refusals)
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        await until(lambda: not it.names("CiliumNetworkPolicy"))
        assert not it.inventory.refusals

    follow(tmp_path, body, CILIUM, policy("web"))


def test_a_refusal_that_others_can_do_without(tmp_path: Path) -> None:
    everything = [Rule(api_groups=(group,), resources=("*",)) for group in ("networking.k8s.io", "discovery.k8s.io")]
    core = Rule(api_groups=("",), resources=("pods", "namespaces", "nodes"))

    async def main() -> None:
        with KubeApi() as api:
            api.put(pod("a", "10.0.0.1"))
            api.rights(lambda rights: rights.token("secret", "agent"))
            api.rights(lambda rights: rights.allow("agent", [*everything, core]))
            kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", token="secret")
            async with followed(kubeconfig) as it:
                await until(lambda: it.inventory.synced)
                assert it.names() == ["default/a"]
                services = it.figures("Service")
                assert services.state == "refused"
                assert 'User "agent" cannot watch resource "services"' in services.error
                (warning,) = it.source.warnings()
                assert "services" in warning
                assert not it.source.status().lost
                await ask(api.rights, lambda rights: rights.allow("agent", [*everything, Rule(api_groups=("",))]))
                await until(lambda: it.figures("Service").state == "listed")
                assert not it.source.warnings()

    run(main)


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "pages"])
def test_a_moments_failure_makes_no_cluster_without_services(tmp_path: Path, watch_list: bool) -> None:
    """An agent that starts would take them out of the kernel, and put them back a moment later."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}}
    service["spec"] = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}

    async def main() -> None:
        with KubeApi() as api:
            api.put(pod("a", "10.0.0.1"), service)
            api.watch_list(watch_list)
            api.faults(refuse={"services": (500, 0)})
            async with followed(api.kubeconfig(tmp_path / "kubeconfig")) as it:
                await until(lambda: it.figures("Service").error and it.figures("Pod").state == "listed")
                await asyncio.sleep(2)  # longer than the source takes to look whether all is there
                assert not it.inventory.synced
                await ask(api.faults, refuse={})
                await until(lambda: it.inventory.synced)
                assert it.names("Service") == ["default/web"]

    run(main)


def test_what_others_can_do_without_is_not_waited_for_without_end(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(pod("a", "10.0.0.1"))
            api.faults(refuse={"services": (500, 0)})
            timing = msgspec.structs.replace(QUICK, without=1.0)
            async with followed(api.kubeconfig(tmp_path / "kubeconfig"), timing) as it:
                await until(lambda: it.inventory.synced)
                assert it.names() == ["default/a"]

    run(main)


def test_the_rights_are_enough_and_no_more(tmp_path: Path) -> None:
    rules = msgspec.convert(rights(), list[Rule])

    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, pod("a", "10.0.0.1"))
            api.rights(lambda one: one.token("secret", "agent"))
            api.rights(lambda one: one.allow("agent", rules))
            for watch_list in (True, False):
                api.watch_list(watch_list)
                async with followed(api.kubeconfig(tmp_path / "kubeconfig", token="secret")) as it:
                    await until(lambda it=it: it.inventory.synced, 10)  # type: ignore[misc]
                    assert {it.figures(one.kind).state for one in RESOURCES} == {"listed"}
            assert await ask(api.rights, lambda one: one.refused) == []

    run(main)


def test_nothing_is_whole_without_what_is_essential(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(pod("a", "10.0.0.1"))
            api.rights(lambda rights: rights.token("secret", "agent"))
            api.rights(lambda rights: rights.allow("agent", [Rule(api_groups=("",))]))
            async with followed(api.kubeconfig(tmp_path / "kubeconfig", token="secret")) as it:
                await until(lambda: "networkpolicies" in it.source.status().lost)
                assert not it.inventory.synced
                assert any("networkpolicies" in str(one) for one in it.inventory.refusals)
                await ask(api.rights, lambda rights: rights.allow("agent", [Rule()]))
                await until(lambda: it.inventory.synced)
                # What was in force stays, and what changes is not known: that is told, and no reason to take it away.
                await ask(api.rights, lambda rights: rights.allow("agent", [Rule(api_groups=("",))]))
                await ask(api.drop_watches)
                await until(lambda: "networkpolicies" in it.source.status().lost)
                assert it.names() == ["default/a"]

    run(main)


def test_a_token_that_was_rotated_is_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            token = tmp_path / "token"
            token.write_text("first\n")
            api.put(pod("a", "10.0.0.1"))
            api.rights(lambda rights: rights.token("first"))
            async with followed(api.kubeconfig(tmp_path / "kubeconfig", token_file=token)) as it:
                await until(lambda: it.inventory.synced)
                await ask(api.rights, lambda rights: rights.revoke("first"))
                await ask(api.rights, lambda rights: rights.token("second"))
                await ask(api.drop_watches)
                await until(lambda: it.source.status().lost)
                assert it.names() == ["default/a"]
                token.write_text("second\n")
                await until(lambda: not it.source.status().lost)
                await ask(api.put, pod("b", "10.0.0.2"))
                await until(lambda: it.names() == ["default/a", "default/b"])

    run(main)


def test_tls_and_who_signed(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    pair = authority.issue("server", "kubernetes", "IP:127.0.0.1")

    async def main() -> None:
        with KubeApi(tls=pair) as api:
            api.put(pod("a", "10.0.0.1"))
            async with followed(api.kubeconfig(tmp_path / "good", ca=authority.path)) as it:
                await until(lambda: it.inventory.synced)
                assert it.names() == ["default/a"]
            async with followed(api.kubeconfig(tmp_path / "bad", ca=other.path)) as it:
                await until(lambda: "certificate" in it.source.status().lost.lower())
                assert not it.inventory.synced

    run(main)


def test_in_a_pod_it_is_the_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kubelet mounts it: a token that it replaces, and who signed the server's certificate."""
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("server", "kubernetes", "IP:127.0.0.1")
    account = tmp_path / "serviceaccount"
    account.mkdir()
    for name, text in (("token", "first"), ("namespace", "spliceway"), ("ca.crt", authority.path.read_text())):
        (account / name).write_text(text)
    read = connection.KubeConfig.from_service_account
    monkeypatch.setattr(connection.KubeConfig, "from_service_account", lambda: read(account))

    async def main() -> None:
        with KubeApi(tls=pair) as api:
            api.put(pod("a", "10.0.0.1"))
            api.rights(lambda rights: rights.token("first"))
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", api.host)
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
            async with followed(None) as it:
                await until(lambda: it.inventory.synced)
                await ask(api.rights, lambda rights: rights.revoke("first"))
                await ask(api.rights, lambda rights: rights.token("second"))
                (account / "token").write_text("second")
                await ask(api.drop_watches)
                await ask(api.put, pod("b", "10.0.0.2"))
                await until(lambda: it.names() == ["default/a", "default/b"])
                assert not it.source.status().lost

    run(main)


def test_its_metrics_are_those_that_are_documented(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

    async def body(_api: KubeApi, it: Followed) -> None:
        families = list(SourceCollector(it.source.status).collect())
        found = {one.name + ("_total" if one.type == "counter" else "") for one in families}
        assert found == set(re.findall(r"`(spliceway_source_\w+)`", document))
        assert {label for one in families for sample in one.samples for label in sample.labels} == {"kind"}

    follow(tmp_path, body, pod("a", "10.0.0.1"))


def test_a_busy_server_is_given_time(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.faults, refuse={"pods": (429, 1)})
        await ask(api.drop_watches)
        await until(lambda: it.figures("Pod").error)
        before = sum(path == "/api/v1/pods" for _m, path, _q in api.requests)
        await asyncio.sleep(0.7)
        assert sum(path == "/api/v1/pods" for _m, path, _q in api.requests) <= before + 1, "it asked for a second"
        await ask(api.faults, refuse={})
        await ask(api.put, pod("b", "10.0.0.2"))
        await until(lambda: it.names() == ["default/a", "default/b"])

    follow(tmp_path, body, pod("a", "10.0.0.1"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "kubeconfig"),
        ("{clusters: [], contexts: []}", "No current context"),
        ("{current-context: c, clusters: [], contexts: [{name: c, context: {cluster: d}}]}", "has no 'd'"),
    ],
)
def test_a_kubeconfig_that_cannot_be(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(SourceError, match=reason):
        Connection(file, "")


def test_outside_of_a_pod_there_is_no_service_account() -> None:
    with pytest.raises(SourceError, match=r"source\.kubernetes"):
        Connection(None, "")


def test_kinds_that_are_left_to_others_are_not_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, policy("web"), pod("one", "10.0.0.1"))
            kinds = "policies: {kinds: [CiliumNetworkPolicy]}"
            kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
            config = Site(tmp_path, kinds, f"{{kubernetes: {{kubeconfig: {kubeconfig}}}}}").config
            with make_source(config) as source:
                inventory = Inventory(config.node_name, kinds=config.policies.kinds)
                async for batch in source.batches():
                    inventory.feed(batch)
                    if inventory.synced:
                        break
                status = source.status()
            assert isinstance(source, KubernetesSource)
            await source.ended()
            assert status is not None
            left = {"Pod", "Namespace", "Node", "Service", "EndpointSlice", "CiliumCIDRGroup", "CiliumNetworkPolicy"}
            assert {one.kind for one in status.resources} == left
            assert inventory.names("CiliumNetworkPolicy") == ["default/web"]
            assert not [path for _method, path, _query in api.requests if path.endswith("/networkpolicies")]
            assert not [path for _method, path, _query in api.requests if path.endswith("adminnetworkpolicies")]

    run(main)


def test_kinds_that_can_not_be_written_down_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds, some = Kinds(tmp_path / "gone", {"A", "B"}), frozenset({"A"})
    for _ in range(3):
        kinds.save(some)
        assert kinds.differ(some)
    assert capsys.readouterr().out.count("can't be written") == 1
    (tmp_path / "gone").mkdir()
    kinds.save(some)
    assert not kinds.differ(some)
    assert Kinds(tmp_path / "gone", {"A", "B"}).load() == some
