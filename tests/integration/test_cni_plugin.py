"""The plugin alone: agents that answer well, badly, late or not at all, and documents that nobody should write."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.cni.build import build, version
from spliceway.agent.cni.wire import pack_answer
from support.libcni import arguments, environment

#: With numbers, escapes and an order that a reader which writes it anew would change.
PREVIOUS = (
    '{"cniVersion":"1.0.0", "ips":[{"address":"10.1.2.3\\/24","x":1.50e2}],\n "b":1,"a":"\\u003c", "interfaces":[]}'
)
Agent = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


def conf(place: Path, previous: str = PREVIOUS, **fields: Any) -> str:
    told = {"cniVersion": "1.0.0", "name": "n", "type": "spliceway-cni", "socket": str(place), "timeout": 5, **fields}
    text = json.dumps(told)
    return f'{text[:-1]}, "prevResult": {previous}}}' if previous else text


def call(plugin: Path, document: str | bytes, command: str = "ADD", namespace: str = "default", **more: str) -> Any:
    env = environment(command, "c1", Path("/run/netns/a"), "eth0", arguments(namespace, "web", "u", "c1"), "/bin")
    data = document if isinstance(document, bytes) else document.encode()
    return subprocess.run([plugin], input=data, env={**env, **more}, capture_output=True, timeout=30, check=False)


def code(done: Any) -> int:
    assert done.returncode == 1, done
    told = json.loads(done.stdout)
    assert set(told) <= {"cniVersion", "code", "msg", "details"}
    assert told["msg"]
    return int(told["code"])


@contextlib.contextmanager
def agent(place: Path, serve: Agent) -> Iterator[list[bytes]]:
    """One that does so with each connection; gives what it was asked."""
    asked: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()

    def run() -> None:
        while True:
            try:
                one, _ = listener.accept()
            except OSError:
                return
            with one:
                one.settimeout(10)
                with contextlib.suppress(OSError):
                    asked.append(read(one))
                    serve(one)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        place.unlink()


def read(one: socket.socket) -> bytes:
    head = one.recv(16, socket.MSG_WAITALL)
    _magic, variables, document = struct.unpack("<8sII", head)
    body = b""
    while len(body) < variables + document:
        body += one.recv(1 << 16) or pytest.fail("cut short")
    return head + body


def says(data: bytes) -> Agent:
    return lambda one: one.sendall(data)


def test_add_prints_the_result_byte_for_byte(plugin: Path, place: Path) -> None:
    document = conf(place)
    with agent(place, says(pack_answer(None))) as asked:
        done = call(plugin, document)
    assert done.returncode == 0, done
    assert done.stdout.decode() == PREVIOUS + "\n"
    assert asked[0].endswith(document.encode())
    assert b"CNI_COMMAND=ADD\0CNI_CONTAINERID=c1\0CNI_NETNS=/run/netns/a\0CNI_IFNAME=eth0\0" in asked[0]


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_the_others_print_nothing(plugin: Path, place: Path, command: str) -> None:
    with agent(place, says(pack_answer(None))) as asked:
        done = call(plugin, conf(place), command)
    assert (done.returncode, done.stdout) == (0, b"")
    assert f"CNI_COMMAND={command}\0".encode() in asked[0]


def test_versions_are_told_without_an_agent(plugin: Path) -> None:
    done = subprocess.run([plugin], env={"CNI_COMMAND": "VERSION"}, capture_output=True, timeout=10, check=True)
    told = json.loads(done.stdout)
    assert told["supportedVersions"] == ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    told_version = subprocess.run([plugin, "--version"], capture_output=True, timeout=10, check=True).stdout.decode()
    assert told_version == f"spliceway-cni {version()}\n"


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_errors_of_the_agent_are_printed_as_they_are(plugin: Path, place: Path, version: str) -> None:
    told = json.dumps({"cniVersion": version, "code": 101, "msg": "«no»"}).encode()
    with agent(place, says(pack_answer(told))):
        done = call(plugin, conf(place, cniVersion=version))
    assert (done.returncode, done.stdout) == (1, told)


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0", b"\0" * 7, b"\2" + bytes(7), b"\0\1" + bytes(6), b"\1\0\0\0\xff\xff\xff\xff", b"\1\0\0\0\5\0\0\0abc"],
)
def test_answers_that_nobody_should_give_let_no_pod_start(plugin: Path, place: Path, answer: bytes) -> None:
    with agent(place, says(answer)):
        assert code(call(plugin, conf(place, timeout=0.5))) == 11


def test_an_agent_that_ends_in_the_middle_is_followed_by_the_next(plugin: Path, place: Path) -> None:
    turns = iter([b"", b"\0\0", pack_answer(None)])
    with agent(place, lambda one: one.sendall(next(turns))) as asked:
        assert call(plugin, conf(place)).returncode == 0
    assert len(asked) == 3
    assert len(set(asked)) == 1


def test_without_an_agent_it_waits_for_one_and_then_says_try_again(plugin: Path, place: Path) -> None:
    began = time.monotonic()
    assert code(call(plugin, conf(place, timeout=0.5))) == 11
    assert 0.4 < time.monotonic() - began < 15


def test_an_agent_that_comes_back_in_time_is_asked(plugin: Path, place: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(place))  # nobody listens: refused, as after a crash
    document, done = conf(place), []
    thread = threading.Thread(target=lambda: done.append(call(plugin, document)))
    thread.start()
    time.sleep(0.3)
    stale.close()
    place.unlink()
    with agent(place, says(pack_answer(None))):
        thread.join()
    assert done[0].returncode == 0


@pytest.mark.parametrize("listens", [True, False])
def test_a_slow_agent_costs_no_more_than_the_timeout(plugin: Path, place: Path, listens: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(0 if listens else 4):  # then nobody gets into its queue
                one = stack.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect(str(place))
            began = time.monotonic()
            assert code(call(plugin, conf(place, timeout=0.7))) == 11
            assert 0.6 < time.monotonic() - began < 15


def test_one_byte_at_a_time_is_an_answer_too_if_it_is_in_time(plugin: Path, place: Path) -> None:
    def serve(one: socket.socket) -> None:
        for byte in pack_answer(None):
            one.sendall(bytes([byte]))
            time.sleep(0.05)

    with agent(place, serve):
        assert call(plugin, conf(place)).returncode == 0
    with agent(place, serve):
        assert code(call(plugin, conf(place, timeout=0.2))) == 11


def test_exempt_namespaces_start_at_once_without_an_agent_and_end_with_one(plugin: Path, place: Path) -> None:
    document = conf(place, timeout=20, exemptNamespaces=["a", "kube-system"])
    began = time.monotonic()
    done = call(plugin, document, namespace="kube-system")
    assert (done.returncode, done.stdout.decode()) == (0, PREVIOUS + "\n")
    assert call(plugin, document, "CHECK", "kube-system").returncode == 0
    assert time.monotonic() - began < 15
    short = conf(place, timeout=0.3, exemptNamespaces=["a", "kube-system"])
    assert code(call(plugin, short, namespace="default")) == 11
    assert code(call(plugin, short, namespace="kube-system2")) == 11
    # The address of a pod that the kernel may still know goes to nobody, whose ever it is.
    assert code(call(plugin, short, "DEL", "kube-system")) == 11


def test_nobody_is_exempt_who_says_two_namespaces(plugin: Path, place: Path) -> None:
    document = conf(place, timeout=0.3, exemptNamespaces=["kube-system"])
    args = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a"
    assert code(call(plugin, document, CNI_ARGS=args)) == 11
    assert code(call(plugin, document, CNI_ARGS="XK8S_POD_NAMESPACE=kube-system")) == 11
    assert code(call(plugin, conf(place, timeout=0.3, exemptNamespaces=[""]), CNI_ARGS="K8S_POD_NAMESPACE=")) == 11


def test_who_wants_pods_to_start_in_any_case_gets_that(plugin: Path, place: Path) -> None:
    document = conf(place, timeout=0.3, onFailure="allow")
    assert call(plugin, document).stdout.decode() == PREVIOUS + "\n"
    assert call(plugin, document, "DEL").returncode == 0
    assert code(call(plugin, document, "STATUS")) == 50
    with agent(place, says(pack_answer(b'{"code": 100}'))):
        assert call(plugin, document).returncode == 0


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"cniVersion": "2.0.0"}, 1),
        ({"cniVersion": "0.2.0"}, 1),
        ({"cniVersion": 1}, 7),
        ({"socket": "relative"}, 7),
        ({"socket": ""}, 7),
        ({"socket": "/" + "a" * 107}, 7),
        ({"socket": "/a\u0000b"}, 7),
        ({"socket": None}, 7),
        ({"timeout": 0}, 7),
        ({"timeout": -1}, 7),
        ({"timeout": "5"}, 7),
        ({"timeout": 601}, 7),
        ({"timeout": 1e300}, 7),
        ({"timeout": 10**400}, 7),
        ({"onFailure": "open"}, 7),
        ({"onFailure": True}, 7),
        ({"exemptNamespaces": "kube-system"}, 7),
        ({"exemptNamespaces": [1]}, 7),
        ({"exemptNamespaces": ["a", {}]}, 7),
    ],
)
def test_a_configuration_that_says_nonsense_lets_no_pod_start(
    plugin: Path, place: Path, fields: Mapping[str, Any], wanted: int
) -> None:
    with agent(place, says(pack_answer(None))) as asked:
        assert code(call(plugin, conf(place, **fields), namespace="kube-system")) == wanted
    assert not asked


@pytest.mark.parametrize("previous", ["", "null", "[]", '"a"', "3", "true"])
def test_it_can_not_be_the_first(plugin: Path, place: Path, previous: str) -> None:
    with agent(place, says(pack_answer(None))):
        assert code(call(plugin, conf(place, previous))) == 7
        if previous in ("", "null"):
            assert call(plugin, conf(place, previous), "DEL").returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "[]",
            "{",
            "}",
            "{}x",
            '{"a":}',
            '{"a" 1}',
            '{"a":1,}',
            "{'a':1}",
            '{"a":01}',
            '{"a":1.}',
            '{"a":+1}',
        ),
        *('{"a":"\n"}', '{"a":"\\x"}', '{"a":"\\u12"}', '{"a":"', '{"a":tru}', '{"a":nulll}', '{"a":[1,]}', '{"a":.5}'),
        *(
            '{"\\u0073ocket":"/x"}',
            '{"a":1}{}',
            '{"a":-}',
            '{"a":1e}',
            '{"a":[}]',
            "\ufeff{}",
            '{"socket":"/a","socket":"/b"}',
        ),
        "[" * 1000,
        '{"a":' + "[" * 100 + "]" * 100 + "}",
        '{"a":' * 1000,
    ],
)
def test_what_is_no_document_is_refused(plugin: Path, text: str) -> None:
    assert code(call(plugin, text)) == 6


def test_sizes_have_bounds(plugin: Path, place: Path) -> None:
    large = conf(place, '{"x": "' + "a" * (1 << 19) + '"}')
    with agent(place, says(pack_answer(None))):
        assert len(call(plugin, large).stdout) == (1 << 19) + 10
    assert code(call(plugin, conf(place) + " " * (1 << 20))) == 6
    assert code(call(plugin, conf(place), CNI_ARGS="a" * (64 << 10))) == 4


def test_a_variable_that_is_missing_is_told(plugin: Path, place: Path) -> None:
    for name in ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"):
        assert code(call(plugin, conf(place), **{name: ""})) == 4
    assert code(call(plugin, conf(place), "REMOVE")) == 4
    with agent(place, says(pack_answer(None))):
        assert call(plugin, conf(place), "DEL", CNI_NETNS="").returncode == 0


def test_documents_that_were_bent_end_in_an_answer(plugin: Path, place: Path) -> None:
    """A small fuzz: whatever comes, there is a result that was asked for, or an error in JSON, and no crash."""
    chance, good = random.Random(7), conf(place, timeout=0.2).encode()
    with agent(place, says(pack_answer(None))):
        for _ in range(int(os.environ.get("SPLICEWAY_CNI_FUZZ", "200"))):
            bent = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(bent) or 1)
                match chance.randrange(4):
                    case 0:
                        bent[at : at + 1] = bytes([chance.randrange(256)])
                    case 1:
                        del bent[at : at + chance.randint(1, 20)]
                    case 2:
                        bent[at:at] = chance.choice([b'"', b"{", b"[", b"\\", b"\0", b",", b"1e9", b"\xff", b'"a":1,'])
                    case 3:
                        del bent[at + 1 :]
            done = call(plugin, bytes(bent))
            assert done.returncode in (0, 1), (bytes(bent), done)
            if done.returncode:
                assert code(done) in (1, 6, 7, 11)
            else:
                assert done.stdout.strip() in bytes(bent)
