"""Files of Envoy's resources, in YAML or JSON, to serialized resources. Pure: text in, values or an error out.

A document is one resource with its `@type`, an `envoy.service.discovery.v3.Resource` around one (with `name`, `ttl`),
a list of these, or `{resources: [...]}`, which is what Envoy itself reads from files (a DiscoveryResponse).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import msgspec
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import Message

from spliceway.policy.documents import MAX_TEXT, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.fields import shown
from spliceway.xds.errors import ResourceError
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET, TYPES
from spliceway.xds.resources.messagetypes import PREFIX, message_class
from spliceway.xds.resources.packing import serialized
from spliceway.xds.resources.reading import FieldError, read_message
from spliceway.xds.resources.validation import validate
from spliceway.xds.resources.walking import joined

#: Which field of a resource is its name.
NAME_FIELDS = {
    CLUSTER: "name",
    ENDPOINT: "cluster_name",
    SECRET: "name",
    LISTENER: "name",
    ROUTE: "name",
    EXTENSION: "name",
}
_RESPONSE = PREFIX + discovery_pb2.DiscoveryResponse.DESCRIPTOR.full_name
_WRAPPER = PREFIX + discovery_pb2.Resource.DESCRIPTOR.full_name
#: Fields of a DiscoveryResponse that mean nothing in a file: versions are made by the server.
_IGNORED = frozenset(("@type", "version_info", "versionInfo", "type_url", "typeUrl", "nonce"))


class Loaded(msgspec.Struct, frozen=True):
    """One resource of a file. `where` is file, document and place in it; `ttl` in seconds, None for ever."""

    url: str
    name: str
    body: bytes
    ttl: float | None
    where: str

    def __repr__(self) -> str:
        # The body may hold a private key.
        return f"Loaded({self.url!r}, {self.name!r}, {len(self.body)} bytes, ttl={self.ttl!r}, where={self.where!r})"


def load_resources(text: str | bytes, where: str, *, check: bool = True) -> list[Loaded]:
    """Read the resources of one file; `where` is its name for errors. Bytes must be UTF-8.

    `check`: refuse what breaks the rules in the protos, as Envoy does. gRPC clients don't look at these rules, and may
    be content with less (an HTTP connection manager without `stat_prefix`).

    Raises:
        ResourceError: `clusters.yaml: document 2: load_assignment.endpoints[0].lb_endpoints[0]: unknown field "foo"`.
            What is said: not UTF-8, longer than 4 MiB, not YAML, not served, a field that the type does not have or
            with another type, a broken rule, no name, the same resource twice.
    """
    loaded: list[Loaded] = []
    seen: dict[tuple[str, str], str] = {}
    for place, field, value in _objects(_decoded(text, where), where):
        found = _load(value, place, field, check)
        key = (found.url, found.name)
        if key in seen:
            raise FieldError(found.where, "", f"{TYPES[found.url].short} {shown(found.name)} is in {seen[key]} already")
        seen[key] = found.where
        loaded.append(found)
    return loaded


def load_object(value: object, url: str, where: str, field: str = "", *, check: bool = True) -> tuple[str, Message]:
    """Read one resource of the type URL from plain values, with or without `@type`: its name and the message.

    Raises:
        FieldError: as above, with `field` in front of the path.
    """
    if isinstance(value, dict) and "@type" in value:
        if value["@type"] != url:
            raise FieldError(where, joined(field, "@type"), f"must be {url}")
        value = {key: item for key, item in value.items() if key != "@type"}
    kind = message_class(url.removeprefix(PREFIX))
    assert kind is not None
    message = read_message(value, kind, where, field)
    name = str(getattr(message, NAME_FIELDS[url]))
    if not name:
        raise FieldError(where, joined(field, NAME_FIELDS[url]), "is required")
    if check:
        validate(message, where, field)
    return name, message


def _decoded(text: str | bytes, where: str) -> str:
    if len(text) > MAX_TEXT:
        raise FieldError(where, "", f"is longer than {MAX_TEXT >> 20} MiB: put the resources into several files")
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise FieldError(where, "", f"is not UTF-8 (byte {error.start})") from None


def _objects(text: str, where: str) -> Iterator[tuple[str, str, object]]:
    """The objects that stand for one resource each: where they are, field path, value."""
    try:
        documents = load_documents(text, where)
    except PolicyError as error:
        raise ResourceError(str(error)) from None
    for document in documents:
        place = f"{where}: document {document.index}"
        content = document.content
        if isinstance(content, list):
            yield from ((place, f"[{index}]", item) for index, item in enumerate(content))
        elif isinstance(content, dict) and "resources" in content and content.get("@type") in (None, _RESPONSE):
            yield from ((place, f"resources[{index}]", item) for index, item in enumerate(_listed(content, place)))
        else:
            yield place, "", content


def _listed(content: dict[str, object], place: str) -> list[object]:
    if strange := content.keys() - _IGNORED - {"resources"}:
        raise FieldError(place, "", f'unknown field "{shown(min(strange))}" beside resources')
    items = content["resources"]
    if items is None:
        return []
    if not isinstance(items, list):
        raise FieldError(place, "resources", "must be a list")
    return items


def _load(value: object, place: str, field: str, check: bool) -> Loaded:
    if not isinstance(value, dict):
        raise FieldError(place, field, "must be a mapping with @type and the fields of a resource")
    url = value.get("@type")
    ttl, told, inner = None, "", field
    if url == _WRAPPER:
        wrapper = read_message({k: v for k, v in value.items() if k != "@type"}, discovery_pb2.Resource, place, field)
        inner = joined(field, "resource")
        ttl, told = _ttl(wrapper, place, field), wrapper.name
        value = value.get("resource")
        if not isinstance(value, dict):
            raise FieldError(place, inner, "is required")
        url = value.get("@type")
    if not isinstance(url, str) or url not in TYPES:
        _refuse_type(url, place, inner)
    name, message = load_object(value, url, place, inner, check=check)
    if told and told != name:
        raise FieldError(place, joined(field, "name"), f"is {shown(told)}, but the resource calls itself {shown(name)}")
    return Loaded(url, name, serialized(message), ttl, f"{place}: {field}" if field else place)


def _ttl(wrapper: discovery_pb2.Resource, place: str, field: str) -> float | None:
    if not wrapper.HasField("ttl"):
        return None
    if (seconds := wrapper.ttl.ToNanoseconds() / 1e9) <= 0:
        raise FieldError(place, joined(field, "ttl"), "must be more than 0s")
    return float(seconds)


def _refuse_type(url: object, place: str, field: str) -> NoReturn:
    served = ", ".join(each.removeprefix(PREFIX) for each in TYPES)
    if url is None:
        raise FieldError(place, joined(field, "@type"), f"is required: {PREFIX} and one of {served}")
    told = shown(url) if isinstance(url, str) else "what stands here"
    raise FieldError(place, joined(field, "@type"), f"{told} is not served: {PREFIX} and one of {served}")
