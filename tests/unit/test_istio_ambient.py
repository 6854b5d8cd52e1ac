"""Ambient pods: HTTP rules go to the waypoint of their Services, and ztunnel lets nobody past it."""

from __future__ import annotations

import pytest
import yaml

from spliceway.policy.istio.translate import Translation
from support.istiopolicies import CLUSTER, EVERYTHING, allow, made, policy, refusal

AMBIENT = CLUSTER.replace("istio-injection: enabled", "istio.io/dataplane-mode: ambient")
WAYPOINT = "istio.io/use-waypoint: way"
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: way}}
spec: {selector: {app: api}, ports: [{port: 8000, targetPort: 80, protocol: TCP}]}
"""


def ambient(*texts: str, cluster: str = AMBIENT) -> Translation:
    return made(*texts, cluster=cluster)


def test_rules_at_the_waypoint_have_the_services_ports_and_ztunnel_lets_the_waypoint_in() -> None:
    deny = policy(
        "endpointSelector: {matchLabels: {app: api}}\n"
        "ingressDeny: [{fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': bank}}]}]",
        name="deny",
    )
    plain = policy(
        "endpointSelector: {matchLabels: {app: api}}\n"
        "ingress: [{fromEndpoints: [{matchLabels: {app: front}}],\n"
        "  toPorts: [{ports: [{port: '9000', protocol: TCP}]}]}]",
        name="plain",
    )
    found = ambient(SERVICE, allow("{path: /a}"), deny, plain)
    assert found.refusals == ()
    specs = {one.name: one.document()["spec"] for one in found.policies}
    targets = yaml.safe_load("[{group: '', kind: Service, name: api}]")
    at_waypoint = specs["spliceway-cnp-allow-0-0-web"]
    assert at_waypoint["targetRefs"] == targets
    assert at_waypoint["rules"][0]["to"] == [{"operation": {"ports": ["8000"]}}]
    assert specs["spliceway-cnp-allow-l4-0-0-web"] == yaml.safe_load(
        """
        selector: {matchLabels: {app: api}}
        action: ALLOW
        rules:
        - from: [{source: {principals: [cluster.local/ns/shop/sa/way]}}]
          to: [{operation: {ports: ["80"]}}]
        """
    )
    assert specs["spliceway-cnp-deny-0-0-deny"]["targetRefs"] == targets
    assert "rules" in specs["spliceway-cnp-deny-l4-0-0-deny"]
    # The Service does not have this port: it is ztunnel's alone.
    assert "rules" not in specs["spliceway-cnp-allow-0-0-plain"]
    direct = specs["spliceway-cnp-allow-l4-0-0-plain"]["rules"][1]
    assert direct["to"] == [{"operation": {"ports": ["9000"]}}]
    # Nothing that ztunnel reads asks for HTTP: it would leave the rule out, or deny without it.
    for name, spec in specs.items():
        if "-l4-" in name:
            assert all("when" not in rule and "methods" not in str(rule) for rule in spec.get("rules", ()))


def test_a_namespaces_waypoint() -> None:
    cluster = AMBIENT.replace("team: red", f"team: red, {WAYPOINT}, istio.io/use-waypoint-namespace: infra")
    found = ambient(SERVICE.replace(", labels: {istio.io/use-waypoint: way}", ""), allow("{path: /a}"), cluster=cluster)
    assert "cluster.local/ns/infra/sa/way" in str([one.document() for one in found.policies])


def test_what_is_refused() -> None:
    assert "no Service selects" in refusal(ambient(allow("{path: /a}")))
    bare = SERVICE.replace(", labels: {istio.io/use-waypoint: way}", "")
    assert "has no waypoint" in refusal(ambient(bare, allow("{path: /a}")))
    wide = SERVICE.replace("{app: api}", "{}").replace("selector: {}", "selector: {team: x}")
    both = AMBIENT.replace("{app: api}", "{app: api, team: x}").replace("{app: front}", "{app: front, team: x}")
    assert "leads to pod" in refusal(ambient(wide, allow("{path: /a}"), cluster=both))
    assert "behind a waypoint" in refusal(ambient(SERVICE, allow("{path: /a}", "fromCIDR: [192.0.2.0/24]")))
    deny = policy(
        "endpointSelector: {matchLabels: {app: api}}\n"
        "ingressDeny: [{fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}]}]",
        name="deny",
    )
    assert "by which everybody comes" in refusal(ambient(SERVICE, allow("{path: /a}"), deny))


@pytest.mark.parametrize("address", ["10.240.1.2", "fd00:240:1::2"])
def test_a_service_without_a_selector_is_no_way_past_the_rules(address: str) -> None:
    """At the same waypoint: there its policies would be asked, and ztunnel lets the waypoint in."""
    side = f"""
apiVersion: v1
kind: Service
metadata: {{name: side, namespace: shop, labels: {{istio.io/use-waypoint: way}}}}
spec: {{ports: [{{port: 80, protocol: TCP}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: side-1, namespace: shop, labels: {{kubernetes.io/service-name: side}}}}
addressType: {"IPv6" if ":" in address else "IPv4"}
endpoints: [{{addresses: ["{address}"]}}]
ports: [{{port: 80, protocol: TCP}}]
"""
    found = ambient(SERVICE, side, allow("{path: /a}"))
    assert "Service shop/side leads to these pods, too, by EndpointSlice shop/side-1" in refusal(found)
    for harmless in (
        side.replace(address, f"{address[:-1]}3"),
        side.replace("{istio.io/use-waypoint: way}", "{}"),
        side.replace("service-name: side", "service-name: api"),
    ):
        assert ambient(SERVICE, harmless, allow("{path: /a}")).policies


@pytest.mark.parametrize(
    ("namespace", "kind", "name", "refused"),
    [
        ("shop", "Service", "api", True),
        ("shop", "Gateway", "way", True),
        ("istio-system", "GatewayClass", "istio-waypoint", True),
        ("shop", "Service", "other", False),
        ("bank", "Gateway", "way", False),
    ],
)
def test_somebodys_policy_at_the_same_waypoint_adds_to_ours(
    namespace: str, kind: str, name: str, refused: bool
) -> None:
    """An ALLOW policy there lets pass what ours is to deny."""
    theirs = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: mine, namespace: {namespace}}}
spec: {{targetRefs: [{{kind: {kind}, name: {name}}}], rules: [{{}}]}}
"""
    for text in (theirs, theirs.replace("targetRefs: [", "targetRef: ").replace("}], rules", "}, rules")):
        found = ambient(SERVICE, allow("{path: /a}"), text)
        if refused:
            assert f"{namespace}/mine is judged at their waypoint" in refusal(found)
        else:
            assert found.policies


def test_waypoints_get_no_filter_so_that_open_paths_need_consent() -> None:
    found = ambient(SERVICE, allow("{path: /a}"))
    assert found.filters == ()
    assert "experimental" not in str(found.documents())
    for http in ("{path: '/a/.*'}", "{method: GET}"):
        assert refusal(ambient(SERVICE, allow(http)))
        assert made(SERVICE, allow(http), cluster=AMBIENT, options=EVERYTHING).refusals == ()


def test_pods_with_sidecars_and_ambient_ones_together() -> None:
    extra = """
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop, labels: {app: api, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: api}
"""
    assert "ambient ones together" in refusal(ambient(SERVICE, extra, allow("{path: /a}")))
