"""What the one that writes has done so far, and why it does nothing."""

from __future__ import annotations

from collections.abc import Iterable

from spliceway.agent.sources.kubernetes.reflector import Reflector


class Figures:
    """What was written, by kind, since the agent started. `error`: why not all of it, as of the last round."""

    def __init__(self) -> None:
        self.statuses = self.events = self.dropped = self.conflicts = self.failures = 0
        self.policies = self.nodes = 0
        self.error = ""


def why_not(reflectors: Iterable[Reflector]) -> str:
    """Why what is to be written can't be known: one of these kinds can't be followed."""
    for one in reflectors:
        if one.state == "absent":
            return f"{one.resource.plural} are not served: their definition is not installed (crds.install)"
        if one.state != "listed" and one.error:
            return one.error
    return ""
