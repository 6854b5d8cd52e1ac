"""Who asks, and what they may: bearer tokens that end, and rules as in a ClusterRole."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from support.kubeapi.errors import ApiError

ALL = ("*",)


class Rule(msgspec.Struct, frozen=True, rename="camel"):
    """One rule of a Role or ClusterRole (`msgspec.convert(rule, Rule)` reads it). `namespace` empty: everywhere."""

    verbs: tuple[str, ...] = ALL
    api_groups: tuple[str, ...] = ALL
    resources: tuple[str, ...] = ALL
    resource_names: tuple[str, ...] = ()
    namespace: str = ""

    def covers(self, verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        """Whether it allows this. `resource` may have a subresource: «pods/status»."""
        return (
            _among(verb, self.verbs)
            and _among(group, self.api_groups)
            and _among(resource, self.resources)
            and (not self.resource_names or name in self.resource_names)
            and self.namespace in ("", namespace)
        )


class Asked(msgspec.Struct, frozen=True):
    """What somebody wants to do."""

    verb: str
    group: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


class Rights:
    """Tokens and rules. Without any token everybody is `anonymous`, without rules everybody may everything."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[str, float]] = {}
        self._rules: dict[str, tuple[Rule, ...]] | None = None
        self.refused: list[Asked] = []

    def token(self, token: str, user: str = "tester", seconds: float = float("inf")) -> None:
        """Make a token good for so long."""
        self._tokens[token] = (user, time.monotonic() + seconds)

    def revoke(self, token: str) -> None:
        """Make a token bad; where it was the last one, nobody gets in."""
        self._tokens[token] = ("", 0.0)

    def allow(self, user: str, rules: Iterable[Rule]) -> None:
        """From now on this user may what the rules say, and users without rules nothing."""
        self._rules = {**(self._rules or {}), user: tuple(rules)}

    def who(self, authorization: str) -> str:
        """The user of an Authorization header. Raises ApiError (401)."""
        if not self._tokens:
            return "system:anonymous"
        scheme, _, token = authorization.partition(" ")
        user, until = self._tokens.get(token.strip(), ("", 0.0))
        if scheme.lower() != "bearer" or time.monotonic() >= until:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return user

    def check(self, user: str, asked: Asked) -> None:
        """Raises ApiError (403)."""
        if self._rules is None:
            return
        resource = f"{asked.plural}/{asked.subresource}" if asked.subresource else asked.plural
        rules = self._rules.get(user, ())
        if any(rule.covers(asked.verb, asked.group, resource, asked.namespace, asked.name) for rule in rules):
            return
        self.refused.append(asked)
        where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
        title = f"{asked.plural}.{asked.group}" if asked.group else asked.plural
        named = f' "{asked.name}"' if asked.name else ""
        details: dict[str, Any] = {"name": asked.name, "group": asked.group, "kind": asked.plural}
        raise ApiError(
            403,
            "Forbidden",
            f'{title}{named} is forbidden: User "{user}" cannot {asked.verb} resource "{resource}" '
            f'in API group "{asked.group}" {where}',
            **{key: value for key, value in details.items() if value},
        )


def _among(value: str, values: tuple[str, ...]) -> bool:
    return "*" in values or value in values
