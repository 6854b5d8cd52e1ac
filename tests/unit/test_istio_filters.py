"""EnvoyFilters beside translated policies: where they act, and that they say what `policy.http` refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.istio.objects import WELL_FORMED
from spliceway.policy.istio.translate import Translation
from spliceway.policy.wellformed import DOT_SEGMENTS, DOUBLE_SLASHES, ORIGIN_FORM, WELL_FORMED_PATH
from support.istiopolicies import CLUSTER, allow, made, policy

EVERY = "ports: [{port: '1', endPort: 65535, protocol: TCP}]"
RULE = "rules: {http: [{path: /a}]}"


def filters(found: Translation) -> list[dict[str, Any]]:
    assert found.refusals == ()
    return [one.document() for one in found.filters]


def ports(found: Translation) -> list[int | None]:
    """Ports at which paths are read as Spliceway reads them; None is every port."""
    (document,) = filters(found)
    first, *others = document["spec"]["configPatches"]
    assert (first["applyTo"], first["patch"]["operation"]) == ("HTTP_FILTER", "INSERT_FIRST")
    assert all((one["applyTo"], one["patch"]["operation"]) == ("NETWORK_FILTER", "MERGE") for one in others)
    return [one["match"]["listener"]["filterChain"].get("destinationPort") for one in others]


def test_a_document() -> None:
    (document,) = filters(made(allow("{path: /a}")))
    spec = document.pop("spec")
    assert document == yaml.safe_load(
        """
        apiVersion: networking.istio.io/v1alpha3
        kind: EnvoyFilter
        metadata:
          name: spliceway-cnp-filter-0-0-web
          namespace: shop
          labels: {app.kubernetes.io/managed-by: spliceway}
          annotations: {spliceway.io/translated-from: CiliumNetworkPolicy shop/web}
        """
    )
    assert spec["workloadSelector"] == {"labels": {"app": "api"}}
    shadow, reading = spec["configPatches"]
    manager = {"name": "envoy.filters.network.http_connection_manager"}
    assert shadow["match"] == {"context": "SIDECAR_INBOUND", "listener": {"filterChain": {"filter": manager}}}
    assert reading["match"]["listener"] == {"filterChain": {"destinationPort": 80, "filter": manager}}
    config = shadow["patch"]["value"]["typed_config"]
    assert "rules" not in config  # it refuses nothing by itself
    assert config["shadow_rules"]["action"] == "DENY"


def test_every_http_rule_asks_for_it_and_no_other_does() -> None:
    found = made(allow("{path: /a}, {method: GET}, {}"), policy("endpointSelector: {}\ningress: [{}]", name="other"))
    assert any(rule.http for one in found.policies for rule in one.rules)
    for one in found.policies:
        for rule in one.rules:
            assert rule.conditions[-1:] == ((WELL_FORMED,) if rule.http else ())
    (document,) = filters(found)
    prefix = document["spec"]["configPatches"][0]["patch"]["value"]["typed_config"]["shadow_rules_stat_prefix"]
    assert f"[{prefix}shadow_engine_result]" in WELL_FORMED.key


@pytest.mark.parametrize(
    ("ingress", "read", "noted"),
    [
        ("{toPorts: [{ports: [{port: '80', protocol: TCP}, {port: '81', protocol: TCP}], RULE}]}", [80, 81], ""),
        ("{toPorts: [{EVERY, RULE}]}", [None], ""),
        ("{toPorts: [{EVERY, RULE}]}, {toPorts: [{ports: [{port: '80', protocol: TCP}]}]}", [], "every port"),
        (
            "{toPorts: [{ports: [{port: '80', protocol: TCP}, {port: '81', protocol: TCP}], RULE}]}, "
            "{fromEntities: [world], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}",
            [81],
            "port 80",
        ),
        ("{toPorts: [{ports: [{port: '80', protocol: TCP}], RULE}]}, {fromEntities: [world]}", [], "port 80"),
    ],
)
def test_paths_are_read_our_way_where_nobody_passes_without_http_rules(
    ingress: str, read: list[int | None], noted: str
) -> None:
    text = ingress.replace("RULE", RULE).replace("EVERY", EVERY)
    found = made(policy(f"endpointSelector: {{matchLabels: {{app: api}}}}\ningress: [{text}]"))
    assert ports(found) == read
    assert [note for note in found.notes if "without HTTP rules" in note and f": {noted}: " in note] == (
        [found.notes[-1]] if noted else []
    )


def test_default_deny_off_lets_others_pass_without_rules() -> None:
    lax = allow("{path: /a}").replace("spec:\n", "spec:\n  enableDefaultDeny: {ingress: false}\n")
    assert ports(made(lax)) == []


def test_one_for_each_selection_of_workloads() -> None:
    found = made(allow("{path: /a}"), allow("{path: /b}").replace("name: web", "name: other"))
    assert len(found.policies) == 2
    assert len(found.filters) == 1
    whole = policy(
        "endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], " + RULE + "}]}]",
        "CiliumClusterwideNetworkPolicy",
        namespace="",
    )
    (document,) = filters(made(whole, cluster=CLUSTER))
    assert document["metadata"]["namespace"] == "istio-system"
    assert "workloadSelector" not in document["spec"]


@given(st.text(st.sampled_from("/.;%25eEfF#?a\\ \x7f\xff"), max_size=12).map(lambda text: "/" + text))
def test_what_is_well_formed_is_what_is_not_refused(target: str) -> None:
    """Of a target as it is once Envoy has normalised it: what is left is refused alike."""
    raw = target.encode("latin-1")
    formed = bool(
        re.fullmatch(ORIGIN_FORM, target)
        and re.fullmatch(WELL_FORMED_PATH, target)
        and not re.fullmatch(DOT_SEGMENTS, target)
        and not re.fullmatch(DOUBLE_SLASHES, target)
    )
    try:
        same = normalise(raw) == raw
    except TargetError:
        # Envoy itself answers 400 to these, wherever they stand.
        assert not formed or re.search("[# \x7f\xff]", target)
        return
    # Envoy decodes what need not be encoded before the filter sees it.
    assert formed == same or "%" in target


@pytest.mark.parametrize("path", ["/", "//", "/a", "/a/", "/a.b/..c/...", "/a?/../b//c", "//?a//b", "/.a/b."])
def test_normalised(path: str) -> None:
    assert not re.fullmatch(DOT_SEGMENTS, path)
    assert not re.fullmatch(DOUBLE_SLASHES, path)


@pytest.mark.parametrize("path", ["/.", "/..", "/a/./b", "/a/../b", "/a/..", "/..?x", "/a/.?", "/./"])
def test_dot_segments(path: str) -> None:
    assert re.fullmatch(DOT_SEGMENTS, path)


@pytest.mark.parametrize("path", ["//a", "///", "///?x", "/a//", "/a//b", "///a/b", "/a/b//?c", "/a///b"])
def test_double_slashes(path: str) -> None:
    assert re.fullmatch(DOUBLE_SLASHES, path)
