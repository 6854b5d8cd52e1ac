"""What files and admin API come to: what wins, what is refused, and what stays served."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from spliceway.xds.errors import InconsistentSnapshotError, ResourceError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, TYPES
from spliceway.xds.resources.protofiles import Loaded, load_resources
from spliceway.xds.static.files import EVERYONE, News, scope_of
from spliceway.xds.static.layers import ConflictError, UnknownResourceError
from spliceway.xds.static.show import TYPE_WORDS, refused_shown, resources_shown, state_shown
from spliceway.xds.static.state import Builder, State, differing


def cluster(name: str, timeout: int = 1) -> dict[str, Any]:
    return {"@type": CLUSTER, "name": name, "connect_timeout": f"{timeout}s"}


def text(*resources: dict[str, Any]) -> str:
    return yaml.safe_dump_all(resources)


def loaded(*resources: dict[str, Any]) -> list[Loaded]:
    return load_resources(text(*resources), "request")


def no_bad_cluster(snapshot: Snapshot) -> None:
    """A check: what is called `bad` makes the whole inconsistent."""
    if "bad" in snapshot.types[CLUSTER].resources:
        raise InconsistentSnapshotError("cluster 'bad' is bad")


BUILDER = Builder(load_resources, no_bad_cluster)


class Story:
    """A state and what happens to it, each step with a version of its own."""

    def __init__(self, **files: str) -> None:
        self.state = State()
        self.steps = 0
        self.fresh: dict[str, Snapshot] = {}
        self.gone: list[str] = []
        self.files(**files)

    def files(self, **files: str | None) -> Story:
        """Files appear, change or (None) go; `nodes__n1__a` is nodes/n1/a.yaml."""
        news = [News(f"{name.replace('__', '/')}.yaml", content) for name, content in files.items()]
        return self._now(BUILDER.read(self.state, news, self._version()))

    def refuse(self, file: str, reason: str) -> Story:
        return self._now(BUILDER.read(self.state, [News(file, error=reason)], self._version()))

    def api(self, method: str, scope: str, *arguments: Any, version: str | None = None) -> Story:
        layers = getattr(self.state.layers, method)(scope, *arguments)
        fresh = version or self._version()
        return self._now(BUILDER.change(self.state, layers, scope, fresh, forced=version is not None))

    def clusters(self, scope: str = EVERYONE) -> dict[str, str]:
        """Name → version of what a node gets."""
        served = self.state.snapshot(scope)
        return {} if served is None else {n: r.version for n, r in served.snapshot.types[CLUSTER].resources.items()}

    def timeout(self, name: str, scope: str = EVERYONE) -> str:
        shown = resources_shown(scope, self.state.snapshot(scope), lambda key: key == (CLUSTER, name))
        return str(shown["resources"][0]["resource"]["connect_timeout"])

    def _version(self) -> str:
        self.steps += 1
        return f"v{self.steps}"

    def _now(self, state: State) -> Story:
        self.fresh, self.gone = differing(self.state, state)
        self.state = state
        return self


def test_only_what_changes_gets_a_new_version() -> None:
    story = Story(a=text(cluster("one"), cluster("two")), b=text(cluster("three")))
    assert story.clusters() == {"one": "v1", "two": "v1", "three": "v1"}
    story.files(a=text(cluster("one", 2), cluster("two")))
    assert story.clusters() == {"one": "v2", "two": "v1", "three": "v1"}
    assert set(story.fresh) == {EVERYONE}
    story.files(a=text(cluster("one", 2), cluster("two")))
    assert not story.fresh
    story.files(a=None)
    assert story.clusters() == {"three": "v1"}


def test_going_back_gets_a_new_version() -> None:
    """Envoy issue 12592: a version that was refused once is never looked at again."""
    story = Story(a=text(cluster("one")))
    story.files(a=text(cluster("one", 2))).files(a=text(cluster("one")))
    assert story.clusters() == {"one": "v3"}


def test_a_file_that_cannot_be_parsed_keeps_its_last_content() -> None:
    story = Story(a=text(cluster("one")), b=text(cluster("two")))
    story.files(a=text(cluster("three"), {"@type": CLUSTER, "name": "four", "connect_timeout": [1]}))
    assert story.clusters() == {"one": "v1", "two": "v1"}
    (problem,) = state_shown(story.state)["problems"]
    assert problem.startswith("a.yaml: document 2: connect_timeout")
    story.refuse("b.yaml", "is not UTF-8 (byte 0)")
    assert story.clusters() == {"one": "v1", "two": "v1"}
    assert "b.yaml: is not UTF-8 (byte 0)" in state_shown(story.state)["problems"]
    story.files(a=text(cluster("three")), b=None)
    assert story.clusters() == {"three": "v4"}
    assert not state_shown(story.state)["problems"]


def test_an_inconsistent_whole_changes_nothing_until_it_is_good_again() -> None:
    story = Story(a=text(cluster("one")))
    story.files(b=text(cluster("bad")))
    assert not story.fresh
    story.files(c=text(cluster("two")))
    assert story.clusters() == {"one": "v1"}
    assert story.state.problems == {EVERYONE: "cluster 'bad' is bad"}
    story.files(b=None)
    assert story.clusters() == {"one": "v1", "two": "v4"}
    assert not story.state.problems


def test_a_resource_in_two_files_is_inconsistent() -> None:
    story = Story(a=text(cluster("one")))
    story.files(b=text(cluster("two"), cluster("one", 2)))
    assert story.clusters() == {"one": "v1"}
    expected = "b.yaml: document 2: CDS 'one' is in a.yaml: document 1 already"
    assert story.state.problems == {EVERYONE: expected}
    story.files(a=None)  # moved to the other file
    assert story.clusters() == {"one": "v3", "two": "v3"}


@pytest.mark.parametrize("content", ["@", text(cluster("bad"))], ids=["unreadable", "inconsistent"])
@pytest.mark.parametrize("file", ["b", "nodes__n1__b"])
def test_nothing_is_served_until_everything_could_be_read_once(file: str, content: str) -> None:
    """An incomplete set would take listeners away from proxies that have them."""
    story = Story(**{"a": text(cluster("one")), file: content})
    assert not story.fresh
    assert not story.clusters("n1")
    with pytest.raises(InconsistentSnapshotError, match="nothing is served before"):
        story.api("put", EVERYONE, loaded(cluster("two")))
    story.files(**{file: text(cluster("two"))})
    assert story.fresh[EVERYONE].types[CLUSTER].resources.keys() >= {"one"}
    assert story.clusters("n1").keys() == {"one", "two"}
    # Once it was complete, a new file that can't be read holds nobody up.
    story.files(c="@", d=text(cluster("three")))
    assert "three" in story.clusters()


def test_a_node_gets_everyones_and_its_own_which_win() -> None:
    story = Story(a=text(cluster("one"), cluster("two")), nodes__n1__a=text(cluster("two", 2), cluster("mine")))
    assert story.clusters("n1").keys() == {"one", "two", "mine"}
    assert (story.timeout("two", "n1"), story.timeout("two", "n2")) == ("2s", "1s")
    assert "mine" not in story.clusters("n2")
    story.files(a=text(cluster("one", 5)))
    assert set(story.fresh) == {EVERYONE, "n1"}
    assert story.clusters("n1").keys() == {"one", "two", "mine"}
    story.files(nodes__n1__a=None)
    assert story.gone == ["n1"]
    assert story.clusters("n1") == story.clusters()


def test_what_a_new_node_has_in_common_with_everyone_is_not_sent_again() -> None:
    story = Story(a=text(cluster("one")))
    story.files(nodes__n1__a=text(cluster("mine")))
    assert story.clusters("n1") == {"one": "v1", "mine": "v2"}
    assert story.fresh["n1"].types[LISTENER] is story.state.served[EVERYONE].snapshot.types[LISTENER]


def test_a_nodes_fault_stays_its_own() -> None:
    story = Story(a=text(cluster("one")), nodes__n1__a=text(cluster("mine")))
    story.files(nodes__n1__a=text(cluster("bad")), a=text(cluster("one", 2)))
    assert story.clusters() == {"one": "v2"}
    assert story.clusters("n1") == {"one": "v1", "mine": "v1"}
    assert story.state.problems == {"n1": "cluster 'bad' is bad"}


@pytest.mark.parametrize(
    ("file", "scope"),
    [("a.yaml", EVERYONE), ("nodes/n1/a.yaml", "n1"), ("nodes/spiffe:%2F%2Fx%2Fy/a.yaml", "spiffe://x/y")],
)
def test_whose_a_file_is(file: str, scope: str) -> None:
    assert scope_of(file) == scope


@pytest.mark.parametrize("file", ["nodes/a.yaml", "other/a.yaml", "other/n1/a.yaml", "nodes/%2A/a.yaml"])
def test_files_in_other_folders_are_refused(file: str) -> None:
    with pytest.raises(ResourceError, match="belongs beside the folder nodes"):
        scope_of(file)


def test_changes_of_the_admin_api_win_over_files() -> None:
    story = Story(a=text(cluster("one"), cluster("two")))
    story.api("put", EVERYONE, loaded(cluster("one", 7)))
    story.files(a=text(cluster("one", 3), cluster("two", 3)))
    assert (story.timeout("one"), story.timeout("two")) == ("7s", "3s")
    story.api("remove", EVERYONE, (CLUSTER, "two"))
    story.files(a=text(cluster("one", 4), cluster("two", 4)))
    assert story.clusters().keys() == {"one"}
    story.api("put", EVERYONE, loaded(cluster("two", 9)))
    assert story.timeout("two") == "9s"
    story.api("reset", EVERYONE)
    assert (story.timeout("one"), story.timeout("two")) == ("4s", "4s")


def test_set_replaces_everything_for_its_scope() -> None:
    story = Story(a=text(cluster("one")), nodes__n1__a=text(cluster("mine")))
    story.api("set", "n1", loaded(cluster("two")))
    assert story.clusters("n1").keys() == {"two"}
    assert story.clusters().keys() == {"one"}
    story.api("add", "n1", loaded(cluster("three")))
    story.api("remove", "n1", (CLUSTER, "two"))
    assert story.clusters("n1").keys() == {"three"}
    story.api("set", EVERYONE, [])
    assert not story.clusters()
    assert story.clusters("n1").keys() == {"three"}
    story.api("reset", "n1")
    assert story.clusters("n1").keys() == {"mine"}
    story.api("reset", EVERYONE)
    assert story.clusters("n1").keys() == {"one", "mine"}


def test_what_the_admin_api_asks_for_in_vain() -> None:
    story = Story(a=text(cluster("one")))
    with pytest.raises(ConflictError, match="CDS 'one' is there already"):
        story.api("add", EVERYONE, loaded(cluster("two"), cluster("one")))
    with pytest.raises(ConflictError):
        story.api("add", "n1", loaded(cluster("one")))
    with pytest.raises(UnknownResourceError, match="there is no CDS 'two'"):
        story.api("remove", EVERYONE, (CLUSTER, "two"))
    with pytest.raises(InconsistentSnapshotError, match="is bad"):
        story.api("put", EVERYONE, loaded(cluster("bad"), cluster("two")))
    assert story.clusters() == {"one": "v1"}


def test_a_change_for_everyone_must_suit_nodes_too() -> None:
    def needs_one(snapshot: Snapshot) -> None:
        held = snapshot.types[CLUSTER].resources
        if "mine" in held and "one" not in held:
            raise InconsistentSnapshotError("mine needs one")

    builder = Builder(load_resources, needs_one)
    news = [News("a.yaml", text(cluster("one"))), News("nodes/n1/a.yaml", text(cluster("mine")))]
    state = builder.read(State(), news, "v1")
    with pytest.raises(InconsistentSnapshotError, match="node 'n1': mine needs one"):
        builder.change(state, state.layers.remove(EVERYONE, (CLUSTER, "one")), EVERYONE, "v2")


def test_a_forced_version_is_what_clients_of_both_variants_see() -> None:
    story = Story()
    story.api("set", "n1", loaded(cluster("one"), cluster("two")), version="1")
    story.api("put", "n1", loaded(cluster("one", 2)), version="2")
    held = story.fresh["n1"].types[CLUSTER]
    assert held.version == "2"
    assert {name: (item.version, item.digest) for name, item in held.resources.items()} == {
        "one": ("2", "2"),
        "two": ("1", "1"),
    }
    assert story.fresh["n1"].types[LISTENER].version == "v1"


def test_what_types_may_be_called() -> None:
    assert TYPE_WORDS["cds"] == TYPE_WORDS["clusters"] == TYPE_WORDS["envoy.config.cluster.v3.cluster"] == CLUSTER
    assert set(TYPE_WORDS.values()) == set(TYPES)


def test_where_a_resource_comes_from_is_shown() -> None:
    story = Story(a=text(cluster("one")), nodes__n1__a=text(cluster("mine")))
    story.api("put", "n1", loaded(cluster("more")))
    shown = resources_shown("n1", story.state.snapshot("n1"), lambda _: True)
    assert {item["name"]: item["from"] for item in shown["resources"]} == {
        "one": "a.yaml: document 1",
        "mine": "nodes/n1/a.yaml: document 1",
        "more": "request: document 1",
    }
    files = {item["file"]: item["state"] for item in state_shown(story.state)["files"]}
    assert files == {"a.yaml": "served", "nodes/n1/a.yaml": "served"}
    assert refused_shown(story.state) == []
