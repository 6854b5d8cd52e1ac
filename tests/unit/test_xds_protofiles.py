"""Files of Envoy's resources: what is read, and what is refused with which words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from validate import validate_pb2

from spliceway.xds.errors import ResourceError
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPES
from spliceway.xds.resources.messagetypes import PREFIX, message_class
from spliceway.xds.resources.protofiles import NAME_FIELDS, load_resources
from spliceway.xds.resources.reading import MAX_VALUES, FieldError, read_message
from support.protomodules import modules

HTTP2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
CLUSTER_A: dict[str, Any] = {
    "@type": CLUSTER,
    "name": "a",
    "type": "STATIC",
    "connect_timeout": "1.5s",
    "load_assignment": {
        "cluster_name": "a",
        "endpoints": [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": "192.0.2.1", "port_value": 80}}}}
                ]
            }
        ],
    },
    "typed_extension_protocol_options": {
        HTTP2: {"@type": PREFIX + HTTP2, "explicit_http_config": {"http2_protocol_options": {}}}
    },
    "metadata": {"filter_metadata": {"x": {"list": [1, "a", None, True, {"deep": 1.5}]}}},
}
TCP_PROXY = {
    "@type": f"{PREFIX}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "stat_prefix": "x",
    "cluster": "a",
}
LISTENER_A: dict[str, Any] = {
    "@type": LISTENER,
    "name": "l",
    "address": {"socket_address": {"address": "127.0.0.1", "port_value": "8080"}},
    "filterChains": [{"filters": [{"name": "t", "typedConfig": TCP_PROXY}]}],
}
BOMB = "a: &a [" + "1," * 99 + "1]\nb: &b [" + "*a," * 99 + "*a]\nc: [" + "*b," * 99 + "*b]"


def text(*documents: object) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False)


def edited(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one place changed: keys with dots, numbers for items of lists."""
    copy: Any = yaml.safe_load(yaml.safe_dump(document, sort_keys=False))
    at = copy
    *way, last = path.split("/")
    for key in way:
        at = at[int(key)] if key.isdigit() else at[key]
    at[int(last) if last.isdigit() else last] = value
    return copy  # type: ignore[no-any-return]


def free(value: object) -> dict[str, Any]:
    """A cluster with a value where anything may stand."""
    return {"metadata": {"filter_metadata": {"x": {"a": value}}}}


def refusal(*documents: object) -> str:
    with pytest.raises(ResourceError) as caught:
        load_resources(text(*documents), "f.yaml")
    return str(caught.value)


def test_documents_lists_and_responses_are_read() -> None:
    endpoints = {"@type": ENDPOINT, "clusterName": "e"}
    routes = {"@type": ROUTE, "name": "r"}
    found = load_resources(
        text(
            CLUSTER_A,
            None,
            [LISTENER_A, endpoints],
            {"version_info": "7", "resources": [routes]},
        ),
        "f.yaml",
    )
    assert [(each.url, each.name, each.where) for each in found] == [
        (CLUSTER, "a", "f.yaml: document 1"),
        (LISTENER, "l", "f.yaml: document 3: [0]"),
        (ENDPOINT, "e", "f.yaml: document 3: [1]"),
        (ROUTE, "r", "f.yaml: document 4: resources[0]"),
    ]
    assert all(each.ttl is None for each in found)
    assert listener_pb2.Listener.FromString(found[1].body).address.socket_address.port_value == 8080


def test_bytes_and_nothing() -> None:
    assert load_resources(b"", "f.yaml") == []
    assert load_resources(b"---\n---\n# nothing\n", "f.yaml") == []
    assert load_resources(b"resources: []", "f.yaml") == []
    assert len(load_resources(text(CLUSTER_A).encode(), "f.yaml")) == 1


def test_a_wrapper_gives_the_time_to_live() -> None:
    wrapper = {
        "@type": f"{PREFIX}envoy.service.discovery.v3.Resource",
        "name": "a",
        "ttl": "2.5s",
        "resource": CLUSTER_A,
    }
    (found,) = load_resources(text(wrapper), "f.yaml")
    assert (found.name, found.ttl) == ("a", 2.5)
    assert found.body == load_resources(text(CLUSTER_A), "f.yaml")[0].body
    assert refusal(edited(wrapper, "name", "b")) == "f.yaml: document 1: name: is b, but the resource calls itself a"
    assert refusal(edited(wrapper, "ttl", "0s")) == "f.yaml: document 1: ttl: must be more than 0s"
    assert refusal(edited(wrapper, "resource", None)) == "f.yaml: document 1: resource: is required"
    assert refusal(edited(wrapper, "resource/name", 5)).startswith(
        "f.yaml: document 1: resource.name: must be a string"
    )


