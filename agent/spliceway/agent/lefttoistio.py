"""Policies that leave HTTP rules to Istio, as the wire enforces them (`policy.istio.left`), and what is told. Pure.

Which pods have a sidecar that asks them is a matter of this node alone: a policy says something else as soon as a pod
comes whose sidecar sees other ports than those before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from spliceway.agent.localpods import LocalPods
from spliceway.agent.manifests import Key
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.istio.left import is_left, marks_of, on_the_wire
from spliceway.policy.istio.sidecar import Sees, rewired
from spliceway.policy.labels import SIDECAR_KEY
from spliceway.policy.model import NetworkPolicy, Object, PortRule, Spec
from spliceway.policy.parse_metadata import HTTP_RULES
from spliceway.policy.selectors import Facts, facts_of, matcher

#: Warnings that are told at most, and pods that one names.
_MOST, _NAMED = 20, 3


class Left(msgspec.Struct, frozen=True):
    """How many HTTP rules (entries of toPorts) sidecars ask in place of the wire, at how many pods of this node."""

    rules: int = 0
    pods: int = 0


class LeftToIstio:
    """Follows the objects; `complete` makes policies what they are on the wire, `found` and `warnings` say for whom."""

    def __init__(self, local: LocalPods) -> None:
        """`local`: the pods that count, as they are after each change."""
        self._local = local
        self._policies: dict[Key, NetworkPolicy] = {}
        self._marks: dict[Key, Counter[str]] = {}  # of the pods that each is about, by how many sets of labels
        self._pods: dict[tuple[str, ...], tuple[Facts, str]] = {}  # labels of pods with a mark, and the mark
        self._turn = 0
        self._told: tuple[dict[tuple[Key, str], set[str]], tuple[str, ...]] | None = None

    def __repr__(self) -> str:
        return f"LeftToIstio(policies={len(self._policies)}, pods={len(self._pods)})"

    def complete(self, changes: dict[Key, Object | None]) -> None:
        """Take in what changed, and make policies of it what they are; others when marks of their pods come or go."""
        if not changes:
            return
        self._told = None
        for key, item in changes.items():
            self._policies.pop(key, None)
            self._marks.pop(key, None)
            if isinstance(item, NetworkPolicy) and item.left_to_istio:
                self._policies[key] = item
        come, gone = self._look()
        for key, policy in self._policies.items():
            if (marks := self._marks.get(key)) is None:
                marks = self._marks[key] = Counter(marks_of(policy, self._pods.values()))
            elif come or gone:
                before = set(marks)
                marks.update(marks_of(policy, come))
                marks.subtract(marks_of(policy, gone))
                marks = self._marks[key] = +marks
                if marks.keys() == before:
                    continue
            else:
                continue
            changes[key] = on_the_wire(policy, marks)

    def _look(self) -> tuple[list[tuple[Facts, str]], list[tuple[Facts, str]]]:
        """Pods with a mark whose labels are new, and those whose labels no pod has any more."""
        if self._local.turn == self._turn:
            return [], []
        self._turn, before, self._pods = self._local.turn, self._pods, {}
        for labels, names in self._local.alike(lambda pod: bool(pod.labels.get(SIDECAR_KEY))):
            mark = self._local.pods[names[0]].labels[SIDECAR_KEY]
            self._pods[labels] = before.get(labels) or (facts_of(labels), mark)
        come = [one for labels, one in self._pods.items() if labels not in before]
        return come, [one for labels, one in before.items() if labels not in self._pods]

    def found(self, endpoints: Iterable[LocalEndpoint]) -> Left:
        """What is left to Istio at pods that are wired so: who is not, or with addresses not told of, has no part."""
        there = {one.name for one in endpoints if self._has_mark(one)}
        asked = [names & there for names in self._tell()[0].values()]
        return Left(sum(map(bool, asked)), len(set().union(*asked)))

    def _has_mark(self, endpoint: LocalEndpoint) -> bool:
        pod = self._local.pods.get(endpoint.name)
        return pod is not None and SIDECAR_KEY in rewired(pod, endpoint.addresses).labels

    def warnings(self) -> tuple[str, ...]:
        """Policies that leave HTTP rules to Istio at pods where no sidecar could ask them."""
        return self._tell()[1]

    def _tell(self) -> tuple[dict[tuple[Key, str], set[str]], tuple[str, ...]]:
        """By rule the pods whose sidecars ask it, and warnings."""
        if self._told is None:
            rules: dict[tuple[Key, str], set[str]] = {}
            asked: dict[str, set[str]] = {}
            for key, entry, names, sees in self._entries():
                seen = [sees is not None and sees.has(port) for port in entry.ports]
                if any(seen):
                    rules.setdefault((key, entry.path), set()).update(names)
                if not all(seen):
                    asked.setdefault(" ".join(key), set()).update(names)
            told = [_warning(title, sorted(names)) for title, names in sorted(asked.items())]
            more = (f"{len(told) - _MOST} more policies are like these",) if len(told) > _MOST else ()
            self._told = rules, (*told[:_MOST], *more)
        return self._told

    def _entries(self) -> Iterator[tuple[Key, PortRule, list[str], Sees | None]]:
        """HTTP rules that may be left to Istio, each with pods that it is about and what their sidecar sees."""
        specs = [(key, spec) for key, policy in self._policies.items() for spec in policy.specs if _leaves(spec)]
        if not specs:
            return
        for labels, names in self._local.alike(lambda _pod: True):
            facts = facts_of(labels)
            mark = self._local.pods[names[0]].labels.get(SIDECAR_KEY)
            sees = Sees.of(mark) if mark else None
            for key, spec in specs:
                if matcher(spec.subject).matches(facts):
                    for rule in filter(is_left, spec.rules):
                        yield from ((key, one, names, sees) for one in rule.to_ports if one.http is not None)


def _leaves(spec: Spec) -> bool:
    return any(map(is_left, spec.rules))


def _warning(title: str, pods: list[str]) -> str:
    more = f" and {len(pods) - _NAMED} more" if len(pods) > _NAMED else ""
    return (
        f"{title} leaves its HTTP rules to Istio ({HTTP_RULES}), but not at ports of {', '.join(pods[:_NAMED])}{more}: "
        "no sidecar is known to take what comes to them, so they are asked on the wire as ever"
    )
