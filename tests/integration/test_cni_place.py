"""The plugin's place on the node: in the first configuration, whoever writes that, and out of it again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spliceway.agent.cli.summary import _cni_problems
from spliceway.agent.cni import build, place
from spliceway.agent.cni.place import Place, placed, take_out
from spliceway.agent.cni.side import NoCni
from spliceway.agent.configsections import CniConfig
from spliceway.agent.inventory import Inventory
from support.agent import run, until

BASE: dict[str, Any] = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "calico", "mtu": 1450}]}


class Node:
    """Directories of a node."""

    def __init__(self, root: Path) -> None:
        self.confs, self.bins, self.state = root / "net.d", root / "bin", root / "state"
        self.confs.mkdir()
        self.state.mkdir()
        self.config = CniConfig(enabled=True, conf_dir=self.confs, bin_dir=self.bins, socket=root / "cni.sock")
        self.place = Place(self.config, self.state)

    def write(self, name: str, conf: Any = BASE) -> Path:
        path = self.confs / name
        path.write_text(conf if isinstance(conf, str) else json.dumps(conf))
        return path

    def types(self, name: str) -> list[str]:
        return [each["type"] for each in json.loads((self.confs / name).read_text())["plugins"]]

    @property
    def first(self) -> str:
        return min(path.name for path in self.confs.iterdir() if path.suffix in (".conf", ".conflist"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled once for all of these."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("built")
        build.build(directory)
        patch.setattr(build, "INSIDE", directory)
        yield


def running(node: Node, body: Callable[[], Awaitable[None]]) -> None:
    """While the plugin is kept in its place."""

    async def start() -> None:
        task = asyncio.create_task(node.place.run())
        try:
            await body()
        finally:
            task.cancel()

    run(start)


def test_the_binary_is_there_whole_or_not_and_tells_its_version(node: Node) -> None:
    node.place.install()
    binary = node.bins / "spliceway-cni"
    before = binary.stat()
    assert before.st_mode & 0o777 == 0o755
    assert subprocess.check_output([binary, "--version"], text=True) == f"spliceway-cni {build.version()}\n"
    node.place.install()
    assert binary.stat().st_ino == before.st_ino  # the same is not written again
    binary.write_bytes(b"an older one")
    node.place.install()
    assert subprocess.check_output([binary, "--version"])
    assert [path.name for path in node.bins.iterdir()] == ["spliceway-cni"]


def test_a_binary_that_is_running_can_be_replaced(node: Node) -> None:
    node.place.install()
    binary = node.bins / "spliceway-cni"
    with subprocess.Popen(
        [binary], stdin=subprocess.PIPE, env={"CNI_COMMAND": "GC"}, stdout=subprocess.PIPE
    ) as running:
        binary.chmod(0o644)
        node.place.install()
        assert os.access(binary, os.X_OK)
        running.communicate()


def test_only_the_first_that_can_be_read_gets_it(node: Node) -> None:
    node.write("05-broken.conflist", "{")
    first, second = node.write("10-calico.conflist"), node.write("20-other.conflist")
    first.chmod(0o640)
    os.chown(first, 1234, 4321)
    before = second.read_text()
    node.place.look()
    assert node.place.chain.file == str(first)
    assert node.types(first.name) == ["calico", "spliceway-cni"]
    status = first.stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 1234, 4321)
    assert second.read_text() == before
    inode = status.st_ino
    node.place.look()
    assert first.stat().st_ino == inode
    assert node.place.chain.put == 1


def test_nothing_is_there_yet(node: Node) -> None:
    node.place.look()
    assert "no network configuration" in node.place.chain.problem
    node.write("05-broken.conflist", "{")
    node.place.look()
    assert "05-broken.conflist" in node.place.chain.problem


def test_a_link_is_followed(node: Node, tmp_path: Path) -> None:
    real = tmp_path / "real.conflist"
    real.write_text(json.dumps(BASE))
    (node.confs / "10-a.conflist").symlink_to(real)
    node.place.look()
    assert (node.confs / "10-a.conflist").is_symlink()
    assert node.types("10-a.conflist") == ["calico", "spliceway-cni"]


def test_a_lone_conf_is_followed_as_it_changes_and_goes(node: Node) -> None:
    conf = {"cniVersion": "0.4.0", "name": "net", "type": "bridge", "mtu": 1400}
    node.write("10-net.conf", conf)
    before = (node.confs / "10-net.conf").read_bytes()
    node.place.look()
    assert node.first == "10-net-spliceway.conflist"
    assert node.types(node.first) == ["bridge", "spliceway-cni"]
    assert (node.confs / "10-net.conf").read_bytes() == before
    node.write("10-net.conf", {**conf, "mtu": 9000})
    node.place.look()
    assert json.loads((node.confs / node.first).read_text())["plugins"][0]["mtu"] == 9000
    (node.confs / "10-net.conf").unlink()
    node.write("10-net.conflist")
    node.place.look()
    assert node.first == "10-net.conflist"
    assert node.types("10-net.conflist") == ["calico", "spliceway-cni"]


def test_it_comes_back_when_the_base_writes_its_configuration_anew(node: Node) -> None:
    async def body() -> None:
        node.write("10-calico.conflist")
        await until(lambda: node.types("10-calico.conflist")[-1] == "spliceway-cni")
        beside = node.write("new.tmp", {**BASE, "plugins": [{"type": "calico", "mtu": 9000}]})
        beside.rename(node.confs / "10-calico.conflist")
        await until(lambda: node.types("10-calico.conflist") == ["calico", "spliceway-cni"])
        node.write("00-first.conflist")
        await until(lambda: node.types("00-first.conflist")[-1] == "spliceway-cni")
        await until(lambda: node.place.chain.file.endswith("00-first.conflist"))  # it says so a moment later

    running(node, body)


def istio_installs(node: Node) -> None:
    """As istio-cni's installer does: at the end of the first configuration, where it is not in there."""
    path = node.confs / node.first
    conf = json.loads(path.read_text())
    if all(each["type"] != "istio-cni" for each in conf["plugins"]):
        conf["plugins"].append({"type": "istio-cni", "kubernetes": {"cni_bin_dir": "/opt/cni/bin"}})
        beside = node.write("istio.tmp", json.dumps(conf, indent=4))
        beside.rename(path)


