"""The plugin in a network configuration of the node: everything else keeps its meaning."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliceway.agent.cni.conflist import (
    BadConfError,
    candidates,
    is_ours,
    parse,
    with_others,
    with_plugin,
    without_plugin,
)

OURS = {"type": "spliceway-cni", "socket": "/run/spliceway/cni.sock", "timeout": 15}
ISTIO = {"type": "istio-cni", "log_level": "info", "kubernetes": {"exclude_namespaces": ["istio-system"]}}
CALICO = {
    "name": "k8s-pod-network",
    "cniVersion": "0.3.1",
    "plugins": [
        {"type": "calico", "mtu": 0, "nodename_file_optional": False, "ipam": {"type": "calico-ipam", "x": 1.50}},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
    "big": 123456789012345678901234567890,
    "text": "ü<>&",
}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def put(conf: Any, name: str = "10-calico.conflist") -> Any:
    return json.loads(with_plugin(name, json.dumps(conf), OURS).text)


def test_it_comes_last_and_all_else_stays() -> None:
    found = put(CALICO)
    assert found["plugins"][:-1] == CALICO["plugins"]
    assert found["plugins"][-1] == OURS
    assert list(found) == list(CALICO)
    assert {**found, "plugins": CALICO["plugins"]} == CALICO


def test_where_it_is_already_nothing_is_written() -> None:
    text = json.dumps({**CALICO, "plugins": [*CALICO["plugins"], OURS]})
    assert with_plugin("a.conflist", text, OURS).text == text


def test_who_came_behind_it_stays_there() -> None:
    text = json.dumps({**CALICO, "plugins": [*CALICO["plugins"], OURS, ISTIO]})
    assert with_plugin("a.conflist", text, OURS).text == text


def test_one_of_an_older_configuration_is_replaced_and_the_order_of_others_kept() -> None:
    old = {**OURS, "timeout": 3}
    found = put({**CALICO, "plugins": [*CALICO["plugins"], old, ISTIO]})
    assert found["plugins"] == [*CALICO["plugins"], ISTIO, OURS]


def test_one_in_front_can_see_no_pod_and_goes_to_the_end() -> None:
    assert put({**CALICO, "plugins": [OURS, *CALICO["plugins"]]})["plugins"] == [*CALICO["plugins"], OURS]


def test_taking_it_out_gives_what_was_there() -> None:
    text = without_plugin(with_plugin("a.conflist", json.dumps(CALICO), OURS).text)
    assert text is not None
    assert json.loads(text) == CALICO
    assert without_plugin(text) is None


def test_a_lone_conf_gets_a_list_that_comes_before_it() -> None:
    conf = {"cniVersion": "0.4.0", "name": "net", "type": "bridge", "ipam": {"type": "host-local"}}
    found = with_plugin("10-net.conf", json.dumps(conf), OURS)
    assert found.wraps == "10-net.conf"
    assert sorted([found.name, "10-net.conf", "10-net.conflist", "11-a.conf"])[0] == found.name
    assert is_ours(found.name)
    assert json.loads(found.text) == {
        "cniVersion": "0.4.0",
        "name": "net",
        "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, OURS],
    }
    assert candidates([found.name, "10-net.conf", "x.txt", "05-a.conflist", ".05.conf.swp"]) == [
        "05-a.conflist",
        "10-net.conf",
    ]


@pytest.mark.parametrize("behind", [True, False])
def test_istios_plugin_stays_where_it_is_in_a_list_of_ours(behind: bool) -> None:
    """Istio's installer takes the first configuration of the node, which is the one that we made of a .conf."""
    conf = {"cniVersion": "0.4.0", "name": "net", "type": "bridge", "mtu": 1400}
    made = with_plugin("10-net.conf", json.dumps(conf), OURS)
    bridge, ours = json.loads(made.text)["plugins"]
    order = [bridge, ours, ISTIO] if behind else [bridge, ISTIO, ours]
    there = json.dumps({**json.loads(made.text), "plugins": order})
    assert with_others(made, there).text == there, "byte for byte: whoever wrote it need not write it again"
    changed = {"bridge": {"type": "bridge", "mtu": 9000}, "spliceway-cni": {**OURS, "timeout": 3}, "istio-cni": ISTIO}
    again = with_plugin("10-net.conf", json.dumps({**conf, "mtu": 9000}), changed["spliceway-cni"])
    later = with_others(again, there)
    assert json.loads(later.text)["plugins"] == [changed[str(each["type"])] for each in order]
    assert with_others(again, later.text) == later


def test_a_list_of_ours_that_lost_our_plugin_gets_it_again_behind_istios() -> None:
    made = with_plugin("10-net.conf", json.dumps({"name": "net", "type": "bridge"}), OURS)
    there = json.dumps({"name": "net", "plugins": [{"type": "bridge"}, ISTIO]})
    assert json.loads(with_others(made, there).text)["plugins"] == [{"type": "bridge"}, ISTIO, OURS]


@pytest.mark.parametrize("there", [None, "", "{", "[]", '{"name": "a", "plugins": [{"type": "spliceway-cni"}]}'])
def test_what_is_no_list_of_ours_any_more_is_written_anew(there: str | None) -> None:
    made = with_plugin("10-net.conf", json.dumps({"name": "net", "type": "bridge"}), OURS)
    assert with_others(made, there) == made
    other = with_plugin("10-net.conflist", json.dumps(CALICO), OURS)
    assert with_others(other, json.dumps({**CALICO, "plugins": [ISTIO]})) == other


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a network configuration"),
        ("[]", "no JSON object"),
        ('{"name": "a"}', "without a type"),
        ('{"name": "a", "plugins": []}', "has no plugins"),
        ('{"name": "a", "plugins": [{"type": "spliceway-cni"}]}', "no plugin but ours"),
        ('{"name": "a", "plugins": {"type": "a"}}', "has no plugins"),
        ('{"plugins": [{"type": "a"}]}', "has no name"),
        ('{"name": "a", "name": "b", "type": "c"}', "a field twice"),
        ('{"name": "a", "type": "c", "x": NaN}', "NaN"),
        ('{"name": "a", "type": "c", "x": 1e999}', "too large"),
        ("[" * 100_000, "is not a network configuration"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadConfError, match=why):
        with_plugin("a.conflist", text, OURS)


@given(
    st.dictionaries(st.text(), VALUES, max_size=4), st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=3)
)
def test_whatever_is_in_it_stays(fields: dict[str, Any], plugins: list[dict[str, Any]]) -> None:
    conf = {**fields, "name": "n", "plugins": [{"type": "bridge"}, *({**each, "type": "x"} for each in plugins)]}
    text = with_plugin("a.conflist", json.dumps(conf), OURS).text
    assert parse(text)["plugins"][-1] == OURS
    back = without_plugin(text)
    assert back is not None
    assert json.loads(back) == conf
