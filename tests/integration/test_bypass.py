"""The hunt: nothing reaches a port with HTTP rules past the proxy, whichever way it is sent.

`make bypass` takes every profile; here there is one of each kind. docs/security.md has the table of ways.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import pytest

from support.bypass import CHOSEN, Hunt, Token, hunt
from support.bypassdials import complaints, dials, run
from support.bypassframes import KERNEL, STEERED, WAYS, Scene
from support.profiled import PROFILES

pytestmark = pytest.mark.kernel

_PORTS = count(41000)


@pytest.fixture(scope="module", params=CHOSEN)
def site(request: pytest.FixtureRequest) -> Iterator[Hunt]:
    with hunt(PROFILES[request.param]) as made:
        yield made


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", [4, 6])
def test_dials(site: Hunt, version: int) -> None:
    """By every address that leads to a pod, from everywhere: proxied, or dropped for a reason."""
    before = site.node.flows_seen()
    found = run(site, dials(site, version))
    wrong = [text for done in found for text in complaints(site, done, before)]
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize(
    ("way", "version"), [(name, version) for name, way in WAYS.items() for version in way.versions]
)
def test_frames(site: Hunt, way: str, version: int) -> None:
    """Frames made by hand. The server's view decides: nothing of them arrives."""
    wanted = WAYS[way]
    if (wanted.bridged and not site.profile.bridged) or (wanted.services and site.profile.kube_proxy == "none"):
        pytest.skip("not on this profile")
    token = Token()
    scene = Scene(site, wanted.sender, version, token, next(_PORTS))
    denied, steered = site.denied(), site.steered()
    sent = 0
    for frame in wanted.make(scene):
        site.send(wanted.sender, frame)
        sent += 1
    assert sent
    time.sleep(0.05)  # what does not come can't be waited for
    assert not (found := site.arrived(token)), f"{len(found)} frames arrived, the first: {found[0].hex()}"
    seen = {reason for reason, packets in site.denied().items() if packets != denied.get(reason, 0)}
    ends = seen | ({STEERED} if site.steered() != steered else set())
    assert KERNEL in wanted.ends or ends & wanted.ends, f"counted: {sorted(map(str, ends))}"
