"""Which source a configuration names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self

from spliceway.agent.config import Config
from spliceway.agent.manifests import POLICY_KINDS
from spliceway.agent.sources.directory import DirectorySource
from spliceway.agent.sources.events import Batch
from spliceway.agent.sources.kubernetes.resources import RESOURCES
from spliceway.agent.sources.kubernetes.source import KubernetesSource, SourceStatus


class Source(Protocol):
    """What every source can do. Use it as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def batches(self) -> AsyncIterator[Batch]:
        """Every change, from the first look on. Ends never."""

    def status(self) -> SourceStatus | None:
        """How it does, where that is more than its refusals."""

    def warnings(self) -> tuple[str, ...]:
        """What should be known."""


def make_source(config: Config) -> Source:
    """The source of this configuration, not opened yet."""
    if config.source.directory is not None:
        return DirectorySource(config.source.directory)
    kubernetes = config.source.kubernetes
    assert kubernetes is not None  # exactly one is there: `parse_config` has seen to it
    # What is left to others is not even asked for: it needs no right to be read.
    kinds = {one.kind for one in RESOURCES} - (POLICY_KINDS - set(config.policies.kinds))
    return KubernetesSource(
        config.node_name,
        kubeconfig=kubernetes.kubeconfig,
        context=kubernetes.context,
        kinds=kinds,
        wired=config.cni.enabled or not kubernetes.pod_annotations,
        state_dir=config.state_dir,
    )
