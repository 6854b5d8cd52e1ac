"""What keeps a large cluster small in memory: it must mean the same as what it stands for."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from spliceway.agent.addresses import AddressBook
from spliceway.agent.inventory import Inventory
from spliceway.agent.inventoryfiles import NOTHING, File, Files, Owners
from spliceway.agent.manifests import Entry
from spliceway.agent.sources.events import FileRefused, ObjectChanged
from spliceway.bpf.addresses import pack_prefix
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Pod, object_key
from spliceway.policy.prefixsets import host_prefix, place_of


@pytest.mark.parametrize("text", ["10.1.2.3", "255.255.255.255", "0.0.0.0", "fd00::1", "::"])
def test_a_prefix_of_one_address_is_like_any_other(text: str) -> None:
    address = ip_address(text)
    prefix, other = host_prefix(address), ip_network(text)
    assert (prefix, hash(prefix), str(prefix), repr(prefix)) == (other, hash(other), str(other), repr(other))
    assert {prefix: 1}[other] == {other: 1}[prefix] == 1
    assert (prefix.prefixlen, prefix.max_prefixlen, prefix.version) == (
        other.prefixlen,
        other.max_prefixlen,
        other.version,
    )
    assert (prefix.broadcast_address, prefix.hostmask) == (other.broadcast_address, other.hostmask)
    assert prefix.subnet_of(other)  # type: ignore[arg-type]
    assert prefix.supernet_of(other)  # type: ignore[arg-type]
    assert address in prefix
    assert (place_of(prefix), pack_prefix(prefix)) == (place_of(other), pack_prefix(other))
    assert sorted([other, prefix]) == [other, other]  # type: ignore[type-var]
    assert prefix.network_address is address


def test_a_pod_may_be_called_by_its_whole_name() -> None:
    short, whole = Pod("default", "web"), Pod("default", "default/web")
    assert short.key is whole.key or short.key == whole.key
    assert object_key(short) == object_key(whole) == ("Pod", "default/web")


def test_files_of_one_object_are_files() -> None:
    files, entry = Files(), Entry(Pod("default", "web"), b"")
    key = ("Pod", "default/web")
    files.put("a", File.of({key: entry}))
    files.put("b", File.of({key: entry}, frozenset((key,))))
    odd = Entry(Pod("default", "odd"), b"", errors=(PolicyError("c", "Pod default/odd", "", "odd"),))
    files.put("c", File.of({("Pod", "default/odd"): odd}))
    assert [dict(files.of(name).entries) for name in "ab"] == [{key: entry}] * 2
    assert files.of("a").entries[key] is files.entry("a", key) is files.entry("b", key) is entry
    assert (files.of("a").held, files.of("b").held) == (frozenset(), {key})
    assert files.of("c").odd == (("Pod", "default/odd"),)
    assert (files.of("d"), sorted(files), len(files)) == (NOTHING, ["a", "b", "c"], 3)
    assert files.drop("b").held == {key}
    assert (files.drop("b"), len(files)) == (NOTHING, 2)


def test_owners_of_pods_and_of_others() -> None:
    owners = Owners()
    keys = [("Pod", "default/web"), ("Service", "default/web"), ("Node", "web")]
    for number, key in enumerate(keys):
        owners[key] = str(number)
    assert [owners[key] for key in keys] == ["0", "1", "2"]
    assert sorted(owners) == sorted(keys)
    assert owners.pop(("Pod", "default/web"), None) == "0"
    assert owners.pop(("Pod", "default/web"), None) is None
    assert (("Pod", "default/web") in owners, ("Service", "default/web") in owners, len(owners)) == (False, True, 2)


def test_the_last_of_several_pods_at_an_address_is_named() -> None:
    book, address = AddressBook(), ip_address("10.0.0.1")
    for name in ("a", "b", "c"):
        book.update([(("Pod", f"default/{name}"), Pod("default", name, {}, (address,)))])
    assert book.get(address) == "default/c"
    book.update([(("Pod", "default/c"), None)])
    assert book.get(address) == "default/b"
    book.update([(("Pod", "default/a"), None)])
    assert book.get(address) == "default/b"
    book.update([(("Pod", "default/b"), Pod("default", "b"))])
    assert book.get(address) == ""


def test_what_is_refused_of_a_clusters_pod_names_it() -> None:
    inventory = Inventory("node1")
    metadata: dict[str, Any] = {"name": "web", "namespace": "shop", "labels": {"app": 1}}
    inventory.feed((ObjectChanged("shop/web", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}),))
    (refusal,) = inventory.refusals
    assert str(refusal).startswith("kubernetes:Pod/shop/web: Pod shop/web: metadata.labels")
    inventory.feed((FileRefused("shop/other", "Pod can't be read: no"),))
    assert any(str(one) == "shop/other: Pod can't be read: no" for one in inventory.refusals)


def test_an_agent_imports_no_more_than_it_uses() -> None:
    code = (
        "from spliceway.agent import memory; memory.import_less(); memory.import_less(); import sys\n"
        "import spliceway.agent.run, structlog\n"
        "print([name for name in sys.modules if name.startswith(('rich.', 'pygments'))])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
