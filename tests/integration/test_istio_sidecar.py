"""Envoy as a sidecar in two pods, mTLS between them: what is spliced of all that, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest

from spliceway.bpf.types import SpliceState
from support.istio.rules import Rules
from support.istio.site import Site, site
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy, pytest.mark.timeout(300)]

LARGE = 1 << 20


@pytest.fixture(scope="module", params=get_args(Rules))
def mesh_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("mesh")
    for each in (directory, *directory.parents[:3]):  # the sidecars are not root
        each.chmod(0o755)
    with site(directory, request.param) as made:
        yield made


def get(place: Site, version: int, path: str = "/small", times: int = 1) -> dict[str, str]:
    """Ask on one connection; «state why» inside of both pods when the answers are there, before it is closed."""
    connection = place.connect(version)
    for _ in range(times):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert (answer.status, len(body)) == (200, LARGE if path == "/large" else 128)
    found = {name: f"{one.state.label} {one.why}".strip() for name, one in place.legs().items()}
    tls = place.between_pods()
    assert len(tls) >= 2
    assert not tls & place.members()
    connection.close()
    return found


def test_both_pods_inner_legs_are_spliced_and_tls_is_not(mesh_site: Site, version: int) -> None:
    mesh_site.accelerate(True)
    mesh_site.drop_pools()
    before = mesh_site.node.datapath.splice_counters()
    assert get(mesh_site, version, times=20) == {"client": "spliced", "server": "spliced"}
    after = mesh_site.node.datapath.splice_counters()
    assert after.sidecar_spliced - before.sidecar_spliced == after.spliced - before.spliced == 2
    assert after.redirected_messages - before.redirected_messages >= 4 * 20


def test_what_is_too_much_goes_on_by_tcp(mesh_site: Site, version: int) -> None:
    """Envoy does not ask for room: large answers may leave the splice, and come whole."""
    mesh_site.accelerate(True)
    mesh_site.drop_pools()
    for _ in range(3):
        found = get(mesh_site, version, "/large", times=5)
        assert set(found) == {"client", "server"}
        assert set(found.values()) <= {"spliced", "tcp-only unread-limit", "tcp-only reader-stuck"}


def test_off(mesh_site: Site, version: int) -> None:
    mesh_site.accelerate(False)
    mesh_site.drop_pools()
    until(lambda: not mesh_site.legs())
    assert get(mesh_site, version) == {}


def test_the_pods_do_not_want_it(mesh_site: Site, version: int) -> None:
    mesh_site.accelerate(True, splice=False)
    mesh_site.drop_pools()
    until(lambda: not mesh_site.legs())
    assert get(mesh_site, version) == dict.fromkeys(("client", "server"), "tcp-only opted-out")


def test_the_kill_switch(mesh_site: Site, version: int) -> None:
    """While it is on nothing begins to be spliced; what is spliced goes on."""
    mesh_site.accelerate(True)
    mesh_site.drop_pools()
    until(lambda: not mesh_site.legs())
    old = mesh_site.connect(version)
    old.request("GET", "/small")
    old.getresponse().read()
    mesh_site.node.run(mesh_site.node.datapath.set_disabled(True))
    try:
        mesh_site.drop_pools()
        until(lambda: "server" not in mesh_site.legs())
        new = mesh_site.connect(version)
        for connection in (old, new):
            connection.request("GET", "/small")
            assert connection.getresponse().read()
        legs = mesh_site.legs()
        assert set(legs) == {"client"}
        assert legs["client"].state is SpliceState.SPLICED
        assert legs["client"].endpoint_port == old.sock.getsockname()[1]
        old.close()
        new.close()
    finally:
        mesh_site.node.run(mesh_site.node.datapath.set_disabled(False))


def test_nothing_is_attached_where_it_does_not_belong(mesh_site: Site) -> None:
    """The pods' loopbacks have one link each, the node's has none."""
    root = mesh_site.node.datapath._maps.root
    cookies = {str(one.netns_cookie) for one in mesh_site.node.datapath._attached.values()}
    assert {pin.name for pin in (root / "sidecars").iterdir()} == cookies
    assert not list((root / "tcx").glob("1-*"))
