"""The one exception of the testbed."""

from __future__ import annotations

from spliceway.agent.errors import AgentError


class TestbedError(AgentError):
    """A virtual node can't be built, used or taken down; the message says why and what to do."""

    __test__ = False  # pytest: not a test class
