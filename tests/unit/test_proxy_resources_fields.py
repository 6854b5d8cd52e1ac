"""Nothing of what is served is overlooked: a change of any field anywhere is refused, or read as something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, RuleSet
from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.resources.reading import read_cluster, read_listener, read_routes
from spliceway.xds.resources.clusters import original_cluster
from spliceway.xds.resources.listeners import rule_set_listener
from spliceway.xds.resources.packing import packed, serialized
from spliceway.xds.resources.routes import rule_set_routes
from spliceway.xds.resources.settings import ResourceSettings
from support.everyfield import different

RULES = (
    HttpRule(11, "GET", "/a/[0-9]+", "api", (HeaderMatch("x-a", "1"), HeaderMatch("x-b"), HeaderMatch("x-c", "h\xe9"))),
    HttpRule(12, "POST"),
    HttpRule(13),
)
CHANGING = (
    HttpRule(21, "GET", headers=(HeaderMatch("x-a", "1", mismatch=Mismatch.ADD), HeaderMatch("x-b"))),
    HttpRule(22, "PUT", headers=(HeaderMatch("x-c", mismatch=Mismatch.DELETE),)),
)
TESTED = (
    HttpRule(
        41,
        path="/a.*",
        tests=(
            (HttpTest("GET", host="(?i:a)", unless_path="/ab"), HttpTest(unless_method="PUT", unless_host="b")),
            (HttpTest(path="/ac", negated=True),),
        ),
    ),
)
SECRET = (HttpRule(31, headers=(HeaderMatch("x-token", "s3cret", secret=True),)),)

Read = Callable[[bytes], object]
SERVED: dict[str, tuple[Read, Message]] = {
    "listener": (read_listener, rule_set_listener(5, 23005, ResourceSettings())),
    "listener, explained": (read_listener, rule_set_listener(5, 23005, ResourceSettings(explain_denied=True))),
    "listener, IPv4": (read_listener, rule_set_listener(5, 23005, ResourceSettings(ipv6=False))),
    "cluster": (read_cluster, original_cluster(ResourceSettings())),
    "rules": (read_routes, rule_set_routes(RuleSet(5, "", RULES, audit=CHANGING))),
    "tests": (read_routes, rule_set_routes(RuleSet(5, "", TESTED))),
    "changes": (read_routes, rule_set_routes(RuleSet(5, "", CHANGING))),
    "audit": (read_routes, rule_set_routes(RuleSet(5, "", None, audit=CHANGING, also=RuleSet(6, "", None, SECRET)))),
    "both ends": (read_routes, rule_set_routes(RuleSet(5, "", SECRET, also=RuleSet(6, "", CHANGING, audit=())))),
}
#: What may be read as the same, and why it makes no difference.
HARMLESS = {
    r"(.*\.)?stat_prefix .*": "a name of statistics, and the proxy has its own",
    r"enable_reuse_port[. ].*": "how many sockets share an address: the same connections come in",
    r".*\.buffer_flush_interval[. ].*": "when access log entries are sent on",
    r".*\.common_http_protocol_options\.idle_timeout[. ].* of cluster": "of connections that the proxy does not keep",
    r"upstream_bind_config\.socket_options\[0\]\.description .*": "a text for people",
}


#: Forms of the value of a Secret in the resources.
SHOWN = ("s3cret", b"s3cret".hex())


def outcome(read: Read, body: bytes) -> bytes | UnenforceableError:
    try:
        return msgspec.json.encode(read(body))
    except UnenforceableError as error:
        return error


def test_no_field_is_overlooked() -> None:
    overlooked, used = [], set()
    for name, (read, message) in SERVED.items():
        body = serialized(message)
        good = outcome(read, body)
        assert isinstance(good, bytes), good
        for change, other in different(message):
            changed = serialized(other)
            found = outcome(read, changed)
            if isinstance(found, UnenforceableError):
                assert not any(text in str(found) for text in SHOWN)
                if read is not read_routes:
                    assert_names_it(change, found)
            elif found == good and changed != body:
                reason = next((each for each in HARMLESS if re.fullmatch(each, f"{change} of {name}")), None)
                used.add(reason)
                if reason is None:
                    overlooked.append(f"{change} of {name}")
    assert not overlooked
    assert used == set(HARMLESS)


def assert_names_it(change: str, error: UnenforceableError) -> None:
    """The error is at the field that was changed; in what is told as one value (wrappers, durations) at that."""
    at = re.fullmatch(
        r"(.*?)(\.given an unknown field| (set|not set|set to .*|one more|one less|the first again|without .*))", change
    )
    if at is None:
        assert error.path.startswith("envoy.config.")
        return
    field = re.sub(r"(\.typed_config|\])\.(type_url|value)$", r"\1", at[1])
    parts = error.path, field
    shorter, longer = sorted(parts, key=len)
    assert longer.startswith(shorter), (change, error.path)


@pytest.mark.parametrize("name", SERVED)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    read, message = SERVED[name]
    body = bytearray(serialized(message))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        body[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    outcome(read, bytes(body))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body: bytes) -> None:
    for read in (read_cluster, read_listener, read_routes):
        assert isinstance(outcome(read, body), UnenforceableError)


ON_PATH = {"header": {"name": ":path", "string_match": {"safe_regex": {"regex": "/a"}}}}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"or_rules": {"rules": [{"and_rules": {"rules": [{"any": True}]}}]}},
            "or_rules.rules[0].and_rules.rules[0]: can",
        ),
        ({"or_rules": {"rules": [{"not_rule": {"any": True}}]}}, "or_rules.rules[0].not_rule.any: can't be enforced"),
        ({"or_rules": {}}, "or_rules.rules: is required"),
        (
            {"or_rules": {"rules": [{"and_rules": {"rules": [ON_PATH] * 2}}]}},
            "or_rules.rules[0].and_rules.rules[1]: can",
        ),
        ({"not_rule": ON_PATH}, "not_rule: can't be enforced"),
    ],
)
def test_what_is_refused_of_tests(part: dict[str, Any], message: str) -> None:
    config = rule_set_routes(RuleSet(5, "", (HttpRule(1),)))
    policy = {"permissions": [{"and_rules": {"rules": [part]}}], "principals": [{"any": True}]}
    rules = http_rbac_pb2.RBACPerRoute(rbac={"rules": {"policies": {"00000/1": policy}}})
    config.virtual_hosts[0].routes[0].typed_per_filter_config["spliceway.policy"].CopyFrom(packed(rules))
    with pytest.raises(UnenforceableError) as caught:
        read_routes(serialized(config))
    assert f'policies["00000/1"].permissions[0].and_rules.rules[0].{message}' in str(caught.value)
