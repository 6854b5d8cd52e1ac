"""A node's proxy goes back from its pods to the agent."""

from __future__ import annotations

from pathlib import Path

from spliceway.agent.proxypod import place
from spliceway.agent.proxypod.supervisor import end_of_pods, pids_of_pods
from spliceway.agent.proxyprocess import ProxyProcessError

#: How long what can't hand over may take to end, in seconds.
_GRACE = 5.0


async def take_back(state_dir: Path, kind: str) -> None:
    """Before the agent starts a proxy of this kind: no pod starts one any more, and what runs can be taken over.

    An embedded one hands over to an embedded one; another has the ports that the new one needs, and is ended. Costs
    nothing where no pod ever ran it.

    Raises:
        ProxyProcessError: the directory that was shared can't be written.
    """
    if not place.shared(state_dir).is_dir():
        return
    try:
        place.close_for_pods(state_dir)
        place.link(state_dir / place.XDS, place.shared(state_dir) / place.XDS)
    except OSError as error:
        raise ProxyProcessError(f"{error.filename}: {error.strerror}") from error
    if kind != "embedded" or "envoy" in pids_of_pods(state_dir).values():
        await end_of_pods(state_dir, _GRACE)