def test_the_same_as_protobufs_own_reader() -> None:
    for document in (CLUSTER_A, LISTENER_A):
        url = document["@type"]
        kind = message_class(url.removeprefix(PREFIX))
        assert kind is not None
        plain = {key: value for key, value in document.items() if key != "@type"}
        assert read_message(plain, kind) == json_format.ParseDict(plain, kind())


@pytest.mark.parametrize(
    ("document", "path", "value", "message"),
    [
        (CLUSTER_A, "name", 5, "name: must be a string, is an integer (quote it)"),
        (CLUSTER_A, "name", "", "name: is required"),
        (CLUSTER_A, "name", None, "name: is required"),
        (CLUSTER_A, "foo", 1, 'unknown field "foo"'),
        (CLUSTER_A, "foo\n", 1, "unknown field 'foo\\n'"),
        (CLUSTER_A, "load_balancing-policy", 1, 'unknown field "load_balancing-policy" (meant: load_balancing_policy)'),
        (CLUSTER_A, "loadAssignment", {}, "load_assignment and loadAssignment are the same field"),
        (CLUSTER_A, "cluster_type", {"name": "x"}, "only one of type and cluster_type may be there"),
        (CLUSTER_A, "type", "STATICS", 'type: "STATICS" is none of STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST'),
        (CLUSTER_A, "type", 77, "type: 77 is no DiscoveryType"),
        (CLUSTER_A, "type", True, "type: must be the name of a DiscoveryType, is true or false"),
        (CLUSTER_A, "connect_timeout", 5,
         'connect_timeout: must be a duration (seconds with an "s", as "1.5s"), is an integer'),
        (CLUSTER_A, "connect_timeout", "5", 'connect_timeout: "5" is not a duration (seconds with an "s", as "1.5s")'),
        (CLUSTER_A, "connect_timeout", "0s", "connect_timeout: must be more than 0s"),
        (CLUSTER_A, "load_assignment", [], "load_assignment: must be a mapping, is a list"),
        (CLUSTER_A, "load_assignment/endpoints", {}, "load_assignment.endpoints: must be a list, is a mapping"),
        (CLUSTER_A, "load_assignment/endpoints/0/lb_endpoints/0/foo", 1,
         'load_assignment.endpoints[0].lb_endpoints[0]: unknown field "foo"'),
        (CLUSTER_A, "load_assignment/endpoints/0/lb_endpoints/0", None,
         "load_assignment.endpoints[0].lb_endpoints[0]: must not be null"),
        (CLUSTER_A, "load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/port_value", 1 << 40,
         "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: "
         "must be between 0 and 4294967295"),
        (CLUSTER_A, "load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/port_value", 70000,
         "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: "
         "must be at most 65535"),
        (CLUSTER_A, "load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/port_value", "8o",
         "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: "
         "must be an integer, is a string"),
        (CLUSTER_A, "load_assignment/endpoints/0/lb_endpoints/0/endpoint/address", {},
         "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: "
         "one of socket_address, pipe, envoy_internal_address is required"),
        (CLUSTER_A, f"typed_extension_protocol_options/{HTTP2}", {},
         f'typed_extension_protocol_options["{HTTP2}"]: @type is required'),
        (CLUSTER_A, f"typed_extension_protocol_options/{HTTP2}/x", 1,
         f'typed_extension_protocol_options["{HTTP2}"]: unknown field "x"'),
        (CLUSTER_A, f"typed_extension_protocol_options/{HTTP2}/explicit_http_config", {},
         f'typed_extension_protocol_options["{HTTP2}"].explicit_http_config: '
         "one of http_protocol_options, http2_protocol_options, http3_protocol_options is required"),
        (LISTENER_A, "filterChains/0/filters/0/typedConfig/@type", f"{PREFIX}envoy.no.such.Type",
         f'filter_chains[0].filters[0].typed_config.@type: unknown type "{PREFIX}envoy.no.such.Type"'),
        (LISTENER_A, "filterChains/0/filters/0/typedConfig/@type", "envoy.no.such.Type",
         'filter_chains[0].filters[0].typed_config.@type: unknown type "envoy.no.such.Type" '
         f"(it must begin with {PREFIX})"),
        (LISTENER_A, "filterChains/0/filters/0/typedConfig/@type", f"{PREFIX}envoy.config....os.path",
         f'filter_chains[0].filters[0].typed_config.@type: unknown type "{PREFIX}envoy.config....os.path"'),
        (LISTENER_A, "filterChains/0/filters/0/typedConfig/stat_prefix", "",
         "filter_chains[0].filters[0].typed_config.stat_prefix: is required"),
        (LISTENER_A, "filterChains/0/filters/0/name", "",
         "filter_chains[0].filters[0].name: is required"),
        (LISTENER_A, "@type", f"{PREFIX}envoy.config.core.v3.Node",
         f"@type: {PREFIX}envoy.config.core.v3.Node is not served: {PREFIX} and one of "),
        (LISTENER_A, "@type", None, f"@type: is required: {PREFIX} and one of "),
        (LISTENER_A, "@type", [1], "@type: what stands here is not served: "),
    ],
)  # fmt: skip
def test_refused_with_the_path_of_the_field(document: dict[str, Any], path: str, value: object, message: str) -> None:
    said = refusal(edited(document, path, value))
    assert said.startswith(f"f.yaml: document 1: {message}")
    assert said.isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "f.yaml: is not UTF-8 (byte 0)"),
        (b"a" * ((4 << 20) + 1), "f.yaml: is longer than 4 MiB: put the resources into several files"),
        ("a: 1\na: 2", "f.yaml: line 2: the key 'a' appears twice"),
        ("? [a]\n: 1", "f.yaml: line 1: a key must be a string"),
        ("a: *b", "f.yaml: line 1: an alias that stands for nothing yet"),
        ("a: !!python/object:os.system x", "f.yaml: line 1: tags are not allowed"),
        ("a: [", "f.yaml: line 2: not YAML: "),
        ("[" * 100_000, "f.yaml: line 1: nested deeper than 48"),
        (BOMB, "f.yaml: line 3: more than 400000 values"),
        ("hello", "f.yaml: document 1: must be a mapping with @type and the fields of a resource"),
        ("- hello", "f.yaml: document 1: [0]: must be a mapping"),
        ("resources: 5", "f.yaml: document 1: resources: must be a list"),
        ("resources: []\nfoo: 1", 'f.yaml: document 1: unknown field "foo" beside resources'),
        (text(CLUSTER_A, CLUSTER_A), "f.yaml: document 2: CDS a is in f.yaml: document 1 already"),
    ],
)
def test_refused_as_a_whole(content: str | bytes, message: str) -> None:
    with pytest.raises(ResourceError) as caught:
        load_resources(content, "f.yaml")
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_neither_strings_nor_bodies_are_repeated() -> None:
    secret = {
        "@type": f"{PREFIX}envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "s",
        "generic_secret": {"secret": {"inline_string": "hunter2"}},
    }
    (found,) = load_resources(text(secret), "f.yaml")
    assert "hunter2" not in repr(found)
    assert "hunter2" not in refusal(edited(secret, "generic_secret/secret/inline_string", ["hunter2"]))
    assert "hunter2" not in refusal(edited(secret, "generic_secret/secret", {"inline_bytes": "hunter2!"}))
    assert "hunter2" not in refusal(edited(secret, "generic_secret/secret", "hunter2"))


