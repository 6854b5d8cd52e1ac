"""Which labels of a pod make its identity.

A StatefulSet or a Job gives each of its pods a label with a value of its own. If those counted, every pod would be an
identity, and each one's arrival news for every map. No verdict depends on the filter: a key that a selector names
counts in any case (see `labelsets`).
Source: Cilium, Documentation/operations/performance/scalability/identity-relevant-labels.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache

import msgspec

from spliceway.policy.labels import HBONE_KEY, SIDECAR_KEY

#: Labels that controllers of Kubernetes make different for each pod, or for each roll-out.
UNIQUE_KEYS = (
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
)


class LabelFilter(msgspec.Struct, frozen=True):
    """Patterns of keys, in which `*` stands for anything. `include` empty: all keys; `exclude` wins."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = UNIQUE_KEYS

    def counts(self, key: str) -> bool:
        """Whether this key counts although no selector names it."""
        if key in (HBONE_KEY, SIDECAR_KEY):
            return False
        return not _any(self.exclude, key) and (not self.include or _any(self.include, key))


def _any(patterns: tuple[str, ...], key: str) -> bool:
    expression = _compiled(patterns)
    return expression is not None and expression.fullmatch(key) is not None


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(translate(pattern) for pattern in patterns)) if patterns else None
