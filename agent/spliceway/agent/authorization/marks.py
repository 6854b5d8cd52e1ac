"""Annotations of pods that say what stands in front of them, as far as the translation asks. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from spliceway.agent.sources.events import Batch, FileRemoved, ObjectChanged


class PodMarks:
    """Follows batches of a Kubernetes source. Few pods have any: that there is a sidecar its label says."""

    def __init__(self) -> None:
        """No pod is known yet."""
        self._found: dict[str, Mapping[str, str]] = {}

    def __repr__(self) -> str:
        return f"PodMarks(pods={len(self._found)})"

    @property
    def annotations(self) -> Mapping[str, Mapping[str, str]]:
        """By «namespace/name», as they are now."""
        return dict(self._found)

    def saw(self, batch: Batch) -> bool:
        """Take in what the source says; whether anything is different."""
        changed = False
        for event in batch:
            if not isinstance(event, ObjectChanged | FileRemoved) or ":" in event.file:
                continue  # pods alone have their name for a file
            told = event.mesh if isinstance(event, ObjectChanged) else {}
            changed |= self._found.get(event.file, {}) != told
            if told:
                self._found[event.file] = told
            else:
                self._found.pop(event.file, None)
        return changed
