"""The schema of the chart's values, as far as the agent's own configuration goes: `agent.config`, from its structs.

    python -m support.chartschema    # writes charts/spliceway/values.schema.json anew: `make chart-schema`

Types, unknown fields and limits of numbers. What must fit together is the agent's to say: `preflight` on a node does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from spliceway.agent.config import Config
from spliceway.agent.configsections import PortRange
from support.helm import CHART

SCHEMA = CHART / "values.schema.json"
#: Fields that have a value of the chart's own: templates/_helpers.tpl refuses them and names it.
SET_BY_CHART = (
    *("enforcement", "node", "source", "stateDir", "bpffs", "admin", "killSwitch", "cni", "status", "cgroups.proxy"),
    *("proxy.kind", "proxy.managed", "metrics.listen", "metrics.health", "istio.enabled"),
)
#: What the configuration writes as text, and reads on.
_AS_TEXT: dict[type, str] = {Path: "^/", PortRange: "^[0-9]{1,5}-[0-9]{1,5}$"}
_LIMITS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
_NAMES: dict[type[inspect.Type], str] = {
    inspect.BoolType: "boolean",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "string",
    inspect.NoneType: "null",
}


def schema_of(kind: inspect.Type, at: str = "") -> dict[str, Any]:
    """What JSON Schema (draft 7) says of such a value, which is the field with path `at`.

    Raises:
        TypeError: of a kind that no field had so far.
    """
    match kind:
        case inspect.StructType():
            # Nothing is said here of what the chart refuses: its own words name the value that is meant.
            paths = {field.encode_name: f"{at}.{field.encode_name}".lstrip(".") for field in kind.fields}
            made: dict[str, Any] = {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    field.encode_name: {} if path in SET_BY_CHART else schema_of(field.type, path)
                    for field, path in zip(kind.fields, paths.values(), strict=True)
                },
            }
            required = [field.encode_name for field in kind.fields if field.required]
            required = [name for name in required if paths[name] not in SET_BY_CHART]
            return made | ({"required": required} if required else {})
        case inspect.VarTupleType():
            items = schema_of(kind.item_type, at)
            return {"type": "array"} | ({"items": items} if items else {})
        case inspect.LiteralType():
            return {"enum": list(kind.values)}
        case inspect.UnionType():
            return {"anyOf": [schema_of(each, at) for each in kind.types]}
        case inspect.CustomType():
            return {"type": "string", "pattern": _AS_TEXT[kind.cls]}
        case inspect.AnyType():
            return {}
        case _ if type(kind) in _NAMES:
            limits = {said: getattr(kind, name, None) for name, said in _LIMITS.items()}
            return {"type": _NAMES[type(kind)]} | {name: value for name, value in limits.items() if value is not None}
        case _:
            raise TypeError(f"{at}: no schema for {kind!r}")


def written() -> str:
    """The chart's file as it must be: what it says of other values stays."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["agent"]["properties"]["config"] = schema_of(msgspec.inspect.type_info(Config))
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(written())
