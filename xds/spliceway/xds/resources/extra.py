"""The user's own Envoy listeners and clusters: checked when the configuration is read, served beside policy's. Pure.

What they must not say is in `extrarules`. Here is what needs to be known of the node: its ports and sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from posixpath import normpath

import msgspec
from google.protobuf.message import Message

from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER
from spliceway.xds.resources.extrarules import broken_rules
from spliceway.xds.resources.facts import NOUNS, addresses_of, wants_of
from spliceway.xds.resources.packing import serialized
from spliceway.xds.resources.protofiles import load_object
from spliceway.xds.resources.reading import FieldError
from spliceway.xds.resources.walking import joined, walk

#: Fields of the configuration, by type.
FIELDS = {CLUSTER: "extraClusters", LISTENER: "extraListeners"}


class Reserved(msgspec.Struct, frozen=True):
    """What belongs to the agent: ports from `first_port` to `last_port`; sockets, and directories with a final `/`."""

    first_port: int
    last_port: int
    paths: tuple[str, ...] = ()


class Extra(msgspec.Struct, frozen=True):
    """Checked resources: type URL -> name -> serialized message."""

    bodies: Mapping[str, Mapping[str, bytes]] = {}

    def __repr__(self) -> str:
        # A body may hold a private key.
        return f"Extra({sorted(name for _, name in self.names)})"

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """(type URL, name) of each."""
        return frozenset((url, name) for url, named in self.bodies.items() for name in named)


#: None at all.
NO_EXTRA = Extra()


def load_extra(
    listeners: Sequence[object], clusters: Sequence[object], reserved: Reserved, where: str = "", field: str = "envoy"
) -> Extra:
    """Read and check listeners and clusters from plain values. `where` (a file) and `field` begin the errors' text.

    Raises:
        FieldError: `envoy.extraListeners[0].filter_chains[0].filters[0].typed_config: unknown field "foo"`: what is
            not so in the protos or breaks a rule of theirs, what policy does not allow, a name or an address that is
            there twice or reserved, a cluster, a secret, endpoints or routes that nobody has.
    """
    messages = {
        url: _read(values, url, where, f"{field}.{FIELDS[url]}")
        for url, values in ((CLUSTER, clusters), (LISTENER, listeners))
    }
    for named in messages.values():
        for at, message in named.values():
            for broken in broken_rules(message, at):
                raise FieldError(where, broken.at, broken.reason)
            for path, reason in _reserved(message, at, reserved):
                raise FieldError(where, path, reason)
            for want in wants_of(message, at):
                if want.name not in messages.get(want.url, {}):
                    raise FieldError(
                        where, want.at, f"there is no {NOUNS[want.url]} {want.name!r}{_hint(want.url, field)}"
                    )
    _check_addresses(messages[LISTENER], reserved, where)
    return Extra(
        {url: {name: serialized(message) for name, (_, message) in named.items()} for url, named in messages.items()}
    )


def _read(values: Sequence[object], url: str, where: str, field: str) -> dict[str, tuple[str, Message]]:
    """Name -> path and message."""
    found: dict[str, tuple[str, Message]] = {}
    for index, value in enumerate(values):
        at = f"{field}[{index}]"
        name, message = load_object(value, url, where, at)
        if name in found:
            raise FieldError(where, joined(at, "name"), f"{name} is the name of {found[name][0]} too")
        found[name] = at, message
    return found


def _hint(url: str, field: str) -> str:
    return f" in {field}.{FIELDS[url]}" if url in FIELDS else " here: write it out in place"


def _reserved(message: Message, at: str, reserved: Reserved) -> Iterator[tuple[str, str]]:
    """Texts that name a socket or directory of the agent's: nobody may be led there."""
    for path, part in walk(message, at):
        for field, value in part.ListFields():
            texts = () if field.cpp_type != field.CPPTYPE_STRING else value if field.is_repeated else (value,)
            # Also in another spelling of the path (`//`, `/./`, `/x/../`); where links lead is not asked.
            spellings = [each for text in texts if isinstance(text, str) for each in (text, normpath(text))]
            for own in reserved.paths:
                if any(own in text for text in spellings):
                    yield joined(path, field.name), f"{own} is the agent's own"


def _check_addresses(listeners: Mapping[str, tuple[str, Message]], reserved: Reserved, where: str) -> None:
    seen: dict[object, str] = {}
    for at, message in listeners.values():
        for address in addresses_of(message):
            if reserved.first_port <= address.port <= reserved.last_port:
                ports = f"{reserved.first_port}-{reserved.last_port}"
                raise FieldError(where, at, f"port {address.port} is one of proxy.listenerPorts ({ports})")
            if address in seen:
                raise FieldError(where, at, f"has the address {address} of {seen[address]}")
            seen[address] = at
