"""From events to a cluster: what is refused changes nothing, and that survives a restart."""

from __future__ import annotations

import msgspec
import pytest

from spliceway.agent.inventory import Inventory
from spliceway.agent.sources.events import FileChanged, FileRefused, FileRemoved, SourceLost
from spliceway.agent.state import Held
from spliceway.policy.documents import Document
from spliceway.policy.model import Cluster, Object, Pod
from spliceway.policy.parse import READERS, parse_document
from spliceway.policy.parse_authorization_source import IstioNames
from support.agent import endpoint, pod, policy

NS = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"
GOOD = policy("web", "server", 80)
BAD = GOOD.replace("'80'", "'70000'")


def fed(*events: FileChanged | FileRemoved | FileRefused | SourceLost, held: Held | None = None) -> Inventory:
    inventory = Inventory("node1", held)
    for event in events:
        inventory.feed((event,))
    return inventory


def said(inventory: Inventory) -> list[str]:
    return [str(refusal) for refusal in inventory.refusals]


def port_of(inventory: Inventory, name: str = "default/web") -> int:
    return inventory.cluster.policies["CiliumNetworkPolicy", name].specs[0].rules[0].to_ports[0].ports[0].first


def test_a_fault_of_ours_refuses_one_object_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(document: Document, names: IstioNames | None) -> tuple[Object, ...]:
        if document.content["metadata"]["name"] == "web":
            int("secret")
        return parse_document(document, names)

    inventory = fed(FileChanged("p.yaml", GOOD))
    monkeypatch.setattr("spliceway.agent.manifests.parse_document", read)
    inventory.feed((FileChanged("p.yaml", GOOD.replace("'80'", "'81'") + "---\n" + policy("api", "server", 82)),))
    assert (port_of(inventory), port_of(inventory, "default/api")) == (80, 82)
    (told,) = said(inventory)
    assert told.startswith("p.yaml: CiliumNetworkPolicy default/web: can't be read, by a fault of Spliceway's own")
    assert "(ValueError in test_agent_inventory.py:" in told
    assert "the last good version stays in force" in told
    assert "secret" not in told


def test_objects_and_endpoints() -> None:
    inventory = fed(
        FileChanged("pods.yaml", "---\n".join([pod("a", "10.0.0.1"), pod("b", "10.0.0.2", node="node2"), NS])),
        FileChanged("p.yaml", GOOD),
    )
    cluster = inventory.cluster
    assert (sorted(cluster.pods), sorted(name for _, name in cluster.policies)) == (
        ["default/a", "default/b"],
        ["default/web"],
    )
    assert inventory.endpoints == (endpoint("a", "10.0.0.1"),)
    assert (inventory.files, inventory.objects, inventory.refusals) == (2, 4, ())
    assert sorted(inventory.names("Pod")) == ["default/a", "default/b"]  # also another node's


def test_a_bad_edit_keeps_the_last_good_version() -> None:
    inventory = fed(FileChanged("p.yaml", GOOD), FileChanged("p.yaml", BAD))
    assert port_of(inventory) == 80
    assert said(inventory) == [
        "p.yaml: CiliumNetworkPolicy default/web: spec.ingress[0].toPorts[0].ports[0].port: "
        "70000 is not a port (1 to 65535) (the last good version stays in force)"
    ]
    assert inventory.refusals[0].kept
    inventory.feed((FileChanged("p.yaml", policy("web", "server", 81)),))
    assert (port_of(inventory), inventory.refusals) == (81, ())


def test_other_documents_and_files_are_not_touched() -> None:
    other = policy("other", "x", 1)
    inventory = fed(
        FileChanged("p.yaml", f"{GOOD}---{other}"),
        FileChanged("q.yaml", policy("q", "x", 2)),
        FileChanged("p.yaml", f"{BAD}---{policy('other', 'x', 3)}"),
    )
    assert (port_of(inventory), port_of(inventory, "default/other"), port_of(inventory, "default/q")) == (80, 3, 2)


