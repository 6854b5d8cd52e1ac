"""Pods that are not spliced, by their annotations: what is read, and what is refused without losing the pod."""

from __future__ import annotations

import pytest

from spliceway.agent.inventory import Inventory
from spliceway.agent.optout import EXCLUDE_PORTS, MAX_PORTS, SPLICE
from spliceway.agent.sources.events import FileChanged
from support.agent import NODE, pod

WIRED = "annotations: {"


def read(text: str, *, inventory: Inventory | None = None) -> Inventory:
    inventory = inventory or Inventory(NODE)
    inventory.feed((FileChanged("a.yaml", text),))
    return inventory


def annotated(*annotations: str) -> str:
    return pod("a", "10.0.0.1").replace(WIRED, WIRED + "".join(f"{each}, " for each in annotations))


@pytest.mark.parametrize(
    ("annotations", "splice", "ports"),
    [
        ((), True, []),
        ((f'{SPLICE}: "true"',), True, []),
        ((f'{SPLICE}: "false"',), False, []),
        ((f'{EXCLUDE_PORTS}: "9000"',), True, [9000]),
        ((f'{EXCLUDE_PORTS}: "9000, 9001,9000"',), True, [9000, 9001]),
        ((f'{SPLICE}: "false"', f'{EXCLUDE_PORTS}: "1,65535"'), False, [1, 65535]),
    ],
)
def test_what_a_pod_wants(annotations: tuple[str, ...], splice: bool, ports: list[int]) -> None:
    inventory = read(annotated(*annotations))
    (endpoint,) = inventory.endpoints
    assert (endpoint.splice, sorted(endpoint.unspliced_ports), inventory.refusals) == (splice, ports, ())


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (f"{SPLICE}: false", 'False is neither "true" nor "false" (in quotes)'),
        (f'{SPLICE}: "no"', '\'no\' is neither "true" nor "false" (in quotes)'),
        (f"{EXCLUDE_PORTS}: 9000", '9000 is not a list of ports (write "9000,9001", in quotes)'),
        (f'{EXCLUDE_PORTS}: ""', "'' is not a port (1 to 65535, separated by commas)"),
        (f'{EXCLUDE_PORTS}: "80,"', "'' is not a port (1 to 65535, separated by commas)"),
        (f'{EXCLUDE_PORTS}: "0"', "'0' is not a port (1 to 65535, separated by commas)"),
        (f'{EXCLUDE_PORTS}: "65536"', "'65536' is not a port (1 to 65535, separated by commas)"),
        (f'{EXCLUDE_PORTS}: "0000199999"', "'0000199999' is not a port (1 to 65535, separated by commas)"),
        (f'{EXCLUDE_PORTS}: "{"9" * 5000}"', f"'{'9' * 5000}' is not a port (1 to 65535, separated by commas)"),
        (f'{EXCLUDE_PORTS}: "80-90"', "'80-90' is not a port (1 to 65535, separated by commas)"),
        (f'{EXCLUDE_PORTS}: "٨٠"', "'٨٠' is not a port (1 to 65535, separated by commas)"),
        (
            f'{EXCLUDE_PORTS}: "{",".join(map(str, range(1, MAX_PORTS + 2)))}"',
            f'{MAX_PORTS + 1} ports are more than {MAX_PORTS}: {SPLICE}: "false" leaves out all',
        ),
    ],
)
def test_a_bad_value_is_told_and_the_pod_stays_managed_unspliced(annotation: str, reason: str) -> None:
    inventory = read(annotated(annotation))
    (endpoint,) = inventory.endpoints
    assert (endpoint.name, endpoint.splice) == ("default/a", False)
    assert inventory.cluster.pods.keys() == {"default/a"}
    name = annotation.partition(":")[0]
    told = f"{reason}; nothing of this pod is spliced until it is mended"
    assert [str(each) for each in inventory.refusals] == [
        f"a.yaml: Pod default/a: metadata.annotations[{name}]: {told}"
    ]


def test_both_are_told_and_gone_when_mended() -> None:
    inventory = read(annotated(f'{SPLICE}: "0"', f'{EXCLUDE_PORTS}: "x"'))
    assert [each.field for each in inventory.refusals] == [
        f"metadata.annotations[{SPLICE}]",
        f"metadata.annotations[{EXCLUDE_PORTS}]",
    ]
    inventory.changes()
    assert inventory.feed((FileChanged("a.yaml", annotated(f'{EXCLUDE_PORTS}: "y"')),))
    assert [each.reason.partition(" ")[0] for each in inventory.refusals] == ["'y'"]
    read(annotated(), inventory=inventory)
    assert (inventory.endpoints[0].splice, inventory.refusals) == (True, ())


def test_pods_elsewhere_are_not_judged() -> None:
    text = pod("a", "10.0.0.1", node="node2").replace(WIRED, f'{WIRED}{SPLICE}: "maybe", ')
    assert read(text).refusals == ()
