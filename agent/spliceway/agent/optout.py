"""Which connections of a pod its annotations keep from being spliced. Pure.

`spliceway.io/splice: "false"`: all; `spliceway.io/splice-exclude-ports: "9000,9001"`: those to these ports of servers,
whichever end the pod is. A value that can't be understood is refused, and until it is mended nothing of the pod is
spliced; policy does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Pod

SPLICE = "spliceway.io/splice"
EXCLUDE_PORTS = "spliceway.io/splice-exclude-ports"
#: Most ports that one pod may exclude; who wants more wants no splicing.
MAX_PORTS = 64
_MEANWHILE = "; nothing of this pod is spliced until it is mended"


class OptOut(msgspec.Struct, frozen=True):
    """What a pod wants, and what of it could not be understood."""

    splice: bool = True
    ports: frozenset[int] = frozenset()
    errors: tuple[PolicyError, ...] = ()


def opt_out(pod: Pod, annotations: Mapping[str, Any]) -> OptOut:
    """Read the annotations of a pod."""
    wanted, ports = annotations.get(SPLICE), annotations.get(EXCLUDE_PORTS)
    if wanted is None and ports is None:
        return OptOut()
    errors = []
    if wanted not in (None, "true", "false"):
        reason = f'{wanted!r} is neither "true" nor "false" (in quotes)'
        errors.append(_error(pod, SPLICE, reason))
    found: frozenset[int] = frozenset()
    try:
        found = _ports(ports) if ports is not None else found
    except ValueError as error:
        errors.append(_error(pod, EXCLUDE_PORTS, str(error)))
    return OptOut(wanted != "false" and not errors, found, tuple(errors))


def _ports(value: object) -> frozenset[int]:
    """Read «9000,9001». Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not a list of ports (write "9000,9001", in quotes)')
    found = set()
    for part in value.split(","):
        text = part.strip(" ")
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
            raise ValueError(f"{text!r} is not a port (1 to 65535, separated by commas)")
        found.add(int(text))
    if len(found) > MAX_PORTS:
        raise ValueError(f'{len(found)} ports are more than {MAX_PORTS}: {SPLICE}: "false" leaves out all')
    return frozenset(found)


def _error(pod: Pod, annotation: str, reason: str) -> PolicyError:
    return PolicyError(pod.file, f"Pod {pod.key}", f"metadata.annotations[{annotation}]", reason + _MEANWHILE)
