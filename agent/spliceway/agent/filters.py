"""What a filter of flows or of redirected connections can be set to: the names that their values have. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from spliceway.agent.verdicts import AUDIT
from spliceway.bpf.abi import Why
from spliceway.bpf.types import Hook, SpliceState
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


#: The same for `sock list`.
SOCK_VALUES: Mapping[str, tuple[str, ...]] = {
    "state": tuple(state.label for state in SpliceState),
    "reason": tuple(why.label for why in Why if why.label),
}


def check_sock_value(name: str, value: str) -> None:
    """Raise ValueError, naming what there is, when no redirected connection can ever have this value."""
    if value not in SOCK_VALUES[name]:
        raise ValueError(f"no {name} {value!r} (there are {', '.join(SOCK_VALUES[name])})")
