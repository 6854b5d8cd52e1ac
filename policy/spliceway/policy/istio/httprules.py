"""One HTTP rule as rules of an AuthorizationPolicy: methods, paths and conditions that mean exactly the same.

Conditions on the path with its query, and on the host in its case, are conditions on the pseudo-headers `:path` and
`:authority`; `paths` leaves the query out, `hosts` the case. Sources: Istio, AuthorizationPolicy, «Conditions» and
«Normalization»; Envoy, RBAC (`header`, `url_path`).
"""

from __future__ import annotations

import re
from enum import Enum

import msgspec

from spliceway.policy.errors import SplicewayError
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.istio.objects import WELL_FORMED, Condition, Operation
from spliceway.policy.istio.patterns import Form, PatternError, forms
from spliceway.policy.model import HeaderCondition, HttpMatch
from spliceway.policy.table import Mismatch

_PATH, _AUTHORITY = "request.headers[:path]", "request.headers[:authority]"
#: Headers that proxies of the mesh set, add to or take away (Envoy, «HTTP header manipulation»; Istio, tracing).
_PROXYS = re.compile(
    r"x-(envoy|forwarded|b3|ot)-.*|x-(request|client-trace)-id|x-cloud-trace-context|b3|traceparent|tracestate"
    r"|baggage|grpc-trace-bin|forwarded|via|server|connection|te|upgrade|transfer-encoding|content-length"
)
#: What a path may begin or end with where more follows or goes before: nothing that normalisation changes.
_PLAIN = re.compile(r"[A-Za-z0-9_~!$&'()+,=:@./*-]*")
_DOTS = re.compile(r"(^|/)\.\.?(/|$)|//")
_NOT_REFUSED = "what two servers can read differently (`;`, `%25`) is not refused by Istio"


class RefusedError(SplicewayError):
    """What can't be said in AuthorizationPolicies, and why."""


class Normalization(Enum):
    """`meshConfig.pathNormalization.normalization`: what the mesh's proxies make of a path before they judge it."""

    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


class Ambiguous(Enum):
    """What becomes of rules that requests could match which two servers can read differently (`;` or `%25` in paths).

    `DENY`: with an EnvoyFilter such requests match no HTTP rule. `REFUSE`: such rules are refused, where nothing but
    AuthorizationPolicies may be written. `PASS`: it is accepted that Istio, as Cilium does, passes such requests on,
    also headers that are there twice.
    """

    DENY = "deny"
    REFUSE = "refuse"
    PASS = "pass"


class Meaning(msgspec.Struct, frozen=True):
    """What is known of the mesh and of its servers."""

    normalization: Normalization = Normalization.BASE
    ambiguous: Ambiguous = Ambiguous.DENY


class Part(msgspec.Struct, frozen=True):
    """One of the rules that an HTTP rule becomes; ports and sources are added to it."""

    operation: Operation
    conditions: tuple[Condition, ...]


def http_parts(match: HttpMatch, meaning: Meaning) -> tuple[Part, ...]:
    """The rules that together are equal to this one; none: no request matches it. Raises RefusedError."""
    methods = _methods(match.method_regex)
    common = (*_host(match.host_regex), *(_header(header, meaning) for header in match.headers))
    if methods is None:
        return ()
    formed = (WELL_FORMED,) if meaning.ambiguous is Ambiguous.DENY else ()
    found = []
    for values, conditions in _paths(match.path_regex, meaning):
        told = (*conditions, *common)
        # Something must be asked of a request, so that what is no HTTP does not pass.
        said = methods or (() if values or told else ("*",))
        found.append(Part(Operation(methods=said, paths=values), (*told, *formed)))
    return tuple(found)


def _methods(pattern: str) -> tuple[str, ...] | None:
    """Values of `methods`; empty: every method. None: no method matches."""
    found = []
    for form in _forms(pattern, "method"):
        if form.everything:
            return ()
        if form.excluded or form.template or (form.prefix and form.suffix):
            raise RefusedError(f"method {pattern}: no list of methods, prefixes and suffixes is equal to it")
        if form.prefix or form.suffix:
            found.append(_value(form, "method"))
    return tuple(found) or None


def _host(pattern: str) -> tuple[Condition, ...]:
    found = _forms(pattern, "host")
    if any(form.everything for form in found):
        return ()
    if any(form.excluded or form.template or (form.prefix and form.suffix) for form in found):
        raise RefusedError(f"host {pattern}: no list of hosts, prefixes and suffixes is equal to it")
    values = tuple(_value(form, "host") for form in found if form.prefix or form.suffix)
    if not values:
        raise RefusedError(f"host {pattern}: an empty Host has no counterpart")
    return (Condition(_AUTHORITY, values),)


