"""Reconciliation in the contract's order, against a kernel and a proxy in memory that check what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from spliceway.agent import pace, reconcile
from spliceway.agent.compiler import Compiler
from spliceway.agent.control import Acceptance
from spliceway.agent.errors import StateError
from spliceway.agent.intent import Intent
from spliceway.agent.inventory import Changes
from spliceway.agent.ports import PortAllocator
from spliceway.agent.reconcile import Reconciler
from spliceway.agent.servicesync import ServiceSync
from spliceway.agent.state import Held
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.budget import Limits
from spliceway.policy.engine import Options
from spliceway.policy.errors import NumberingError
from spliceway.policy.model import Object, object_key
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_text
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Verdict
from support.agent import NODE, MemoryDatapath, MemoryProxy, endpoint, pod, policy, run, until

CLIENT, SERVER, OTHER = pod("client", "10.240.1.10"), pod("server", "10.240.1.11"), pod("other", "10.240.1.12")
PODS = (CLIENT, SERVER, OTHER)
ENDPOINTS = (endpoint("client", "10.240.1.10"), endpoint("server", "10.240.1.11"), endpoint("other", "10.240.1.12"))
HTTP = policy("http", "server", 80, http=["/articles/[0-9]+"])
L4 = policy("http", "server", 80)


class World:
    """A reconciler between a memory datapath and a memory proxy, all calls in one journal."""

    def __init__(
        self,
        *,
        prompt: bool = True,
        ports: PortAllocator | None = None,
        taken_over: bool = False,
        limits: Limits = Limits(),  # noqa: B008
        translates: bool = False,
    ) -> None:
        self.journal: list[str] = []
        self.proxy = MemoryProxy(self.journal, prompt=prompt)
        self.datapath = MemoryDatapath(self.journal, self.proxy)
        sync = ServiceSync(self.datapath, lambda: self.compiler.balance.frontends)
        self.compiler = Compiler(Options(NODE, limits=limits), Numbering(), on_services=(sync.want,))
        self.compile_error = ""
        self.said: dict[tuple[str, str], Object] = {}
        self.saved: list[dict[int, int]] = []
        self.save_error = ""
        self.compiled = 0
        self.durations: list[float] = []
        self.tables: list[PolicyTable] = []
        self.reconciler = Reconciler(
            maker=self,
            save=self.save,
            ports=ports or PortAllocator(23000, 23009),
            datapath=self.datapath,
            proxy=self.proxy,
            listening=self.proxy.listening,
            taken_over=taken_over,
            observe=self.durations.append,
            on_table=self.tables.append,
            services=sync if translates else None,
        )

    def apply(self, changes: Changes, revision: int) -> PolicyTable:
        self.compiled += 1
        if self.compile_error:
            raise NumberingError(self.compile_error)
        return self.compiler.apply(changes, revision)

    @property
    def hopeful(self) -> bool:
        return self.compiler.hopeful

    def settle(self, table: PolicyTable) -> None:
        self.compiler.settle(table)

    def save(self, ports: PortAllocator, _held: Held) -> None:
        self.journal.append("save")
        if self.save_error:
            raise StateError(self.save_error)
        self.saved.append(ports.ports)

    def want(self, *texts: str, pods: tuple[str, ...] = PODS, endpoints: tuple[LocalEndpoint, ...] = ENDPOINTS) -> None:
        """Submit what changed since this was called last."""
        parsed = parse_text("\n---\n".join((*pods, *texts)), "test.yaml")
        assert not parsed.errors
        now = {object_key(item): item for item in parsed.objects}
        changes = {key: now.get(key) for key in self.said.keys() | now if self.said.get(key) != now.get(key)}
        self.said = now
        self.reconciler.submit(Intent(changes, endpoints, Held(), 0.0))

    async def step(self, *texts: str) -> list[str]:
        """Submit, reconcile once, and return what was called."""
        if texts:
            self.want(*texts)
        del self.journal[:]
        await self.reconciler.step()
        return list(self.journal)

    def verdicts(self, name: str) -> dict[int, Verdict]:
        """Verdicts by port of the rows in force for `client` → pod."""
        table = self.datapath.table
        assert table is not None
        subject, peer = table.endpoints[f"default/{name}"], table.endpoints["default/client"].identity
        classes = {key.identity: value for key, value in table.classes.items() if key.policy_id == subject.policy_id}
        return {
            key.port: row.verdict
            for key, row in table.rows.items()
            if key.policy_id == subject.policy_id and key.class_id == classes[peer]
        }


def world_test(body: Callable[[World], object], **options: object) -> None:
    async def start() -> None:
        await body(World(**options))  # type: ignore[arg-type,misc]

    run(start)


def test_listener_and_routes_before_rows() -> None:
    async def body(world: World) -> None:
        assert await world.step(HTTP) == [
            "save",
            "endpoints ['default/client', 'default/other', 'default/server']",
            "publish [1]",
            "listeners [1]",
            "apply 1",
            "save",
        ]
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.datapath.listeners == {1: 23000}
        assert world.saved[0] == {1: 23000}
        status = world.reconciler.status()
        assert (status.revision, status.wanted, status.waiting, status.error) == (1, 1, {}, "")
        assert await world.step() == []
        assert len(world.durations) == 1

    world_test(body)


def test_http_edit_needs_only_routes() -> None:
    async def body(world: World) -> None:
        await world.step(HTTP)
        called = await world.step(policy("http", "server", 80, http=["/articles/[0-9]{1,3}"]))
        assert called == ["save", "publish [1]", "save"]
        assert world.proxy.rule_sets[1].rules[0].path == "/articles/[0-9]{1,3}"
        assert world.datapath.generation == 1
        assert world.reconciler.status().revision == 2

    world_test(body)


def test_removal_in_reverse() -> None:
    async def body(world: World) -> None:
        await world.step(HTTP)
        assert await world.step(L4) == ["save", "apply 2", "listeners []", "swept", "publish []", "save"]
        assert world.saved[-1] == {}

    world_test(body)


def test_rows_wait_for_the_listener_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        await world.step(L4, policy("other", "other", 80, 90))
        assert world.verdicts("other") == {80: Verdict.ALLOW, 90: Verdict.ALLOW}
        # One edit makes the server's policy an HTTP one, whose listener takes its time, and tightens another pod's.
        called = await world.step(HTTP, policy("other", "other", 80))
        assert called == ["save", "publish [1]", "apply 1"]
        assert world.verdicts("server") == {80: Verdict.ALLOW}
        assert world.verdicts("other") == {80: Verdict.ALLOW}
        status = world.reconciler.status()
        assert (status.revision, status.wanted) == (1, 2)
        assert list(status.waiting.values()) == ["waiting"]
        world.proxy.answer()
        assert await world.step() == ["listeners [1]", "apply 2", "save"]
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.reconciler.status().revision == 2

    world_test(body, prompt=False)


def test_patience_ends_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        await world.step(L4)
        monkeypatch.setattr(reconcile, "PATIENCE_SECONDS", 0.0)
        assert await world.step(HTTP) == ["save", "publish [1]", "apply 2", "save"]
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.datapath.listeners == {}  # so the kernel drops NO_LISTENER
        world.proxy.answer()
        assert await world.step() == ["listeners [1]"]

    world_test(body, prompt=False)


def test_a_new_identity_is_never_judged_by_old_classes() -> None:
    async def body(world: World) -> None:
        await world.step(L4)
        world.want(HTTP, pods=(*PODS, pod("late", "10.240.1.13")))
        await world.reconciler.step()
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.datapath.listeners == {}

    world_test(body, prompt=False)


def test_first_start_does_not_wait_for_the_proxy() -> None:
    async def body(world: World) -> None:
        await world.step(HTTP)
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.datapath.listeners == {}

    world_test(body, prompt=False)


def test_after_a_restart_listening_sockets_are_ready_before_the_proxy_reconnects() -> None:
    async def body(world: World) -> None:
        world.proxy.open.add(23007)  # of the Envoy that went on
        world.proxy.prompt = False
        called = await world.step(HTTP)
        assert "listeners [1]" in called
        assert "listeners []" not in called
        assert world.datapath.listeners == {1: 23007}

    world_test(body, taken_over=True, ports=PortAllocator(23000, 23009, assigned={1: 23007}))


def test_after_a_restart_old_verdicts_stay_until_the_proxy_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        called = await world.step(HTTP)
        assert not any(call.startswith(("apply", "listeners")) for call in called)
        world.proxy.answer()
        assert await world.step() == ["listeners [1]", "apply 1", "save"]

    world_test(body, taken_over=True, prompt=False)


def test_a_dead_proxy_has_no_listeners() -> None:
    async def body(world: World) -> None:
        await world.step(HTTP)
        world.proxy.die()
        world.reconciler.proxy_gone()
        assert await world.step() == ["listeners []"]
        world.proxy.answer()
        assert await world.step() == ["listeners [1]"]

    world_test(body)


def test_a_failed_apply_leaves_the_old_generation() -> None:
    async def body(world: World) -> None:
        await world.step(L4)
        world.datapath.fail["apply"] = "no room: 300000 rows are wanted, 262144 fit"
        await world.step(HTTP)
        status = world.reconciler.status()
        assert (status.revision, status.wanted, status.generation, status.failures) == (1, 2, 1, 1)
        assert "300000 rows" in status.error
        assert world.verdicts("server") == {80: Verdict.ALLOW}
        del world.datapath.fail["apply"]
        await world.step()
        assert world.reconciler.status().error == ""
        assert world.verdicts("server") == {80: Verdict.REDIRECT}

    world_test(body)


def test_unsaved_numbers_reach_nobody() -> None:
    async def body(world: World) -> None:
        world.save_error = "disk full"
        assert await world.step(HTTP) == ["save"]
        assert world.reconciler.status().error == "disk full"
        world.save_error = ""
        await world.step()
        assert world.reconciler.status().revision == 1

    world_test(body)


def test_an_endpoint_that_fails_holds_up_nobody() -> None:
    async def body(world: World) -> None:
        world.datapath.fail["set_endpoints"] = "endpoint default/other: no interface lxcother"
        await world.step(HTTP)
        status = world.reconciler.status()
        assert "lxcother" in status.endpoint_error
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        del world.datapath.fail["set_endpoints"]
        assert (await world.step())[0].startswith("endpoints")
        assert world.reconciler.status().endpoint_error == ""

    world_test(body)


def test_an_endpoint_goes_after_its_rows() -> None:
    async def body(world: World) -> None:
        await world.step(HTTP)
        world.want(HTTP, pods=(CLIENT, OTHER), endpoints=(ENDPOINTS[0], ENDPOINTS[2]))
        called = await world.step()
        assert called.index("apply 2") < called.index("endpoints ['default/client', 'default/other']")

    world_test(body)


def test_who_waits_for_new_rows_need_not_wait_for_the_old_ones_to_go() -> None:
    async def body(world: World) -> None:
        flipped, go_on = asyncio.Event(), asyncio.Event()
        apply = world.datapath.apply

        async def slow(table: PolicyTable, live: Callable[[], None]) -> int:
            generation = await apply(table, live)
            flipped.set()
            await go_on.wait()
            return generation

        world.datapath.apply = slow  # type: ignore[method-assign]
        world.want(L4)
        task = asyncio.create_task(world.reconciler.step())
        await flipped.wait()
        live = world.reconciler.live
        assert live.table is not None
        assert (live.number, live.table.revision, world.reconciler.reached) == (1, 1, 0)
        go_on.set()
        await task
        assert (world.reconciler.live.number, world.reconciler.reached) == (1, 1)
        assert world.reconciler.table is live.table

    world_test(body)


def test_pods_get_the_rows_in_force_where_new_ones_do_not_come_about() -> None:
    async def body(world: World) -> None:
        await world.step(HTTP)
        world.want(HTTP, endpoints=ENDPOINTS[:2])
        await world.step()
        world.datapath.fail["set_listeners"] = "no"
        world.want(HTTP, policy("another", "other", 80, http=["/"]), endpoints=ENDPOINTS)
        called = await world.step()
        assert called[-1] == "apply 1"  # the pod is attached, and would drop all until something comes into force
        assert world.reconciler.status().error == "no"
        assert world.reconciler.table is world.tables[0]
        del world.datapath.fail["set_listeners"]
        assert (await world.step()).count("apply 2") == 1
        assert not any(text.startswith("apply") for text in await world.step())

    world_test(body)


def test_rows_that_are_taken_back_are_no_later_intents() -> None:
    async def body(world: World) -> None:
        world.want(HTTP, endpoints=ENDPOINTS[:2])
        await world.step()
        apply = world.datapath.apply

        async def broken(table: PolicyTable, live: Callable[[], None]) -> int:
            world.datapath.apply = apply  # type: ignore[method-assign]
            await apply(table, live)
            raise KernelRefusedError("no grace period", 5)

        world.datapath.apply = broken  # type: ignore[method-assign]
        world.want(HTTP, policy("another", "other", 80), endpoints=ENDPOINTS)
        number = world.reconciler.submitted
        await world.step()
        live = world.reconciler.live
        assert live.table is world.tables[0]
        assert live.number < number  # a pod that has the name or the address of one before must go on waiting
        await world.step()
        assert world.reconciler.live.number == number

    world_test(body)


def test_a_pod_that_is_attached_late_is_waited_for_until_it_has_its_rows() -> None:
    async def body(world: World) -> None:
        world.datapath.fail["set_endpoints"] = "endpoint default/other: no interface lxcother"
        world.want(HTTP)
        number = world.reconciler.submitted
        await world.step()
        assert world.reconciler.live.number == number  # its rows would be there
        del world.datapath.fail["set_endpoints"]
        seen = []
        apply = world.datapath.apply

        async def watched(table: PolicyTable, live: Callable[[], None]) -> int:
            seen.append(world.reconciler.live.number)
            return await apply(table, live)

        world.datapath.apply = watched  # type: ignore[method-assign]
        await world.step()
        assert seen == [0]
        assert world.reconciler.live.number == number

    world_test(body)


def test_a_pod_that_changes_no_row_gets_its_own() -> None:
    async def body(world: World) -> None:
        world.want(HTTP, endpoints=ENDPOINTS[:2])
        await world.step()
        world.want(HTTP, endpoints=ENDPOINTS)
        assert "apply 1" in await world.step()
        assert world.reconciler.status().applied == 1  # nothing was flipped for policy's sake

    world_test(body)


def test_a_taken_port_is_changed() -> None:
    async def body(world: World) -> None:
        world.proxy.refuse[23000] = Acceptance.PORT_TAKEN
        await world.step(HTTP)
        assert world.datapath.listeners == {}
        await world.step()
        assert world.proxy.ports == {1: 23001}
        await world.step()
        assert world.datapath.listeners == {1: 23001}

    world_test(body)


def test_what_the_proxy_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "PATIENCE_SECONDS", 0.0)

    async def body(world: World) -> None:
        world.proxy.refuse[23000] = Acceptance.REFUSED
        await world.step(L4, policy("other", "other", 80))
        await world.step(HTTP, policy("other", "other", 81))
        status = world.reconciler.status()
        assert list(status.waiting.values()) == ["refused"]
        assert (status.revision, status.wanted) == (1, 2)
        assert world.verdicts("server") == {80: Verdict.ALLOW}
        assert world.verdicts("other") == {81: Verdict.ALLOW}

    world_test(body)


def test_a_refused_first_policy_is_closed() -> None:
    async def body(world: World) -> None:
        world.proxy.refuse[23000] = Acceptance.REFUSED
        await world.step(HTTP)
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.datapath.listeners == {}
        assert list(world.reconciler.status().waiting.values()) == ["refused"]

    world_test(body)


def test_a_bug_does_not_end_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        await world.step(L4)
        monkeypatch.setattr(world.proxy, "publish", lambda *_: 1 / 0)
        await world.step(HTTP)
        assert world.reconciler.status().error == "internal error: ZeroDivisionError('division by zero')"
        assert world.verdicts("server") == {80: Verdict.ALLOW}

    world_test(body)


def test_only_the_newest_intent_counts_and_answers_wake() -> None:
    async def body(world: World) -> None:
        world.want(L4)
        world.want(HTTP)
        task = asyncio.create_task(world.reconciler.run())
        await until(lambda: world.proxy.rule_sets)
        assert world.compiled == 1
        world.proxy.answer()
        world.reconciler.wake()
        await until(lambda: world.datapath.listeners)
        task.cancel()

    world_test(body, prompt=False)


def test_what_could_not_be_compiled_is_not_forgotten() -> None:
    async def body(world: World) -> None:
        await world.step(L4, policy("other", "other", 80))
        world.compile_error = "all numbers are taken"
        await world.step(HTTP, policy("other", "other", 80))
        assert world.reconciler.status().error == "all numbers are taken"
        world.compile_error = ""
        await world.step(HTTP, policy("other", "other", 81))  # says nothing of the first policy
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.verdicts("other") == {81: Verdict.ALLOW}

    world_test(body)


def test_what_had_no_room_comes_without_another_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a revision is staged, the kernel has the rows that go and those that come; afterwards there is room."""
    monkeypatch.setattr(pace, "RETRY_SECONDS", (0.001, 0.001))
    low, high = policy("o", "other", *range(1, 59, 2)), policy("o", "other", *range(101, 159, 2))

    async def body(world: World) -> None:
        world.want(low, L4)
        task = asyncio.create_task(world.reconciler.run())
        await until(lambda: world.reconciler.status().revision == 1)
        assert 1 in world.verdicts("other")
        world.want(L4)
        await until(lambda: world.reconciler.status().revision >= 2 and 1 not in world.verdicts("other"))
        world.want(high, L4)
        await until(lambda: 101 in world.verdicts("other"))
        # Both at once have no room: one goes, the other comes after it.
        renamed = low.replace("name: o,", "name: p,")
        world.want(renamed, L4)
        await until(lambda: 1 in world.verdicts("other") and 101 not in world.verdicts("other"))
        assert world.compiler.refused == ()
        task.cancel()

    world_test(body, limits=Limits(rows=45))


