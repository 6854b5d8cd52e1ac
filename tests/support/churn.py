"""A world that changes: rule sets, listeners, routes, clusters and endpoints of one Envoy, and what is right at a time.

`State` is one moment of it, `changed` the next one, by chance. Its xDS resources are in `churnxds`, what traffic may
see of it in `churnjudge`. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple, TypeVar

import msgspec

from spliceway.policy.http import HttpRequest
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet

V = TypeVar("V")

#: Rule sets by number; the first is always there, and only its rules change.
RULE_SETS = range(1, 13)
#: Listeners with routes to clusters, by number; the first is always there and never changes.
WEBS = range(4)
#: Routes of these listeners: prefix `/p<number>/`; the first always goes to a cluster.
PATHS = range(8)
CLUSTERS = range(6)
#: Servers that endpoints can be, by number; all of them always answer.
SERVERS = range(1, 7)

_PATTERNS = ("", "/a.*", "/b.*", "/[ab].*", "/c", "/a/1")
_HEADERS = ("x-team", "x-role")
_VALUES = ("red", "blue")
#: Requests to rule sets: all of them are decided by rules, none is malformed.
REQUESTS = tuple(
    HttpRequest.of(method, path, (("host", host), *headers))
    for method, path, host, headers in (
        ("GET", "/a", "api", ()),
        ("GET", "/a/1", "api", (("x-team", "red"),)),
        ("GET", "/b?q=1", "web", (("x-team", "blue"), ("x-role", "red"))),
        ("POST", "/a", "api", (("x-role", "blue"),)),
        ("GET", "/c", "api", (("x-team", "red"), ("x-team", "red"))),
        ("PUT", "/b", "web", ()),
        ("GET", "/a;x", "api", (("x-team", "red"),)),
        ("GET", "//a/./1", "api", (("x-role", "red"), ("x-team", "blue"))),
    )
)


class Pool(NamedTuple):
    """A cluster: `kind` is some setting of it, `endpoints` are numbers of servers."""

    kind: int
    endpoints: tuple[int, ...]


class State(msgspec.Struct, frozen=True):
    """One moment. Values of `listeners` and `webs` are variants of that listener; `original` is one of the cluster.

    A path's route: clusters that share the requests, () a direct answer.
    """

    rule_sets: Mapping[int, RuleSet]
    listeners: Mapping[int, int]
    webs: Mapping[int, int]
    routes: Mapping[int, tuple[int, ...]]
    pools: Mapping[int, Pool]
    original: int = 0


def first_state(random: Random) -> State:
    """Where it begins."""
    pools = {number: _pool(random) for number in CLUSTERS[:3]}
    return State(
        rule_sets={number: random_rule_set(random, number) for number in RULE_SETS[:6]},
        listeners=dict.fromkeys(RULE_SETS[:6], 0),
        webs={0: 0, 1: 0},
        routes={path: (random.choice(list(pools)),) for path in PATHS[:4]},
        pools=pools,
    )


def changed(random: Random, state: State, done: Counter[str]) -> State:
    """The next moment: one to three changes at once, counted in `done`. It always differs."""
    after = state
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        what = random.choices(list(_CHANGES), [weight for _, weight in _CHANGES.values()])[0]
        made = _CHANGES[what][0](random, after)
        if made is not None and made != after:
            after = made
            done[what] += 1
    return after if after != state else changed(random, state, done)


def random_rule_set(random: Random, number: int) -> RuleSet:
    """Rules of one end or both, in audit or not, with conditions on headers and actions."""
    first = _end(random, 100)
    also = _end(random, 200) if random.random() < 0.3 else None
    return RuleSet(number, f"set {number}", first.rules, first.audit, also)


def _end(random: Random, number: int) -> RuleSet:
    shape = random.choice(("rules", "rules", "rules", "both", "audit"))
    rules = _rules(random, number) if shape != "audit" else None
    return RuleSet(number, f"end {number}", rules, _rules(random, number + 10) if shape != "rules" else None)


def _rules(random: Random, number: int) -> tuple[HttpRule, ...]:
    return tuple(
        HttpRule(
            number + index,
            random.choice(("", "GET", "GET|POST")),
            random.choice(_PATTERNS),
            random.choice(("", "", "api")),
            tuple(_header(random) for _ in range(random.choice((0, 0, 1)))),
        )
        for index in range(random.randint(1, 4))
    )


def _header(random: Random) -> HeaderMatch:
    action = random.choice((Mismatch.DENY, Mismatch.DENY, Mismatch.LOG, Mismatch.DELETE, Mismatch.REPLACE))
    return HeaderMatch(random.choice(_HEADERS), random.choice((None, *_VALUES)), False, action)


def _pool(random: Random) -> Pool:
    return Pool(random.randrange(100), _endpoints(random))


def _endpoints(random: Random) -> tuple[int, ...]:
    return tuple(sorted(random.sample(SERVERS, random.choice((1, 1, 2, 3)))))


# Changes: each gives the state after it, None when it is not possible.


def _edit_rules(random: Random, state: State) -> State:
    number = random.choice(list(state.rule_sets))
    return _with(state, rule_sets={**state.rule_sets, number: random_rule_set(random, number)})


def _switch_audit(random: Random, state: State) -> State:
    number = random.choice(list(state.rule_sets))
    old = state.rule_sets[number]
    rules, audit = (None, old.rules) if old.rules is not None else (old.audit, None)
    return _with(state, rule_sets={**state.rule_sets, number: msgspec.structs.replace(old, rules=rules, audit=audit)})


def _add_rule_set(random: Random, state: State) -> State | None:
    free = [number for number in RULE_SETS if number not in state.rule_sets]
    if not free:
        return None
    number = random.choice(free)
    sets = {**state.rule_sets, number: random_rule_set(random, number)}
    return _with(state, rule_sets=sets, listeners={**state.listeners, number: 0})


def _remove_rule_set(random: Random, state: State) -> State | None:
    number = random.choice(RULE_SETS[1:])
    return _with(state, rule_sets=_without(state.rule_sets, number), listeners=_without(state.listeners, number))


def _edit_listener(random: Random, state: State) -> State | None:
    number = random.choice(RULE_SETS[1:])
    if number not in state.listeners:
        return None
    return _with(state, listeners={**state.listeners, number: random.randrange(100)})


def _edit_original(random: Random, state: State) -> State:
    return _with(state, original=random.randrange(100))


def _web(random: Random, state: State) -> State:
    number = random.choice(WEBS[1:])
    if number in state.webs and random.random() < 0.5:
        return _with(state, webs=_without(state.webs, number))
    return _with(state, webs={**state.webs, number: random.randrange(100)})


def _route(random: Random, state: State) -> State | None:
    path = random.choice(PATHS)
    if path != 0 and random.random() < 0.3:
        return _with(state, routes=_without(state.routes, path))
    direct = path != 0 and random.random() < 0.2
    several = min(len(state.pools), random.choice((1, 1, 2)))
    targets = () if direct else tuple(sorted(random.sample(list(state.pools), several)))
    return _with(state, routes={**state.routes, path: targets})


def _add_cluster(random: Random, state: State) -> State | None:
    """With a route that goes to it at once."""
    free = [number for number in CLUSTERS if number not in state.pools]
    if not free:
        return None
    number = random.choice(free)
    pools = {**state.pools, number: _pool(random)}
    return _with(state, pools=pools, routes={**state.routes, random.choice(PATHS): (number,)})


def _remove_cluster(random: Random, state: State) -> State | None:
    """With all routes to it."""
    if len(state.pools) < 2:
        return None
    number = random.choice(list(state.pools))
    pools = _without(state.pools, number)
    routes = {
        path: (random.choice(list(pools)),) if number in targets else targets for path, targets in state.routes.items()
    }
    return _with(state, pools=pools, routes=routes)


def _edit_cluster(random: Random, state: State) -> State:
    """With other endpoints, or with the same."""
    number = random.choice(list(state.pools))
    fresh = _pool(random)
    if random.random() < 0.5:
        fresh = fresh._replace(endpoints=state.pools[number].endpoints)
    return _with(state, pools={**state.pools, number: fresh})


def _move_endpoints(random: Random, state: State) -> State:
    number = random.choice(list(state.pools))
    return _with(state, pools={**state.pools, number: state.pools[number]._replace(endpoints=_endpoints(random))})


_CHANGES: dict[str, tuple[Callable[[Random, State], State | None], int]] = {
    "rules edited": (_edit_rules, 30),
    "audit switched": (_switch_audit, 8),
    "rule set added": (_add_rule_set, 8),
    "rule set removed": (_remove_rule_set, 8),
    "policy listener edited": (_edit_listener, 4),
    "original-destination edited": (_edit_original, 4),
    "listener added, edited or removed": (_web, 5),
    "route added, edited or removed": (_route, 12),
    "cluster added": (_add_cluster, 5),
    "cluster removed": (_remove_cluster, 5),
    "cluster edited": (_edit_cluster, 6),
    "endpoints moved": (_move_endpoints, 12),
}


def _with(state: State, **changes: Any) -> State:
    return msgspec.structs.replace(state, **changes)


def _without(mapping: Mapping[int, V], key: int) -> dict[int, V]:
    return {one: value for one, value in mapping.items() if one != key}
