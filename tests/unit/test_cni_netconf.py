"""What runtimes say of pods, as the agent reads it, and what goes over the socket."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliceway.agent.cni.netconf import CniError, addresses_of, read_conf, read_container, version_of
from spliceway.agent.cni.wire import (
    MalformedError,
    Question,
    pack_answer,
    pack_question,
    read_question,
    unpack_answer,
)
from support.agent import run
from support.libcni import arguments, environment

#: What the bridge plugin gives, in 1.0.0 and in 0.3.1.
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "00:11:22:33:44:55"},
        {"name": "veth0", "mac": "00:11:22:33:44:56"},
        {"name": "eth0", "mac": "00:11:22:33:44:57", "sandbox": "/run/netns/a"},
        {"name": "net1", "sandbox": "/run/netns/a"},
    ],
    "ips": [
        {"interface": 2, "address": "10.1.2.3/24", "gateway": "10.1.2.1"},
        {"interface": 3, "address": "192.168.0.9/24"},
        {"interface": 2, "address": "fd00::3/64"},
        {"interface": 2, "address": "fd00::4/64"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {},
}


def question(command: str = "ADD", **more: str) -> Question:
    told = environment(command, "c1", Path("/run/netns/a"), "eth0", arguments("default", "web", "u-1", "c1"), "/bin")
    return Question({**told, **more}, b"{}")


def conf(**fields: Any) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "spliceway-cni", **fields}).encode()


def test_the_pods_own_addresses_are_taken_one_of_each_family() -> None:
    found = addresses_of(read_conf(conf(prevResult=RESULT)).prev_result, "eth0")
    assert found == (ip_address("10.1.2.3"), ip_address("fd00::3"))


def test_addresses_without_an_interface_are_the_pods() -> None:
    told = {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.2.3/32"}]}
    assert addresses_of(read_conf(conf(prevResult=told)).prev_result, "eth0") == (ip_address("10.1.2.3"),)


def test_addresses_at_the_nodes_end_are_the_pods() -> None:
    told = {"interfaces": [{"name": "cali1"}], "ips": [{"address": "10.1.2.3/32", "interface": 0}]}
    assert addresses_of(read_conf(conf(prevResult=told)).prev_result, "eth0") == (ip_address("10.1.2.3"),)


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"ips": []},
        {"ips": [{"address": "pod"}]},
        {"ips": [{"address": "10.1.2.3/24", "interface": 7}]},
        {"ips": [{"address": "10.1.2.3/24", "interface": -1}], "interfaces": [{"name": "eth0", "sandbox": "/a"}]},
        {"ips": [{"address": "0.0.0.0/0"}]},
        {"ips": [{"address": "127.0.0.1/8"}]},
        {"ips": [{"address": "ff02::1/64"}]},
        {"ips": [{"address": "10.1.2.3/24", "interface": 0}], "interfaces": [{"name": "net1", "sandbox": "/a"}]},
    ],
)
def test_a_result_without_a_pods_address_is_refused(told: Any) -> None:
    with pytest.raises(CniError) as caught:
        addresses_of(read_conf(conf(prevResult=told)).prev_result, "eth0")
    assert caught.value.code == 7


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"prevResult": 3}', b"\xff", b"[" * 200_000])
def test_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(CniError) as caught:
        read_conf(text)
    assert caught.value.code == 6
    assert version_of(text) == "1.0.0"


def test_a_container_is_read() -> None:
    found = read_container(question())
    assert (found.id, found.interface, found.netns, found.pod, found.uid) == (
        "c1",
        "eth0",
        Path("/run/netns/a"),
        "default/web",
        "u-1",
    )


@pytest.mark.parametrize(
    "more",
    [
        {"CNI_CONTAINERID": ""},
        {"CNI_CONTAINERID": "../a"},
        {"CNI_IFNAME": "a/b"},
        {"CNI_IFNAME": "a" * 16},
        {"CNI_NETNS": ""},
        {"CNI_NETNS": "netns"},
        {"CNI_ARGS": ""},
        {"CNI_ARGS": "K8S_POD_NAMESPACE=a"},
        {"CNI_ARGS": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_NAME=c"},
        {"CNI_ARGS": "K8S_POD_NAMESPACE=../a;K8S_POD_NAME=b"},
        {"CNI_ARGS": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=x y"},
        {"CNI_ARGS": "K8S_POD_NAMESPACE"},
    ],
)
def test_variables_that_name_no_pod_are_refused(more: dict[str, str]) -> None:
    with pytest.raises(CniError) as caught:
        read_container(question(**more))
    assert caught.value.code == 4


def test_a_delete_needs_no_namespace_and_no_pod() -> None:
    found = read_container(question("DEL", CNI_NETNS="", CNI_ARGS=""))
    assert (found.netns, found.pod) == (None, "")


def test_an_error_is_told_as_the_spec_has_it() -> None:
    told = json.loads(CniError(101, "no «device»", "why").encode("0.4.0"))
    assert told == {"cniVersion": "0.4.0", "code": 101, "msg": "spliceway: no «device»", "details": "why"}
    assert unpack_answer(pack_answer(b"{}")) == b"{}"
    assert unpack_answer(pack_answer(None)) is None


def read(data: bytes) -> Question:
    async def body() -> Question:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await read_question(reader)

    found: Question = run(body)
    return found


@given(
    st.dictionaries(
        st.from_regex(r"\ACNI_[A-Z]{1,8}\Z"), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    ),
    st.binary(),
)
def test_a_question_arrives_as_it_was(variables: dict[str, str], document: bytes) -> None:
    assert read(pack_question(variables, document)) == Question(variables, document)


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises((MalformedError, asyncio.IncompleteReadError)):
        read(data)
    with pytest.raises((MalformedError, asyncio.IncompleteReadError)):
        read(b"SPLCNI1\n" + b"\xff\xff\xff\x7f" + data)