def test_a_document_that_goes_is_removed_unless_the_file_is_doubtful() -> None:
    other = policy("other", "x", 1)
    assert sorted(
        name for _, name in fed(FileChanged("p", f"{GOOD}---{other}"), FileChanged("p", GOOD)).cluster.policies
    ) == ["default/web"]
    for doubtful in (
        "kind: CiliumNetworkPolicy\n",
        BAD.replace("name: web", "name: new"),
        "a: [",
        "- 1",
        "kind: List\n",
    ):
        inventory = fed(FileChanged("p", f"{GOOD}---{other}"), FileChanged("p", f"{other}---\n{doubtful}"))
        assert sorted(name for _, name in inventory.cluster.policies) == ["default/other", "default/web"], doubtful
        assert len(inventory.refusals) == 1


def test_a_new_bad_document_is_refused_alone() -> None:
    inventory = fed(FileChanged("p", BAD))
    assert not inventory.cluster.policies
    assert not inventory.refusals[0].kept


def test_unreadable_and_lost() -> None:
    inventory = fed(
        FileChanged("p", GOOD), FileRefused("p", "is larger than 10 bytes"), SourceLost("directory is gone")
    )
    assert port_of(inventory) == 80
    assert said(inventory) == [
        "p: is larger than 10 bytes (the last good version stays in force)",
        "directory is gone (the last good version stays in force)",
    ]
    inventory.feed((SourceLost(""), FileChanged("p", GOOD)))
    assert inventory.refusals == ()


def test_the_same_object_in_two_files_names_both_and_the_first_stays() -> None:
    inventory = fed(FileChanged("b.yaml", GOOD), FileChanged("a.yaml", policy("web", "server", 81)))
    assert port_of(inventory) == 80
    assert said(inventory) == ["a.yaml: CiliumNetworkPolicy default/web: is already in b.yaml, which stays"]
    inventory.feed((FileRemoved("b.yaml"),))
    assert (port_of(inventory), inventory.refusals) == (81, ())


def test_a_rename_is_one_change() -> None:
    inventory = fed(FileChanged("a", GOOD))
    assert not inventory.feed((FileRemoved("a"), FileChanged("b", GOOD))) or port_of(inventory) == 80
    assert inventory.refusals == ()


def test_twice_in_one_file() -> None:
    inventory = fed(FileChanged("a", f"{GOOD}---{policy('web', 'server', 81)}"))
    assert port_of(inventory) == 80
    assert said(inventory) == ["a: CiliumNetworkPolicy default/web: appears twice in this file"]


def test_what_is_held_survives_a_restart() -> None:
    before = fed(FileChanged("p", GOOD), FileChanged("p", BAD), FileChanged("gone", policy("gone", "x", 1)))
    before.feed((FileChanged("gone", "a: ["),))
    held = msgspec.json.decode(msgspec.json.encode(before.held), type=Held)
    assert sorted(held.documents) == ["gone", "p"]
    after = Inventory("node1", held)
    assert after.feed((FileChanged("p", BAD),))
    assert (port_of(after), sorted(key for _, key in after.cluster.policies)) == (80, ["default/web"])
    after.feed((FileChanged("p", GOOD),))
    assert after.held == Held()


def test_a_lost_source_at_the_start_keeps_what_is_held() -> None:
    held = fed(FileChanged("p", GOOD), FileChanged("p", BAD)).held
    after = Inventory("node1", held)
    after.feed((SourceLost("directory is gone"),))
    assert port_of(after) == 80


def test_the_owner_of_a_contested_object_survives_a_restart() -> None:
    before = fed(FileChanged("b", GOOD), FileChanged("a", policy("web", "server", 81)))
    after = Inventory("node1", before.held)
    after.feed((FileChanged("a", policy("web", "server", 81)), FileChanged("b", GOOD)))
    assert port_of(after) == 80


def test_no_news_is_no_change() -> None:
    inventory = fed(FileChanged("p", GOOD))
    assert not inventory.feed((FileChanged("p", GOOD + "\n# a comment\n"),))
    assert inventory.feed((FileChanged("p", BAD),))


