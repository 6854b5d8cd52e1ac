"""A real agent keeps translations of HTTP rules applied as AuthorizationPolicies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.cli.writing import writing_line
from support.clusternode import ClusterNode, cluster_node
from support.fleet import DEFINITIONS, events
from support.meshfleet import API, AUTHENTICATIONS, KIND, STRICT, applied, http, paths, said
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

#: What an agent of a cluster asks for in seconds is a matter of seconds here, too.
LIMIT = 60.0
WEB = "default/web"
#: Of a pod that the injector has had.
SIDECAR = {"sidecar.istio.io/status": '{"containers":["istio-proxy"]}'}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNode]:
    with cluster_node(tmp_path_factory.mktemp("cluster"), timeout=3) as made:
        made.api.put(*DEFINITIONS, AUTHENTICATIONS, STRICT, http("web", "web"))
        made.overrides["status"] = {"write": True}
        made.overrides["istio"] = {"authorizationPolicies": "emit"}
        made.start()
        pod = made.pod("web", {"app": "web", "security.istio.io/tlsMode": "istio"}, annotations=SIDECAR)
        made.report(pod)
        yield made


def authorization(site: ClusterNode) -> dict[str, Any]:
    found: dict[str, Any] = site.told()["policyStatus"]["authorization"]
    return found


def test_it_applies_and_tells(site: ClusterNode) -> None:
    until(lambda: paths(site.api) == ["/a"], LIMIT)
    until(lambda: said(site.api, WEB) == ("True", "Emitted", "1 AuthorizationPolicy"), LIMIT)
    until(lambda: authorization(site)["settled"], LIMIT)
    assert (authorization(site)["mode"], authorization(site)["emitted"]) == ("emit", 1)
    (line,) = writing_line(site.told()["policyStatus"], 0.0)
    assert line.endswith("for Istio: 1 AuthorizationPolicy")


def test_a_refused_one_keeps_what_there_is_over_a_restart(site: ClusterNode) -> None:
    until(lambda: paths(site.api) == ["/a"], LIMIT)
    (before,) = applied(site.api)
    site.api.put(http("web", "web", "/a/[0-9]+"))
    until(lambda: said(site.api, WEB)[1] == "Refused", LIMIT)
    until(lambda: ("Warning", "PolicyNotTranslated", "web") in events(site.api), LIMIT)
    assert site.agent is not None
    site.agent.stop()
    site.start()
    until(lambda: authorization(site)["kept"] == 1, LIMIT)
    assert applied(site.api) == [before]
    site.api.put(http("web", "web", "/b"))
    until(lambda: paths(site.api) == ["/b"], LIMIT)


def test_removed_it_leaves_nothing_of_its_own(site: ClusterNode) -> None:
    until(lambda: paths(site.api) != [], LIMIT)
    site.api.put({"apiVersion": API, "kind": KIND, "metadata": {"name": "mine", "namespace": "shop"}, "spec": {}})
    assert site.agent is not None
    site.agent.stop()
    site.overrides["istio"] = {"authorizationPolicies": "remove"}
    site.start()
    until(lambda: applied(site.api) == [], LIMIT)
    assert site.api.get(API, KIND, "shop/mine") is not None
    until(lambda: authorization(site)["settled"], LIMIT)
