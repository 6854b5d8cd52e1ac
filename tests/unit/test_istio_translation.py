"""HTTP rules as AuthorizationPolicies: what comes out, and what is refused and why."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from spliceway.policy.errors import PolicyError
from spliceway.policy.istio.mesh import Dataplane
from spliceway.policy.istio.translate import Options
from support.istiopolicies import ALONE, CLUSTER, EVERYTHING, allow, made, policy, read, refusal, specs

#: What every HTTP rule asks for besides (test_istio_filters.py).
FORMED = '{key: "experimental.envoy.filters.http.rbac[spliceway_shadow_engine_result]", values: [allowed]}'


def test_methods_paths_and_peers() -> None:
    (spec,) = specs(made(allow(r"{method: GET|HEAD, path: '/a|/b'}, {path: '/c(\?.*)?', host: shop}")))
    assert spec == yaml.safe_load(
        """
        selector: {matchLabels: {app: api}}
        action: ALLOW
        rules:
        - from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]
          to: [{operation: {ports: ["80"], methods: [GET, HEAD]}}]
          when: [{key: "request.headers[:path]", values: [/a, /b]}, *formed]
        - from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]
          to: [{operation: {ports: ["80"], paths: [/c]}}]
          when: [{key: "request.headers[:authority]", values: [shop]}, *formed]
        """.replace("*formed", FORMED)
    )


def test_everything_but_http_is_said_again_and_denied() -> None:
    text = policy(
        """
        endpointSelector: {matchLabels: {app: api}}
        ingress:
        - fromEndpoints: [{matchLabels: {app: front}}]
          toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{}]}}]
        - fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": bank}}]
          toPorts: [{ports: [{port: web}, {port: "53", protocol: UDP}]}]
        - toPorts: [{ports: [{port: "53", protocol: UDP}]}]
        - fromCIDR: [10.0.0.0/8]
        ingressDeny:
        - fromCIDRSet: [{cidr: 10.9.0.0/16, except: [10.9.1.0/24]}]
        """.replace("\n        ", "\n")
    )
    allowing, denying = specs(made(text, options=EVERYTHING))
    assert allowing["rules"] == [
        {
            "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/front"]}}],
            "to": [{"operation": {"ports": ["80"], "methods": ["*"]}}],
        },
        {
            "from": [{"source": {"principals": ["cluster.local/ns/bank/*"]}}],
            "to": [{"operation": {"ports": ["8080"]}}],
        },
        {"from": [{"source": {"ipBlocks": ["10.0.0.0/8"], "notIpBlocks": ["10.240.1.0/24"]}}]},
    ]
    assert denying["rules"] == [
        {"from": [{"source": {"ipBlocks": ["10.9.0.0/16"], "notIpBlocks": ["10.9.1.0/24"]}}]},
    ]


@pytest.mark.parametrize(
    ("http", "why"),
    [
        ("{path: '/a/[0-9]+'}", "repeats without end"),
        ("{host: 'a.b'}", "host a.b"),
        ("{headers: ['X-A: b']}", "one that is there twice"),
        ("{headers: ['X-Request-Id: b']}", "set or change it themselves"),
        ("{headerMatches: [{name: X-A, value: b, mismatch: ADD}]}", "mismatch ADD"),
        ("{headerMatches: [{name: X-A, secret: {name: s}}]}", "of a Secret"),
    ],
)
def test_http_rules_that_are_refused(http: str, why: str) -> None:
    assert why in refusal(made(allow(http)))


@pytest.mark.parametrize("http", ["{}", "{method: GET}", "{path: '/.*'}", "{host: shop}", "{path: '/a/.*'}"])
def test_open_paths_need_a_filter_or_consent(http: str) -> None:
    found = made(allow(http))
    assert (len(found.policies), len(found.filters)) == (1, 1)
    found = made(allow(http), options=EVERYTHING)
    assert (len(found.policies), len(found.filters)) == (1, 0)
    reason = refusal(made(allow(http), options=ALONE))
    assert ("with path normalization BASE" if "/a" in http else "what two servers can read differently") in reason


@pytest.mark.parametrize(
    ("http", "condition"),
    [
        ("{path: '/a/.*'}", {"operation": {"ports": ["80"], "paths": ["/a/*"]}}),
        ("{headers: ['X-A: b']}", {"key": "request.headers[X-A]", "values": ["b"]}),
        ("{headers: ['X-A']}", {"key": "request.headers[X-A]", "values": ["*"]}),
    ],
)
def test_what_is_translated_if_it_is_accepted(http: str, condition: dict[str, Any]) -> None:
    (spec,) = specs(made(allow(http), options=EVERYTHING))
    (rule,) = spec["rules"]
    assert condition in (*rule["to"], *rule.get("when", ()))


def test_paths_that_no_normalised_request_has_are_left_out() -> None:
    (spec,) = specs(made(allow("{path: '/a//b|/a;b|/a%2fb|/c'}"), options=ALONE))
    assert spec["rules"][0]["when"] == [{"key": "request.headers[:path]", "values": ["/c"]}]


def test_labels_that_certificates_do_not_tell() -> None:
    other = CLUSTER.split("---")[4].replace("name: front", "name: other").replace("app: front", "app: other")
    reason = refusal(made(allow("{path: /a}"), "---".join([other])))
    assert "tells pods of service account shop/front apart (pod shop/other is not meant)" in reason


def test_nobody_is_no_empty_list() -> None:
    (spec,) = specs(made(allow("{path: /a}", "fromEndpoints: [{matchLabels: {app: gone}}]")))
    assert "rules" not in spec
    (spec,) = specs(made(allow("{path: /a}", "fromEndpoints: []")))
    assert "rules" not in spec


@pytest.mark.parametrize(
    ("authentication", "strict"),
    [
        ("metadata: {name: a, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}", False),
        ("metadata: {name: a, namespace: shop}\nspec: {mtls: {mode: UNSET}}", True),
        ("metadata: {name: a, namespace: bank}\nspec: {mtls: {mode: DISABLE}}", True),
        (
            "metadata: {name: a, namespace: shop}\n"
            "spec: {selector: {matchLabels: {app: api}}, mtls: {mode: PERMISSIVE}}",
            False,
        ),
        (
            "metadata: {name: a, namespace: shop}\n"
            "spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}",
            True,
        ),
        (
            "metadata: {name: a, namespace: shop}\n"
            "spec: {selector: {matchLabels: {app: api}}, portLevelMtls: {'80': {mode: DISABLE}}}",
            False,
        ),
        (
            "metadata: {name: a, namespace: shop}\n"
            "spec: {selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: STRICT}}}",
            True,
        ),
        ("metadata: {name: b, namespace: istio-system}\nspec: {mtls: {mode: PERMISSIVE}}", False),
    ],
)
def test_principals_need_strict_mtls(authentication: str, strict: bool) -> None:
    text = f"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n{authentication}\n"
    found = made(allow("{path: /a}"), text)
    assert bool(found.policies) == strict
    assert bool(found.refusals) != strict


def test_without_strict_mtls_addresses_can_be_said() -> None:
    text = allow("{path: /a}", "fromCIDR: [192.0.2.0/24]")
    assert "own node" in refusal(made(text, strict=False))
    (spec,) = specs(made(text, strict=False, options=Options(without_own_node=True)))
    assert spec["rules"][0]["from"] == [{"source": {"ipBlocks": ["192.0.2.0/24"]}}]
    reason = refusal(made(allow("{path: /a}"), strict=False, options=Options(without_own_node=True)))
    assert "may come without a certificate" in reason


def test_a_refused_part_takes_all_that_is_about_the_workload() -> None:
    broad = policy("endpointSelector: {}\ningress: [{fromEntities: [unmanaged]}]", name="broad")
    other = policy("endpointSelector: {matchLabels: {app: front}}\ningress: [{}]", name="other")
    found = made(allow("{path: /a}"), broad, other)
    assert "unmanaged" in refusal(found)
    assert set(found.refused) == {"shop/api", "shop/front"}
    assert "nothing is translated of" in found.notes[-1]


def test_what_has_no_http_rules_is_left_to_the_wire() -> None:
    other = policy(
        "endpointSelector: {matchLabels: {app: front}}\ningress: [{fromEntities: [unmanaged]}]", name="other"
    )
    assert len(specs(made(allow("{path: /a}"), other))) == 1


def test_default_deny_off() -> None:
    lax = allow("{path: /a}").replace("spec:\n", "spec:\n  enableDefaultDeny: {ingress: false}\n")
    (spec,) = specs(made(lax))
    assert spec["rules"][1:] == [
        {"to": [{"operation": {"notPorts": ["80"]}}]},
        {
            "from": [{"source": {"notPrincipals": ["cluster.local/ns/shop/sa/front"]}}],
            "to": [{"operation": {"ports": ["80"]}}],
        },
    ]
    strict = policy("endpointSelector: {matchLabels: {app: api}}\ningress: [{}]", name="strict")
    first, second = specs(made(lax, strict))
    assert "rules" not in first
    assert len(second["rules"]) == 1


def test_egress_is_refused_and_nothing_else() -> None:
    text = policy(
        """