def test_bad_wiring_is_refused_with_its_field() -> None:
    inventory = fed(
        FileChanged("a", pod("a", "10.0.0.1").replace("lxca", "../x")),
        FileChanged("b", pod("b", "10.0.0.2").replace("/run/netns/b", "b")),
        FileChanged("c", pod("c", "10.0.0.3", wired=False)),
        FileChanged("d", pod("d", "10.0.0.4").replace("nodeName: node1", "nodeName: node1, hostNetwork: true")),
    )
    assert said(inventory) == [
        "a: Pod default/a: metadata.annotations[spliceway.io/interface]: '../x' is not an interface name",
        "b: Pod default/b: metadata.annotations[spliceway.io/netns]: 'b' is not an absolute path",
    ]
    assert inventory.endpoints == ()


def test_lists_are_taken_apart_and_refused_whole() -> None:
    def listed(*items: str) -> str:
        return f"apiVersion: v1\nkind: List\nitems: [{', '.join(items)}]"

    one = "{apiVersion: v1, kind: Namespace, metadata: {name: one}}"
    two = "{apiVersion: v1, kind: Namespace, metadata: {name: two}}"
    inventory = fed(FileChanged("l", listed(one, two)))
    assert sorted(inventory.cluster.namespaces) == ["one", "two"]
    inventory.feed((FileChanged("l", listed(one, two.replace("two", "Two!"))),))
    assert sorted(inventory.cluster.namespaces) == ["one", "two"]


def test_one_interface_belongs_to_one_pod() -> None:
    inventory = fed(
        FileChanged("b", pod("b", "10.0.0.2").replace("lxcb", "lxca")), FileChanged("a", pod("a", "10.0.0.1"))
    )
    assert inventory.endpoints == (endpoint("a", "10.0.0.1"),)
    assert said(inventory) == [
        "b: Pod default/b: metadata.annotations[spliceway.io/interface]: lxca is already that of default/a"
    ]


def test_nothing_is_known_before_the_first_good_look() -> None:
    inventory = fed(SourceLost("gone"))
    assert not inventory.synced
    inventory.feed((SourceLost(""), FileChanged("p", GOOD)))
    assert inventory.synced


KINDS = {
    ("NetworkPolicy", "default/a"): "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, "
    "metadata: {name: a}, spec: {podSelector: {}}}",
    ("CiliumNetworkPolicy", "default/a"): "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, "
    "metadata: {name: a}, spec: {endpointSelector: {}, ingress: [{}]}}",
    ("CiliumClusterwideNetworkPolicy", "a"): "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, "
    "metadata: {name: a}, spec: {endpointSelector: {}, ingress: [{}]}}",
    ("ClusterNetworkPolicy", "a"): "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, "
    "metadata: {name: a}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: []}}",
    ("AdminNetworkPolicy", "a"): "{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy, "
    "metadata: {name: a}, spec: {priority: 1, subject: {namespaces: {}}, ingress: []}}",
    ("BaselineAdminNetworkPolicy", "default"): "{apiVersion: policy.networking.k8s.io/v1alpha1, "
    "kind: BaselineAdminNetworkPolicy, metadata: {name: default}, spec: {subject: {namespaces: {}}, ingress: []}}",
    ("AuthorizationPolicy", "default/a"): "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, "
    "metadata: {name: a}, spec: {action: DENY}}",
    ("CiliumCIDRGroup", "a"): "{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, "
    "metadata: {name: a}, spec: {externalCIDRs: [192.0.2.0/24]}}",
    ("Service", "default/a"): "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}",
    ("EndpointSlice", "default/a"): "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, "
    "addressType: IPv4, endpoints: [{addresses: [192.0.2.1]}]}",
    ("Secret", "default/a"): "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {token: hush}}",
    ("Namespace", "a"): "{apiVersion: v1, kind: Namespace, metadata: {name: a}}",
    ("Node", "a"): "{apiVersion: v1, kind: Node, metadata: {name: a}}",
}


def test_no_kind_is_left_out() -> None:
    assert {kind for _version, kind in READERS} <= {kind for kind, _name in KINDS} | {"Pod"}


