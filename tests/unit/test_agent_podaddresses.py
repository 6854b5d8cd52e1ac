"""One address, two pods that claim it: who has it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from spliceway.agent.inventory import Inventory
from spliceway.agent.sources.events import FileEvent, FileRemoved, ObjectChanged
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.model import Pod
from support.kubesource import NODE, pod

OLD, YOUNG = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
A, B, C = (ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "fd00::1"))


class World:
    """An inventory and what comes out of it."""

    def __init__(self) -> None:
        self.inventory = Inventory(NODE)
        self.told: dict[str, tuple[object, ...]] = {}

    def feed(self, *events: FileEvent) -> dict[str, tuple[object, ...]]:
        """Addresses by pod, as policy has them after these events."""
        self.inventory.feed(events)
        changes = dict(self.inventory.changes())
        for (kind, name), item in changes.items():
            assert kind == "Pod"
            self.told.pop(name, None)
            if isinstance(item, Pod):
                self.told[name] = item.addresses
        return {name.partition("/")[2]: addresses for name, addresses in sorted(self.told.items())}


def has(name: str, *addresses: object, created: str = "", deleted: bool = False, **more: object) -> ObjectChanged:
    content = pod(name, created=created, **more)  # type: ignore[arg-type]
    content["status"]["podIPs"] = [{"ip": str(address)} for address in addresses]
    if deleted:
        content["metadata"]["deletionTimestamp"] = YOUNG
    return ObjectChanged(f"kubernetes:Pod/default/{name}", content)


def gone(name: str) -> FileRemoved:
    return FileRemoved(f"kubernetes:Pod/default/{name}")


def test_the_younger_one_has_it_whoever_is_told_first() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        world = World()
        of = {"a": has("a", A, C, created=OLD), "b": has("b", A, B, created=YOUNG)}
        world.feed(of[first])
        assert world.feed(of[second]) == {"a": (C,), "b": (A, B)}
        assert world.feed(gone("b")) == {"a": (C,)}, "what a pod has lost it does not get back"
        assert world.feed(has("a", A, C, created=OLD, labels={"app": "other"})) == {"a": (C,)}


def test_one_that_goes_gives_way_to_one_that_stays() -> None:
    world = World()
    world.feed(has("a", A, created=YOUNG))
    assert world.feed(has("a", A, created=YOUNG, deleted=True)) == {"a": (A,)}, "nobody else wants it"
    assert world.feed(has("b", A, created=OLD)) == {"a": (), "b": (A,)}


def test_of_two_alike_nobody_has_it_until_one_goes() -> None:
    world = World()
    both = (has("a", A, created=OLD), has("b", A, created=OLD))
    assert world.feed(*both) == {"a": (A,), "b": (A,)}, "which policy takes for nobody's"
    assert world.feed(has("a", A, created=OLD, deleted=True)) == {"a": (), "b": (A,)}
    world = World()
    world.feed(*both)
    assert world.feed(gone("a")) == {"b": (A,)}


def test_without_an_age_both_keep_it() -> None:
    assert World().feed(has("a", A), has("b", A)) == {"a": (A,), "b": (A,)}
    assert World().feed(has("a", A), has("b", A, created=OLD)) == {"a": (A,), "b": (A,)}


def test_three_of_which_the_last_is_the_youngest() -> None:
    world = World()
    world.feed(has("a", A, created=OLD), has("b", A, created=OLD))
    assert world.feed(has("c", A, created=YOUNG)) == {"a": (), "b": (), "c": (A,)}


def test_another_pod_of_the_same_name_begins_anew() -> None:
    world = World()
    world.feed(has("a", A, created=OLD), has("b", A, created=YOUNG))
    newer = "2026-01-03T00:00:00Z"
    # Gone and made again between two looks, so that nobody was told that it went.
    assert world.feed(gone("b"), has("a", A, created=newer)) == {"a": (A,)}


def test_another_address_is_its_own() -> None:
    world = World()
    world.feed(has("a", A, created=OLD), has("b", A, created=YOUNG))
    assert world.feed(has("a", B, created=OLD)) == {"a": (B,), "b": (A,)}
    world.feed(gone("b"))
    assert world.feed(has("a", A, created=OLD)) == {"a": (A,)}


def test_pods_in_their_hosts_network_share_its_address() -> None:
    first, second = has("a", A, created=OLD), has("b", A, created=YOUNG)
    for one in (first, second):
        one.content["spec"]["hostNetwork"] = True
    assert World().feed(first, second) == {"a": (A,), "b": (A,)}


def test_endpoints_lose_it_too() -> None:
    world = World()
    world.feed(has("a", A, C, created=OLD), has("b", A, created=YOUNG))
    wired = [
        LocalEndpoint("default/a", "a", Path("/a"), (A, C)),  # type: ignore[arg-type]
        LocalEndpoint("default/b", "b", Path("/b"), (A,)),
    ]
    found = world.inventory._addresses.endpoints(wired)
    assert [(one.name, one.addresses) for one in found] == [("default/a", (C,)), ("default/b", (A,))]
    world.feed(has("a", A, created=OLD))
    assert [
        one.name for one in world.inventory._addresses.endpoints([LocalEndpoint("default/a", "a", Path("/a"), (A,))])
    ] == []
