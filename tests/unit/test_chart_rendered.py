"""The chart as Helm renders it: an API server would take its objects, and the agent its configuration."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from spliceway.agent.cli.root import app
from spliceway.agent.config import NODE_NAME, parse_config
from spliceway.agent.policystatus.conditions import status_of
from spliceway.agent.policystatus.ledger import Version, Written
from spliceway.agent.policystatus.report import Report, Trouble, as_object
from spliceway.agent.policystatus.statuses import Held, new_object, with_status
from spliceway.agent.policystatus.tally import Count
from support.helm import CHART, NAMESPACE, Helm, one

#: Those with a schema, of which the oldest is the chart's kubeVersion.
VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "enforce": {"enforcement": "enforce"},
    "envoy": {"proxy": {"kind": "envoy"}},
    "two": {"proxy": {"daemonSet": True}, "seLinuxOptions": {"type": "spc_t"}, "imagePullSecrets": [{"name": "pull"}]},
    "two envoy": {"proxy": {"kind": "envoy", "daemonSet": True, "image": {"tag": "0.0.9"}}},
    "two going back": {"proxy": {"daemonSet": True, "backToAgent": True}},
    "cni": {"cni": {"exemptNamespaces": ["kube-system", "istio-system"]}},
    "istio": {"mode": "istio", "agent": {"config": {"datapath": {"socketLb": "auto"}}}},
    "istio enforcing": {"mode": "istio", "enforcement": "enforce", "proxy": {"daemonSet": True}, "uninstall": False},
    "istio emitting": {
        "mode": "istio",
        "istio": {"authorizationPolicies": "emit", "pathNormalization": "MERGE_SLASHES"},
    },
    "istio removing": {"istio": {"authorizationPolicies": "remove"}, "uninstall": True},
    "no cni": {"cni": {"enabled": False}},
    "metrics": {
        "metrics": {
            "enabled": True,
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        }
    },
    "ipv6": {"metrics": {"enabled": True, "address": "[::]"}},
    "sysctls": {
        "sysctls": {"net.core.rmem_max": 4194304, "net.ipv4.tcp_mem": "1 2 3"},
        "preflight": {"selfTest": True},
    },
    "bare": {
        "preflight": {"enabled": False},
        "crds": {"install": False},
        "policyStatus": {"enabled": False},
        "uninstallGuard": False,
    },
    "taint": {"notReadyTaint": "spliceway.io/agent-not-ready:NoExecute", "policyStatus": {"writesPerSecond": 5}},
    "own account": {"rbac": {"create": False}, "serviceAccount": {"name": "mine"}},
    "uninstall": {"uninstall": True},
    "places": {
        "image": {"repository": "registry.example:5000/x/spliceway", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "agent": {
            "stateDirectory": "/srv/spliceway",
            "logLevel": "debug",
            "config": {"splice": {"mode": "off"}, "proxy": {"workers": 2}, "datapath": {"devices": ["eth*"]}},
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
        },
        "nodeSelector": {"pool": "web"},
        "architectures": ["arm64"],
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
        "priorityClassName": "",
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "seLinuxOptions": {"type": "spc_t"},
        "tolerations": [{"key": "x", "operator": "Exists", "effect": "NoSchedule"}],
    },
}


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as asked:
        yield asked


@functools.cache
def _taken(text: str) -> None:
    """By every version; most objects are the same with most values."""
    for version in VERSIONS:
        assert kubernetes_validate.validate(json.loads(text), version, strict=True) == version


def agent_yaml(objects: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(one(objects, "ConfigMap")["data"]["agent.yaml"])
    return config


def pod_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_helm_lints_it(helm: Helm, values: dict[str, Any]) -> None:
    for version in (f"v{VERSIONS[0]}.0", f"v{VERSIONS[-1]}.0"):
        found = helm.lint(values, version)
        assert found["errors"] == []
        assert [each["error"] for each in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_version_of_kubernetes_would_take_it(helm: Helm, values: dict[str, Any]) -> None:
    objects = helm.render(values)
    of_operator = [each for each in objects if each["apiVersion"] == "monitoring.coreos.com/v1"]
    assert len(of_operator) == (2 if "podMonitor" in values.get("metrics", {}) else 0)
    for each in objects:
        if each not in of_operator:
            _taken(json.dumps(each))


@pytest.mark.parametrize("uninstall", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_the_chain_can_be_left_when_the_plugin_is_off_again(helm: Helm, enabled: bool, uninstall: bool) -> None:
    """Nobody answers a plugin that stays in the chain: then no pod of the node starts any more."""
    spec = pod_spec(helm.render({"cni": {"enabled": enabled}, "uninstall": uninstall}))
    volumes = {each["name"]: each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each}
    assert volumes["cni-conf"] == "/etc/cni/net.d"
    (container,) = (each for each in spec["initContainers" if uninstall else "containers"] if each.get("volumeMounts"))
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts["cni-conf"]["mountPath"] == "/host/etc/cni/net.d"
    assert not mounts["cni-conf"].get("readOnly")
    assert ("cni-bin" in mounts) is enabled


def test_the_kill_switch_in_the_pod_is_the_nodes(helm: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`spliceway kill-switch on` as operations.md has it: what it writes is what the agent watches, on the node."""
    objects = helm.render()
    spec = pod_spec(objects)
    (container,) = spec["containers"]
    config = next(each["value"] for each in container["env"] if each["name"] == "SPLICEWAY_CONFIG")
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert str(Path(config).parent) in mounts
    file = Path(agent_yaml(objects)["killSwitch"]["file"])
    assert not mounts[str(file.parent)].get("readOnly")
    monkeypatch.setenv("SPLICEWAY_NODE_NAME", "node1")
    written = tmp_path / "agent.yaml"
    text = one(objects, "ConfigMap")["data"]["agent.yaml"]
    written.write_text(text.replace(str(file), str(tmp_path / "node" / "disabled")))
    monkeypatch.setenv("SPLICEWAY_CONFIG", str(written))
    told = CliRunner().invoke(app, ["kill-switch", "status", "-o", "json", "--bpffs", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["file"] == str(tmp_path / "node" / "disabled")


def test_a_wrong_object_would_be_found(helm: Helm) -> None:
    daemon_set = one(helm.render(), "DaemonSet")
    daemon_set["spec"]["template"]["spec"]["containers"][0]["securtyContext"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemon_set, VERSIONS[0], strict=True)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_agent_takes_its_configuration(helm: Helm, values: dict[str, Any]) -> None:
    config = agent_yaml(helm.render(values))
    assert config["source"] == {"kubernetes": {}}
    parsed = parse_config(yaml.safe_dump(config), "agent.yaml")
    assert parsed.enforcement == values.get("enforcement", "audit")
    assert parsed.cni.enabled is values.get("cni", {}).get("enabled", True)
    if parsed.cni.enabled:
        assert parsed.cni.on_failure == ("fail" if parsed.enforcement == "enforce" else "allow")
    assert parsed.proxy.kind == values.get("proxy", {}).get("kind", "embedded")
    own = values.get("agent", {}).get("config", {})
    assert parsed.proxy.workers == own.get("proxy", {}).get("workers", 0)
    assert parsed.splice.mode == own.get("splice", {}).get("mode", "auto")
    assert parsed.istio.enabled is (values.get("mode") == "istio")
    assert parsed.datapath.socket_lb == own.get("datapath", {}).get("socketLb", "off")


def test_beside_istio_no_pod_of_ours_gets_a_sidecar(helm: Helm) -> None:
    """Those in the host's network never do; the Job that guards `helm uninstall` would never be done with one."""
    for mode, labelled in (("istio", True), ("sidecar-free", False)):
        templates = [
            each["spec"]["template"] for each in helm.render({"mode": mode}) if each["kind"] in ("DaemonSet", "Job")
        ]
        own = [each["metadata"]["labels"] for each in templates if not each["spec"].get("hostNetwork")]
        assert own
        for labels in own:
            assert (labels.get("sidecar.istio.io/inject") == "false") is labelled
            assert (labels.get("istio.io/dataplane-mode") == "none") is labelled


def test_the_mode_is_told(helm: Helm) -> None:
    assert "policy istio translate" in helm.notes({"mode": "istio"})
    assert "stio" not in helm.notes()


def test_probes_ask_where_the_agent_listens(helm: Helm) -> None:
    for address in ("", "0.0.0.0", "[::]", "10.0.0.7"):
        values = {"metrics": {"enabled": True, "port": 12345, "address": address}} if address else {}
        objects = helm.render(values)
        listen, health = (agent_yaml(objects)["metrics"][field] for field in ("listen", "health"))
        (agent,) = pod_spec(objects)["containers"]
        (port,) = agent["ports"]
        assert int(listen.rpartition(":")[2]) == port["containerPort"] == port["hostPort"]
        assert listen == f"{address or '127.0.0.1'}:{port['containerPort']}"
        assert health == f"127.0.0.1:{port['containerPort']}"
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            assert agent[probe]["httpGet"] == {"path": path, "port": port["name"], "host": "127.0.0.1"}


def test_each_pod_knows_its_node_and_changes_with_the_configuration(helm: Helm) -> None:
    checksums = set()
    for mode in ("audit", "enforce"):
        objects = helm.render({"enforcement": mode})
        template = one(objects, "DaemonSet")["spec"]["template"]
        checksums.add(template["metadata"]["annotations"]["checksum/config"])
        for container in (*template["spec"]["containers"], *template["spec"]["initContainers"]):
            node = {"name": NODE_NAME, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
            assert node in container["env"]
    assert len(checksums) == 2


def test_no_container_is_privileged_and_every_root_is_read_only(helm: Helm) -> None:
    for values in MATRIX.values():
        for each in helm.render(values):
            spec = each.get("spec", {})
            spec = spec if each["kind"] == "Pod" else spec.get("template", {}).get("spec", {})
            for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
                context = container["securityContext"]
                assert not context.get("privileged", False)
                assert context["readOnlyRootFilesystem"]
                assert context["capabilities"]["drop"] == ["ALL"]
                assert context["seccompProfile"] == {"type": "RuntimeDefault"}
                # The API server allows this in containers that are privileged, and in no other.
                assert all(
                    mount.get("mountPropagation") != "Bidirectional" for mount in container.get("volumeMounts", ())
                )


def test_every_mount_has_its_volume_and_nothing_hides_another(helm: Helm) -> None:
    for values in MATRIX.values():
        spec = pod_spec(helm.render(values))
        volumes = [each["name"] for each in spec["volumes"]]
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            mounts = container.get("volumeMounts", ())
            paths = [Path(each["mountPath"]) for each in mounts]
            assert {each["name"] for each in mounts} <= set(volumes)
            assert len(set(paths)) == len(paths)
            assert not [one for one in paths for other in paths if other in one.parents]


def test_with_uninstall_nodes_are_cleaned_before_the_release_goes(helm: Helm) -> None:
    guard = "spliceway-first-set-uninstall-true"
    assert one(helm.render(), "Job", guard)["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    objects = helm.render({"uninstall": True})
    assert not [each for each in objects if each["kind"] == "Job"]
    spec = pod_spec(objects)
    (cleanup,) = spec["initContainers"]
    assert cleanup["args"][0] == "cleanup"
    assert "--yes" in cleanup["args"]
    assert spec["containers"][0]["command"] == ["sleep", "infinity"]
    assert "uninstall spliceway" in helm.notes({"uninstall": True})
    assert "policy audit" in helm.notes()
    assert "policy audit" not in helm.notes({"enforcement": "enforce"})


def test_what_is_told_is_where_the_roles_are(helm: Helm) -> None:
    parsed = parse_config(yaml.safe_dump(agent_yaml(helm.render(MATRIX["taint"]))), "agent.yaml")
    assert parsed.status.write
    assert (parsed.status.namespace, parsed.status.writes_per_second) == ("kube-system", 5)
    assert parsed.node.not_ready_taint == "spliceway.io/agent-not-ready:NoExecute"
    bare = parse_config(yaml.safe_dump(agent_yaml(helm.render(MATRIX["bare"]))), "agent.yaml")
    assert not bare.status.write
    assert not bare.node.not_ready_taint


def test_definitions_stay_when_the_release_goes(helm: Helm) -> None:
    found = [each for each in helm.render() if each["kind"] == "CustomResourceDefinition"]
    assert {each["metadata"]["name"]: each["spec"]["scope"] for each in found} == {
        "clusterpolicystatuses.spliceway.io": "Cluster",
        "nodepolicyreports.spliceway.io": "Cluster",
        "policystatuses.spliceway.io": "Namespaced",
    }
    assert all(each["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for each in found)
    without = helm.render({"crds": {"install": False}})
    assert not [each for each in without if each["kind"] == "CustomResourceDefinition"]


POLICY = Written(Version("0e5e6ac4-0d0c-4a53-a7b3-4a1a4a7a0d9e", 3, "0" * 16), "cilium.io/v2", 1234)


def a_status() -> dict[str, Any]:
    """As it is written."""
    trouble = {"node1": Trouble(POLICY.version.text, "Document", "spec.x", "unknown field", kept=True)}
    status = status_of(POLICY, Count(3, 2, troubles=trouble, unseen=("node2",)), None, datetime.now(UTC))
    made = with_status(new_object(("CiliumNetworkPolicy", "shop/web"), POLICY), Held("u", "7", "o", None), status)
    found: dict[str, Any] = json.loads(json.dumps(made))
    return found


_WRONG = {
    "no policy": lambda status: status["spec"].pop("policy"),
    "a condition of another type": lambda status: status["status"]["conditions"][0].update(type="Ready"),
    "a condition with a boolean": lambda status: status["status"]["conditions"][0].update(status=True),
    "no reason": lambda status: status["status"]["conditions"][0].pop("reason"),
    "a reason with blanks": lambda status: status["status"]["conditions"][0].update(reason="not known"),
    "fewer than no nodes": lambda status: status["status"]["nodes"].update(applied=-1),
}


def definitions() -> dict[str, Any]:
    """Kind → schema."""
    found = [yaml.safe_load(path.read_text())["spec"] for path in sorted((CHART / "files").glob("crd-*.yaml"))]
    return {each["names"]["kind"]: each["versions"][0]["schema"]["openAPIV3Schema"] for each in found}


def test_what_is_written_is_what_the_definitions_describe() -> None:
    assert set(definitions()) == {"PolicyStatus", "ClusterPolicyStatus", "NodePolicyReport"}
    for kind in ("PolicyStatus", "ClusterPolicyStatus"):
        jsonschema.validate(a_status(), definitions()[kind])
        assert _unknown(definitions()[kind], a_status()) == []
    troubles = (Trouble("u/1/d", "NoRoom", "f", "m", selects=True, kept=True),)
    made = as_object(Report("off", ("A=1",), ("u/1/d",), troubles), "node1", "uid")
    told = json.loads(msgspec.json.encode(made))
    jsonschema.validate(told, definitions()["NodePolicyReport"])
    assert _unknown(definitions()["NodePolicyReport"], told) == []


def _unknown(schema: Any, value: Any, path: str = "") -> list[str]:
    """Fields that the API server would leave out without a word."""
    if path == ".metadata":
        return []
    if isinstance(value, list):
        return [text for each in value for text in _unknown(schema["items"], each, path)]
    if not isinstance(value, dict):
        return []
    known = schema["properties"]
    return [
        text for key in value for text in (_unknown(known[key], value[key], f"{path}.{key}") if key in known else [key])
    ]


@pytest.mark.parametrize("change", _WRONG.values(), ids=_WRONG)
def test_a_wrong_status_is_refused(change: Any) -> None:
    status = deepcopy(a_status())
    change(status)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(status, definitions()["PolicyStatus"])


def test_everything_is_in_the_releases_namespace(helm: Helm) -> None:
    clusterwide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    for each in helm.render(MATRIX["metrics"]):
        assert ("namespace" in each["metadata"]) == (each["kind"] not in clusterwide)
        # The Lease is one for all releases, and so are the rights to it in another place.
        wanted = "kube-system" if each["kind"] in ("Role", "RoleBinding") else NAMESPACE
        assert each["metadata"].get("namespace", wanted) == wanted
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "spliceway"