@pytest.mark.parametrize("base", ["10-net.conf", "10-net.conflist"])
@pytest.mark.parametrize("istio_first", [True, False])
def test_beside_istios_plugin_in_either_order(node: Node, base: str, istio_first: bool) -> None:
    """Each finds itself in the file, whoever came first and whatever the base does: nobody writes again and again."""
    lone = base.endswith(".conf")
    head = {"type": "calico", "mtu": 1450}
    node.write(base, {"cniVersion": "1.0.0", "name": "pods", **head} if lone else BASE)
    if istio_first and not lone:  # of a lone .conf Istio makes a list of its own
        istio_installs(node)
    node.place.look()
    for _ in range(3):
        istio_installs(node)
        before = (node.confs / node.first).stat().st_ino
        node.place.look()
        assert (node.confs / node.first).stat().st_ino == before
    order = ["istio-cni", "spliceway-cni"] if istio_first and not lone else ["spliceway-cni", "istio-cni"]
    assert node.types(node.first) == ["calico", *order]
    assert node.place.chain.put == 1
    head["mtu"] = 9000
    if lone:  # the base's configuration changes: both stay
        node.write(base, {"cniVersion": "1.0.0", "name": "pods", **head})
        node.place.look()
        assert node.types(node.first) == ["calico", *order]
        assert json.loads((node.confs / node.first).read_text())["plugins"][0]["mtu"] == 9000
    else:  # it writes its list anew, and both come back
        node.write(base, {**BASE, "plugins": [head]})
        node.place.look()
        istio_installs(node)
        node.place.look()
        assert node.types(base) == ["calico", "spliceway-cni", "istio-cni"]


def test_a_configuration_of_istios_own_is_the_first(node: Node) -> None:
    """With `istioOwnedCNIConfig` it makes a copy that sorts first: pods go by that, and so does the plugin."""
    node.write("10-calico.conflist")
    node.place.look()
    copy = json.loads((node.confs / "10-calico.conflist").read_text())
    copy["plugins"].append({"type": "istio-cni"})
    node.write("02-istio-cni.conflist", copy)
    node.place.look()
    assert node.place.chain.file.endswith("02-istio-cni.conflist")
    assert node.types("02-istio-cni.conflist") == ["calico", "spliceway-cni", "istio-cni"]
    node.write("02-istio-cni.conflist", {**BASE, "plugins": [*BASE["plugins"], {"type": "istio-cni"}]})
    node.place.look()
    assert node.types("02-istio-cni.conflist") == ["calico", "istio-cni", "spliceway-cni"]


def test_a_directory_that_comes_later_is_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "ABSENT", 0.05)
    node.confs.rmdir()

    async def body() -> None:
        await until(lambda: "can't" in node.place.chain.problem or "No such file" in node.place.chain.problem)
        node.confs.mkdir()
        node.write("10-a.conflist")
        await until(lambda: node.place.chain.file)

    running(node, body)


