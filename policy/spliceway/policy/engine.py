"""The incremental compiler: changed objects in, a PolicyTable that shares structure with the last one out.

`Compilation` does the work. The engine decides what comes into force: it checks that every table fits the kernel's
maps, refuses policies that would make it overflow, and keeps numbers until nothing can mean what they meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from spliceway.policy.budget import BudgetError, Limits, Need, Refusal, overflows
from spliceway.policy.compilation import Change, Compilation
from spliceway.policy.halves import Retired
from spliceway.policy.labelfilter import LabelFilter
from spliceway.policy.model import (
    CidrGroup,
    Cluster,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Object,
    Pod,
    Secret,
    Service,
    object_key,
)
from spliceway.policy.numbering import Numbering
from spliceway.policy.sharing import SharedMap, differing
from spliceway.policy.store import Store
from spliceway.policy.table import IPNetwork, PolicyTable, TableDelta
from spliceway.policy.verdict import Direction

#: Pairs of rule sets when no limit is given: each is a listener of its own.
_MAX_PAIRS = 1024
_Key = tuple[str, str]


class Options(msgspec.Struct, frozen=True):
    """What a node's tables depend on beside objects and numbers.

    `pod_cidrs`: prefixes of pod addresses beyond those that nodes name; `audit`: every policy is in audit mode;
    `labels`: which labels of pods count for identities.
    """

    node: str
    pod_cidrs: tuple[IPNetwork, ...] = ()
    audit: bool = False
    labels: LabelFilter = LabelFilter()
    limits: Limits = Limits()


class Engine:
    """Compiles for one node. Not for several threads at once."""

    def __init__(self, options: Options, numbering: Numbering) -> None:
        """With nothing in it. Numbers that `numbering` has from earlier are used again until the first `settle`."""
        self._options = options
        self._numbering = numbering
        self._store = Store(pod_cidrs=options.pod_cidrs, audit=options.audit)
        self._compilation = self._new()
        self._broken = False
        self._table: PolicyTable | None = None
        self._retired: dict[Retired, int] = {}
        self._pruned = False
        self._untidy = False
        self._refused: dict[_Key, Refusal] = {}
        self._wanted: dict[_Key, NetworkPolicy | None] = {}
        self._tried: dict[str, int] = {}

    def __repr__(self) -> str:
        revision = self._table.revision if self._table else None
        return f"Engine({self._options.node}, revision={revision}, {self.sizes()}, refused={len(self._refused)})"

    @property
    def cluster(self) -> Cluster:
        """The objects that the engine has; policies as they are in force."""
        return self._store.cluster

    @property
    def table(self) -> PolicyTable | None:
        """The last table that was given out."""
        return self._table

    @property
    def refused(self) -> Mapping[_Key, Refusal]:
        """Policies that were refused for want of room; `apply` tries them again when there is more of it (`hopeful`).

        A removal can be among them: while a revision is staged, the kernel has the keys that go and those that come.
        """
        return MappingProxyType(self._refused)

    @property
    def refused_pairs(self) -> frozenset[tuple[int, int]]:
        """Pairs of rule sets for which there was no room: what would meet both is denied (no-listener)."""
        return self._compilation.refused_pairs

    def isolating(self, endpoint: str, direction: Direction) -> tuple[_Key, ...]:
        """Policies (kind, name) by which what nothing allows is denied to an endpoint, in audit or not.

        As of the objects now; it may be asked while `apply` runs in another thread.
        """
        return self._compilation.isolating(endpoint, direction)

    def selecting(self, endpoint: str) -> frozenset[_Key]:
        """Policies (kind, name) that are about an endpoint. It may be asked as `isolating` may."""
        return self._compilation.selecting(endpoint)

    def sizes(self) -> dict[str, int]:
        """Entries that the objects need now, by the names of Limits."""
        state = self._compilation
        return {
            "endpoints": len(state.endpoints),
            "ipcache": len(state.ipcache),
            "classes": len(state.halves.classes),
            "rows": len(state.halves.rows),
            "listeners": len(state.halves.rule_sets),
            "pairs": len(state.halves.pairs),
        }

    def naive_rows(self) -> int:
        """Rows that a map without classes would have: identities × port rows, for each endpoint."""
        return self._compilation.naive_rows()

    def apply(self, changed: Iterable[Object], removed: Iterable[_Key] = (), *, revision: int) -> PolicyTable:
        """Take over new and changed objects, and remove those of these kinds and keys; gives the table that follows.

        Objects that are as they were cost nothing, so that handing them in again is harmless. A policy that the kernel
        has no room for is refused whole and stays as it was, see `refused`. Raises BudgetError when pods alone need
        more room than there is, NumberingError when numbers run out. The objects are taken over even then, the last
        table stays, and the next call tries again; its delta is against the last table that was given.
        """
        policies, others = self._sort(changed, removed)
        if self._broken:
            self._rebuild(others + policies)
        else:
            self._work(others + policies)
        if policies and self._needs(self._staged_sizes()):
            self._one_by_one(policies)
        if needs := self._needs(self.sizes()):
            raise BudgetError(needs)
        self._retry()
        return self._give(revision)

    def settle(self, revision: int) -> None:
        """The table of this revision is in force everywhere: numbers that it and its predecessors dropped are free.

        So are, once the last table given out is in force, those that the numbering had from earlier and nothing used,
        and those that were given for what failed.
        """
        for retired, dropped in list(self._retired.items()):
            if dropped > revision:
                break
            del self._retired[retired]
            if not self._compilation.in_use(retired):
                _release(self._numbering, retired)
        if self._pruned and not self._untidy:
            return
        if self._table is not None and revision >= self._table.revision and not self._ahead():
            self._numbering.prune(self._table)
            self._pruned, self._untidy = True, False

    def _ahead(self) -> bool:
        """Whether there is more, or something else, than in the table that was given out last."""
        maps = _maps(self._compilation, self._table) if self._table is not None else ()
        return self._broken or any(shared.touched for shared, _ in maps)

    def _sort(self, changed: Iterable[Object], removed: Iterable[_Key]) -> tuple[list[Change], list[Change]]:
        """What really changes, policies apart, always in the same order."""
        wanted: dict[_Key, Object | None] = dict.fromkeys(removed)
        wanted.update((object_key(item), item) for item in changed)
        policies: list[Change] = []
        others: list[Change] = []
        for key, new in sorted(wanted.items(), key=lambda entry: entry[0]):
            old = self._store.get(*key)
            if key in self._wanted and new == self._wanted[key]:
                continue  # no news
            self._refused.pop(key, None)
            self._wanted.pop(key, None)
            if old != new:
                policy = isinstance(old if new is None else new, NetworkPolicy)
                (policies if policy else others).append((old, new))
        return policies, others

    def _work(self, changes: list[Change]) -> None:
        for old, new in changes:
            if new is not None:
                self._store.put(new)
            elif old is not None:
                self._store.drop(*object_key(old))
        self._broken = True
        # Policies come first: which labels and ports count is known before pods are put in order.
        self._compilation.change(sorted(changes, key=_rank))
        self._compilation.flush()
        self._broken = False

    def _staged_sizes(self) -> dict[str, int]:
        """As `sizes`, with the keys that go: while a change is under way the kernel has those of both tables."""
        sizes = self.sizes()
        if self._table is not None:
            for name, (shared, before) in zip(_SIZED, _maps(self._compilation, self._table), strict=False):
                if name:
                    sizes[name] += sum(key in before and shared.get(key) is None for key in shared.touched)
        return sizes

    def _needs(self, sizes: dict[str, int]) -> tuple[Need, ...]:
        """What does not fit. Pairs beyond their limit do no harm: they are left out one by one."""
        return overflows(msgspec.structs.replace(self._options.limits, pairs=None), sizes)

    def _one_by_one(self, policies: list[Change]) -> None:
        """Not all of these policies fit: take over those that do, what is removed first, and refuse the others."""
        self._work([(new, old) for old, new in policies])
        for old, new in sorted(policies, key=lambda change: change[1] is not None):
            one = new if new is not None else old
            assert isinstance(one, NetworkPolicy)
            self._try(object_key(one), new if isinstance(new, NetworkPolicy) else None)
        self._tried = self._staged_sizes()

    def _try(self, key: _Key, new: NetworkPolicy | None) -> None:
        """Take over one policy, or its removal; refuse it when that needs room that is not there."""
        old = self._store.get(*key)
        before = _beyond(self._needs(self._staged_sizes()))
        self._work([(old, new)])
        needs = self._needs(self._staged_sizes())
        if _beyond(needs) > before:
            self._work([(new, old)])
            self._refused[key] = Refusal(key, needs)
            self._wanted[key] = new
        else:
            self._refused.pop(key, None)
            self._wanted.pop(key, None)

    @property
    def hopeful(self) -> bool:
        """Whether refused policies could have room by now: what they lacked has become smaller by a twentieth."""
        if not self._refused:
            return False
        sizes = self._staged_sizes()
        lacking = {need.map: need.room for refusal in self._refused.values() for need in refusal.needs}
        return any(sizes[name] <= self._tried[name] - max(1, room // 20) for name, room in lacking.items())

    def _retry(self) -> None:
        """Try policies that were refused again."""
        if self.hopeful:
            for key, policy in sorted(self._wanted.items(), key=lambda wanted: (wanted[1] is not None, wanted[0])):
                self._try(key, policy)
            self._tried = self._staged_sizes()

    def _new(self) -> Compilation:
        return Compilation(
            node=self._options.node,
            pod_cidrs=self._options.pod_cidrs,
            audit=self._options.audit,
            label_filter=self._options.labels,
            numbering=self._numbering,
            max_pairs=_MAX_PAIRS if self._options.limits.pairs is None else self._options.limits.pairs,
            max_sets=self._options.limits.listeners,
        )

    def _rebuild(self, changes: list[Change]) -> None:
        """From scratch: an error left things half done."""
        for old, new in changes:
            if new is not None:
                self._store.put(new)
            elif old is not None:
                self._store.drop(*object_key(old))
        if self._pruned and self._table is not None and not self._retired:
            # What failed has given numbers that no table has; if they had run out, they would stay so.
            self._numbering.prune(self._table)
        self._untidy = True
        self._compilation = self._new()
        self._work([(None, item) for item in sorted(objects(self._store.cluster), key=object_key)])
        if self._table is None:
            return
        state, last = self._compilation, self._table
        for shared, before in _maps(state, last):
            shared.touched = differing(before, shared.give())
        gone: list[Retired] = [("identity", number) for number in last.identities]
        gone += [("policy", endpoint.policy_id) for endpoint in last.endpoints.values()]
        gone += [("class", key.policy_id, key.direction, number) for key, number in last.classes.items()]
        gone += [("rule", number) for number in last.rules]
        gone += [("rule set", number) for number in last.rule_sets]
        state.halves.retired.update(dict.fromkeys(retired for retired in gone if not state.in_use(retired)))

    def _give(self, revision: int) -> PolicyTable:
        state, halves = self._compilation, self._compilation.halves
        last = self._table
        delta = None
        if last is not None:
            delta = TableDelta(
                base=last.revision,
                identities=frozenset(state.identities.touched),
                ipcache=frozenset(state.ipcache.touched),
                endpoints=frozenset(state.endpoints.touched),
                classes=frozenset(halves.classes.touched),
                rows=frozenset(halves.rows.touched),
                rule_sets=frozenset(halves.rule_sets.touched),
                pairs=frozenset(halves.pairs.touched),
            )
        self._table = PolicyTable(
            revision=revision,
            identities=state.identities.give(),
            ipcache=state.ipcache.give(),
            endpoints=state.endpoints.give(),
            classes=halves.classes.give(),
            rows=halves.rows.give(),
            rule_sets=halves.rule_sets.give(),
            rules=halves.rules.give(),
            pairs=halves.pairs.give(),
            delta=delta,
        )
        for shared, _ in _maps(state, self._table):
            shared.touched = set()
        for retired in halves.retired:
            self._retired.pop(retired, None)  # the latest goes last
            self._retired[retired] = revision
        halves.retired = {}
        return self._table


_RANKS: Mapping[type, int] = {Namespace: 1, Node: 2, Service: 3, EndpointSlice: 4, CidrGroup: 5, Secret: 6, Pod: 7}


def _rank(change: Change) -> int:
    old, new = change
    return _RANKS.get(type(old if new is None else new), 0)


def _maps(state: Compilation, table: PolicyTable) -> list[tuple[SharedMap, Mapping]]:  # type: ignore[type-arg]
    """The maps of a compilation beside those of a table."""
    halves = state.halves
    return [
        (state.identities, table.identities),
        (state.ipcache, table.ipcache),
        (state.endpoints, table.endpoints),
        (halves.classes, table.classes),
        (halves.rows, table.rows),
        (halves.rule_sets, table.rule_sets),
        (halves.rules, table.rules),
        (halves.pairs, table.pairs),
    ]


#: Names of Limits for the maps that `_maps` gives, as far as the kernel stages them.
_SIZED = ("", "ipcache", "endpoints", "classes", "rows")


def _beyond(needs: Iterable[Need]) -> int:
    return sum(need.need - need.room for need in needs)


def objects(cluster: Cluster) -> list[Object]:
    """Every object of a cluster."""
    found: list[Object] = []
    for mapping in (
        cluster.policies,
        cluster.namespaces,
        cluster.nodes,
        cluster.services,
        cluster.slices,
        cluster.cidr_groups,
        cluster.secrets,
        cluster.pods,
    ):
        found += mapping.values()
    return found


def _release(numbering: Numbering, retired: Retired) -> None:
    match retired:
        case ("identity", number):
            numbering.release_identity(number)
        case ("policy", number):
            numbering.release_policy(number)
        case ("class", policy_id, direction, number):
            numbering.release_class(policy_id, direction, number)
        case ("rule", number):
            numbering.release_rule(number)
        case ("rule set", number):
            numbering.release_rule_set(number)
