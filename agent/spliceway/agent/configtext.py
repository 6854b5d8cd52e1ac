"""The text of a configuration file: YAML to a mapping, and msgspec's complaints to field and reason. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from spliceway.agent.errors import ConfigError


def read_mapping(text: str, file: str) -> dict[Any, Any]:
    """What the file says. Raises ConfigError."""
    try:
        raw = yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        # Not the line itself, which may be of a private key.
        mark: Any = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(file, "", f"broken YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(file, "", f"broken YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError):  # a date that is none, a number of 5,000 digits, thousands of brackets
        raise ConfigError(file, "", "broken YAML: a date or a number that can't be, or nested too deeply") from None
    if not isinstance(raw, dict):
        raise ConfigError(file, "", "is not a mapping of fields")
    return raw


class _Loader(yaml.SafeLoader):
    """SafeLoader in which only true and false are booleans (YAML 1.2: `mode: off` is text) and a key comes once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|false"), list("tf"))


#: Fields that there are not, as one might call them → what is meant.
_MEANT = {"uplinks": "datapath.devices", "interfaces": "datapath.devices", "devices": "datapath.devices"}
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.+?)`(?: - at `\$\.?(?P<at>.*?)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<field>.+?)`(?: - at `\$\.?(?P<at>.*?)`)?")
_ENUM = re.compile(r"Invalid enum value (?P<value>'.*')", re.DOTALL)
_AT = re.compile(r"(?P<reason>.*?)(?: - at `\$\.?(?P<at>.*)`)?", re.DOTALL)


def field_and_reason(error: msgspec.ValidationError, kind: type) -> tuple[str, str]:
    """Take msgspec's message apart: (field path, reason). `kind`: what was to be read."""
    message = str(error)
    for pattern, reason in ((_UNKNOWN, "unknown field"), (_MISSING, "is required")):
        if match := pattern.fullmatch(message):
            hint = f"; {_MEANT[match['field']]} is meant?" if pattern is _UNKNOWN and match["field"] in _MEANT else ""
            return ".".join(part for part in (match["at"], match["field"]) if part), reason + hint
    match = _AT.fullmatch(message)
    assert match is not None  # the pattern matches every text
    at, reason = match["at"] or "", match["reason"].replace("`", "")
    if enum := _ENUM.fullmatch(reason):
        return at, f"{enum['value']} is none of {', '.join(_choices(at, kind))}"
    return at, reason


def _choices(at: str, kind: type) -> tuple[Any, ...]:
    """Values that the field with this path may have, a field of literals, or of those and a list."""
    found: Any = msgspec.inspect.type_info(kind)
    for part in at.split("."):
        name, item, _ = part.partition("[")
        found = {field.encode_name: field.type for field in found.fields}[name]
        found = found.item_type if item else found
    if isinstance(found, msgspec.inspect.UnionType):
        words = [value for one in found.types for value in getattr(one, "values", ())]
        return (*words, "a list")
    return tuple(found.values)
