"""The agent's own exceptions. Their text is for people: file, field and reason, or cause and cure."""

from __future__ import annotations

from spliceway.bpf.errors import DatapathError
from spliceway.policy.errors import SplicewayError
from spliceway.xds.errors import XdsError

#: Everything that any of our packages raises on purpose.
OWN_ERRORS = (SplicewayError, DatapathError, XdsError)


class AgentError(SplicewayError):
    """Anything that the agent or the CLI reports and that is not a bug."""


class ConfigError(AgentError):
    """The agent's configuration file is refused. Reads `file: field.path: reason`."""

    def __init__(self, file: str, field: str, reason: str) -> None:
        self.file = file
        self.field = field
        self.reason = reason
        super().__init__(": ".join(part for part in (file, field, reason) if part))


class SourceError(AgentError):
    """The policy source can't be read at all (one bad document is not an error: it is a refusal)."""


class StateError(AgentError):
    """The state directory can't be used, holds state that can't be read, or belongs to a running agent."""


class PortsExhaustedError(AgentError):
    """More rule sets than listener ports."""


class ClientError(AgentError):
    """The CLI can't reach the agent, or the agent refused the request."""


class WrongUsageError(ClientError):
    """What was asked for can't be meant: nothing can ever match it. Exit status 2."""


class NoAgentError(ClientError):
    """No agent answers there now; one that is starting will."""
