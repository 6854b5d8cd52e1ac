"""The exceptions of the benchmark and the demo."""

from __future__ import annotations

from spliceway.agent.errors import AgentError


class BenchError(AgentError):
    """A measurement can't be made, or was not what it claims to be; the message says which and why."""


class UnknownPathError(BenchError):
    """A data path that there is not; the message lists those that there are."""
