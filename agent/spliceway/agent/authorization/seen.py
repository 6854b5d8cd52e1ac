"""What the API server has of Istio: AuthorizationPolicies, ours and others', and where mTLS is asked of every client.

Followed by the one agent that writes, and only while it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog

from spliceway.agent.authorization.objects import Held, authentication, digest_of, name_of, others, own
from spliceway.agent.policystatus.resources import AUTHENTICATIONS, AUTHORIZATIONS
from spliceway.agent.sources.events import FileEvent, FileRefused, ObjectChanged
from spliceway.agent.sources.kubernetes.beside import reflectors
from spliceway.agent.sources.kubernetes.connection import Connection
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.agent.sources.kubernetes.setback import is_older
from spliceway.policy.istio.mesh import Foreign, PeerAuthentication
from spliceway.policy.istio.objects import is_translated
from spliceway.policy.istio.rollout import Name, Shape

log = structlog.get_logger(__name__)


class Other(msgspec.Struct, frozen=True):
    """Somebody else's AuthorizationPolicy. `foreign` None: it changes nothing.

    `said`: of a translation that was applied by hand, what it says (`digest_of`): the same as ours it does no harm.
    """

    shape: Shape
    foreign: Foreign | None = None
    said: str = ""


class Seen:
    """Follows both kinds; run its `reflectors`. `woken` is set when anything is different."""

    def __init__(self, connection: Connection, node: str, timing: Timing) -> None:
        """Nothing is asked yet."""
        self.own: dict[Name, Held] = {}
        self.others: dict[Name, Other] = {}
        self.woken = asyncio.Event()
        self.is_stale = True  # what a translation depends on is another one
        self._authentications: dict[Name, PeerAuthentication] = {}
        self._asked: Name | None = None
        self._told = ""  # what revision of it the watch has told of since
        self._ahead: dict[Name, str] = {}  # revisions that answers told, and the watch has not yet
        self.reflectors = reflectors(
            (AUTHORIZATIONS, AUTHENTICATIONS), connection, self._take, node=node, timing=timing, woken=self.woken
        )

    def __repr__(self) -> str:
        return f"Seen(own={len(self.own)}, others={len(self.others)})"

    @property
    def is_whole(self) -> bool:
        """Whether all was seen; without PeerAuthentications none asks for mTLS."""
        policies, authentications = self.reflectors
        return policies.state == "listed" and authentications.state in ("listed", "absent")

    @property
    def authentications(self) -> tuple[PeerAuthentication, ...]:
        """In one order."""
        return tuple(one for _name, one in sorted(self._authentications.items()))

    def why_not(self) -> str:
        """Why it can't be seen; empty: it can, or is just being looked at."""
        policies = self.reflectors[0]
        if policies.state == "absent":
            return "AuthorizationPolicies are not served: Istio's definitions are not installed"
        return next((one.error for one in self.reflectors if one.error and one.state != "listed"), "")

    def asked(self, name: Name) -> None:
        """This one is being written: `answered` comes next, one at a time."""
        self._asked, self._told = name, ""

    def answered(self, content: Mapping[str, Any]) -> None:
        """The answer, unless the watch has told meanwhile of something newer, or that it is gone: it tells once."""
        name, revision = name_of(content), str(content["metadata"].get("resourceVersion", ""))
        if self._asked == name and not is_older(revision, self._told):
            self.took(content)
            if revision != self._told:
                self._ahead[name] = revision
                self.settle()

    def settle(self) -> None:
        """Take out what was deleted before the watch could tell of it: who looks at all anew finds nothing to miss."""
        policies = self.reflectors[0]
        for name, revision in [*self._ahead.items()]:
            if policies.lacks(f"kubernetes:{AUTHORIZATIONS.kind}/{'/'.join(name)}", revision):
                self.went(name)
                self.woken.set()

    def took(self, content: Mapping[str, Any]) -> None:
        """An AuthorizationPolicy is this now, the watch says, or the answer to a write of ours."""
        name, held = name_of(content), own(content)
        if held is None:
            self.own.pop(name, None)
            shape, foreign = others(content)
            said = digest_of(shape.namespace, content.get("spec") or {}) if is_translated(content) else ""
            self._put(name, Other(shape, foreign, said))
            return
        self.own[name] = held
        self._put(name, None)

    def went(self, name: Name) -> None:
        """There is no such AuthorizationPolicy any more."""
        if self._asked == name:
            self._asked = None
        self._ahead.pop(name, None)
        self.own.pop(name, None)
        self._put(name, None)

    def deleted(self, held: Held) -> None:
        """This one is no more, an answer says; who has its name by now is another one."""
        now = self.own.get(held.shape.key)
        if now is not None and now.metadata.get("uid") == held.metadata.get("uid"):
            self.went(held.shape.key)

    def _put(self, name: Name, other: Other | None) -> None:
        if self.others.get(name) == other:
            return
        self.is_stale = True
        if other is None:
            del self.others[name]
        else:
            self.others[name] = other

    async def _take(self, events: Sequence[FileEvent]) -> None:
        for one in events:
            kind, _, path = one.file.removeprefix("kubernetes:").partition("/")
            namespace, _, short = path.rpartition("/")
            content = one.content if isinstance(one, ObjectChanged) else None
            if isinstance(one, FileRefused):
                log.warning("an object of Istio's can't be read", object=one.file, error=one.reason)
                continue
            if kind == AUTHENTICATIONS.kind:
                self.is_stale = True
                if content is None:
                    self._authentications.pop((namespace, short), None)
                else:
                    self._authentications[namespace, short] = authentication(content)
            elif content is None:
                self.went((namespace, short))
            else:
                self._hear((namespace, short), content)
        self.woken.set()

    def _hear(self, name: Name, content: Mapping[str, Any]) -> None:
        """Take in what the watch tells, unless an answer was ahead of it: a server that was set back has older ones."""
        revision = str((content.get("metadata") or {}).get("resourceVersion", ""))
        if self._asked == name:
            self._told = revision
        if not is_older(revision, self._ahead.get(name, "")):
            self._ahead.pop(name, None)
            self.took(content)
