"""The chart's schema says of `agent.config` what the agent says: from its structs, and never behind them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from spliceway.agent.config import parse_config
from spliceway.agent.errors import ConfigError
from support.chartschema import SCHEMA, SET_BY_CHART, written
from support.helm import Helm, HelmError, one


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as asked:
        yield asked


def test_the_schema_is_that_of_the_configuration() -> None:
    assert SCHEMA.read_text() == written(), "make chart-schema writes it anew"


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(json.loads(SCHEMA.read_text()))


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return {"agent": {"config": value}}


@pytest.mark.parametrize("path", SET_BY_CHART)
@pytest.mark.parametrize("value", [True, {}, "x"], ids=["boolean", "mapping", "text"])
def test_what_the_chart_sets_is_refused_in_its_own_words(helm: Helm, path: str, value: Any) -> None:
    with pytest.raises(HelmError) as refused:
        helm.render(nested(path, value))
    assert f"agent.config.{path}: is not set there, but by " in str(refused.value)


#: One of each kind of field, and numbers that a float writes another way.
TAKEN: dict[str, Any] = {
    "cgroups": {"pods": "/sys/fs/cgroup/kubepods.slice"},
    "proxy": {"listenerPorts": "24000-24999", "limits": {"drain": 12.5, "buffered": 268435456}, "explainDenied": True},
    "splice": {"mode": "off", "excludePorts": [5432, 9000], "kernelFixes": ["CVE-2025-68227"]},
    "datapath": {"maxRows": 1000000, "mark": 0x1000, "devices": ["eth*", "wg0"], "programCache": "", "socketLb": "on"},
    "xds": {"listen": "127.0.0.1:1", "tls": {"certFile": "/c", "keyFile": "/k", "clientCaFile": "/a"}},
    "identity": {"labels": {"exclude": ["example.org/*"]}},
    "policies": {"kinds": ["NetworkPolicy", "AuthorizationPolicy"], "besideCilium": True},
    "debug": {"listen": "localhost:9970"},
    "flows": {"bufferSize": 100},
}


def test_good_fields_reach_the_agent_as_they_are(helm: Helm) -> None:
    made = one(helm.render({"agent": {"config": TAKEN}}), "ConfigMap")["data"]["agent.yaml"]
    config = parse_config(made, "agent.yaml")
    assert (config.datapath.max_rows, config.datapath.mark) == (1000000, 0x1000)
    assert config.datapath.devices == ("eth*", "wg0")
    assert (config.proxy.limits.drain, config.proxy.limits.buffered) == (12.5, 268435456)
    assert str(config.proxy.listener_ports) == "24000-24999"
    assert config.splice.exclude_ports == (5432, 9000)
    assert config.xds.tls is not None
    assert config.policies.kinds == ("NetworkPolicy", "AuthorizationPolicy")


@pytest.mark.parametrize("text", ["1-2-3", "23000", "x-y"])
def test_what_the_schema_says_of_text_the_agent_says_too(helm: Helm, text: str) -> None:
    with pytest.raises(HelmError, match="listenerPorts"):
        helm.render(nested("proxy.listenerPorts", text))
    with pytest.raises(ConfigError, match="listenerPorts"):
        parse_config(f'source: {{directory: /x}}\nproxy: {{listenerPorts: "{text}"}}', "agent.yaml")
