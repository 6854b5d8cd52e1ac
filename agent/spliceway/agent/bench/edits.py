"""The edits whose latency is measured, and the policies they are made of. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

#: Name of the policy file that is edited, and of the object in it.
POLICY = "edited"
_OPEN_PATH, _OTHER_PATH = "/small", "/large"
_CLIENT, _NOBODY = "client", "nobody"


class Subject(msgspec.Struct, frozen=True):
    """Connections whose policy is edited to and fro.

    `rule`: what the edit changes, L4 (which peers) or HTTP (which path). `data_path`: what the connections take.
    `server`: the pod that is asked. `splice`: mode of the switch, None where nothing is steered. `survives`: whether a
    connection outlives being denied (then loosening is judged on the same one, else on a new one).
    """

    name: str
    rule: str
    data_path: str
    protocol: str
    server: str
    splice: str | None
    survives: bool

    @property
    def http(self) -> bool:
        """Whether the policy has HTTP rules."""
        return self.splice is not None

    def path(self, proxy: str) -> str:
        """The data path with that kind of proxy: `kernel`, `embedded+splice`."""
        return self.data_path.replace("proxy", proxy)

    def judged(self, *, allowed: bool) -> str:
        """What the edited policy is seen on first, for tables."""
        if self.rule == "HTTP":
            return "request on the live connection"
        if allowed and not self.survives:
            return "new connection"
        return "packet of the live flow" if self.protocol == "UDP" else "request on the live connection"


SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("l4-udp", "L4", "kernel", "UDP", "datagrams", None, survives=True),
        Subject("l4-tcp", "L4", "kernel", "TCP", "plain", None, survives=False),
        Subject("l4-proxy", "L4", "proxy", "TCP", "served", "off", survives=False),
        Subject("l4-splice", "L4", "proxy+splice", "TCP", "served", "auto", survives=False),
        Subject("http-proxy", "HTTP", "proxy", "TCP", "served", "off", survives=True),
        Subject("http-splice", "HTTP", "proxy+splice", "TCP", "served", "auto", survives=True),
    )
}


def policy(subject: Subject, namespace: str, *, allowed: bool) -> dict[str, Any]:
    """The policy of a subject's server that lets the client's request pass, or does not."""
    peer = _NOBODY if subject.rule == "L4" and not allowed else _CLIENT
    path = _OTHER_PATH if subject.rule == "HTTP" and not allowed else _OPEN_PATH
    ports: dict[str, Any] = {"ports": [{"port": "80", "protocol": subject.protocol}]}
    if subject.http:
        ports["rules"] = {"http": [{"method": "GET", "path": path}]}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": POLICY, "namespace": namespace},
        "spec": {
            "endpointSelector": {"matchLabels": {"bench": subject.server}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"bench": peer}}], "toPorts": [ports]}],
        },
    }
