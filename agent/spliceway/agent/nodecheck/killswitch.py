"""Whether the kill switch is on: then the best of nodes enforces nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

from spliceway.agent.nodecheck.model import Check, Target, ok, warn
from spliceway.bpf.killswitch import left_disabled


def kill_switch(target: Target) -> Iterator[Check]:
    """By its file, and by the programs that are attached: of the Node's annotation only an agent knows."""
    file = target.kill_switch
    if file is not None and os.path.lexists(file):
        yield warn("kill-switch", f"{file} is there: no policy is enforced on this node", "spliceway kill-switch off")
    elif left_disabled(target.settings.bpffs):
        yield warn(
            "kill-switch",
            "on: the programs in the kernel pass everything, though there is no file (the Node's annotation?)",
            "spliceway kill-switch status tells more; without an agent: spliceway kill-switch off",
        )
    else:
        yield ok("kill-switch", "off" if file is None else f"off: {file} is not there")
