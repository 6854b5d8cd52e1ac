"""Agents of two releases in a cluster, one for each pool of nodes: one of all writes, and counts the nodes of both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from spliceway.agent.configsections import DEFAULT_KINDS
from support.agent import run, until
from support.fleet import (
    DEFINITIONS,
    FAST,
    PODS,
    FleetAgent,
    all_rights,
    cnp,
    fleet,
    node,
    status_in,
    told,
)
from support.helm import Helm, one
from support.kubeapi import KubeApi
from support.kubesource import CRDS, ask

WEB = "default/ciliumnetworkpolicy.web"
LEASE_OF_ALL = {"namespace": "kube-system", "lease": "spliceway-policy-status"}


def test_releases_share_the_lease() -> None:
    with Helm() as helm:
        objects = helm.render()
        elsewhere = helm.render({"policyStatus": {"leaseNamespace": "mine"}})
    for found, namespace in ((objects, "kube-system"), (elsewhere, "mine")):
        written: dict[str, Any] = yaml.safe_load(one(found, "ConfigMap")["data"]["agent.yaml"])["status"]
        assert {key: written[key] for key in LEASE_OF_ALL} == {**LEASE_OF_ALL, "namespace": namespace}
        for kind in ("Role", "RoleBinding"):
            assert one(found, kind)["metadata"]["namespace"] == namespace
        (subject,) = one(found, "RoleBinding")["subjects"]
        assert subject["namespace"] == one(found, "ServiceAccount")["metadata"]["namespace"] == "spliceway-system"


def test_one_writes_for_both_and_leaves_alone_what_it_does_not_read(tmp_path: Path) -> None:
    others = [kind for kind in DEFAULT_KINDS if kind != "CiliumNetworkPolicy"]

    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, *DEFINITIONS, *map(node, ("n1", "n2", "n3")), *PODS, cnp("web", "web"))
            api.rights(lambda each: each.token("secret", "agent"))
            api.rights(lambda each: each.allow("agent", all_rights()))
            kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", token="secret")
            first = FleetAgent("n1", kubeconfig)
            second = [FleetAgent(name, kubeconfig, kinds=others) for name in ("n2", "n3")]
            async with fleet([first]):
                await until(lambda: first.leads, 10)
                async with fleet(second):
                    # Of the other release nobody looks at the kind, and so nobody says that it is in force there.
                    await told(api, WEB, ("True", "Unknown", "False", "NotSeen", "1/1"))
                    await until(lambda: status_in(api, WEB)["nodes"]["unseen"] == 2, 10)
                    before = await ask(status_in, api, WEB)
                    await first.stop()
                    await until(lambda: any(each.leads for each in second), 10)
                    # Long enough to be swept, were it nobody's.
                    await asyncio.sleep(FAST.stale + 1.0)
                    assert await ask(status_in, api, WEB) == before
                    # With the last node that reads the kind goes what was said of it.
                    await ask(api.drop, "v1", "Node", "n1")
                    await until(lambda: status_in(api, WEB) == {}, 10)

    run(main, 90)
