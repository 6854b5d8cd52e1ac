"""What the configuration says of telling what becomes of policies, and how `status` shows it."""

from __future__ import annotations

import pytest
import yaml

from spliceway.agent.cli.writing import writing_line
from spliceway.agent.config import parse_config
from spliceway.agent.errors import ConfigError

CLUSTER = {"node": {"name": "node1"}, "source": {"kubernetes": {}}}


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"source": {"directory": "/x"}, "status": {"write": True}}, "status.write"),
        ({"source": {"directory": "/x"}, "node": {"name": "n", "notReadyTaint": "a:NoExecute"}}, "node.notReadyTaint"),
        ({**CLUSTER, "node": {"name": "n", "notReadyTaint": "a:Never"}}, "node.notReadyTaint"),
        ({**CLUSTER, "node": {"name": "n", "notReadyTaint": "NoExecute"}}, "node.notReadyTaint"),
        ({**CLUSTER, "node": {"name": "n", "notReadyTaint": "a b:NoExecute"}}, "node.notReadyTaint"),
        ({**CLUSTER, "status": {"namespace": "Not.One"}}, "status.namespace"),
        ({**CLUSTER, "status": {"lease": ""}}, "status.lease"),
        ({**CLUSTER, "status": {"writesPerSecond": 0}}, "status.writesPerSecond"),
        ({**CLUSTER, "status": {"read": True}}, "status"),
    ],
)
def test_what_can_not_be_meant_is_refused(document: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_dump({"node": {"name": "node1"}, **document}), "agent.yaml")
    assert caught.value.field.startswith(where)


def test_nothing_is_written_unless_it_is_asked_for() -> None:
    config = parse_config(yaml.safe_dump(CLUSTER), "agent.yaml")
    assert not config.status.write
    assert not config.node.not_ready_taint


def test_the_row_says_when_and_who() -> None:
    found = {"enabled": True, "reported": 100.0, "leads": False, "writer": "node2", "policies": 0, "nodes": 0}
    assert writing_line(found, 112.4) == ["reported 12 s ago; written by node2"]
    assert writing_line({**found, "writer": "", "reported": 0.0}, 112.0) == ["not reported yet; nobody writes"]
    leads = {**found, "leads": True, "policies": 200, "nodes": 50}
    assert writing_line(leads, 100.0) == ["reported 0 s ago; written by this agent: 200 policies, 50 nodes"]
    one = {**leads, "policies": 1, "nodes": 1}
    assert writing_line(one, 100.0) == ["reported 0 s ago; written by this agent: 1 policy, 1 node"]
    assert writing_line({**found, "enabled": False}, 1.0) == []
