"""What the debug tools hide: what Envoy's types call sensitive, and values of Secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import BytesValue
from xds.type.v3 import typed_struct_pb2

from spliceway.xds.debug.redact import Hider, as_json, decoded, redact
from spliceway.xds.protocol.typeurls import CLUSTER

NOTHING = Hider()
UNKNOWN = "type.googleapis.com/envoy.extensions.of.tomorrow.v9.Filter"


def packed(message: Message) -> AnyMessage:
    result = AnyMessage()
    result.Pack(message)
    return result


def shown(message: Message, *secrets: str) -> dict[str, Any]:
    redact(message, Hider(secrets), stand_in=True)
    return as_json(message)


CERTIFICATE = {
    "certificate_chain": {"inline_string": "public"},
    "private_key": {"inline_string": "hush"},
    "password": {"inline_bytes": b"hush"},
}


def test_sensitive_fields_of_secrets_are_redacted_as_envoy_does_it() -> None:
    secret = secret_pb2.Secret(name="s", tls_certificate=CERTIFICATE)
    redact(secret, NOTHING)
    assert secret.tls_certificate.private_key.inline_string == "[redacted]"
    assert secret.tls_certificate.password.inline_bytes == b"[redacted]"
    assert secret.tls_certificate.certificate_chain.inline_string == "public"
    keys = secret_pb2.Secret(session_ticket_keys={"keys": [{"inline_bytes": b"one"}, {"filename": "/two"}]})
    redact(keys, NOTHING)
    assert [key.inline_bytes for key in keys.session_ticket_keys.keys] == [b"[redacted]", b""]
    assert keys.session_ticket_keys.keys[1].filename == "[redacted]"
    generic = secret_pb2.Secret(
        generic_secret={"secret": {"inline_string": "hush"}, "secrets": {"key": {"inline_string": "hush"}}}
    )
    redact(generic, NOTHING)
    assert "hush" not in str(generic)
    assert list(generic.generic_secret.secrets) == ["key"]


def test_what_is_below_a_sensitive_field_is_redacted_whole() -> None:
    provider = Struct()
    provider.update({"key": "hush", "bits": 2048, "list": ["hush"]})
    secret = secret_pb2.Secret(
        tls_certificate={"private_key_provider": {"provider_name": "hsm", "typed_config": packed(provider)}}
    )
    text = json.dumps(shown(secret))
    assert "hush" not in text
    assert "2048" not in text
    assert '"provider_name": "hsm"' in text


def test_any_is_looked_into_however_deep() -> None:
    tls = tls_pb2.UpstreamTlsContext(common_tls_context={"tls_certificates": [CERTIFICATE]})
    cluster = cluster_pb2.Cluster(name="c", transport_socket={"name": "tls", "typed_config": packed(tls)})
    outer = extension_pb2.TypedExtensionConfig(name="outer", typed_config=packed(cluster))
    redact(outer, NOTHING)
    found = cluster_pb2.Cluster.FromString(outer.typed_config.value)
    context = tls_pb2.UpstreamTlsContext.FromString(found.transport_socket.typed_config.value)
    assert context.common_tls_context.tls_certificates[0].private_key.inline_string == "[redacted]"
    assert "hush" not in str(outer)


def test_a_typed_struct_is_read_as_the_type_that_it_stands_for() -> None:
    name = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    struct = typed_struct_pb2.TypedStruct(type_url=name)
    struct.value.update(
        {"sni": "public", "common_tls_context": {"tls_certificates": [{"private_key": {"inline_string": "hush"}}]}}
    )
    text = json.dumps(shown(struct))
    assert "hush" not in text
    assert '"sni": "public"' in text
    unknown = typed_struct_pb2.TypedStruct(type_url=UNKNOWN)
    unknown.value.update({"token": "hush-hush", "plain": "yes"})
    assert shown(unknown, "hush-hush")["value"] == {"token": "(secret)", "plain": "yes"}


def test_values_of_secrets_go_wherever_they_stand() -> None:
    lua = lua_pb2.Lua(default_source_code={"inline_string": 'local token = "hush-hush"'})
    route = route_pb2.RouteConfiguration(
        name="r",
        virtual_hosts=[{"name": "v", "domains": ["hush-hush", "plain"]}],
        typed_per_filter_config={"lua": packed(lua), "bytes": packed(BytesValue(value=b"x hush-hush y"))},
    )
    text = json.dumps(shown(route, "hush-hush"))
    assert "hush" not in text
    assert 'local token = \\"(secret)\\"' in text
    assert '"domains": ["(secret)", "plain"]' in text
    assert route.typed_per_filter_config["bytes"].value == BytesValue(value=b"x (secret) y").SerializeToString()


@pytest.mark.parametrize(
    ("secrets", "text", "expected"),
    [
        (("abc",), "abc", "(secret)"),
        (("abc",), "xabcx", "xabcx"),  # too short to be told from the rest
        (("abcd",), "xabcdx", "x(secret)x"),
        (("abcd", "abcdef"), "abcdefg", "(secret)g"),
        (("",), "", ""),
        ((), "anything", "anything"),
    ],
)
def test_parts_of_texts(secrets: tuple[str, ...], text: str, expected: str) -> None:
    assert Hider(secrets).text(text) == expected


def test_bytes_are_searched_in_every_encoding() -> None:
    hider = Hider(["h\xfcsh-h\xfcsh", "\u20ac\u20ac\u20ac"])
    assert hider.data("h\xfcsh-h\xfcsh".encode("latin-1")) == b"(secret)"
    assert hider.data(b"<" + "h\xfcsh-h\xfcsh".encode() + b">") == b"<(secret)>"
    assert hider.data(b"<" + "\u20ac\u20ac\u20ac".encode() + b">") == b"<(secret)>"
    assert "h\xfcsh" not in repr(hider)


def test_an_any_of_an_unknown_type_is_named_and_not_shown() -> None:
    config = extension_pb2.TypedExtensionConfig(name="x", typed_config=AnyMessage(type_url=UNKNOWN, value=b"hush"))
    note = {"@type": UNKNOWN, "value": "(4 bytes of a type that is not known here)"}
    assert shown(extension_pb2.TypedExtensionConfig.FromString(config.SerializeToString())) == {
        "name": "x",
        "typed_config": note,
    }
    redact(config, NOTHING)
    assert (config.typed_config.type_url, config.typed_config.value) == (UNKNOWN, b"")


def test_bytes_that_are_no_message_are_not_decoded() -> None:
    assert decoded(CLUSTER, b"\xff\xff") is None
    assert decoded("type.googleapis.com/no.such.Type", b"") is None
    assert decoded("", b"") is None


def test_numbers_that_json_does_not_have_are_told() -> None:
    struct = Struct()
    struct.update({"a": float("nan")})
    assert "(not shown)" in shown(struct)
