"""Bad values are refused before anything is sent to a cluster, with the field's name; every good one is explained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.helm import CHART, Helm, HelmError

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"enforcment": "enforce"}, "enforcment"),
    "unknown mode": ({"mode": "sidecar"}, "mode"),
    "Istio in two places": (
        {"mode": "istio", "agent": {"config": {"istio": {"enabled": False}}}},
        "agent.config.istio.enabled: is not set there, but by mode",
    ),
    "Istio past the mode": (
        {"agent": {"config": {"istio": {"enabled": True}}}},
        "agent.config.istio.enabled: is not set there, but by mode",
    ),
    "AuthorizationPolicies as a boolean": ({"istio": {"authorizationPolicies": True}}, "authorizationPolicies"),
    "AuthorizationPolicies in two places": (
        {"agent": {"config": {"istio": {"authorizationPolicies": "emit"}}}},
        "agent.config.istio.authorizationPolicies: is not set there",
    ),
    "AuthorizationPolicies by nobody": (
        {"istio": {"authorizationPolicies": "emit"}, "policyStatus": {"enabled": False}},
        "istio.authorizationPolicies: emit needs policyStatus.enabled",
    ),
    "AuthorizationPolicies that nobody maintains": (
        {"istio": {"authorizationPolicies": "emit"}, "uninstall": True},
        "uninstall: istio.authorizationPolicies is emit",
    ),
    "a trust domain that can't be": ({"istio": {"trustDomain": "A b"}}, "trustDomain"),
    "unknown enforcement": ({"enforcement": "permissive"}, "enforcement"),
    "enforcement as a boolean": ({"enforcement": True}, "enforcement"),
    "unknown proxy": ({"proxy": {"kind": "nginx"}}, "kind"),
    "back to the agent from nowhere": ({"proxy": {"backToAgent": True}}, "proxy.backToAgent is the step before"),
    "too little time for connections": (
        {"proxy": {"daemonSet": True}, "agent": {"config": {"proxy": {"limits": {"drain": 100}}}}},
        "proxy.terminationGracePeriodSeconds: 40 is too short",
    ),
    "part of a second more than there is": (
        {"proxy": {"daemonSet": True}, "agent": {"config": {"proxy": {"limits": {"drain": 35.5}}}}},
        "limits.drain (35.5): connections would be reset before that; at least 41",
    ),
    "a drain in words": (
        {"agent": {"config": {"proxy": {"limits": {"drain": "long"}}}}},
        "at '/agent/config/proxy/limits/drain': got string, want number",
    ),
    "the proxy's section as text": (
        {"agent": {"config": {"proxy": "embedded"}}},
        "at '/agent/config/proxy': got string, want object",
    ),
    "a field that the agent has not": (
        {"agent": {"config": {"datapath": {"uplinks": ["eth0"]}}}},
        "at '/agent/config/datapath': additional properties 'uplinks' not allowed",
    ),
    "a section that the agent has not": (
        {"agent": {"config": {"splicing": {"mode": "off"}}}},
        "at '/agent/config': additional properties 'splicing' not allowed",
    ),
    "off, which YAML has for false": ({"agent": {"config": {"splice": {"mode": False}}}}, "/agent/config/splice/mode"),
    "a port as a list of them": (
        {"agent": {"config": {"proxy": {"listenerPorts": [23000, 23999]}}}},
        "at '/agent/config/proxy/listenerPorts': got array, want string",
    ),
    "more rows than a map can have": (
        {"agent": {"config": {"datapath": {"maxRows": 1 << 25}}}},
        "/agent/config/datapath/maxRows",
    ),
    "half a row": ({"agent": {"config": {"datapath": {"maxRows": 0.5}}}}, "/agent/config/datapath/maxRows"),
    "a relative directory of results": (
        {"agent": {"config": {"splice": {"selfTestDir": "run/results"}}}},
        "/agent/config/splice/selfTestDir",
    ),
    "a kind of somebody else's": (
        {"agent": {"config": {"policies": {"kinds": ["GlobalNetworkPolicy"]}}}},
        "/agent/config/policies/kinds/0",
    ),
    "a certificate without a key": (
        {"agent": {"config": {"xds": {"listen": "127.0.0.1:1", "tls": {"certFile": "/c", "clientCaFile": "/a"}}}}},
        "keyFile",
    ),
    "a roll that replaces nobody": (
        {"proxy": {"updateStrategy": {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "0%"}}}},
        "maxSurge and maxUnavailable are both 0",
    ),
    # The other one keeps its default.
    "a surge and less": (
        {"proxy": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}}}},
        "maxSurge and maxUnavailable are both set",
    ),
    "who runs the proxy in two places": (
        {"agent": {"config": {"proxy": {"managed": False}}}},
        "agent.config.proxy.managed: is not",
    ),
    "a proxy's image with a colon": ({"proxy": {"image": {"tag": "a:b"}}}, "tag"),
    "a surge in words": (
        {"proxy": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "one"}}}},
        "maxSurge",
    ),
    # For Helm null takes a default away: without the plugin no policy would cover any pod.
    "a name with nothing behind it": ({"cni": {"enabled": None}}, "at '/cni': missing property 'enabled'"),
    "a section with nothing in it": ({"image": None}, "missing property 'image'"),
    "preflight, neither on nor off": ({"preflight": {"enabled": None}}, "missing property 'enabled'"),
    "neither audit nor enforce": ({"enforcement": None}, "missing property 'enforcement'"),
    "a guard that is neither there nor not": ({"uninstallGuard": None}, "missing property 'uninstallGuard'"),
    "a section of later charts with nothing in it": ({"istio": None}, "istio is missing: "),
    "a short digest": ({"image": {"digest": "sha256:abc"}}, "digest"),
    "a tag with a colon": ({"image": {"tag": "a:b"}}, "tag"),
    "unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "a relative directory": ({"agent": {"stateDirectory": "var/lib"}}, "stateDirectory"),
    "the root directory": ({"agent": {"stateDirectory": "/"}}, "stateDirectory"),
    "unknown log level": ({"agent": {"logLevel": "loud"}}, "logLevel"),
    "memory in words": ({"agent": {"resources": {"limits": {"memory": "much"}}}}, "memory"),
    "configuration as text": ({"agent": {"config": "splice: {}"}}, "config"),
    "enforcement in two places": (
        {"agent": {"config": {"enforcement": "enforce"}}},
        "agent.config.enforcement: is not set",
    ),
    "a source of one's own": (
        {"agent": {"config": {"source": {"directory": "/x"}}}},
        "agent.config.source: is not set",
    ),
    "the node for all": ({"agent": {"config": {"node": {"name": "n"}}}}, "agent.config.node: is not set"),
    "the proxy in two places": ({"agent": {"config": {"proxy": {"kind": "envoy"}}}}, "agent.config.proxy.kind: is not"),
    "metrics in two places": (
        {"agent": {"config": {"metrics": {"listen": "0.0.0.0:1"}}}},
        "agent.config.metrics.listen: is not",
    ),
    "a port of root's": ({"metrics": {"port": 80}}, "port"),
    "a port as text": ({"metrics": {"port": "9969"}}, "port"),
    "a name to listen on": ({"metrics": {"address": "localhost"}}, "address"),
    "a monitor of what can't be reached": ({"metrics": {"podMonitor": {"enabled": True}}}, "needs metrics.enabled"),
    "a sysctl that nothing asks for": ({"sysctls": {"kernel.panic": 1}}, "kernel.panic"),
    "forwarding off": ({"sysctls": {"net.ipv4.ip_forward": 0}}, "ip_forward"),
    "no account": ({"rbac": {"create": False}}, "serviceAccount.name must name"),
    "an architecture without an image": ({"architectures": ["s390x"]}, "architectures"),
    "no architecture": ({"architectures": []}, "architectures"),
    "nothing unavailable": ({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}, "maxUnavailable"),
    "a namespace that can't be": ({"cni": {"exemptNamespaces": ["Kube_System"]}}, "exemptNamespaces"),
    "labels that are no text": ({"podLabels": {"a": 1}}, "podLabels"),
    "unknown toleration": ({"tolerations": [{"key": "a", "effect": "Never"}]}, "tolerations"),
}


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as asked:
        yield asked


@pytest.mark.parametrize(("values", "told"), REFUSED.values(), ids=REFUSED)
def test_bad_values_are_refused_by_name(helm: Helm, values: dict[str, Any], told: str) -> None:
    with pytest.raises(HelmError) as refused:
        helm.render(values)
    assert told in str(refused.value)


def test_after_a_refusal_good_values_are_taken(helm: Helm) -> None:
    with pytest.raises(HelmError):
        helm.render({"x": 1})
    assert helm.render({"enforcement": "enforce"})


def test_values_of_an_older_chart_are_told_by_what_to_do(tmp_path: Path) -> None:
    """`--reuse-values` with another chart: its own defaults are those of the chart before."""
    older = tmp_path / "spliceway"
    shutil.copytree(CHART, older)
    values = yaml.safe_load((older / "values.yaml").read_text())
    del values["policyStatus"], values["notReadyTaint"]
    for name in ("backToAgent", "image", "updateStrategy", "terminationGracePeriodSeconds"):
        del values["proxy"][name]
    (older / "values.yaml").write_text(yaml.safe_dump(values))
    with Helm(older) as helm, pytest.raises(HelmError, match="--reset-then-reuse-values"):
        helm.render()


def test_every_value_is_in_the_schema_and_has_a_comment() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert (set(schema["properties"]) - {"global"}) == set(yaml.safe_load(text))
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith((" ", "#", "-")):
            key = line.partition(":")[0]
            inside = next((each for each in lines[number + 1 :] if each.strip()), "")
            before = lines[:number][::-1]
            above = next((each for each in before if each.startswith("#") or not each), "")
            assert above.startswith("#") or inside.lstrip().startswith("#"), f"{key} is not explained"


def test_objects_of_the_schema_are_closed() -> None:
    def walk(schema: dict[str, Any], path: str) -> None:
        if schema.get("type") == "object" and path not in (
            "global",
            "agent.extraEnv[]",
            "proxy.extraEnv[]",
        ):
            assert "additionalProperties" in schema, path
        for name, inner in schema.get("properties", {}).items():
            walk(inner, f"{path}.{name}".lstrip("."))
        if "items" in schema:
            walk(schema["items"], f"{path}[]")

    walk(json.loads((CHART / "values.schema.json").read_text()), "")