def _header(header: HeaderCondition, meaning: Meaning) -> Condition:
    name = header.name
    if header.mismatch is not Mismatch.DENY:
        raise RefusedError(
            f"header {name}: mismatch {header.mismatch.value} changes or logs requests: no AuthorizationPolicy does"
        )
    if header.secret is not None:
        raise RefusedError(f"header {name}: the value of a Secret would stand in the AuthorizationPolicy")
    if _PROXYS.fullmatch(name.lower()):
        raise RefusedError(f"header {name}: proxies of the mesh set or change it themselves")
    if meaning.ambiguous is not Ambiguous.PASS:
        raise RefusedError(
            f"header {name}: one that is there twice never matches, and Istio asks whether any of its values does "
            "(accepted where `ambiguous` is pass)"
        )
    if header.value is None:
        return Condition(f"request.headers[{name}]", ("*",))
    if "," in header.value:
        raise RefusedError(f"header {name}: a value with a comma can't be told from a header that is there twice")
    return Condition(f"request.headers[{name}]", (_value(Form(header.value, exact=True), f"header {name}"),))


def _paths(pattern: str, meaning: Meaning) -> list[tuple[tuple[str, ...], tuple[Condition, ...]]]:
    """Alternatives of (values of `paths`, conditions on `:path`)."""
    meant = [form for form in _forms(pattern, "path") if _possible(form)]
    if any(
        form.everything or (form.prefix == "/" and not form.exact and not form.suffix and not form.excluded)
        for form in meant
    ):
        if meaning.ambiguous is Ambiguous.REFUSE:
            raise RefusedError(f"every path: {_NOT_REFUSED}")
        return [((), ())]
    for form in meant:
        _check_wild(form, pattern, meaning)
    if values := _without_query(meant):
        return [(values, ())]
    listed = tuple(_value(form, "path") for form in meant if _simple(form))
    found: list[tuple[tuple[str, ...], tuple[Condition, ...]]] = [((), (Condition(_PATH, listed),))] if listed else []
    for form in meant:
        if form.template:
            found.append(((form.template,), ()))
        elif not _simple(form):
            found.append(((), _with_exceptions(form)))
    return found


def _possible(form: Form) -> bool:
    """Whether a request can have such a path once it is normalised."""
    if form.template or form.everything:
        return True
    if form.exact or "?" in form.prefix:
        try:
            return normalise(form.prefix.encode("ascii")) == form.prefix.encode("ascii")
        except TargetError:
            return False
    return not form.prefix or form.prefix.startswith("/")


def _check_wild(form: Form, pattern: str, meaning: Meaning) -> None:
    """Refuse forms in which a part of the path is left open, unless paths have one meaning for proxy and server."""
    if form.exact or "?" in form.prefix:
        return
    if meaning.ambiguous is not Ambiguous.DENY:
        _check_meaning(pattern, meaning)
    for text in (form.prefix, form.suffix, *form.excluded):
        if not _PLAIN.fullmatch(text) or _DOTS.search(text):
            raise RefusedError(f"path {pattern}: {text} is not as paths are once they are normalised")


def _check_meaning(pattern: str, meaning: Meaning) -> None:
    if meaning.normalization is not Normalization.DECODE_AND_MERGE_SLASHES:
        raise RefusedError(
            f"path {pattern}: with path normalization {meaning.normalization.value} a server that decodes %2F "
            "may see a path that it does not match (set meshConfig.pathNormalization to DECODE_AND_MERGE_SLASHES, "
            "and say so here)"
        )
    if meaning.ambiguous is Ambiguous.REFUSE:
        raise RefusedError(f"path {pattern}: {_NOT_REFUSED}, and may be another path to the server")


def _without_query(meant: list[Form]) -> tuple[str, ...]:
    """Values of `paths` where each form goes for every query; empty: they don't."""
    exact = {form.prefix for form in meant if form.exact}
    asked = {form.prefix for form in meant if not form.exact and form.prefix.endswith("?") and _simple(form)}
    if {f"{path}?" for path in exact} != asked or not all(_simple(form) and not form.suffix for form in meant):
        return ()
    found = []
    for form in meant:
        if form.exact or form.prefix not in asked:
            if not form.exact and "?" in form.prefix:
                return ()
            found.append(_value(form, "path"))
    return tuple(found)


def _simple(form: Form) -> bool:
    return not form.template and not form.excluded and not (form.prefix and form.suffix)


def _with_exceptions(form: Form) -> tuple[Condition, ...]:
    ends = [Form(form.prefix)] if form.prefix else []
    ends += [Form(suffix=form.suffix)] if form.suffix else []
    excluded = tuple(_value(Form(text, exact=True), "path") for text in form.excluded if text)
    found = [Condition(_PATH, (_value(end, "path"),)) for end in ends]
    if not found:
        return (Condition(_PATH, ("*",)),)
    return (*found[:-1], msgspec.structs.replace(found[-1], not_values=excluded))


def _forms(pattern: str, what: str) -> tuple[Form, ...]:
    try:
        return forms(pattern)
    except PatternError as error:
        raise RefusedError(f"{what} {pattern}: {error}") from None


def _value(form: Form, what: str) -> str:
    """As Istio writes it: `text`, `text*` or `*text`. Raises RefusedError where it would be read as another form."""
    text = form.prefix or form.suffix
    if not text or text[0] == "*" or text[-1] == "*" or "{*}" in text or "{**}" in text:
        raise RefusedError(f"{what} {text or '(empty)'}: Istio would read it as a pattern")
    if form.exact:
        return text
    return f"{text}*" if form.prefix else f"*{text}"
