"""What a filter of flows can be set to: the names that verdicts, reasons and hooks have in flows. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from spliceway.agent.verdicts import AUDIT
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict

#: Filter → every value that it can have. Filters that are not here (pod, port) take anything.
VALUES: Mapping[str, tuple[str, ...]] = {
    "verdict": (*(verdict.label for verdict in Verdict if verdict is not Verdict.NONE), AUDIT),
    "reason": tuple(reason.label for reason in Reason),
    "hook": (*(hook.label for hook in Hook), "proxy"),
}


def check_value(name: str, value: str) -> None:
    """Raise ValueError, naming what there is, when no flow can ever have this value."""
    if value not in VALUES.get(name, (value,)):
        raise ValueError(f"no {name} {value!r} (there are {', '.join(VALUES[name])})")
