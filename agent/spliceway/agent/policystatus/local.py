"""This node's report, from what the agent's parts say at this moment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from spliceway.agent.cni.side import CniSide
from spliceway.agent.inventory import Inventory
from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.ledger import Ledger, file_of
from spliceway.agent.policystatus.report import Enforcement, Report, Trouble, report
from spliceway.agent.provenance import PolicyState
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.model import Pod
from spliceway.policy.table import PolicyTable

_PROXY = {"refused": "ProxyRefused", "waiting": "ProxyWaiting"}


class RefusedOne(Protocol):
    """See `compiler.RefusedPolicy`."""

    @property
    def key(self) -> Key:
        """Kind and name."""

    @property
    def reason(self) -> str:
        """In words."""

    @property
    def kept(self) -> bool:
        """Whether its version before is in force."""


class Policies(Protocol):
    """What is asked of the compiler."""

    def selecting(self, endpoint: str) -> frozenset[Key]:
        """Policies that are about an endpoint."""

    @property
    def refused(self) -> Sequence[RefusedOne]:
        """Those for which there was no room."""


class Force(Protocol):
    """What is asked of the reconciler."""

    @property
    def table(self) -> PolicyTable | None:
        """What is in force."""

    @property
    def reached(self) -> int:
        """The intent that is in force."""

    @property
    def submitted(self) -> int:
        """The last one."""


class LocalReport:
    """Makes the report. It looks at parts of the agent that others change: call it from their loop."""

    def __init__(
        self,
        ledger: Ledger,
        inventory: Inventory,
        force: Force,
        policies: Policies,
        cni: CniSide,
        *,
        attached: Callable[[LocalEndpoint], object],
        enforcement: Callable[[], Enforcement],
        not_applied: Callable[[], Sequence[PolicyState]],
    ) -> None:
        """`attached`: whether the kernel has this endpoint; `not_applied`: what the proxy has not taken over."""
        self._ledger = ledger
        self._inventory = inventory
        self._force = force
        self._policies = policies
        self._cni = cni
        self._attached = attached
        self._enforcement = enforcement
        self._not_applied = not_applied

    def make(self) -> Report | None:
        """The report; None before anything is in force."""
        table = self._force.table
        self._ledger.reached(self._force.reached)
        if not self._force.reached or table is None:
            return None
        selected, lacking = self._selected(table)
        troubles: dict[Key, Trouble] = {}
        for key, trouble in (
            *self._documents(selected.keys()),
            *self._room(selected.keys()),
            *self._proxy(selected.keys()),
            *((key, self._about(key, "NotCovered", "; ".join(why[:3]), selects=True)) for key, why in lacking.items()),
        ):
            troubles.setdefault(key, trouble)
        applied = {key: self._ledger.in_force.get(key) for key in selected if key not in troubles}
        texts = (one.text for one in applied.values() if one is not None)
        return report(self._enforcement(), self._ledger.positions, texts, troubles.values())

    def _selected(self, table: PolicyTable) -> tuple[dict[Key, None], dict[Key, list[str]]]:
        """Policies about pods of this node, and of those the ones that are not in force for a pod, with why."""
        wired = {one.name: one for one in self._cni.endpoints}
        selected: dict[Key, None] = {}
        lacking: dict[Key, list[str]] = {}
        for name in table.endpoints:
            endpoint, why = wired.get(name), ""
            if endpoint is None:
                if not self._runs(name):
                    continue  # not yet, or no more: it waits for its policy
                why = f"{name}: nobody knows how it is wired"
            elif not self._attached(endpoint):
                why = f"{name}: its interface could not be attached"
            for key in sorted(self._policies.selecting(name)):
                selected[key] = None
                if why:
                    lacking.setdefault(key, []).append(why)
        return selected, lacking

    def _runs(self, name: str) -> bool:
        """Whether the source says that a pod has an address, and will have it."""
        entry = self._inventory.entry(("Pod", name))
        item = entry.item if entry is not None else None
        going = entry is not None and entry.rank > 0 and not entry.rank >> 40
        return isinstance(item, Pod) and bool(item.addresses) and not item.host_network and not going

    def _documents(self, selected: Collection[Key]) -> list[tuple[Key, Trouble]]:
        refused = {one.file: one for one in self._inventory.refusals if one.file}
        found = []
        for key, policy in self._ledger.written.items() if refused else ():
            if (one := refused.get(file_of(key))) is not None:
                text = policy.version.text
                trouble = Trouble(text, "Document", one.field, one.reason, selects=key in selected, kept=one.kept)
                found.append((key, trouble))
        return found

    def _room(self, selected: Collection[Key]) -> list[tuple[Key, Trouble]]:
        found = []
        for one in self._policies.refused:
            if (policy := self._ledger.written.get(one.key)) is not None:
                text, selects = policy.version.text, one.key in selected
                found.append((one.key, Trouble(text, "NoRoom", "", one.reason, selects=selects, kept=one.kept)))
        return found

    def _proxy(self, selected: Collection[Key]) -> list[tuple[Key, Trouble]]:
        found = []
        for state in self._not_applied():
            kind, _, name = state.policy.partition(" ")
            key = (kind, name)
            if key in self._ledger.written:
                words = " ".join((state.why[0].message if state.why else "").split())
                trouble = self._about(key, _PROXY.get(state.state, "ProxyWaiting"), words, selects=key in selected)
                found.append((key, trouble))
        return found

    def _about(self, key: Key, reason: str, message: str, *, selects: bool) -> Trouble:
        """Of the version that is in force, but for this."""
        written = self._ledger.written.get(key)
        version = self._ledger.in_force.get(key) or (written.version if written is not None else None)
        return Trouble(version.text if version is not None else "", reason, message=message, selects=selects)
