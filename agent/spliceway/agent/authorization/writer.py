"""The one agent that writes keeps the translations of HTTP rules applied: for one term of office.

Nothing is written before all is known: the policies, Istio's objects, and what an earlier agent has left. Edits of
others are put back, of the same object ever more rarely. What comes to nothing leaves the last good translation.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import structlog

from spliceway.agent.authorization.aims import Aim, World, aim, nothing
from spliceway.agent.authorization.asking import Asking, decoded
from spliceway.agent.authorization.objects import Held, Json, is_as_wanted, made, recreated, restored
from spliceway.agent.authorization.patience import Patience, crowded
from spliceway.agent.authorization.saying import conditions, unasked
from spliceway.agent.authorization.seen import Seen
from spliceway.agent.authorization.told import Figures
from spliceway.agent.authorization.translating import Translating
from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.conditions import Condition
from spliceway.agent.policystatus.fenced import FencedWrites, is_general
from spliceway.agent.policystatus.naming import path_of
from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.policystatus.resources import AUTHORIZATIONS
from spliceway.agent.sources.kubernetes.connection import ApiFailure
from spliceway.policy.istio.rollout import Name, Shape, bridge_policy, rollout

#: Seconds of peace after which a failure or an edit counts as the first one again.
_PEACE = 600.0
#: So many objects may fail before the rest is left for later: then it is no matter of the objects.
_MOST_FAILURES = 20
#: So many of one namespace may wait after a failure before the rest of it does: it has a quota, or is going.
_MOST_IN_NAMESPACE = 5
#: So many of one namespace are deleted before others have their turn: anybody can make what looks like ours.
_MOST_DELETED = 20
#: After so many writes it is said how far it is.
_SAY = 50

log = structlog.get_logger(__name__)


class AuthorizationWriter:
    """Applies for one term of office: `run`, until cancelled."""

    def __init__(
        self,
        seen: Seen,
        translating: Translating | None,
        writes: FencedWrites,
        *,
        root_namespace: str,
        whole: Callable[[], bool],
        pacing: Pacing,
        figures: Figures,
        on_news: Callable[[Iterable[Key] | None], None],
    ) -> None:
        """`translating` None: all of ours is to go. `whole`: whether all policies are known.

        `on_news` is told policies of which something else is to be said; None: all.
        """
        self._seen = seen
        self._translating = translating
        self._writes = writes
        self._root = root_namespace
        self._whole = whole
        self._pacing = pacing
        self._figures = figures
        self._on_news = on_news
        self._failed = Patience(pacing.pause, _PEACE)
        self._edited = Patience(pacing.pause, _PEACE)
        self._asking = Asking(writes, pacing.pause, _PEACE)
        self._deleted: Counter[str] = Counter()  # in this round, by namespace
        self._is_more = False  # to be deleted, in the next round
        self._is_late = True  # what has failed before has its turn
        self._good: dict[Name, Held] = {}  # how what is kept should be
        self._said: dict[Key, Condition] = {}
        self._is_begun = False
        self._count = 0

    def __repr__(self) -> str:
        return f"AuthorizationWriter({self._seen!r}, said={len(self._said)}, failed={self._failed!r})"

    def condition(self, key: Key, before: Condition | None) -> Condition | None:
        """What is to be said of a policy; as long as nothing is known, what was said before."""
        return self._said.get(key) if self._is_begun else before

    def stale(self) -> None:
        """The cluster may be another one."""
        if self._translating is not None:
            self._translating.stale()
            self._seen.woken.set()

    async def run(self) -> None:
        """Apply, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for one in self._seen.reflectors:
                group.create_task(one.run(), name=f"kubernetes {one.resource.plural}")
            group.create_task(self._work(), name="authorization policies")

    async def _work(self) -> None:
        tries, again = 0, 0.0
        while True:
            await self._wait(again)
            self._figures.error = self._seen.why_not()
            if not self._seen.is_whole or not self._whole():
                again = self._now() + self._pacing.gather
                continue
            begun = self._now()
            try:
                await self._round()
            except ApiFailure as failure:
                await self._troubled(str(failure), max(self._pause(tries), failure.wait))
                tries, again = tries + 1, self._now()
            except Exception as error:
                # A bug. It must not be one for those who wait to hear of their policies.
                log.exception("AuthorizationPolicies can't be kept applied")
                await self._troubled(f"internal error: {error!r}", self._pacing.pause[1])
                again = self._now()
            else:
                tries, again = 0, self._due(begun)

    async def _wait(self, again: float) -> None:
        """Until something is different, or is to be tried again; others may change meanwhile, and are one round."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(again or None):
                await self._seen.woken.wait()
        await asyncio.sleep(self._pacing.gather)
        self._seen.woken.clear()

    async def _troubled(self, why: str, pause: float) -> None:
        self._figures.failures += 1
        self._figures.error, self._figures.settled = f"AuthorizationPolicies: {why}", False
        await asyncio.sleep(pause)

    def _pause(self, tries: int) -> float:
        first, most = self._pacing.pause
        pause: float = min(most, first * 2.0 ** min(tries, 16)) * random.uniform(0.5, 1.0)
        return pause

    def _due(self, begun: float) -> float:
        """When there is something to be tried again, should nothing happen; 0: never. `begun`: of the last round."""
        times = [self._failed.next(begun), self._edited.next(begun)]
        if self._translating is not None:
            times.append(self._translating.due(self._seen))
        return min((one for one in times if one), default=0.0)

    async def _round(self) -> None:
        """Bring everything to where it should be, as far as it can be. Raises ApiFailure."""
        self._seen.settle()
        self._writes.begin()
        for one in (self._failed, self._edited):
            one.sweep(self._now())
        world = await self._translating.world(self._seen) if self._translating is not None else None
        self._deleted.clear()
        self._is_late, self._is_more = True, False
        if world is not None:
            unwanted = self._aimed(world).unwanted
            world = await self._asking.sure(world, self._seen.own, unwanted, self._waiting(), self._now())
        for late in (False, True):
            self._is_late = late
            await self._bring_all(world)
        if self._asking.is_left or self._is_more:
            self._seen.woken.set()
        found = self._aimed(world)
        self._remember(found)  # what has moved to another trust domain is kept from now on
        self._say(found, done=True)

    async def _bring_all(self, world: World | None) -> None:
        for _try in range(_MOST_FAILURES):
            found = self._aimed(world)
            self._remember(found)
            if await self._restore(found) and await self._roll_out(found, world):
                return
        if not self._is_late:
            raise ApiFailure(0, "", f"{_MOST_FAILURES} objects in a row could not be written; see the log")

    def _waiting(self) -> Mapping[Name, str]:
        """What can't be written or deleted, and why; what has failed before comes last."""
        return self._failed.waiting(self._now()) if self._is_late else self._failed.all()

    def _aimed(self, world: World | None) -> Aim:
        if world is None:
            return nothing(self._seen.own)
        failed = self._waiting()
        return aim(world, self._seen.own, self._seen.others, failed, crowded(failed, _MOST_IN_NAMESPACE))

    def _remember(self, found: Aim) -> None:
        """What is kept of translations that are refused now: so it stays, whoever edits or deletes it."""
        good = {name: one for name, one in self._good.items() if one.source in found.troubles}
        for name in found.kept:
            one = self._seen.own[name]
            if one.is_whole and not one.is_going and not one.shape.bridge:
                good[name] = one
        self._good = {
            name: one for name, one in good.items() if name not in found.wanted and name not in found.unwanted
        }

    async def _restore(self, found: Aim) -> bool:
        """Put back what was edited, denials first; False: something failed, and all is to be looked at anew."""
        todo: list[tuple[Shape, Held | None, Json]] = []
        for name, one in self._seen.own.items():
            wanted = found.wanted.get(name)
            if wanted is not None and not is_as_wanted(one, wanted):
                todo.append((wanted.shape, one, wanted.document))
            elif wanted is None and not one.is_whole and (good := self._good.get(name)) is not None:
                todo.append((good.shape, one, recreated(good)))
        for name, good in self._good.items():
            if name not in self._seen.own and name not in self._seen.others:
                todo.append((good.shape, None, recreated(good)))
        waiting = {*self._edited.waiting(self._now()), *self._waiting()}
        for shape, held, document in sorted(todo, key=lambda entry: (entry[0].action != "DENY", entry[0].key)):
            name = shape.key
            if name in waiting:
                continue
            # One that is being deleted, too: as long as somebody holds that up, it is in force.
            content = document if held is None else restored(document, held)
            if not await self._write("POST" if held is None else "PUT", shape, content):
                return False
            self._edited.put(name, self._now())
            if held is not None and held.is_whole:
                self._figures.updated += 1  # of another version of its policy, which says the same
                continue
            self._figures.restored += 1
            log.warning("an AuthorizationPolicy was edited or deleted, and is put back", name="/".join(name))
        return True

    async def _roll_out(self, found: Aim, world: World | None) -> bool:
        """Create and delete, step by step; False: something failed, and all is to be looked at anew."""
        there = {name: one.shape for name, one in (self._seen.own | self._seen.others).items()}
        wanted = {name: one.shape for name, one in found.wanted.items()}
        sources = {one.shape.key: one.source for one in found.wanted.values()}
        left: dict[str, list[Shape]] = {}  # by namespace: what others hold up is still in force; they tell when it goes
        stuck = self._stuck(found, world)
        for name in stuck:
            if there[name].action == "ALLOW":
                left.setdefault(name[0], []).append(there[name])
        for step in rollout(there, wanted, found.unwanted - stuck, self._root):
            for shape in step.shapes:
                if step.verb == "delete":
                    if not self._waits(shape, left):
                        await self._delete(shape.key)
                    continue
                content = self._bridge(shape, sources, world) if shape.bridge else found.wanted[shape.key].document
                if not await self._write("POST", shape, content):
                    if shape.bridge:
                        continue  # without it some wait for a moment; nothing passes that should not
                    return False
                self._figures.created += 1
                self._count += 1
                if not self._count % _SAY:
                    self._say(self._aimed(world), done=False)
            if step.verb == "delete":
                for shape in step.shapes:
                    if shape.key in self._seen.own:
                        left.setdefault(shape.namespace, []).append(shape)
        return True

    def _stuck(self, found: Aim, world: World | None) -> set[Name]:
        """What is to go and can't yet: something holds it up, others come first, or nobody was asked whether it may."""
        waiting, count, stuck = self._waiting(), self._deleted.copy(), set()
        for name in sorted(found.unwanted, key=lambda name: (self._seen.own[name].shape.action == "DENY", name)):
            one = self._seen.own[name]
            if one.is_going or name in waiting or not (world is None or self._asking.may_go(one, world)):
                stuck.add(name)
                continue
            count[name[0]] += 1
            if count[name[0]] > _MOST_DELETED:
                self._is_more = True
                stuck.add(name)
        return stuck

    def _waits(self, shape: Shape, left: Mapping[str, list[Shape]]) -> bool:
        """Whether something may go only after what is left of the same workloads."""
        # An old denial stays until nothing is allowed any more that only it refuses: that would pass. But who holds up
        # something in one namespace may allow the same there himself: in others it counts only if it is the root's.
        near = (one for space in {shape.namespace, self._root} for one in left.get(space, ()))
        return shape.action == "DENY" and any(one.overlaps(shape, self._root) for one in near)

    def _bridge(self, shape: Shape, sources: dict[Name, Key], world: World | None) -> Json:
        near = (one.source for one in self._seen.own.values() if one.shape.namespace == shape.namespace)
        source = next((key for name, key in sources.items() if name[0] == shape.namespace), None) or next(near)
        version = world.versions.get(source, "/0/") if world is not None else "/0/"
        return made(bridge_policy(shape, " ".join(source)), version, bridge=True).document

    async def _write(self, method: str, shape: Shape, content: Json) -> bool:
        """Whether it was taken. Raises ApiFailure when that is no matter of the object."""
        path = path_of(AUTHORIZATIONS, shape.namespace, shape.name if method == "PUT" else "")
        self._seen.asked(shape.key)
        try:
            answer = await self._writes.send(method, path, content)
        except ApiFailure as failure:
            if is_general(failure):
                raise
            if failure.code == 409 and method == "PUT":
                self._edited.put(shape.key, self._now())
                return False  # somebody was quicker: what there is now comes by the watch
            self._figures.failures += 1
            self._failed.put(shape.key, self._now(), str(failure), failure.wait)
            log.warning("an AuthorizationPolicy can't be written", name="/".join(shape.key), error=str(failure))
            return False
        self._failed.forget(shape.key)
        self._seen.answered(decoded(answer))
        return True

    async def _delete(self, name: Name) -> None:
        """Delete one of ours; of what is no more, or is going, nothing. One that can't be is tried again later.

        Raises ApiFailure when that is no matter of the object.
        """
        held = self._seen.own.get(name)
        if held is None or held.is_going or name in self._waiting():
            return
        self._deleted[name[0]] += 1
        path = path_of(AUTHORIZATIONS, *name)
        self._seen.asked(name)
        try:
            answer = decoded(await self._writes.delete(path, str(held.metadata.get("uid", "")), held.revision))
        except ApiFailure as failure:
            if is_general(failure):
                raise
            self._figures.failures += 1
            self._failed.put(name, self._now(), str(failure), failure.wait)
            log.warning("an AuthorizationPolicy can't be deleted", name="/".join(name), error=str(failure))
            return
        self._failed.forget(name)
        self._figures.deleted += 1
        if answer.get("kind") == AUTHORIZATIONS.kind:
            self._seen.answered(answer)
        else:
            self._seen.deleted(held)

    def _say(self, found: Aim, *, done: bool) -> None:
        """Say what has become of each policy, and how many objects there are."""
        said = conditions(found, self._seen.own, self._said)
        changed = [key for key in said.keys() | self._said.keys() if said.get(key) != self._said.get(key)]
        for key in changed:
            one = said.get(key)
            if one is not None and one.status == "False" and one.reason != "Pending":
                log.warning(
                    "a policy is not translated for Istio", policy=" ".join(key), field=one.field, reason=one.message
                )
        first, self._is_begun, self._said = not self._is_begun, True, said
        figures, own = self._figures, self._seen.own
        figures.emitted = sum(name in own and is_as_wanted(own[name], one) for name, one in found.wanted.items())
        figures.kept, figures.going = len(found.kept), len(found.unwanted)
        figures.refused = len(found.troubles)
        figures.unasked = tuple(unasked(found))
        figures.settled = done and figures.emitted == len(found.wanted) and not found.unwanted
        figures.seconds = self._translating.seconds if self._translating is not None else 0.0
        if changed or first:
            self._on_news(None if first else changed)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
