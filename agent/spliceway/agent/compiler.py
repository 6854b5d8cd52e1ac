"""From changes of the source to tables: the cluster as it is, and the numbers that things have."""

from __future__ import annotations

from spliceway.agent.inventory import Changes
from spliceway.policy.compile import compile_table
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable


class Compiler:
    """Makes the tables of one node. Not for two threads at once. With `audit`, every policy is in audit mode."""

    def __init__(self, node: str, numbering: Numbering, *, audit: bool = False) -> None:
        self._node = node
        self._numbering = numbering
        self._cluster = Cluster(audit=audit)
        self.audit = audit

    def __repr__(self) -> str:
        return f"Compiler({self._node!r}, pods={len(self._cluster.pods)}, policies={len(self._cluster.policies)})"

    def apply(self, changes: Changes, revision: int) -> PolicyTable:
        """The table with these changes."""
        cluster = self._cluster
        for (kind, name), item in changes.items():
            if item is None:
                cluster = cluster.without(kind, name)
        cluster = cluster.with_objects(item for item in changes.values() if item is not None)
        table = compile_table(cluster, node=self._node, numbering=self._numbering, revision=revision)
        self._cluster = cluster
        return table

    def settle(self, table: PolicyTable) -> None:
        """Forget numbers that this table does not use: it is in force everywhere."""
        self._numbering.prune(table)