@pytest.mark.parametrize("key", [key for key in KINDS if key[0] in {kind for _version, kind in READERS}])
def test_every_kind_is_kept_by_its_name(key: tuple[str, str]) -> None:
    """A document that says which object it means holds that object and no other."""
    good, other = KINDS[key], KINDS["Namespace", "a"].replace("name: a", "name: other")
    inventory = fed(FileChanged("p", f"{good}\n---\n{other}"))
    assert inventory.refusals == ()
    assert dict(inventory.changes()).keys() == {key, ("Namespace", "other")}
    inventory.feed((FileChanged("p", good.replace("metadata: {", "unknown: 1, metadata: {unknown: 1, ")),))
    if not inventory.refusals:  # of objects only what is needed is read
        assert key[0] in ("Namespace", "Node", "Service", "EndpointSlice", "Secret", "CiliumCIDRGroup")
        inventory.feed((FileChanged("p", good.replace("}", ", name: b}", 1)),))
    assert [refusal.kept for refusal in inventory.refusals] == [True]
    assert dict(inventory.changes()) == {("Namespace", "other"): None}


def test_changes_are_what_changed() -> None:
    inventory = fed(FileChanged("a", pod("a", "10.0.0.1") + "---" + pod("b", "10.0.0.2")), FileChanged("p", GOOD))
    first = dict(inventory.changes())
    assert first.keys() == {("Pod", "default/a"), ("Pod", "default/b"), ("CiliumNetworkPolicy", "default/web")}
    assert dict(inventory.changes()) == {}
    inventory.feed((FileChanged("a", pod("a", "10.0.0.9") + "---" + pod("b", "10.0.0.2")),))
    ((key, item),) = inventory.changes().items()
    assert (key, isinstance(item, Pod) and str(item.addresses[0])) == (("Pod", "default/a"), "10.0.0.9")
    inventory.feed((FileRemoved("p"), FileChanged("q", pod("c", "10.0.0.3"))))
    inventory.feed((FileRemoved("q"),))
    assert dict(inventory.changes()) == {("CiliumNetworkPolicy", "default/web"): None, ("Pod", "default/c"): None}


def test_changes_add_up_to_the_cluster() -> None:
    """Files come, change, lose documents, become unreadable, contest objects and go."""
    steps: list[tuple[FileChanged | FileRemoved | FileRefused, ...]] = [
        (FileChanged("b", GOOD + "---" + pod("a", "10.0.0.1")), FileChanged("c", pod("c", "10.0.0.3"))),
        (FileChanged("a", policy("web", "server", 81) + "---" + pod("a", "10.0.0.2")),),
        (FileChanged("b", BAD),),
        (FileRefused("c", "is a pipe"),),
        (FileRemoved("b"), FileChanged("d", policy("web", "server", 82))),
        (FileChanged("a", "a: ["),),
        (FileRemoved("a"), FileRemoved("c")),
        (FileRemoved("d"),),
    ]
    inventory, cluster = Inventory("node1"), Cluster()
    for step in steps:
        inventory.feed(step)
        for (kind, name), item in inventory.changes().items():
            cluster = cluster.with_objects((item,)) if item is not None else cluster.without(kind, name)
        assert cluster == inventory.cluster
    assert cluster == Cluster()


def test_a_secret_is_held_in_memory_only() -> None:
    good = KINDS["Secret", "default/a"]
    bad = good.replace("stringData: {token: hush}", "data: {token: '%%%hush%%%'}")
    inventory = fed(FileChanged("s", f"{good}\n---\n{GOOD}"), FileChanged("s", f"{bad}\n---\n{BAD}"))
    assert inventory.cluster.secrets["default/a"].data == {"token": b"hush"}
    assert [refusal.kept for refusal in inventory.refusals] == [True, True]
    written = msgspec.json.encode(inventory.held)
    assert b"web" in written
    assert b"hush" not in written
    assert "hush" not in repr(inventory.refusals) + repr(inventory) + repr(inventory.changes())
    after = Inventory("node1", inventory.held)
    after.feed((FileChanged("s", f"{bad}\n---\n{BAD}"),))
    assert (port_of(after), after.cluster.secrets) == (80, {})


