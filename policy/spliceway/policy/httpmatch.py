"""Which of a list of HTTP rules match a request, why the others do not, and what the matching ones change.

Sources: Cilium 1.20, Documentation/security/policy/language «Layer 7» and pkg/policy/api/http.go (`HeaderMatch`,
`MismatchAction`); cilium/proxy, `HttpNetworkPolicyRule` (actions of every matching rule count).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from spliceway.policy.regex import compile_regex
from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, RuleRef

#: Of a group of tests so many rules are named, and of groups so many: there may be thousands.
_NAMED = 5


class HttpRequest(msgspec.Struct, frozen=True):
    """Head of a request. `path` is the request target as it came; header names in any case, values without margins."""

    method: bytes
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    version: str = "1.1"

    @classmethod
    def of(cls, method: str, path: str, headers: Iterable[tuple[str, str]] = (("host", "server"),)) -> HttpRequest:
        """From text: characters are Latin-1 bytes. Raises UnicodeEncodeError for others."""
        pairs = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)
        return cls(method.encode("latin-1"), path.encode("latin-1"), pairs)

    def values(self, name: bytes) -> list[bytes]:
        """Values of a header; `name` is in lower case."""
        return [value for key, value in self.headers if key.lower() == name]


class HeaderChange(msgspec.Struct, frozen=True):
    """What a header that does not match makes of the request: `action` is LOG, ADD, DELETE or REPLACE.

    ADD appends one more value, DELETE removes every value, REPLACE leaves the one that was expected, LOG changes
    nothing. `value` is None for DELETE and LOG. `secret`: the value came from a Secret and must not be shown.
    """

    action: Mismatch
    name: str
    value: str | None = None
    secret: bool = False

    def __repr__(self) -> str:
        value = "(secret)" if self.secret else repr(self.value)
        return f"HeaderChange({self.action.name}, {self.name!r}, {value})"


class Answer(msgspec.Struct, frozen=True):
    """`rule`: the first that matches, 0 when none does; then `nearest_miss` says why."""

    rule: int = 0
    changes: tuple[HeaderChange, ...] = ()
    nearest_miss: str = ""


def ask(
    request: HttpRequest,
    path: bytes,
    rules: Iterable[HttpRule],
    names: Mapping[int, RuleRef] | None = None,
    *,
    explain: bool = True,
) -> Answer:
    """Ask the rules. `path` is the normalised one; every rule sees the headers as they came.

    `explain` False: no nearest miss, which costs more than the answer.
    """
    rules = tuple(rules)
    first = 0
    changes: list[HeaderChange] = []
    for rule in rules:
        if first and not rule.headers:
            continue
        if _matches(rule, request, path):
            first = first or rule.rule
            changes += _changes(rule, request)
    if first:
        # Two rules that ask for the same change get it once: for the second the header would be right already.
        return Answer(first, tuple(dict.fromkeys(changes)))
    if not explain:
        return Answer()
    if not rules:
        return Answer(nearest_miss="the rule set has no rules")
    nearest = max(rules, key=lambda rule: _nearness(rule, request, path))
    return Answer(nearest_miss=_miss(nearest, request, path, names))


def apply(request: HttpRequest, changes: Iterable[HeaderChange]) -> HttpRequest:
    """The request after these changes."""
    headers = list(request.headers)
    for change in changes:
        name = change.name.encode("latin-1")
        value = (change.value or "").encode("latin-1")
        if change.action in (Mismatch.DELETE, Mismatch.REPLACE):
            headers = [header for header in headers if header[0].lower() != name]
        if change.action in (Mismatch.ADD, Mismatch.REPLACE):
            headers.append((name, value))
    return request if tuple(headers) == request.headers else msgspec.structs.replace(request, headers=tuple(headers))


def text(value: bytes) -> str:
    """Bytes as a message shows them: short and printable."""
    shown = value[:200].decode("latin-1")
    return shown if shown.isprintable() else repr(shown)[1:-1]


def _matches(rule: HttpRule, request: HttpRequest, path: bytes) -> bool:
    return (
        _fits(rule.method, request.method)
        and _fits(rule.path, path)
        and (not rule.host or _fits(rule.host, _host(request)))
        and all(header.mismatch is not Mismatch.DENY or not _wrong(header, request) for header in rule.headers)
        and all(any(_holds(test, request, path) for test in group) for group in rule.tests)
    )


def _holds(test: HttpTest, request: HttpRequest, path: bytes) -> bool:
    values = {":method": request.method, ":path": path, ":authority": _host(request)}
    matches = all(_fits(pattern, values[part]) for part, pattern in test.wanted) and not any(
        _fits(pattern, values[part]) for part, pattern in test.unless
    )
    return matches is not test.negated


def _changes(rule: HttpRule, request: HttpRequest) -> list[HeaderChange]:
    found = []
    for header in rule.headers:
        if header.mismatch is Mismatch.DENY or not _wrong(header, request):
            continue
        # What is not there needs no removal.
        if header.mismatch is Mismatch.DELETE and not request.values(header.name.encode("latin-1")):
            continue
        gives = header.mismatch in (Mismatch.ADD, Mismatch.REPLACE)
        value = (header.value or "") if gives else None
        found.append(HeaderChange(header.mismatch, header.name, value, header.secret))
    return found


def _wrong(header: HeaderMatch, request: HttpRequest) -> str:
    """Why a header does not match; empty when it does. Never says a value that the request has."""
    values = request.values(header.name.encode("latin-1"))
    if not values:
        return f"header {header.name} is missing"
    if len(values) > 1:
        return f"header {header.name} is there {len(values)} times"
    if header.value is None or values[0].decode("latin-1") == header.value:
        return ""
    return f"header {header.name} is not {'the value of its secret' if header.secret else header.value}"


def _host(request: HttpRequest) -> bytes:
    return b",".join(request.values(b"host"))


def _fits(pattern: str, value: bytes) -> bool:
    return not pattern or compile_regex(pattern).fullmatch(value) is not None


def _nearness(rule: HttpRule, request: HttpRequest, path: bytes) -> int:
    """How near a rule that does not match came: a condition that is there and holds says more than one that is not."""
    method_fits, path_fits = _fits(rule.method, request.method), _fits(rule.path, path)
    return (
        16 * (path_fits and bool(rule.path))
        + 8 * (method_fits and bool(rule.method))
        + 4 * bool(rule.host and _fits(rule.host, _host(request)))
        + 2 * bool((rule.headers or rule.tests) and not [*_failed(rule, request), *untrue(rule, request, path, None)])
        + (path_fits or method_fits)
    )


def _miss(rule: HttpRule, request: HttpRequest, path: bytes, names: Mapping[int, RuleRef] | None) -> str:
    """What was wrong."""
    method_fits, path_fits = _fits(rule.method, request.method), _fits(rule.path, path)
    parts = [
        f"method {'matches' if method_fits else f'{text(request.method)} does not match {rule.method}'}",
        f"path {'matches' if path_fits else f'{text(path)} does not match {rule.path}'}",
    ]
    if rule.host:
        host = _host(request)
        parts.append(f"host {'matches' if _fits(rule.host, host) else f'{text(host)} does not match {rule.host}'}")
    name = names.get(rule.rule) if names else None
    parts += [*_failed(rule, request), *untrue(rule, request, path, names)]
    return f"rule {name or rule.rule}: {', '.join(parts)}"


def _failed(rule: HttpRule, request: HttpRequest) -> list[str]:
    """What of its conditions on headers does not hold."""
    return [why for header in rule.headers if header.mismatch is Mismatch.DENY and (why := _wrong(header, request))]


def untrue(rule: HttpRule, request: HttpRequest, path: bytes, names: Mapping[int, RuleRef] | None) -> list[str]:
    """What of its tests does not hold. `path` is the normalised one; the proxy has no `names` for rules of tests."""
    found: list[str] = []
    for group in rule.tests:
        if any(_holds(test, request, path) for test in group):
            continue
        if len(found) == _NAMED:
            return [*found, "and by more"]
        called = ", ".join(_called(test, names) for test in group[:_NAMED])
        more = f" or {len(group) - _NAMED} more" if len(group) > _NAMED else ""
        found.append(f"denied by {called}" if group[0].negated else f"not allowed by {called}{more}")
    return found


def _called(test: HttpTest, names: Mapping[int, RuleRef] | None) -> str:
    return f"rule {names[test.rule]}" if names and test.rule in names else "another rule"