def test_what_only_grpc_clients_take_is_read_without_the_rules() -> None:
    short = edited(LISTENER_A, "filterChains/0/filters/0/typedConfig/stat_prefix", "")
    assert refusal(short)
    assert load_resources(text(short), "f.yaml", check=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (free(1 << 70), None),
        (free(object()), 'metadata.filter_metadata["x"]["a"]: must be what JSON can say, is an object (quote it)'),
        (free("\ud800"), 'metadata.filter_metadata["x"]["a"]: is not Unicode text'),
        ({"metadata": {"filter_metadata": {"x": {1: 2}}}}, 'metadata.filter_metadata["x"]: a key must be a string'),
        ({"name": "\ud800"}, "name: is not Unicode text"),
        ({1: 2}, "a key must be a string, is an integer (quote it)"),
        ({"connect_timeout": "9" * 400 + "s"}, "connect_timeout: "),
        ({"per_connection_buffer_limit_bytes": 1.0}, None),
        ({"per_connection_buffer_limit_bytes": 1.5},
         "per_connection_buffer_limit_bytes: must be an integer, is a number"),
        ({"outlier_detection": {"enforcing_consecutive_5xx": True}},
         "outlier_detection.enforcing_consecutive_5xx: must be an integer, is true or false"),
        ({"maglev_lb_config": {"table_size": "-1"}}, "maglev_lb_config.table_size: must be between 0 and"),
        ({"common_lb_config": {"healthy_panic_threshold": {"value": "NaN"}}}, None),
        ({"common_lb_config": {"healthy_panic_threshold": {"value": "x"}}},
         "common_lb_config.healthy_panic_threshold.value: must be a number, is a string"),
        ({"common_lb_config": {"healthy_panic_threshold": {"value": 10**400}}},
         "common_lb_config.healthy_panic_threshold.value: is too large"),
    ],
)  # fmt: skip
def test_plain_values_that_no_file_can_have(value: dict[Any, Any], message: str | None) -> None:
    if message is None:
        read_message(value, cluster_pb2.Cluster)
        return
    with pytest.raises(FieldError) as caught:
        read_message(value, cluster_pb2.Cluster)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_bombs_end_soon() -> None:
    bomb: list[Any] = [1]
    for _ in range(30):
        bomb = [bomb, bomb]
    with pytest.raises(FieldError, match=f"more than {MAX_VALUES} values"):
        read_message(free(bomb), cluster_pb2.Cluster)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(FieldError, match="nested deeper than 80"):
        read_message(free(circle), cluster_pb2.Cluster)
    deep: Any = 1
    for _ in range(45):
        deep = {"a": deep}
    with pytest.raises(FieldError, match="nested too deeply for protobuf"):
        read_message(free(deep), cluster_pb2.Cluster)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)