endpointSelector: {matchLabels: {app: api}}
ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /a}]}}]}]
egress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /a}]}}]}]
"""
    )
    found = made(text)
    assert len(found.policies) == 1
    assert [error.field for error in found.refusals] == ["spec.egress[0].toPorts[0]"]


@pytest.mark.parametrize(
    ("selector", "places"),
    [
        ("{}", [("istio-system", None)]),
        ("{matchLabels: {app: api}}", [("istio-system", {"app": "api"})]),
        ("{matchLabels: {io.cilium.k8s.namespace.labels.team: red}}", [("shop", None)]),
        (
            "{matchExpressions: [{key: app, operator: In, values: [api, web]}]}",
            [("istio-system", {"app": "api"}), ("istio-system", {"app": "web"})],
        ),
        ("{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop, app: api}}", [("shop", {"app": "api"})]),
    ],
)
def test_workloads_of_clusterwide_policies(selector: str, places: list[tuple[str, dict[str, str] | None]]) -> None:
    text = policy(
        f"endpointSelector: {selector}\n"
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]",
        "CiliumClusterwideNetworkPolicy",
        namespace="",
    )
    found = made(text)
    assert found.refusals == ()
    documents = [one.document() for one in found.policies]
    assert [
        (one["metadata"]["namespace"], one["spec"].get("selector", {}).get("matchLabels")) for one in documents
    ] == places
    assert len({one["metadata"]["name"] for one in documents}) == len(documents)


def test_selectors_of_workloads_beyond_match_labels() -> None:
    text = allow("{path: /a}").replace(
        "{matchLabels: {app: api}}", "{matchExpressions: [{key: app, operator: Exists}]}", 1
    )
    assert "app Exists has no counterpart" in refusal(made(text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n"
            "spec: {rules: [{}]}",
            "AuthorizationPolicy shop/a is about pod shop/api",
        ),
        (
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\n"
            "spec: {priority: 1, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}]}]}",
            "its tier has no counterpart",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: shop, "
            "labels: {app: api, sidecar.istio.io/inject: 'false'}}",
            "pod shop/bare is not in the mesh",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: part, namespace: shop, labels: {app: api}, "
            "annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '80,81'}}",
            "does not see port 80",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: part, namespace: shop, labels: {app: api}, "
            "annotations: {sidecar.istio.io/interceptionMode: NONE}}",
            "does not see any connection",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: part, namespace: shop, labels: {app: api}, "
            f"annotations: {{traffic.sidecar.istio.io/excludeInboundPorts: '{'9' * 5000}, 00080'}}}}",
            "does not see port 80",
        ),
    ],
)
def test_what_stands_against_it(text: str, why: str) -> None:
    assert why in refusal(made(allow("{path: /a}"), text))


def test_ports_in_annotations_are_text() -> None:
    """YAML makes a number of what stands there without quotes; nothing is nothing, as everywhere."""
    text = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: part, namespace: shop, labels: {app: api}, "
        "annotations: {traffic.sidecar.istio.io/excludeInboundPorts: %s}}"
    )
    with pytest.raises(PolicyError) as error:
        read(text % "80")
    assert str(error.value) == (
        "test.yaml: Pod shop/part: metadata.annotations.traffic.sidecar.istio.io/excludeInboundPorts: "
        "must be a string, is an integer (80)"
    )
    assert specs(made(allow("{path: /a}"), text % "null")) == specs(made(allow("{path: /a}")))


@pytest.mark.parametrize(
    ("ports", "seen"),
    [
        ("excludeInboundPorts: '15020'", True),
        ("includeInboundPorts: '*'", True),
        ("excludeInboundPorts: '15020,9000'", False),
        ("includeInboundPorts: '80'", False),
    ],
)
def test_rules_for_every_port_need_a_sidecar_that_sees_every_port(ports: str, seen: bool) -> None:
    part = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: part, namespace: shop, labels: {app: api}, "
        f"annotations: {{traffic.sidecar.istio.io/{ports}}}}}\nspec: {{serviceAccountName: api}}"
    )
    found = made(allow("{path: /a}").replace("port: '80'", "port: '1', endPort: 65535"), part)
    if seen:
        assert found.policies
    else:
        assert "the sidecar of pod shop/part does not see every port" in refusal(found)


def test_own_policies_of_an_earlier_translation_do_not_count() -> None:
    first = made(allow("{path: /a}"))
    again = made(allow("{path: /a}"), yaml.safe_dump_all(first.documents()))
    assert (again.policies, again.filters) == (first.policies, first.filters)


def test_policies_in_audit_are_left_out() -> None:
    found = made(
        allow("{path: /a}").replace(
            "namespace: shop}", "namespace: shop, annotations: {spliceway.io/enforcement: audit}}"
        )
    )
    assert found.policies == ()
    assert "is in audit" in found.notes[0]


def test_one_label_asked_for_again_and_again_takes_no_time() -> None:
    chosen = ", ".join(
        f"{{key: app, operator: In, values: [api, {', '.join(f'v{turn}-{one}' for one in range(60))}]}}"
        for turn in range(8)
    )
    text = allow("{path: /a}").replace("{matchLabels: {app: api}}", f"{{matchExpressions: [{chosen}]}}", 1)
    (spec,) = specs(made(text))
    assert spec["selector"] == {"matchLabels": {"app": "api"}}
    (found,) = made(text.replace("[api, ", "[")).parts
    assert (found.policies, found.errors) == ((), ()), "it selects nobody"
    nowhere = ", ".join(
        f"{{key: k{turn}, operator: In, values: [{', '.join(f'v{one}' for one in range(60))}]}}" for turn in range(8)
    )
    nowhere += ", {key: 'k8s:io.cilium.k8s.namespace.labels.no', operator: In, values: [such]}"
    text = allow("{path: /a}").replace("{matchLabels: {app: api}}", f"{{matchExpressions: [{nowhere}]}}", 1)
    (found,) = made(text).parts
    assert (found.policies, found.errors) == ((), ()), "nor anywhere"


def test_what_a_tenant_writes_is_refused_and_breaks_nothing() -> None:
    assert "no counterpart" in refusal(made(allow(f"{{path: '{'(?:' * 900}/a{')' * 900}'}}")))
    annotated = CLUSTER.replace(
        "{name: api, namespace: shop,",
        f"{{name: api, namespace: shop, annotations: {{traffic.sidecar.istio.io/excludeInboundPorts: '{'9' * 5000}'}},",
    )
    assert "does not see port 80" in refusal(made(allow("{path: /a}"), cluster=annotated))


def test_dataplanes() -> None:
    cluster, mesh = read(CLUSTER)
    pod = cluster.pods["shop/api"]
    assert mesh.dataplane(cluster, pod) is Dataplane.SIDECAR
    cluster, mesh = read(CLUSTER.replace("istio-injection: enabled", "istio.io/dataplane-mode: ambient"))
    assert mesh.dataplane(cluster, pod) is Dataplane.AMBIENT
    cluster, mesh = read(CLUSTER.replace("istio-injection: enabled", "istio.io/dataplane-mode: none"))
    assert mesh.dataplane(cluster, pod) is Dataplane.NONE


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: ON}}",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtl: {mode: STRICT}}",
        "apiVersion: security.istio.io/v2\nkind: PeerAuthentication\nmetadata: {name: a}",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\n"
        "spec: {portLevelMtls: {x: {}}}",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\n"
        f"spec:\n  portLevelMtls:\n    ? '{'9' * 5000}'\n    : {{}}",
    ],
)
def test_bad_peer_authentications(text: str) -> None:
    with pytest.raises(PolicyError):
        read(text)
