"""Which clients a CSDS request means: envoy.type.matcher.v3.NodeMatcher. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import re2

#: A node id -> whether it is meant.
Match = Callable[[str], bool]
#: Fields of a StringMatcher that hold one text to compare with.
_COMPARE: dict[str, Callable[[str, str], bool]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
    "contains": str.__contains__,
}


class MatcherError(ValueError):
    """A matcher that can't be used; the message says which part and why."""


def node_match(matchers: Iterable[Any]) -> Match:
    """The function that tells whether a node id is meant by one of the NodeMatchers; without any, every node is.

    Raises:
        MatcherError: metadata (which isn't kept), a custom matcher, a bad regular expression, or nothing to match.
    """
    matches = [_one(matcher, f"node_matchers[{index}]") for index, matcher in enumerate(matchers)]
    return lambda node: not matches or any(match(node) for match in matches)


def _one(matcher: Any, where: str) -> Match:
    if matcher.node_metadatas:
        raise MatcherError(f"{where}.node_metadatas: metadata of nodes is not kept here, match by node_id")
    return _text(matcher.node_id, f"{where}.node_id") if matcher.HasField("node_id") else lambda _: True


def _text(matcher: Any, where: str) -> Match:
    kind = matcher.WhichOneof("match_pattern")
    if kind == "safe_regex":
        return _regex(matcher.safe_regex.regex, f"{where}.safe_regex")
    if kind not in _COMPARE:
        raise MatcherError(
            f"{where}: {kind or 'nothing to match with'} is not one of {', '.join(_COMPARE)}, safe_regex"
        )
    compare, wanted, fold = _COMPARE[kind], getattr(matcher, kind), matcher.ignore_case
    if not wanted and kind != "exact":
        raise MatcherError(f"{where}.{kind}: must not be empty")
    return lambda node: compare(*((node.lower(), wanted.lower()) if fold else (node, wanted)))


def _regex(text: str, where: str) -> Match:
    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(text, options)
    except re2.error as error:
        raise MatcherError(f"{where}: {error}") from error
    return lambda node: pattern.fullmatch(node) is not None
