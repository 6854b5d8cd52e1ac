"""Mismatch actions of header conditions (LOG, ADD, DELETE, REPLACE), from the data of the script that does them.

Each item says which rule it belongs to, and which of its conditions it is (`rule` and `at`, both from 0). That of rules
in audit, which change nothing, are in the route's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from itertools import combinations
from typing import Any

import msgspec

from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch
from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.resources.conditions import NAME, Group, policy_of
from spliceway.proxy.resources.filters import PASS_POLICY
from spliceway.proxy.resources.names import PASS, POLICY, PREFIXES, SCRIPT_DIGEST, End
from spliceway.proxy.resources.rules import group_of
from spliceway.proxy.resources.shapes import Found, Hole, Maybe, Shape, check

#: So many different conditions of changing rules have 63 combinations; the agent serves no more.
_MAX_GROUPS = 6
#: What belongs to one hop, to the framing or to the target: changed, it would be another request.
_NOT_TO_BE_CHANGED = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
_PLACE = re.compile(r"0|[1-9][0-9]{0,5}")
_CONTROLS = re.compile(r"[\r\n\0]")


class Change(msgspec.Struct, frozen=True):
    """A condition with a mismatch action: of which rule, which of its conditions, and in which `group`."""

    rule: int
    at: int
    match: HeaderMatch
    group: str = ""


def with_changes(rules: tuple[HttpRule, ...], changes: Sequence[Change], at: str) -> tuple[HttpRule, ...]:
    """The rules with these conditions where they were."""
    headers = [list(rule.headers) for rule in rules]
    for index, change in enumerate(changes):
        if change.rule >= len(headers) or change.at > len(headers[change.rule]):
            raise UnenforceableError(f"{at}[{index}]", "belongs to no rule")
        headers[change.rule].insert(change.at, change.match)
    return tuple(msgspec.structs.replace(rule, headers=tuple(held)) for rule, held in zip(rules, headers, strict=True))


def combination_rules(groups: Sequence[Group]) -> Shape:
    """The allow list that names which of the changing rules match, the largest combination first."""
    policies: Shape = {PASS: PASS_POLICY}
    numbered = list(enumerate(groups))
    index = 0
    for size in range(len(numbered), 0, -1):
        for chosen in combinations(numbered, size):
            name = f"{index:05d}/{','.join(str(number) for number, _ in chosen)}"
            policies[name] = policy_of([group for _, group in chosen])
            index += 1
    return {"policies": policies}


def script_shape(end: End) -> Shape:
    """LuaPerRoute of that end: the one script, and its data, of which `changes` is found."""
    fields = {
        "end": {"string_value": end.policy},
        "result": {"string_value": PREFIXES[end.matches] + POLICY},
        "changes": {"list_value": {"values": _grouped_items}},
    }
    return {"source_code": {"inline_string": _script}, "filter_context": {"fields": fields}}


def read_items(value: Any, at: str, *, grouped: bool = False) -> tuple[Change, ...]:
    """Changes in a list of Structs, in the order of rules and of their conditions."""
    result: list[Change] = []
    for index, item in enumerate(value):
        path = f"{at}[{index}]"
        made = _item(item, path, grouped=grouped)
        if result and (made.rule, made.at) <= (result[-1].rule, result[-1].at):
            raise UnenforceableError(path, "is not in the order of the rules")
        result.append(made)
    if not result:
        raise UnenforceableError(f"{at}[0]", "is required")
    return tuple(result)


def check_groups(rules: Sequence[HttpRule], changes: Sequence[Change], at: str) -> list[Group]:
    """The groups of these rules (as they are without the changes), once each change is found to be in its own."""
    groups: dict[Group, int] = {}
    for index, change in enumerate(changes):
        if change.rule >= len(rules):
            raise UnenforceableError(f"{at}[{index}]", "belongs to no rule")
        number = groups.setdefault(group_of(rules[change.rule]), len(groups))
        if change.group != str(number):
            raise UnenforceableError(f'{at}[{index}].struct_value.fields["group"]', "is not that of its rule")
    if len(groups) > _MAX_GROUPS:
        raise UnenforceableError(at, f"{len(groups)} different rules with mismatch actions are more than {_MAX_GROUPS}")
    return list(groups)


def _grouped_items(value: Any, at: str, found: Found) -> None:
    found["changes"] = read_items(value, at, grouped=True)


def _item(item: Any, at: str, *, grouped: bool) -> Change:
    names = ("rule", "at", "name", "action", *(("group",) if grouped else ()))
    fields: Shape = {name: {"string_value": Hole(name, _READ.get(name, str))} for name in names}
    fields["value"] = Maybe({"string_value": Hole("value", _bytes)})
    found: Found = {}
    check(item, {"struct_value": {"fields": fields}}, at, found)
    value: str | None = found.get("value")
    if _CONTROLS.search(value or ""):
        raise UnenforceableError(f'{at}.struct_value.fields["value"]', "has characters that no header may have")
    match = HeaderMatch(found["name"], value, mismatch=found["action"])
    return Change(found["rule"], found["at"], match, found.get("group", ""))


def _script(value: Any, at: str, found: Found) -> None:
    if sha256(value.encode()).hexdigest() != SCRIPT_DIGEST:
        raise UnenforceableError(at, "is not the script that changes headers")


def _place(value: str) -> int:
    if not _PLACE.fullmatch(value):
        raise ValueError("is no place")
    return int(value)


def _name(value: str) -> str:
    if not NAME.fullmatch(value) or value in _NOT_TO_BE_CHANGED or value.startswith("x-envoy-"):
        raise ValueError("is no header that may be changed")
    return value


def _action(value: str) -> Mismatch:
    if value not in _ACTIONS:
        raise ValueError(f"is none of {', '.join(_ACTIONS)}")
    return _ACTIONS[value]


def _bytes(value: str) -> str:
    """Latin-1 in hexadecimal."""
    try:
        raw = bytes.fromhex(value)
    except ValueError:
        raise ValueError("is not hexadecimal") from None
    if raw.hex() != value:
        raise ValueError("is not hexadecimal")
    return raw.decode("latin-1")


_ACTIONS = {each.value: each for each in Mismatch if each is not Mismatch.DENY}
_READ: dict[str, Any] = {"rule": _place, "at": _place, "name": _name, "action": _action}
