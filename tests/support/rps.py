"""Receive packet steering on the veths of a testbed: packets are handled on another CPU than the one that sent them."""

from __future__ import annotations

from spliceway.agent.testbed.node import Node


def set_rps(node: Node, *, pods: int, node_mask: int) -> None:
    """Steer what pods receive, and what the node receives, to the CPUs in these bit masks; 0: none."""
    node.set_rps(node_mask)
    for pod in node.pods.values():
        pod.set_rps(pods)