def places(value: object, at: str = "") -> Iterator[str]:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, f"{at}/{key}" if at else str(key))


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_anything_anywhere(data: st.DataObject) -> None:
    document = data.draw(st.sampled_from([CLUSTER_A, LISTENER_A]))
    content = edited(document, data.draw(st.sampled_from(list(places(document)))), data.draw(values))
    content.pop("@type", None)
    for kind in (cluster_pb2.Cluster, listener_pb2.Listener):
        with contextlib.suppress(FieldError):
            kind.FromString(read_message(content, kind, "f.yaml").SerializeToString())


def test_every_type_is_found_by_its_name_and_every_kind_of_rule_is_known() -> None:
    found = 0
    used: set[str] = set()
    for module in modules():
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            kind = message_class(descriptor.full_name)
            assert kind is not None
            assert kind.DESCRIPTOR.full_name == descriptor.full_name
            used |= {
                name for field in descriptor.fields for name in rules(field.GetOptions().Extensions[validate_pb2.rules])
            }
            found += 1
    assert found > 1000
    bounds = {"lt", "lte", "gt", "gte", "const"}
    known = {
        "string": {"min_len", "max_len", "min_bytes", "max_bytes", "pattern", "prefix", "suffix", "in", "ignore_empty",
                   "well_known_regex", "strict"},
        "bytes": {"min_len", "max_len"},
        "enum": {"defined_only", "not_in", "in", "const"},
        "bool": {"const"},
        "repeated": {"min_items", "max_items", "unique", "items"},
        "map": {"min_pairs", "keys", "values"},
        "duration": {*bounds, "required"},
        "message": {"required", "skip"},
        "any": {"required"},
        **dict.fromkeys(("uint32", "uint64", "int32", "int64", "double", "float"), bounds),
    }  # fmt: skip
    assert {name for name in used if name.split(".")[1] not in known[name.split(".")[0]]} == set()


def rules(of: Any) -> Iterator[str]:
    for kind, held in of.ListFields():
        for rule, value in held.ListFields():
            yield f"{kind.name}.{rule.name}"
            if rule.name in ("items", "keys", "values"):
                yield from rules(value)


def test_names_of_modules_that_are_none_of_ours_are_not_imported() -> None:
    for name in (
        "os",
        "envoy",
        "envoy.",
        "envoy..config",
        "envoy.config.os.path",
        "google.rpc.Status",
        "spliceway.xds.X",
    ):
        assert message_class(name) is None


def test_every_served_type_has_a_name() -> None:
    assert set(NAME_FIELDS) == set(TYPES)
    for url, field in NAME_FIELDS.items():
        kind = message_class(url.removeprefix(PREFIX))
        assert kind is not None
        assert field in kind.DESCRIPTOR.fields_by_name
