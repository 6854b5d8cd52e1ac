"""Reports of all nodes, added up by policy as they change. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from spliceway.agent.policystatus.ledger import Version, Written
from spliceway.agent.policystatus.report import Report, Trouble


class Count(msgspec.Struct, frozen=True):
    """What the nodes say of one version of a policy.

    `desired`: nodes that have pods which it is about; `applied`: those where it is in force; `in_audit`: where it then
    denies nothing; `off`: where the kill switch is on (these are not applied); `troubles`: by node; `unseen`: nodes
    that have not looked at it yet.
    """

    desired: int = 0
    applied: int = 0
    in_audit: int = 0
    off: int = 0
    troubles: Mapping[str, Trouble] = {}
    unseen: tuple[str, ...] = ()


class Tally:
    """Reports by node. A report that is another one costs what is different in it."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}
        self._positions: dict[str, dict[str, int]] = {}
        self._applied: dict[str, Counter[tuple[str, str]]] = {}  # uid → (version, enforcement) → nodes
        self._troubles: dict[str, dict[str, Trouble]] = {}  # uid → node → what
        self._looked: dict[str, list[tuple[int, str]]] = {}  # kind → positions of nodes, the lowest first

    def __repr__(self) -> str:
        return f"Tally(nodes={len(self._reports)}, policies={len(self._applied)})"

    @property
    def nodes(self) -> Iterable[str]:
        """Whose reports it has."""
        return self._reports.keys()

    @property
    def in_audit(self) -> bool:
        """Whether no node enforces anything: all are in audit, or have their kill switch on."""
        return all(one.enforcement != "enforce" for one in self._reports.values())

    def is_read(self, kind: str) -> bool:
        """Whether any node looks at policies of this kind, in lower case."""
        return any(kind == one.lower() for told in self._positions.values() for one in told)

    def put(self, node: str, told: Report | None) -> set[str] | None:
        """A report came, changed or went (None). Gives uids of the policies that it is about; None: all."""
        before = self._reports.get(node)
        if told == before:
            return set()
        self._add(node, before, -1)
        self._add(node, told, 1)
        positions = told.positions if told is not None else {}
        moved = self._positions.get(node, {}) != positions or (before is None) != (told is None)
        if told is None:
            del self._reports[node], self._positions[node]
        else:
            self._reports[node], self._positions[node] = told, positions
        if moved:
            self._looked = {}
            return None
        return {uid for uid, _what in _entries(before) ^ _entries(told)}

    def count(self, kind: str, policy: Written) -> Count:
        """What is said of a policy of this kind as it is written now."""
        version, uid = policy.version, policy.version.uid
        troubles = self._troubles.get(uid, {})
        desired = applied = in_audit = off = 0
        for (text, enforcement), nodes in self._applied.get(uid, {}).items():
            desired += nodes
            if not current(text, version):
                continue
            if enforcement == "off":
                off += nodes
                continue
            applied += nodes
            in_audit += nodes if enforcement == "audit" else 0
        desired += sum(one.selects for one in troubles.values())
        now = {node: one for node, one in troubles.items() if current(one.policy, version)}
        return Count(desired, applied, in_audit, off, now, self._unseen(kind, policy.since))

    def has_trouble(self, policy: Written) -> bool:
        """Whether any node says something is wrong with it as it is written now."""
        return any(current(one.policy, policy.version) for one in self._troubles.get(policy.version.uid, {}).values())

    def _unseen(self, kind: str, since: int) -> tuple[str, ...]:
        looked = self._looked.get(kind)
        if looked is None:
            looked = self._looked[kind] = sorted((one.get(kind, 0), node) for node, one in self._positions.items())
        # One node whose agent is away must not have all others looked at for each policy.
        return tuple(sorted(node for _position, node in looked[: bisect_left(looked, (since,))]))

    def _add(self, node: str, told: Report | None, times: int) -> None:
        if told is None:
            return
        for text in told.applied:
            counter = self._applied.setdefault(_uid(text), Counter())
            counter[text, told.enforcement] += times
            if not counter[text, told.enforcement]:
                del counter[text, told.enforcement]
            if not counter:
                del self._applied[_uid(text)]
        for one in told.exceptions:
            uid = _uid(one.policy)
            if times > 0:
                self._troubles.setdefault(uid, {})[node] = one
                continue
            # A report that has a policy twice is none of ours, and must not be the end of the one that counts.
            left = self._troubles.get(uid, {})
            left.pop(node, None)
            if not left:
                self._troubles.pop(uid, None)


def _entries(told: Report | None) -> set[tuple[str, object]]:
    """What it says, each with the uid of the policy."""
    if told is None:
        return set()
    found: set[tuple[str, object]] = {(_uid(text), (text, told.enforcement)) for text in told.applied}
    return found | {(_uid(one.policy), one) for one in told.exceptions}


def current(text: str, version: Version) -> bool:
    """Whether a version that a node names is this one, or a later one that we have not seen yet."""
    if text == version.text:
        return True
    try:
        named = Version.parse(text)
    except ValueError:
        return False
    return named.uid == version.uid and named.generation > version.generation


def _uid(text: str) -> str:
    return text.partition("/")[0]
