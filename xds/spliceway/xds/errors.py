"""The exceptions of this package, one small hierarchy under XdsError."""

from __future__ import annotations

from spliceway.policy.errors import SplicewayError


class XdsError(SplicewayError):
    """Anything that goes wrong between the agent and its HTTP proxy."""


class ResourceError(XdsError):
    """A rule set can't be turned into resources: the message names rule set, rule, field and reason."""


class InconsistentSnapshotError(XdsError):
    """A snapshot would open a hole or leave a dangling reference; it must not be served."""


class NotAcceptedError(XdsError):
    """The proxy answered with a NACK. `resources` are the names it refused, the message is the proxy's own."""

    def __init__(self, message: str, resources: tuple[str, ...]) -> None:
        super().__init__(message)
        self.resources = resources


class AckTimeoutError(XdsError):
    """The proxy did not acknowledge in time: it is not connected, slow, or waiting. The message says which."""


class AdminError(XdsError):
    """The proxy's admin interface did not answer as expected."""
