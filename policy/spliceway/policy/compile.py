"""A cluster compiled into the PolicyTable of one node, once and from scratch."""

from __future__ import annotations

from spliceway.policy.engine import Engine, Options, objects
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable


def compile_table(cluster: Cluster, *, node: str, numbering: Numbering, revision: int) -> PolicyTable:
    """All verdicts for the endpoints of this node: its pods, except those in the host's network.

    The table depends on the cluster and the numbering only, not on the order of mappings. Raises NumberingError. What
    changes a table again and again keeps an `Engine`, which gives the same tables for what changed.
    """
    options = Options(node=node, pod_cidrs=cluster.pod_cidrs, audit=cluster.audit)
    return Engine(options, numbering).apply(objects(cluster), revision=revision)
