"""Errors of the proxy."""

from __future__ import annotations

from spliceway.policy.errors import SplicewayError

#: Exit status of a proxy that is whole, but to which the one that runs does not hand over (EX_TEMPFAIL).
HANDOVER_REFUSED = 75


class ProxyError(SplicewayError):
    """The proxy can't start or go on. The message says what to do."""


class UnenforceableError(SplicewayError):
    """A resource has something that the proxy can't enforce as it is written: `path` is the field, `why` the reason.

    It becomes a NACK, and what was in force stays.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why
