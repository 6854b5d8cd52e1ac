"""CiliumNetworkPolicies with HTTP rules as Istio AuthorizationPolicies: the same verdicts, or a reason why not.

Each specification becomes an ALLOW policy (its allow rules, also those without HTTP) and a DENY policy (its deny
rules) for the same workloads. Cilium's union of rules, «deny wins» and «an allow without HTTP rules voids them» are
Istio's too. For workloads with sidecars an EnvoyFilter comes with them (envoyfilter.py), so that what Spliceway refuses
before any rule is asked meets no HTTP rule there either. What can't be said in one specification is refused for all
workloads that it has a part in, and with it every specification that is about one of them: an ALLOW policy without it
would deny what it allows. Nothing is ever made wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import msgspec

from spliceway.policy.errors import PolicyError
from spliceway.policy.istio.ambient import beside, for_waypoint
from spliceway.policy.istio.compilerules import Compiled, Entry, RuleCompiler, complement
from spliceway.policy.istio.envoyfilter import EnvoyFilter, Judged, judged
from spliceway.policy.istio.httprules import Ambiguous, Meaning, RefusedError
from spliceway.policy.istio.mesh import Dataplane, Mesh
from spliceway.policy.istio.objects import AuthorizationPolicy, AuthorizationRule
from spliceway.policy.istio.peers import PeerSources
from spliceway.policy.istio.subjects import Target, targets
from spliceway.policy.model import Cluster, NetworkPolicy, Pod, Spec, Tier
from spliceway.policy.selectors import facts_of, matcher
from spliceway.policy.verdict import Direction

#: Most rules of an AuthorizationPolicy (its CRD).
MAX_RULES = 512
_SHORT = {"CiliumNetworkPolicy": "cnp", "CiliumClusterwideNetworkPolicy": "ccnp", "NetworkPolicy": "np"}
_MAX_NAME = 253


class Options(msgspec.Struct, frozen=True):
    """`without_own_node`: where plaintext is let in, do without Cilium's rule that a pod's own node may reach it."""

    trust_domain: str = "cluster.local"
    meaning: Meaning = Meaning()
    without_own_node: bool = False


class Part(msgspec.Struct, frozen=True):
    """Specifications about the same workloads, of which one at least has HTTP rules: `policies`, or `errors`.

    `keys`: kind and name of the policies that they are in; `pods`: those that they are about now; `asking`: by policy,
    those that its HTTP rules are about.
    """

    keys: tuple[tuple[str, str], ...]
    pods: tuple[Pod, ...]
    policies: tuple[AuthorizationPolicy, ...]
    errors: tuple[PolicyError, ...]
    asking: Mapping[tuple[str, str], tuple[Pod, ...]] = {}


class Translation(msgspec.Struct, frozen=True):
    """`refusals` say what is not translated, `notes` what is worth knowing of the rest.

    `filters` belong to `policies`: without them HTTP rules match nothing.
    `refused`: the refusals because of which there is nothing for a pod, by «namespace/name». `parts`: the same by
    workloads, but for HTTP rules of egress; `idle`: policies that are about no pod now, and would be enforced.
    """

    policies: tuple[AuthorizationPolicy, ...]
    refusals: tuple[PolicyError, ...]
    notes: tuple[str, ...]
    refused: Mapping[str, tuple[PolicyError, ...]] = {}
    filters: tuple[EnvoyFilter, ...] = ()
    parts: tuple[Part, ...] = ()
    idle: frozenset[tuple[str, str]] = frozenset()

    def documents(self) -> list[dict[str, Any]]:
        """All of it as YAML has it: filters first, so that applying it in this order never denies for a moment."""
        return [*(one.document() for one in self.filters), *(one.document() for one in self.policies)]


def translate(cluster: Cluster, mesh: Mesh, options: Options | None = None) -> Translation:
    """Everything that the cluster's HTTP rules become."""
    return _Translator(cluster, mesh, options or Options()).run()


