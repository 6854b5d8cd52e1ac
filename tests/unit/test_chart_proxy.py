"""The proxy's own DaemonSet: few rights, one directory of the node, and a roll that leaves nobody without a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from spliceway.agent.config import parse_config
from spliceway.agent.proxypod import keeper, place
from support.helm import Helm, one

NAME = "spliceway-proxy"
TWO: dict[str, Any] = {"proxy": {"daemonSet": True}}


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as asked:
        yield asked


def template(objects: list[dict[str, Any]], name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = one(objects, "DaemonSet", name)["spec"]["template"]
    return found


def container(objects: list[dict[str, Any]], name: str = NAME) -> dict[str, Any]:
    (found,) = template(objects, name)["spec"]["containers"]
    return dict(found)


def proxies(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in objects if each["kind"] == "DaemonSet" and each["metadata"]["name"] == NAME]


def managed(objects: list[dict[str, Any]]) -> bool:
    text = one(objects, "ConfigMap")["data"]["agent.yaml"]
    return parse_config(yaml.safe_dump(yaml.safe_load(text)), "agent.yaml").proxy.managed


def test_it_is_there_when_asked_for_and_the_agents_know(helm: Helm) -> None:
    for values, there, agents_run_it in (
        ({}, False, True),
        (TWO, True, False),
        ({"proxy": {"daemonSet": True, "backToAgent": True}}, True, True),
        ({**TWO, "uninstall": True}, False, False),
    ):
        objects = helm.render(values)
        assert bool(proxies(objects)) is there
        assert managed(objects) is agents_run_it
    assert NAME in helm.notes(TWO)
    assert NAME not in helm.notes()


def test_it_has_few_rights_and_no_token(helm: Helm) -> None:
    spec = template(helm.render(TWO))["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert not {"hostPID", "hostIPC", "shareProcessNamespace", "initContainers"} & spec.keys()
    context = container(helm.render(TWO))["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert "appArmorProfile" not in context, "the runtime's own will do"


def test_of_the_node_it_has_what_it_shares_with_the_agent(helm: Helm) -> None:
    for directory in ("/var/lib/spliceway", "/srv/x"):
        objects = helm.render({**TWO, "agent": {"stateDirectory": directory}})
        spec = template(objects)["spec"]
        (host,) = (each["hostPath"] for each in spec["volumes"] if "hostPath" in each)
        assert host == {"path": f"{directory}/{place.NAME}", "type": "DirectoryOrCreate"}
        mounts = {each["mountPath"]: each for each in container(objects)["volumeMounts"]}
        assert mounts.keys() == {"/etc/spliceway", "/tmp", host["path"]}
        # The agent has it, too: it is in its state directory.
        assert directory in {each["mountPath"] for each in container(objects, "spliceway")["volumeMounts"]}


def test_the_next_pod_is_ready_before_the_one_before_ends(helm: Helm) -> None:
    objects = helm.render(TWO)
    daemon_set = one(objects, "DaemonSet", NAME)["spec"]
    assert daemon_set["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    # Two pods of the host's network with the same port declared can't be on one node.
    proxy = container(objects)
    assert "ports" not in proxy
    (own,) = (each.removeprefix("--own=") for each in proxy["args"] if each.startswith("--own="))
    assert proxy["readinessProbe"]["exec"]["command"] == ["test", "-e", f"{own}/{keeper.READY}"]
    config = parse_config(yaml.safe_dump(yaml.safe_load(one(objects, "ConfigMap")["data"]["agent.yaml"])), "agent.yaml")
    spec = daemon_set["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= config.proxy.limits.drain + 5
    assert f"--drain={spec['terminationGracePeriodSeconds'] - 5}" in proxy["args"]


def test_the_two_roll_separately(helm: Helm) -> None:
    def annotations(values: dict[str, Any]) -> tuple[str, str]:
        objects = helm.render(values)
        agent, proxy = (template(objects, name)["metadata"]["annotations"] for name in ("spliceway", NAME))
        return agent["checksum/config"], proxy["checksum/config"]

    before = annotations(TWO)
    for change, rolls in (
        ({"enforcement": "enforce"}, False),
        ({"agent": {"config": {"proxy": {"explainDenied": True}, "splice": {"mode": "off"}}}}, False),
        ({"agent": {"config": {"proxy": {"workers": 3}}}}, True),
    ):
        agent, proxy = annotations({**TWO, **change})
        assert agent != before[0]
        assert (proxy != before[1]) is rolls
    assert annotations({"proxy": {"daemonSet": True, "backToAgent": True}})[1] == before[1]


@pytest.mark.parametrize(
    ("proxy", "agents", "proxies_image"),
    [
        ({}, "r/s:1", "r/s:1"),
        ({"kind": "envoy"}, "r/s:1", "r/s:1-envoy"),
        ({"kind": "envoy", "backToAgent": True}, "r/s:1-envoy", "r/s:1-envoy"),
        ({"image": {"tag": "2"}}, "r/s:1", "r/s:2"),
        ({"image": {"repository": "q/t"}}, "r/s:1", "q/t:1"),
        ({"image": {"digest": f"sha256:{'0' * 64}"}}, "r/s:1", f"r/s@sha256:{'0' * 64}"),
    ],
)
def test_images(helm: Helm, proxy: dict[str, Any], agents: str, proxies_image: str) -> None:
    objects = helm.render({"image": {"repository": "r/s", "tag": "1"}, "proxy": {"daemonSet": True, **proxy}})
    assert container(objects, "spliceway")["image"] == agents
    assert container(objects)["image"] == proxies_image
