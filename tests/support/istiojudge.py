"""Asks Envoy what its sidecars say of cases, and compares it with the interpreter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from support.envoycases import raw_of
from support.istiobed import IstioBed, Place
from support.istiocases import ROOT_NAMESPACE, Asked, Way, as_own_envoy, exception
from support.istiofilters import patches
from support.istiorbac import applying, filters

Doc = dict[str, Any]
_PLAIN = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


class Found(msgspec.Struct):
    """`same`: cases in which both say the same; `other`: listed differences; `wrong`: those without reason.

    The same is, too, what Spliceway's own Envoy says where the interpreter says something else (envoycases).
    """

    same: int = 0
    other: Counter[str] = msgspec.field(default_factory=Counter)
    wrong: list[str] = msgspec.field(default_factory=list)


def judge(bed: IstioBed, cases: Iterable[Asked], way: Way) -> Found:
    """Ask all cases that are translated; one Envoy for all files."""
    wanted = [one for one in cases if not one.refused]
    found = Found()
    for group in _groups(wanted):
        chains, patched = chains_of(group)
        with bed.serving(chains, way.normalization.value, patches=patched):
            for one in group:
                _ask(bed, one, way, found)
    return found


def chains_of(cases: Iterable[Asked]) -> tuple[dict[Place, list[Doc]], dict[Place, list[Doc]]]:
    """Filters of the servers of these cases, by AuthorizationPolicies, and patches of their chains, by EnvoyFilters."""
    chains, patched = {}, {}
    for one in cases:
        place = Place(one.case.destination, one.case.port)
        about = one.file.documents(), one.server.namespace, one.server.labels, ROOT_NAMESPACE
        chains[place], patched[place] = filters(applying(*about)), patches(*about)
    return chains, patched


def _groups(cases: list[Asked]) -> Iterable[list[Asked]]:
    """Files use the same addresses: each has an Envoy of its own."""
    by_file: Mapping[str, list[Asked]] = {one.file.name: [] for one in cases}
    for one in cases:
        by_file[one.file.name].append(one)
    return by_file.values()


def status_of(bed: IstioBed, one: Asked) -> int:
    """What the server's sidecar answers; 0: it closes the connection."""
    request = one.case.request if one.http is not None else None
    raw = raw_of(request) if request is not None else _PLAIN
    place = Place(one.case.destination, one.case.port)
    return bed.ask(one.case.source, place, one.principal, raw, head=request is not None and request.method == b"HEAD")


def _ask(bed: IstioBed, one: Asked, way: Way, found: Found) -> None:
    status = status_of(bed, one)
    passed = status == 200
    if passed == one.passes or as_own_envoy(one, way, passes=passed):
        found.same += 1
    elif why := exception(one, way, passes=passed):
        found.other[why] += 1
    else:
        said = one.http.reason.label if one.http is not None else one.half.reason.label
        found.wrong.append(
            f"{one.case.id}: Istio {status}, the interpreter {'passes' if one.passes else 'refuses'} ({said})"
        )
