"""The configuration that an agent has on a virtual node."""

from __future__ import annotations

from pathlib import Path

from spliceway.agent.config import parse_config
from spliceway.agent.configsections import KillSwitchConfig
from spliceway.agent.testbed.agentprocess import agent_config, config_text
from spliceway.agent.testbed.node import Cgroups, Node, NodeInfo


def node(directory: Path) -> Node:
    cgroups = Cgroups(directory / "agent", directory / "proxy", directory / "pods")
    return Node(NodeInfo("node1", 1, ("10.10.0.1",), directory / "netns", cgroups, directory), {})


def test_each_node_has_a_kill_switch_of_its_own(tmp_path: Path) -> None:
    """Whoever switches the machine off means no testbed on it, and the other way."""
    for name in ("one", "other"):
        config = parse_config(config_text(agent_config(node(tmp_path / name))), "agent.yaml")
        assert config.kill_switch == KillSwitchConfig(file=tmp_path / name / "disabled")


def test_a_section_can_be_left_out(tmp_path: Path) -> None:
    made = agent_config(node(tmp_path), {"killSwitch": None, "proxy": {"kind": "envoy"}})
    assert "killSwitch" not in made
    assert made["proxy"] == {"kind": "envoy"}