def test_changes_of_skipped_intents_count() -> None:
    async def body(world: World) -> None:
        await world.step(L4, policy("other", "other", 80))
        world.want(L4, policy("other", "other", 81))
        world.want(HTTP, policy("other", "other", 81))
        await world.step()
        assert world.verdicts("server") == {80: Verdict.REDIRECT}
        assert world.verdicts("other") == {81: Verdict.ALLOW}

    world_test(body)


def test_the_kernel_gets_what_differs_from_what_it_has() -> None:
    """Whatever was skipped, held back or failed in between: every key that differs is in the delta."""

    async def body(world: World) -> None:
        edits = (
            (L4,), (HTTP, policy("o", "other", 80)), (HTTP, policy("o", "other", 81)), (L4,), (), (HTTP,),
            (policy("http", "server", 80, http=["/b"]),), (L4, policy("o", "other", 90)),
        )  # fmt: skip
        kernel: PolicyTable | None = None
        deltas = 0
        for number, texts in enumerate(edits):
            world.datapath.fail = {"apply": "busy"} if number % 3 == 2 else {}
            if number % 4 == 1:
                world.proxy.answer()
            await world.step(*(texts or (policy("o", "other", 1),)))
            table = world.datapath.table
            assert table is not None
            if kernel is not None and table is not kernel and table.delta is not None:
                deltas += 1
                assert table.delta.base == kernel.revision
                assert _differing(kernel.rows, table.rows) <= table.delta.rows
                assert _differing(kernel.classes, table.classes) <= table.delta.classes
                assert _differing(kernel.endpoints, table.endpoints) <= table.delta.endpoints
                assert _differing(kernel.ipcache, table.ipcache) <= table.delta.ipcache
            kernel = table
        assert deltas >= 3

    world_test(body, prompt=False)


