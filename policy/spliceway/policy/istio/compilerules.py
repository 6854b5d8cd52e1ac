"""The rules of one specification as rules of AuthorizationPolicies; what can't be said is told."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from spliceway.policy.errors import PolicyError
from spliceway.policy.istio.httprules import Meaning, RefusedError, http_parts
from spliceway.policy.istio.mesh import Mesh
from spliceway.policy.istio.objects import AuthorizationRule, Operation, Source
from spliceway.policy.istio.peers import PeerSources
from spliceway.policy.istio.subjects import Target
from spliceway.policy.model import NetworkPolicy, Pod, PortRange, PortRule, Rule, Spec
from spliceway.policy.verdict import Direction, Protocol

#: Most ports that a range is written out to; AuthorizationPolicies have no ranges.
MAX_PORTS = 256
_LAST = 65535


class Entry(msgspec.Struct, frozen=True, eq=False):
    """A specification that says something of ingress, and the pods that it is about now."""

    policy: NetworkPolicy
    spec: Spec
    pods: tuple[Pod, ...]
    targets: tuple[Target, ...] = ()

    @property
    def http(self) -> bool:
        """Whether it has HTTP rules in ingress."""
        return any(entry.http is not None for rule in self.rules() for entry in rule.to_ports)

    @property
    def default_deny(self) -> bool:
        """Whether it turns default deny on."""
        return self.spec.default_deny[Direction.INGRESS]

    def rules(self) -> tuple[Rule, ...]:
        """What it says of ingress."""
        return tuple(rule for rule in self.spec.rules if rule.direction is Direction.INGRESS and not rule.void)

    def error(self, path: str, reason: str) -> PolicyError:
        """A refusal of what stands at this path."""
        return PolicyError(self.policy.file, self.policy.title, path, reason)


class Box(msgspec.Struct, frozen=True):
    """Peers and ports for which there are HTTP rules. `ports` empty: every port."""

    path: str
    sources: tuple[Source, ...]
    ports: tuple[int, ...]


class Compiled(msgspec.Struct, frozen=True):
    """Rules of one specification. `errors`: what could not be said."""

    allow: tuple[AuthorizationRule, ...]
    deny: tuple[AuthorizationRule, ...]
    boxes: tuple[Box, ...]
    errors: tuple[PolicyError, ...]


class RuleCompiler:
    """Compiles specifications of one cluster."""

    def __init__(self, mesh: Mesh, peers: PeerSources, namespaces: Iterable[str]) -> None:
        self._mesh, self._peers = mesh, peers
        self._namespaces = tuple(sorted(namespaces))

    def compile(self, entry: Entry, meaning: Meaning) -> Compiled:
        """All of its rules."""
        allow: list[AuthorizationRule] = []
        deny: list[AuthorizationRule] = []
        boxes: list[Box] = []
        errors: list[PolicyError] = []
        for rule in entry.rules():
            for to_port in rule.to_ports or (None,):
                path = rule.path if to_port is None else to_port.path
                try:
                    sources = self._peers.of(rule.peers, deny=rule.deny)
                    ports = self.ports(entry, to_port)
                    if sources is None or ports == ():
                        continue
                    self._check_identities(entry, sources, ports)
                except RefusedError as refused:
                    errors.append(entry.error(path, str(refused)))
                    continue
                made, failed = _one(entry, to_port, AuthorizationRule(sources, Operation(ports or ())), meaning)
                (deny if rule.deny else allow).extend(made)
                errors += failed
                if to_port is not None and to_port.http is not None:
                    boxes.append(Box(path, sources, ports or ()))
        return Compiled(tuple(allow), tuple(deny), tuple(boxes), tuple(errors))

    def not_strict(self, entry: Entry, ports: Iterable[int] | None) -> str:
        """Why not every client of these ports of the workloads has a certificate."""
        namespaces = {target.namespace for target in entry.targets}
        if self._mesh.root_namespace in namespaces:
            namespaces |= {*self._namespaces}
        return self._mesh.not_strict(entry.pods, sorted(namespaces), ports)

    def ports(self, entry: Entry, to_port: PortRule | None) -> tuple[int, ...] | None:
        """TCP ports that are meant: None is every port. Raises RefusedError."""
        if to_port is None:
            return None
        found: list[int] = []
        for one in to_port.ports:
            if one.protocol not in (Protocol.TCP, Protocol.ANY):
                continue
            if one.name:
                found += _named(entry, one)
            elif one.first <= 1 and one.last == _LAST:
                return None
            elif one.last - one.first >= MAX_PORTS:
                raise RefusedError(f"ports {one.first} to {one.last}: more than {MAX_PORTS}, and there are no ranges")
            else:
                found += range(one.first, one.last + 1)
        return tuple(sorted(set(found)))

    def _check_identities(self, entry: Entry, sources: Iterable[Source], ports: tuple[int, ...] | None) -> None:
        if any(source.by_identity for source in sources) and (reason := self.not_strict(entry, ports)):
            raise RefusedError(f"{reason}, so that peers may come without a certificate, by which alone they are known")


def _one(
    entry: Entry, to_port: PortRule | None, about: AuthorizationRule, meaning: Meaning
) -> tuple[list[AuthorizationRule], list[PolicyError]]:
    """What becomes of ports of a rule, for the peers and ports of `about`."""
    if to_port is None or to_port.http is None:
        return [about], []
    made: list[AuthorizationRule] = []
    errors = []
    for match in to_port.http:
        try:
            for part in http_parts(match, meaning):
                operation = msgspec.structs.replace(part.operation, ports=about.operation.ports)
                made.append(AuthorizationRule(about.sources, operation, part.conditions))
        except RefusedError as refused:
            errors.append(entry.error(match.path, str(refused)))
    return made, errors


def _named(entry: Entry, wanted: PortRange) -> list[int]:
    """Numbers of a named port, which must be the same for all workloads."""
    numbers = {
        tuple(sorted(port.port for port in pod.ports if port.name == wanted.name and port.protocol is Protocol.TCP))
        for pod in entry.pods
    }
    if len(numbers) != 1:
        why = "is not one number for all pods that the policy selects" if numbers else "no pod says which number it has"
        raise RefusedError(f"port {wanted.name}: {why}")
    return list(numbers.pop())


def complement(entry: Entry, boxes: Iterable[Box]) -> tuple[AuthorizationRule, ...]:
    """Rules that allow all but these peers and ports: what no rule is about passes where default deny is off.

    Raises RefusedError.
    """
    boxes = tuple(boxes)
    if any(not box.ports for box in boxes):
        raise RefusedError("default deny is off, and HTTP rules for every port leave none to allow")
    every = sorted({port for box in boxes for port in box.ports})
    found = [AuthorizationRule(operation=Operation(not_ports=tuple(every)))]
    for port in every:
        about = [box for box in boxes if port in box.ports]
        if any(not box.sources for box in about):
            continue
        sources = [source for box in about for source in box.sources]
        if any(source.not_principals or source.not_ip_blocks for source in sources) or any(
            source.principals and source.ip_blocks for source in sources
        ):
            raise RefusedError("default deny is off, and what is left of these peers' addresses can't be said")
        rest = Source(
            not_principals=tuple(sorted({one for source in sources for one in source.principals})),
            not_ip_blocks=tuple(dict.fromkeys(one for source in sources for one in source.ip_blocks)),
        )
        found.append(AuthorizationRule((rest,), Operation((port,))))
    return tuple(found)