def test_a_fight_is_not_fought(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody takes it out whenever it is put in: after a few times it waits, and says why; then it tries again."""
    monkeypatch.setattr(place, "SETTLE", 0.01)
    monkeypatch.setattr(place, "SLOW", 2.0)

    async def body() -> None:
        for _ in range(place.QUICK):
            node.write("10-a.conflist")
            await until(lambda: node.types("10-a.conflist")[-1] == "spliceway-cni")
        node.write("10-a.conflist")
        await until(lambda: "again and again" in node.place.chain.problem)
        assert node.types("10-a.conflist") == ["calico"]
        assert node.place.chain.put == place.QUICK
        await until(lambda: node.types("10-a.conflist")[-1] == "spliceway-cni")

    running(node, body)


def test_it_is_taken_out_without_a_configuration(node: Node) -> None:
    node.place.install()
    listed, lone = node.write("10-a.conflist"), {"cniVersion": "0.4.0", "name": "n", "type": "x"}
    node.place.look()
    node.write("05-lone.conf", lone)
    node.place.look()
    assert {path.name for path in placed(node.state)} == {"05-lone-spliceway.conflist", "10-a.conflist"}
    assert len(node.place.leave()) == 2
    node.place.look()  # nobody puts it back
    assert not placed(node.state)
    assert sorted(path.name for path in node.confs.iterdir()) == ["05-lone.conf", "10-a.conflist"]
    assert json.loads(listed.read_text()) == BASE
    assert (node.bins / "spliceway-cni").exists()  # runtimes may still have pods to end
    assert take_out(node.state) == []


def test_cleanup_on_the_node_takes_out_what_an_agent_in_a_container_put_there(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directories were mounted below another one, which is not there on the node."""
    monkeypatch.setattr(place, "_MOUNTED", tmp_path / "host")
    node.place.install()
    node.write("10-a.conflist")
    node.place.look()
    written = place.Places(str(tmp_path / "host" / node.confs.relative_to("/")), str(node.bins))
    (node.state / place.RECORD).write_bytes(msgspec.json.encode(written))
    assert [path.name for path in placed(node.state)] == ["10-a.conflist"]
    take_out(node.state)
    assert node.types("10-a.conflist") == ["calico"]


def test_an_agent_without_it_takes_out_what_one_with_it_put_there(node: Node) -> None:
    node.place.install()
    node.write("10-a.conflist")
    node.place.look()

    async def body() -> None:
        with contextlib.ExitStack() as stack:
            await NoCni(Inventory("node1"), node.state).start(stack)

    run(body)
    assert node.types("10-a.conflist") == ["calico"]


def test_another_directory_leaves_nothing_in_the_old_one(node: Node, tmp_path: Path) -> None:
    node.place.install()
    node.write("10-a.conflist")
    node.place.look()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Place(msgspec.structs.replace(node.config, conf_dir=elsewhere), node.state).install()
    assert node.types("10-a.conflist") == ["calico"]


def test_another_directory_at_the_same_mount_is_remembered_until_cleanup_was_there(node: Node, tmp_path: Path) -> None:
    """The chart mounts `cni.confDir` always at the same path, so that the old one can't be reached from the agent."""
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    first = Place(msgspec.structs.replace(node.config, node_conf_dir=old), node.state)
    first.install()
    node.write("10-a.conflist")
    first.look()
    node.confs.rename(old)
    node.confs.mkdir()  # the mount shows the other one
    old.rename(tmp_path / "away")  # not there for us
    node.write("10-a.conflist")
    second = Place(msgspec.structs.replace(node.config, node_conf_dir=new), node.state)
    second.install()
    second.look()
    assert (second.chain.problem, second.chain.left) == ("", (str(old),))
    third = Place(msgspec.structs.replace(node.config, node_conf_dir=new), node.state)
    third.install()
    third.look()
    assert third.chain.left == (str(old),), "an agent that comes later knows it, too"
    status = {"chain": msgspec.to_builtins(third.chain), "without": ()}
    assert any(str(old) in text for text in _cni_problems(status))

    (tmp_path / "away").rename(old)  # on the node it is there
    assert set(take_out(node.state)) == {old / "10-a.conflist", node.confs / "10-a.conflist"}
    assert [each["type"] for each in json.loads((old / "10-a.conflist").read_text())["plugins"]] == ["calico"]
    third.look()
    assert third.chain.left == ()
    assert node.types("10-a.conflist")[-1] == build.NAME


def test_back_to_the_old_directory_there_is_nothing_left(node: Node, tmp_path: Path) -> None:
    for name in ("old", "new", "old"):
        made = Place(msgspec.structs.replace(node.config, node_conf_dir=tmp_path / name), node.state)
        made.install()
    node.write("10-a.conflist")
    made.look()
    assert made.chain.left == (str(tmp_path / "new"),)


def test_without_the_right_to_give_files_away_it_is_written_all_the_same(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode stays; CAP_CHOWN is none of the rights that the chart asks for where it can't be had."""
    path = node.write("10-a.conflist")
    os.chown(path, 65534, 65534)
    path.chmod(0o640)

    def fchown(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    node.place.install()
    node.place.look()
    assert node.place.chain.problem == ""
    assert node.types("10-a.conflist")[-1] == build.NAME
    assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o640, 0)
