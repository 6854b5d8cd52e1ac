"""What the API server itself says of policies, where what was seen opens, or anybody's mark would hold one up.

Anybody can make objects that look like ours, thousands of them. So few questions are asked in a round for each
namespace, and what was answered counts for a while: what is not asked stays as it is.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from spliceway.agent.authorization.aims import World, behind
from spliceway.agent.authorization.objects import Held, Json
from spliceway.agent.authorization.patience import Patience
from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.fenced import FencedWrites, is_general
from spliceway.agent.policystatus.ledger import Version
from spliceway.agent.policystatus.naming import path_of
from spliceway.agent.policystatus.resources import AUTHORIZATIONS
from spliceway.agent.sources.kubernetes.connection import ApiFailure
from spliceway.agent.sources.kubernetes.resources import RESOURCES
from spliceway.policy.istio.rollout import Name

#: Questions in a round on account of one namespace: a second of the rate that is the default.
MOST = 20


class Asking:
    """For one term of office. `is_left`: there is more to be asked, in the next round."""

    def __init__(self, writes: FencedWrites, pause: tuple[float, float], peace: float) -> None:
        """See `Patience`."""
        self._writes = writes
        self._there = Patience(pause, peace)  # policies that were not seen, and are there
        self._newest: dict[Key, str] = {}  # versions of which the server had nothing newer
        self._gone: set[Key] = set()
        self._asked: Counter[str] = Counter()
        self.is_left = False

    def __repr__(self) -> str:
        return f"Asking({self._there!r}, newest={len(self._newest)}, gone={len(self._gone)})"

    def may_go(self, one: Held, world: World) -> bool:
        """Whether its policy is there to say so, or was not there when the server was asked in this round."""
        return one.source in world.versions or one.source in self._gone

    async def sure(
        self, world: World, own: Mapping[Name, Held], unwanted: Iterable[Name], waiting: Mapping[Name, str], now: float
    ) -> World:
        """The same, and what the server itself says. Raises ApiFailure.

        A policy that has gone for us only, as our watch hangs, is one that can't be read; and of which there is nothing
        newer, an object can't say so. `unwanted`: what would go; `waiting`: what can't be deleted now.
        """
        self._asked.clear()
        self._gone.clear()
        self.is_left = False
        self._there.sweep(now)
        newest = await self._known(world, behind(world, own))
        still = await self._still(world, [own[name] for name in unwanted if name not in waiting], now)
        if not still and not newest:
            return world
        return msgspec.structs.replace(world, unread=world.unread | still, newest=newest)

    async def _still(self, world: World, going: Iterable[Held], now: float) -> set[Key]:
        """Policies that were not seen, of which something would go, and that are there, or may be."""
        there = set(self._there.waiting(now))
        still = set()
        for one in going:
            key = one.source
            if one.is_going or key in world.versions or key in self._gone or key in still:
                continue  # what is being deleted already nobody deletes
            if key not in there and self._may_ask(one.shape.namespace):
                if await self._generation(key, "") is None:
                    self._gone.add(key)
                    continue
                self._there.put(key, now)
            still.add(key)
        return still

    async def _known(self, world: World, late: Iterable[Key]) -> frozenset[Key]:
        """Policies of which an object says that there is something newer, and there is nothing."""
        self._newest = {key: self._newest.get(key, "") for key in late}
        for key in sorted(self._newest):
            text = world.versions[key]
            if self._newest[key] == text or not self._may_ask(key[1].rpartition("/")[0]):
                continue
            version = Version.parse(text)
            there = await self._generation(key, version.uid)
            if there is not None and there <= version.generation:
                self._newest[key] = text
        return frozenset(key for key, text in self._newest.items() if text == world.versions[key])

    def _may_ask(self, namespace: str) -> bool:
        self._asked[namespace] += 1
        self.is_left |= self._asked[namespace] > MOST
        return self._asked[namespace] <= MOST

    async def _generation(self, key: Key, uid: str) -> int | None:
        """Of the policy of that name that the server has (`uid` empty: made anew or not); None: it has none.

        What may not be asked may be there, newer than any. Raises ApiFailure.
        """
        kind, path = key
        namespace, _, name = path.rpartition("/")
        resource = next((one for one in RESOURCES if one.kind == kind), None)
        if resource is None:
            return None
        try:
            answer = await self._writes.get(path_of(resource, namespace), {"fieldSelector": f"metadata.name={name}"})
        except ApiFailure as failure:
            if failure.code == 404:
                return None  # not even its kind
            if is_general(failure):
                raise
            return sys.maxsize
        found = (one.get("metadata") or {} for one in decoded(answer).get("items") or ())
        return next((int(one.get("generation") or 0) for one in found if uid in ("", one.get("uid"))), None)


def decoded(answer: bytes) -> Json:
    """An object, or a list of them. Raises ApiFailure."""
    try:
        return msgspec.json.decode(answer, type=Json)
    except msgspec.MsgspecError as error:
        raise ApiFailure(0, "", f"{AUTHORIZATIONS.plural}: not what an API server answers: {error}") from error