def test_policies_in_audit_are_counted() -> None:
    audited = GOOD.replace("name: web", "annotations: {spliceway.io/enforcement: audit}, name: web")
    inventory = fed(FileChanged("p", audited), FileChanged("q", policy("q", "x", 2)))
    assert inventory.policies == (2, 1)
    inventory.feed((FileChanged("p", GOOD),))
    assert inventory.policies == (2, 0)
    inventory.feed((FileRemoved("p"), FileRemoved("q")))
    assert inventory.policies == (0, 0)


def test_kinds_that_are_left_to_others_are_not_even_looked_at() -> None:
    """Neither objects nor refusals come of them, in Lists either, nor what an earlier agent held of them."""
    bad = BAD.replace("name: web", "name: bad")
    k8s = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: plain, namespace: default}
spec: {podSelector: {}}
"""
    listed = "apiVersion: v1\nkind: List\nitems:\n" + "".join(
        "- " + text.strip().replace("\n", "\n  ") + "\n" for text in (bad, k8s.replace("plain", "listed"), NS)
    )
    held = fed(FileChanged("p.yaml", GOOD), FileChanged("p.yaml", BAD)).held
    assert held.documents
    inventory = Inventory("node1", held, ("NetworkPolicy",))
    assert inventory.objects == 0
    inventory.feed((FileChanged("p.yaml", GOOD + "---" + bad + "---" + k8s), FileChanged("list.yaml", listed)))
    assert sorted(inventory.cluster.policies) == [
        ("NetworkPolicy", "default/listed"),
        ("NetworkPolicy", "default/plain"),
    ]
    assert (inventory.policies, inventory.refusals, inventory.objects) == ((2, 0), (), 3)
    broken = Inventory("node1", None, ("CiliumNetworkPolicy",))
    broken.feed((FileChanged("list.yaml", listed),))
    assert [refusal.document for refusal in broken.refusals] == ["CiliumNetworkPolicy default/bad"]


def test_an_annotation_of_an_object_in_force() -> None:
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1, annotations: {a/b: 'true'}}\n"
    inventory = fed(FileChanged("n.yaml", node))
    assert inventory.annotation(("Node", "node1"), "a/b") == "true"
    assert inventory.annotation(("Node", "node1"), "c") is None
    assert inventory.annotation(("Node", "node2"), "a/b") is None
    inventory.feed((FileRemoved("n.yaml"),))
    assert inventory.annotation(("Node", "node1"), "a/b") is None
    assert fed(FileChanged("n.yaml", NS)).annotation(("Namespace", "default"), "a") is None


OURS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: made
  labels: {app.kubernetes.io/managed-by: spliceway}
  annotations: {spliceway.io/translated-from: x}
spec: {}
"""


def test_what_we_made_for_others_is_not_even_looked_at() -> None:
    """AuthorizationPolicies of our own would say again what they were made of; nor does their content matter."""
    listed = "apiVersion: v1\nkind: List\nitems:\n- " + OURS.strip().replace("\n", "\n  ") + "\n"
    inventory = fed(
        FileChanged("p", OURS), FileChanged("q", OURS.replace("{}", "5")), FileChanged("r", f"{listed}\n---\n{NS}")
    )
    assert (inventory.policies, inventory.refusals) == ((0, 0), ())
    other = OURS.replace("managed-by: spliceway", "managed-by: helm")
    inventory.feed((FileChanged("p", other),))
    assert set(inventory.cluster.policies) == {("AuthorizationPolicy", "default/made")}
    # Whoever labels his own as ours takes it away.
    inventory.feed((FileChanged("p", OURS),))
    assert (inventory.policies, inventory.refusals) == ((0, 0), ())


def test_the_mesh_names_itself() -> None:
    text = OURS.replace("  labels: {app.kubernetes.io/managed-by: spliceway}\n", "").replace(
        "spec: {}", "spec: {rules: [{from: [{source: {principals: [mesh.example/ns/a/sa/b]}}]}]}"
    )
    inventory = Inventory("node1", istio=IstioNames("mesh.example"))
    inventory.feed((FileChanged("p", text),))
    assert inventory.refusals == ()
    (refusal,) = fed(FileChanged("p", text)).refusals
    assert "spec.rules[0].from[0].source.principals[0]" in str(refusal)