def _differing(old: Mapping[Any, object], new: Mapping[Any, object]) -> set[object]:
    return {key for key in {*old, *new} if old.get(key) != new.get(key)}


def test_failures_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "RETRY_SECONDS", (0.001, 0.002))

    async def body(world: World) -> None:
        world.datapath.fail["apply"] = "busy"
        world.want(L4)
        task = asyncio.create_task(world.reconciler.run())
        await until(lambda: world.reconciler.status().failures >= 3)
        del world.datapath.fail["apply"]
        await until(lambda: world.reconciler.status().revision == 1)
        task.cancel()

    world_test(body)


def test_a_pass_that_has_begun_is_finished() -> None:
    async def body(world: World) -> None:
        flip, go_on = asyncio.Event(), asyncio.Event()
        apply = world.datapath.apply

        async def slow(table: PolicyTable, live: Callable[[], None]) -> int:
            flip.set()
            await go_on.wait()
            return await apply(table, live)

        world.datapath.apply = slow  # type: ignore[method-assign]
        world.want(L4)
        task = asyncio.create_task(world.reconciler.run())
        await flip.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.datapath.table is not None

    world_test(body)


SERVICE = (
    "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default},"
    " spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}"
)


def slice_of(*addresses: str) -> str:
    endpoints = ", ".join(f"{{addresses: [{address}]}}" for address in addresses)
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{endpoints}]
ports: [{{port: 8080}}]
"""


def told(journal: list[str]) -> list[str]:
    """What matters of the order of Services and rows."""
    return [call for call in journal if call.startswith(("apply", "services"))]


def test_backends_leave_before_the_rows_and_come_after() -> None:
    async def body(world: World) -> None:
        def now(*texts: str, pods: tuple[str, ...]) -> None:
            world.want(SERVICE, *texts, pods=pods, endpoints=ENDPOINTS[:1])

        now(slice_of("10.240.1.11", "10.240.1.12"), pods=PODS)
        assert told(await world.step()) == [
            "apply 1",
            "services ['10.96.0.10:80/TCP=10.240.1.11:8080, 10.240.1.12:8080']",
        ]
        now(slice_of("10.240.1.11", "10.240.1.13"), pods=(CLIENT, SERVER, pod("new", "10.240.1.13")))
        assert told(await world.step()) == [
            "services ['10.96.0.10:80/TCP=10.240.1.11:8080']",
            "apply 2",
            "services ['10.96.0.10:80/TCP=10.240.1.11:8080, 10.240.1.13:8080']",
        ]
        # All of them are others; of those before, one is still a pod that policy knows.
        now(slice_of("10.240.1.14"), pods=(CLIENT, SERVER, pod("newer", "10.240.1.14")))
        assert told(await world.step()) == [
            "services ['10.96.0.10:80/TCP=10.240.1.11:8080']",
            "apply 3",
            "services ['10.96.0.10:80/TCP=10.240.1.14:8080']",
        ]
        world.want(pods=PODS, endpoints=ENDPOINTS[:1])
        assert told(await world.step()) == ["services ['10.96.0.10:80/TCP=None']", "apply 4"]

    world_test(body, translates=True)


@pytest.mark.parametrize("failing", ["compile", "save", "apply"])
def test_services_when_a_pass_fails(failing: str) -> None:
    """What has gone leaves all the same, and what is new waits for the policy that knows it."""

    async def body(world: World) -> None:
        await world.step(SERVICE, slice_of("10.240.1.11", "10.240.1.12"))
        world.want(SERVICE, slice_of("10.240.1.11", "10.240.1.13"), pods=(*PODS, pod("new", "10.240.1.13")))
        match failing:
            case "compile":
                world.compile_error = "no numbers"
            case "save":
                world.save_error = "disk full"
            case "apply":
                world.datapath.fail["apply"] = "no memory"
        calls = told(await world.step())
        if failing == "compile":  # nobody has looked at the documents yet
            assert calls == []
        else:
            assert calls[0] == "services ['10.96.0.10:80/TCP=10.240.1.11:8080']"
            assert not [call for call in calls if ".13" in call]
        world.compile_error = world.save_error = ""
        world.datapath.fail.clear()
        calls = told(await world.step())
        assert calls[-2:] == ["apply 2", "services ['10.96.0.10:80/TCP=10.240.1.11:8080, 10.240.1.13:8080']"]

    world_test(body, translates=True)


def test_policy_does_not_wait_for_services() -> None:
    async def body(world: World) -> None:
        world.datapath.fail["set_services"] = "map lb_frontends is full"
        await world.step(SERVICE, slice_of("10.240.1.11"), L4)
        status = world.reconciler.status()
        assert (status.revision, status.error) == (1, "")
        frontend = "10.96.0.10:80/TCP of default/web"
        assert status.service_error == f"frontends that stay as they were: 1 ({frontend}): map lb_frontends is full"
        assert status.service_pending
        assert status.service_failures == 1
        world.datapath.fail.clear()
        await world.step()
        status = world.reconciler.status()
        assert (status.service_error, status.service_changes) == ("", 1)
        assert len(world.datapath.services) == 1

    world_test(body, translates=True)


def test_the_first_policy_of_a_restarted_agent_comes_before_new_backends() -> None:
    async def body(world: World) -> None:
        await world.step(SERVICE, slice_of("10.240.1.11"), HTTP)
        assert told(world.journal) == []
        world.proxy.answer()
        assert [call.split()[0] for call in told(await world.step())] == ["apply", "services"]

    world_test(body, translates=True, prompt=False, taken_over=True)


def test_services_are_left_to_others() -> None:
    async def body(world: World) -> None:
        assert told(await world.step(SERVICE, slice_of("10.240.1.11"))) == ["apply 1"]

    world_test(body)


def test_backends_leave_though_the_pods_have_no_room() -> None:
    async def body(world: World) -> None:
        await world.step(SERVICE, slice_of("10.240.1.11", "10.240.1.12"))
        many = [pod(f"p{number}", f"10.240.2.{number}") for number in range(1, 20)]
        world.want(SERVICE, slice_of("10.240.1.11", "10.240.2.1"), pods=(*PODS, *many))
        assert told(await world.step()) == ["services ['10.96.0.10:80/TCP=10.240.1.11:8080']"]
        assert world.reconciler.status().error
        world.want(SERVICE, slice_of("10.240.1.11", "10.240.2.1"), pods=(*PODS, many[0]))
        calls = told(await world.step())
        assert calls[-1] == "services ['10.96.0.10:80/TCP=10.240.1.11:8080, 10.240.2.1:8080']"
        assert calls[-2].startswith("apply")

    limits = Limits(endpoints=10, ipcache=100, classes=100, rows=30, listeners=10, pairs=10)
    world_test(body, translates=True, limits=limits)


def test_an_intent_is_reached_when_the_kernel_has_it_and_before_anything_is_cleaned_up() -> None:
    async def body() -> None:
        world = World()
        world.want(L4)
        assert world.reconciler.reached == 0
        world.datapath.fail["apply"] = "no"
        await world.step()
        assert world.reconciler.reached == 0
        del world.datapath.fail["apply"]
        await world.step()
        assert world.reconciler.reached == 1
        empty = Intent({}, (), Held(), 0.0)
        assert world.reconciler.submit(empty) == 2
        assert world.reconciler.submit(empty) == 3
        world.save_error = "the disk is full"
        await world.step()
        assert world.datapath.endpoints == ()
        assert world.reconciler.reached == 3

    run(body)
