"""What is accepted, and what workers must be told when it changes. Pure.

A listener is served once its rules and the cluster are there; until then it is accepted and warming, as with Envoy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from spliceway.policy.table import RuleSet
from spliceway.proxy.model import Change, ClusterConfig, ListenerConfig, RouteConfig


class Config(msgspec.Struct, frozen=True):
    """All accepted resources by name. Never changed: `with_…` and `without` give another one."""

    listeners: dict[str, ListenerConfig] = {}
    routes: dict[str, RouteConfig] = {}
    cluster: ClusterConfig | None = None

    def __repr__(self) -> str:
        return f"Config({len(self.listeners)} listeners, {len(self.routes)} routes, cluster={self.cluster is not None})"

    def with_listeners(self, changed: Mapping[str, ListenerConfig]) -> Config:
        """With these instead of those of the same names."""
        return Config({**self.listeners, **changed}, self.routes, self.cluster)

    def with_routes(self, changed: Mapping[str, RouteConfig]) -> Config:
        """The same for route configurations."""
        return Config(self.listeners, {**self.routes, **changed}, self.cluster)

    def with_cluster(self, cluster: ClusterConfig) -> Config:
        """With this cluster."""
        return Config(self.listeners, self.routes, cluster)

    def without(self, listeners: Collection[str]) -> Config:
        """Without these listeners."""
        return Config(
            {name: item for name, item in self.listeners.items() if name not in listeners}, self.routes, self.cluster
        )

    def pruned(self) -> Config:
        """Without routes that no listener names. Those that one names stay: rules are never taken from under it."""
        wanted = {item.route for item in self.listeners.values()}
        if self.routes.keys() <= wanted:
            return self
        kept = {name: item for name, item in self.routes.items() if name in wanted}
        return Config(self.listeners, kept, self.cluster)

    def users(self, routes: Collection[str]) -> list[str]:
        """Listeners that name one of these routes."""
        return [name for name, item in self.listeners.items() if item.route in routes]

    def served(self, name: str) -> tuple[ListenerConfig, RuleSet] | None:
        """The listener and its rules; None if it isn't there or is warming."""
        listener = self.listeners.get(name)
        route = self.routes.get(listener.route) if listener is not None else None
        if listener is None or route is None or self.cluster is None:
            return None
        return listener, route.rule_set

    def whole(self, revision: int) -> Change:
        """All that is served, for a worker that has nothing."""
        return difference(Config(), self, self.listeners, revision)


def difference(old: Config, new: Config, names: Iterable[str], revision: int) -> Change:
    """What brings a worker from `old` to `new`. `names`: all listeners that differ, or whose routes do."""
    listeners: dict[str, ListenerConfig] = {}
    rules: dict[str, RuleSet] = {}
    sockets: list[str] = []
    gone: list[str] = []
    for name in names:
        was, now = old.served(name), new.served(name)
        if now is None:
            if was is not None:
                gone.append(name)
            continue
        listener, rule_set = now
        if was is None or was[0].addresses != listener.addresses:
            sockets.append(name)
        if was is None or was[0] != listener:
            listeners[name] = listener
        if was is None or was[1] != rule_set:
            rules[listener.route] = rule_set
    return Change(
        revision=revision,
        listeners=listeners,
        sockets=tuple(sockets),
        rules=rules,
        gone=tuple(gone),
        cluster=new.cluster if new.cluster != old.cluster else None,
    )


def is_empty(change: Change) -> bool:
    """Whether it says nothing."""
    return not (change.listeners or change.rules or change.gone or change.cluster)
