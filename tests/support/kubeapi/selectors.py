"""Label and field selectors of requests.

Source: k8s.io/apimachinery pkg/labels (selector.go), pkg/fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from support.kubeapi.errors import bad_request

Json = dict[str, Any]
Test = Callable[[Json], bool]

_SET = re.compile(r"\s*(?P<key>[^\s=!,()]+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)\s*")
_EQUAL = re.compile(r"\s*(?P<key>[^\s=!,()]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s=!,()]*)\s*")
_THERE = re.compile(r"\s*(?P<no>!?)\s*(?P<key>[^\s=!,()]+)\s*")


def label_test(text: str) -> Test:
    """Whether an object's labels are selected. Raises ApiError (400)."""
    tests: list[Callable[[Mapping[str, str]], bool]] = []
    at = 0
    while at < len(text):
        for pattern, make in ((_SET, _in_set), (_EQUAL, _equal), (_THERE, _there)):
            match = pattern.match(text, at)
            if match and match.end() in (len(text), text.find(",", match.end())):
                tests.append(make(match))
                at = match.end() + 1
                break
        else:
            raise bad_request(f"unable to parse requirement: {text[at:]!r}")

    def test(content: Json) -> bool:
        labels = content["metadata"].get("labels") or {}
        return all(one(labels) for one in tests)

    return test


def _in_set(match: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key, values = match["key"], frozenset(value.strip() for value in match["values"].split(","))
    if match["op"] == "in":
        return lambda labels: key in labels and labels[key] in values
    return lambda labels: key not in labels or labels[key] not in values


def _equal(match: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key, value = match["key"], match["value"]
    if match["op"] == "!=":
        return lambda labels: labels.get(key) != value
    return lambda labels: labels.get(key) == value


def _there(match: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key, absent = match["key"], bool(match["no"])
    return lambda labels: (key in labels) is not absent


def field_test(text: str, fields: tuple[str, ...]) -> Test:
    """Whether an object's fields are selected. Raises ApiError (400) for a field that can't be asked for."""
    known = ("metadata.name", "metadata.namespace", *fields)
    wanted: list[tuple[str, str, bool]] = []
    for part in filter(None, text.split(",")):
        key, operator, value = re.split(r"(!=|==|=)", part, maxsplit=1) if re.search("[=]", part) else (part, "", "")
        if not operator:
            raise bad_request(f"invalid selector: {part!r}; can't understand {part!r}")
        if key not in known:
            raise bad_request(f"field label not supported: {key}")
        wanted.append((key, value, operator != "!="))

    def test(content: Json) -> bool:
        return all((_field(content, key) == value) is same for key, value, same in wanted)

    return test


def _field(content: Any, path: str) -> str:
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    if isinstance(content, bool):
        return "true" if content else "false"
    return content if isinstance(content, str) else ""