class _Translator:
    def __init__(self, cluster: Cluster, mesh: Mesh, options: Options) -> None:
        self._cluster, self._mesh, self._options = cluster, mesh, options
        self._notes: dict[str, None] = {}
        self._refusals: list[PolicyError] = []
        self._refused: dict[str, tuple[PolicyError, ...]] = {}
        self._filters: list[EnvoyFilter] = []
        self._about = ""
        self._pods = [pod for pod in cluster.pods.values() if not pod.host_network]
        alike: dict[tuple[str, ...], list[int]] = {}
        for place, pod in enumerate(self._pods):
            alike.setdefault(cluster.labels_of(pod), []).append(place)
        self._alike = [(facts_of(labels), places) for labels, places in alike.items()]  # places of pods
        peers = PeerSources(cluster, options.trust_domain, lambda text: self._note(f"{self._about}: {text}"))
        namespaces = {*cluster.namespaces, *(pod.namespace for pod in self._pods)}
        self._compiler = RuleCompiler(mesh, peers, namespaces)

    def run(self) -> Translation:
        entries = list(self._entries())
        with_http = (one for one in _components(entries) if any(entry.http for entry in one))
        parts = tuple(self._component(one) for one in with_http)
        policies = tuple(policy for part in parts for policy in part.policies)
        busy = {_key(entry.policy) for entry in entries if entry.pods}
        enforced = () if self._cluster.audit else (one for one in self._cluster.policies.values() if not one.audit)
        return Translation(
            policies,
            tuple(self._refusals),
            tuple(self._notes),
            self._refused,
            tuple(self._filters),
            parts,
            frozenset(map(_key, enforced)) - busy,
        )

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _entries(self) -> Iterator[Entry]:
        for policy in self._cluster.ordered_policies():
            for spec in policy.specs:
                if policy.audit or self._cluster.audit:
                    if any(one.http for rule in spec.rules for one in rule.to_ports):
                        self._note(f"{policy.title}: is in audit and enforces nothing: left out")
                    continue
                self._refuse_egress(policy, spec)
                if spec.tier is Tier.NORMAL and spec.applies[Direction.INGRESS]:
                    yield Entry(policy, spec, self._selected(spec))

    def _selected(self, spec: Spec) -> tuple[Pod, ...]:
        test = matcher(spec.subject)
        places = (place for facts, alike in self._alike if test.matches(facts) for place in alike)
        return tuple(self._pods[place] for place in sorted(places))

    def _refuse_egress(self, policy: NetworkPolicy, spec: Spec) -> None:
        for rule in spec.rules:
            for entry in rule.to_ports:
                if entry.http is not None and rule.direction is Direction.EGRESS:
                    reason = "HTTP rules of egress: Istio has no AuthorizationPolicy at the client's end"
                    self._refusals.append(PolicyError(policy.file, policy.title, entry.path, reason))

    def _component(self, entries: list[Entry]) -> Part:
        """All specifications that are about the same workloads, directly or by others; all of them or none."""
        errors: list[PolicyError] = []
        ready: list[tuple[Entry, Compiled]] = []
        meaning = self._meaning(entries)
        for entry in entries:
            self._about = entry.policy.title
            try:
                found = targets(self._cluster, entry.spec.subject, self._mesh.root_namespace)
            except RefusedError as refused:
                errors.append(entry.error(entry.spec.path, str(refused)))
                continue
            entry = msgspec.structs.replace(entry, targets=found)
            compiled = self._compiler.compile(entry, meaning)
            errors += compiled.errors
            ready.append((entry, compiled))
        errors += self._surroundings(entries, [entry for entry, _ in ready])
        made: list[AuthorizationPolicy] = []
        if not errors:
            try:
                made = self._policies(ready)
            except _EntryRefusedError as refused:
                errors.append(refused.error)
        self._refusals += errors
        if errors:
            self._refused.update((pod.key, tuple(errors)) for entry in entries for pod in entry.pods)
        if errors and len(entries) > 1:
            titles = ", ".join(dict.fromkeys(entry.policy.title for entry in entries))
            self._note(
                f"nothing is translated of {titles}: they are about the same workloads, of which a part is refused"
            )
        keys = dict.fromkeys(_key(entry.policy) for entry in entries)
        pods = {pod.key: pod for entry in entries for pod in entry.pods}
        asking: dict[tuple[str, str], dict[str, Pod]] = {}
        for entry in entries:
            if entry.http:
                asking.setdefault(_key(entry.policy), {}).update((pod.key, pod) for pod in entry.pods)
        about = {key: tuple(found.values()) for key, found in asking.items()}
        return Part(tuple(keys), tuple(pods.values()), tuple(made), tuple(errors), about)

    def _meaning(self, entries: Iterable[Entry]) -> Meaning:
        """Waypoints have no filters of ours: no kind of EnvoyFilter is promised to work there."""
        meaning = self._options.meaning
        planes = {self._mesh.dataplane(self._cluster, pod) for entry in entries for pod in entry.pods}
        if meaning.ambiguous is Ambiguous.DENY and Dataplane.AMBIENT in planes:
            return msgspec.structs.replace(meaning, ambiguous=Ambiguous.REFUSE)
        return meaning

    def _surroundings(self, entries: list[Entry], ready: list[Entry]) -> Iterator[PolicyError]:
        """What stands against an AuthorizationPolicy for these workloads, whatever it says."""
        pods = {pod.key: pod for entry in entries for pod in entry.pods}
        first = next(entry for entry in entries if entry.http)
        for pod in pods.values():
            plane = self._mesh.dataplane(self._cluster, pod)
            if plane is Dataplane.SIDECAR and self._mesh.shows_none(pod):
                self._note(
                    f"pod {pod.key}: shows no sidecar yet, by which alone the policy is enforced (start it again)"
                )
            if plane is Dataplane.NONE:
                reason = f"pod {pod.key} is not in the mesh: nothing would enforce an AuthorizationPolicy there"
                yield first.error(first.spec.path, reason)
                break
        for policy in self._cluster.ordered_policies():
            for spec in policy.specs:
                if spec.tier is not Tier.NORMAL and not policy.audit and spec.applies[Direction.INGRESS]:
                    labels = next(
                        (pod for pod in pods.values() if spec.subject.matches(self._cluster.labels_of(pod))), None
                    )
                    if labels is not None:
                        reason = f"{policy.title} is about pod {labels.key}, too, and its tier has no counterpart"
                        yield first.error(first.spec.path, reason)
        for foreign in self._mesh.foreign:
            about = foreign.namespace == self._mesh.root_namespace
            for pod in pods.values():
                if (
                    foreign.everybody
                    and (about or pod.namespace == foreign.namespace)
                    and foreign.match_labels.items() <= pod.labels.items()
                ):
                    name = f"{foreign.namespace}/{foreign.name}"
                    reason = f"AuthorizationPolicy {name} is about pod {pod.key}, too, and adds to it"
                    yield first.error(first.spec.path, reason)
                    break
        ambient = [pod for pod in pods.values() if self._mesh.dataplane(self._cluster, pod) is Dataplane.AMBIENT]
        if ambient and (there := beside(self._cluster, self._mesh, ambient)) is not None:
            reason = f"AuthorizationPolicy {there.namespace}/{there.name} is judged at their waypoint, too"
            yield first.error(first.spec.path, reason)
        for entry in ready:
            yield from self._hidden(entry)
            reason = self._compiler.not_strict(entry, None)
            if entry.http and reason and not self._options.without_own_node:
                told = f"{reason}: the own node's way in has no counterpart (--without-own-node does without it)"
                yield entry.error(entry.spec.path, told)

    def _hidden(self, entry: Entry) -> Iterator[PolicyError]:
        for rule in entry.rules():
            for to_port in rule.to_ports:
                if to_port.http is None:
                    continue
                try:
                    ports = self._compiler.ports(entry, to_port)
                except RefusedError:
                    continue
                for pod in entry.pods:
                    if hidden := self._mesh.hidden(pod, ports):
                        reason = f"the sidecar of pod {pod.key} does not see {hidden} (annotation)"
                        yield entry.error(to_port.path, reason)
                        break

    def _policies(self, ready: list[tuple[Entry, Compiled]]) -> list[AuthorizationPolicy]:
        """Policies of a component. Raises _EntryRefusedError."""
        planes = {self._mesh.dataplane(self._cluster, pod) for entry, _ in ready for pod in entry.pods}
        entry = next(entry for entry, _ in ready if entry.http)
        if len(planes) > 1:
            raise _EntryRefusedError(entry.error(entry.spec.path, "is about sidecars' pods and ambient ones together"))
        allowing = self._allowing(ready)
        made: list[AuthorizationPolicy] = []
        if planes == {Dataplane.AMBIENT}:
            try:
                return list(for_waypoint(self._cluster, self._mesh, self._options.trust_domain, allowing, ready, _name))
            except RefusedError as refused:
                raise _EntryRefusedError(entry.error(entry.spec.path, str(refused))) from None
        if self._options.meaning.ambiguous is Ambiguous.DENY:
            about = [entry for entry, compiled in ready if compiled.boxes]
            self._filters += self._filtering(about, judged(ready, allowing))
        for entry, compiled in ready:
            if not entry.pods:
                self._note(f"{entry.policy.title}: is about no pod of the inventory")
            parts = [("ALLOW", allowing.get(entry)), ("DENY", compiled.deny or None)]
            for action, rules in parts:
                if rules is None:
                    continue
                if len(rules) > MAX_RULES:
                    reason = f"{len(rules)} rules are more than {MAX_RULES}"
                    raise _EntryRefusedError(entry.error(entry.spec.path, reason))
                for index, target in enumerate(entry.targets):
                    name = _name(entry, action, index)
                    labels = target.match_labels
                    made.append(
                        AuthorizationPolicy(target.namespace, name, action, rules, labels, (), entry.policy.title)
                    )
        return made

    def _filtering(self, entries: Iterable[Entry], where: Judged) -> Iterator[EnvoyFilter]:
        """One for each selection of workloads."""
        done: set[Target] = set()
        for entry in entries:
            for index, target in enumerate(entry.targets):
                if target not in done:
                    done.add(target)
                    name, title = _name(entry, "FILTER", index), entry.policy.title
                    yield EnvoyFilter(target.namespace, name, target.match_labels, where.ports, title)
            if where.mixed != ():
                about = "every port" if where.mixed is None else f"port {', '.join(map(str, where.mixed))}"
                self._note(
                    f"{entry.policy.title}: {about}: some peers pass without HTTP rules, so paths are read there as "
                    "the mesh reads them, and the others' are denied where that leaves `//`"
                )

    def _allowing(self, ready: list[tuple[Entry, Compiled]]) -> dict[Entry, tuple[AuthorizationRule, ...]]:
        """Rules of the ALLOW policies; specifications that are not there need none."""
        found: dict[Entry, tuple[AuthorizationRule, ...]] = {}
        denying = {pod.key for entry, _ in ready if entry.default_deny for pod in entry.pods}
        lax: list[tuple[Entry, Compiled]] = []
        for entry, compiled in ready:
            keys = {pod.key for pod in entry.pods}
            if entry.default_deny or (keys and keys <= denying):
                found[entry] = compiled.allow
            elif keys & denying:
                reason = "default deny is off here, and by another policy on for a part of the same pods"
                raise _EntryRefusedError(entry.error(entry.spec.path, reason))
            else:
                lax.append((entry, compiled))
        found.update(self._lax(lax))
        return found

    def _lax(self, lax: list[tuple[Entry, Compiled]]) -> dict[Entry, tuple[AuthorizationRule, ...]]:
        """Where default deny is off altogether: an ALLOW policy that lets pass what no HTTP rule is about."""
        with_http = [(entry, compiled) for entry, compiled in lax if entry.http]
        if not with_http:
            return {}
        entry, compiled = with_http[0]
        if len(with_http) > 1:
            raise _EntryRefusedError(
                with_http[1][0].error(with_http[1][0].spec.path, "several policies turn default deny off")
            )
        if not entry.pods:
            raise _EntryRefusedError(
                entry.error(entry.spec.path, "default deny is off, and no pod says which other policies it has")
            )
        found = {}
        keys = {pod.key for pod in entry.pods}
        for other, rules in lax:
            if other is not entry and rules.allow:
                if not {pod.key for pod in other.pods} <= keys:
                    raise _EntryRefusedError(
                        other.error(other.spec.path, "default deny is off for pods with HTTP rules and without")
                    )
                found[other] = rules.allow
        try:
            found[entry] = (*compiled.allow, *complement(entry, compiled.boxes))
        except RefusedError as refused:
            raise _EntryRefusedError(entry.error(entry.spec.path, str(refused))) from None
        return found


class _EntryRefusedError(Exception):
    def __init__(self, error: PolicyError) -> None:
        super().__init__(str(error))
        self.error = error


def _components(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Specifications that have pods in common, directly or by others; in order."""
    home: dict[str, list[Entry]] = {}
    found: list[list[Entry]] = []
    for entry in entries:
        component = [entry]
        for other in list({id(home[pod.key]): home[pod.key] for pod in entry.pods if pod.key in home}.values()):
            component = [*other, *component]
            found = [one for one in found if one is not other]
        found.append(component)
        for one in component:
            home.update((pod.key, component) for pod in one.pods)
    return found


def _key(policy: NetworkPolicy) -> tuple[str, str]:
    return policy.kind, policy.key


def _name(entry: Entry, action: str, index: int) -> str:
    """A name that no other policy's, specification's or target's can be."""
    spec = entry.policy.specs.index(entry.spec)
    kind = _SHORT.get(entry.policy.kind, entry.policy.kind.lower())
    name = f"spliceway-{kind}-{action.lower()}-{spec}-{index}-{entry.policy.name}"
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 13]}-{sha256(name.encode()).hexdigest()[:12]}"
