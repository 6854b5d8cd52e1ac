"""A node whose pod `server` may say nothing to anybody, and others' programs at its interfaces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from spliceway.agent.testbed.testbed import Testbed
from support.foreign import Foreigner
from support.node import pod_manifest

DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec: {podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress, Egress]}
"""


def denied_testbed() -> contextlib.AbstractContextManager[Testbed]:
    """With `client`, `server`, and a host `outside`."""
    manifests = [
        pod_manifest("client", {"role": "client"}),
        pod_manifest("server", {"role": "server"}),
        pod_manifest("outside", outside=True, addresses=("10.10.1.5", "fd00:10:1::5")),
    ]
    return Testbed.up(manifests)


def somebody_else(testbed: Testbed) -> Iterator[Foreigner]:
    """On the node."""
    with Foreigner(testbed.node.info.netns) as made:
        yield made
