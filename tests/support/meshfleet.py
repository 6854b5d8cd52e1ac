"""Fleets in a mesh: agents without kernels that keep translations of HTTP rules applied (see `fleet`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.policystatus.resources import EMISSION_RIGHTS
from support.agent import until
from support.fleet import FleetAgent, cnp, status_in, with_fleet
from support.kubeapi import KubeApi, crd
from support.kubesource import ask, pod

Json = dict[str, Any]
API = "security.istio.io/v1"
KIND = "AuthorizationPolicy"
AUTHENTICATIONS = crd("security.istio.io", "PeerAuthentication", "peerauthentications", ["v1", "v1beta1"])
#: Label of pods that have a sidecar.
INJECTED = {"security.istio.io/tlsMode": "istio"}
STRICT: Json = {
    "apiVersion": API,
    "kind": "PeerAuthentication",
    "metadata": {"name": "default", "namespace": "istio-system"},
    "spec": {"mtls": {"mode": "STRICT"}},
}
#: As the pods of `fleet`, in the mesh.
MESHED = (
    pod("a", "10.0.0.1", node="n1", labels={"app": "web", **INJECTED}),
    pod("b", "10.0.0.2", node="n2", labels={"app": "web", **INJECTED}),
    pod("c", "10.0.0.3", node="n3", labels={"app": "db", **INJECTED}),
)


def http(name: str, app: str, path: str = "/a", *, namespace: str = "default", **annotations: str) -> Json:
    """A CiliumNetworkPolicy with one HTTP rule, for all pods of its namespace."""
    made = cnp(name, app, namespace=namespace, **annotations)
    made["spec"]["ingress"][0]["toPorts"][0]["rules"] = {"http": [{"path": path}]}
    return made


def denying(made: Json, port: str = "81") -> Json:
    """The same policy, which also denies a port."""
    rule = {"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": port, "protocol": "TCP"}]}]}
    return {**made, "spec": {**made["spec"], "ingressDeny": [rule]}}


def applied(api: KubeApi) -> list[Json]:
    """All AuthorizationPolicies that are labelled as an agent's."""
    found = api.all(API, KIND)
    return [one for one in found if (one["metadata"].get("labels") or {}).get("spliceway.io/emitted") == "true"]


def paths(api: KubeApi) -> list[str]:
    """What the ALLOW policies of ours let pass."""
    return sorted(
        value
        for one in applied(api)
        for rule in one["spec"].get("rules", ())
        for part in (*rule.get("when", ()), *(to["operation"] for to in rule.get("to", ())))
        for value in (*part.get("values", ()), *part.get("paths", ()))
    )


async def recorded(api: KubeApi) -> list[list[Json]]:
    """What AuthorizationPolicies there are after each write of any of them, from now on; see `complete`."""
    return await ask(api.record, API, KIND)


async def complete(states: list[list[Json]], api: KubeApi) -> None:
    """Wait for the last state to be what there is: a real server tells of it a moment later."""

    def revisions(state: list[Json]) -> set[str]:
        return {one["metadata"]["resourceVersion"] for one in state}

    await until(lambda: states and revisions(states[-1]) == revisions(api.all(API, KIND)))


def said(api: KubeApi, name: str) -> tuple[str, str, str]:
    """Status, reason and message of what is said of a CiliumNetworkPolicy's translation; empty: nothing is."""
    namespace, _, short = name.rpartition("/")
    status = status_in(api, f"{namespace}/ciliumnetworkpolicy.{short}")
    found = next((one for one in status.get("conditions", ()) if one["type"] == "Translated"), None)
    return (found["status"], found["reason"], found["message"]) if found else ("", "", "")


async def heard(api: KubeApi, name: str, status: str, reason: str, seconds: float = 20) -> str:
    """Wait for what is said of a translation to be this; the message."""
    found = ("", "", "")
    async with asyncio.timeout(seconds):
        while found[:2] != (status, reason):
            await asyncio.sleep(0.01)
            found = await ask(said, api, name)
    return found[2]


def writes(api: KubeApi) -> list[tuple[str, str]]:
    """Method and name of each write of an AuthorizationPolicy («POST»: none)."""
    return [
        (method, path.rpartition("/")[2] if method != "POST" else "")
        for method, path, _query in api.requests
        if method != "GET" and "/authorizationpolicies" in path
    ]


def with_mesh(
    tmp_path: Path,
    body: Callable[[KubeApi, Sequence[FleetAgent]], Awaitable[None]],
    *before: Any,
    mode: str = "emit",
    **options: Any,
) -> None:
    """Run a test with an agent on each node, which has `istio.authorizationPolicies` so."""
    istio = {"authorizationPolicies": mode, **options.pop("istio", {})}
    with_fleet(
        tmp_path,
        body,
        AUTHENTICATIONS,
        STRICT,
        *MESHED,
        *before,
        istio=istio,
        more_rights=EMISSION_RIGHTS if mode != "off" else (),
        **options,
    )
