"""Everything that is derived from the objects of a cluster for one node, kept up as they change.

One change goes through it in one direction: objects → label sets, addresses, specifications → the policies of local
endpoints → peers in use → prefixes → identities → classes → rows → rule sets. Each step hands on what is stale only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from spliceway.policy.addresses import Addresses
from spliceway.policy.entity import RESERVED_LABELS
from spliceway.policy.halves import Halves, Retired
from spliceway.policy.identities import Identities
from spliceway.policy.labelfilter import LabelFilter
from spliceway.policy.labelsets import LabelSets, PortName, ports_of
from spliceway.policy.model import (
    CidrGroup,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Object,
    Pod,
    Secret,
    Service,
    ServicePeer,
    object_key,
)
from spliceway.policy.numbering import Numbering
from spliceway.policy.pairs import Pairs
from spliceway.policy.peersets import PeerSets
from spliceway.policy.prefixsets import host_prefix
from spliceway.policy.programs import Half, Program
from spliceway.policy.rulesets import RuleSets
from spliceway.policy.selectors import facts_of, matcher
from spliceway.policy.services import API_SERVER, Directory, means, service_selector
from spliceway.policy.sharing import SharedMap
from spliceway.policy.specs import SpecEntry, Specs, keys_of
from spliceway.policy.table import EndpointPolicy, IPNetwork
from spliceway.policy.verdict import Direction

Change = tuple[Object | None, Object | None]


class Unit:
    """Local endpoints with the same labels: one policy id."""

    __slots__ = ("endpoints", "facts", "halves", "identity", "labels", "ports", "specs")

    def __init__(self, labels: tuple[str, ...], identity: int, policy_id: int) -> None:
        self.labels = labels
        self.identity = identity
        self.facts = facts_of(label for label in labels if label.startswith("k8s:"))
        self.ports: dict[PortName, tuple[int, ...]] = ports_of(labels)
        self.specs: tuple[SpecEntry, ...] = ()
        self.halves = tuple(Half(policy_id, direction) for direction in Direction)
        self.endpoints: dict[str, Pod] = {}

    @property
    def policy(self) -> EndpointPolicy:
        """What the kernel must know of each of the endpoints."""
        ingress, egress = (half.program is not None for half in self.halves)
        return EndpointPolicy(self.identity, self.halves[0].policy_id, ingress, egress)


class Compilation:
    """See the module. `change` takes objects over, `flush` works out what follows from them."""

    def __init__(
        self,
        *,
        node: str,
        pod_cidrs: Iterable[IPNetwork],
        audit: bool,
        label_filter: LabelFilter,
        numbering: Numbering,
        max_pairs: int,
        max_sets: int | None = None,
    ) -> None:
        self._node = node
        self._numbering = numbering
        self._label_sets = LabelSets(label_filter)
        self._addresses = Addresses(node, self._label_sets, pod_cidrs)
        self._directory = Directory()
        self._specs = Specs(audit=audit)
        self._peer_sets = PeerSets(self._directory)
        self._secrets: dict[str, Secret] = {}
        self._rule_sets = RuleSets(numbering, self._secrets, max_pairs=max_pairs, max_sets=max_sets)
        self.halves = Halves(numbering, self._peer_sets, self._rule_sets)
        self._pairs = Pairs()

        self._services: Counter[ServicePeer] = Counter()
        self._service_keys: dict[str, frozenset[str]] = {}
        self._changed_services: dict[str, list[Service]] = {}
        self._groups_changed = False
        self._local: dict[str, Pod] = {}
        self._stale_local: dict[str, None] = {}
        self._units: dict[tuple[str, ...], Unit] = {}
        self._by_policy: dict[tuple[int, Direction], Half] = {}
        self._unit_of: dict[str, Unit] = {}
        self._stale_units: dict[Unit, None] = {}
        self._local_prefixes: Counter[IPNetwork] = Counter()
        self._moved_units = False
        self.endpoints: SharedMap[str, EndpointPolicy] = SharedMap()
        self._identities = Identities(numbering, self._peer_sets)
        self.identities = self._identities.identities
        self.ipcache = self._identities.ipcache
        for number, labels in RESERVED_LABELS.items():
            self._identities.hold(number, labels)

    @property
    def refused_pairs(self) -> frozenset[tuple[int, int]]:
        """Pairs of rule sets for which there was no room."""
        return frozenset(self._rule_sets.refused_pairs)

    def naive_rows(self) -> int:
        """Rows that a map without classes would have: identities × port rows, for each endpoint."""
        total = 0
        for unit in self._units.values():
            for half in unit.halves:
                if half.program is not None:
                    contents = (half.program.other, *half.program.assigned.values())
                    total += len(unit.endpoints) * sum(len(content.rows) for content in contents)
        return total

    def change(self, changes: Iterable[Change]) -> None:
        """Take over objects: (as it was, as it is); None: it was not there, or is no more."""
        for old, new in changes:
            match new if new is not None else old:
                case Pod():
                    self._pod(old, new)  # type: ignore[arg-type]
                case NetworkPolicy():
                    self._policy(old, new)  # type: ignore[arg-type]
                case Namespace(name=name):
                    self._label_sets.namespace(name, new)  # type: ignore[arg-type]
                case Node():
                    self._node_object(old, new)  # type: ignore[arg-type]
                case Service():
                    self._service(old, new)  # type: ignore[arg-type]
                case EndpointSlice():
                    self._slice(old, new)  # type: ignore[arg-type]
                case CidrGroup():
                    self._directory.put_group(old, new)  # type: ignore[arg-type]
                    self._groups_changed = True
                case Secret(key=key):
                    self._secret(key, new)  # type: ignore[arg-type]

    def flush(self) -> None:
        """Make everything follow from the objects. Raises NumberingError; then this is of no use any more."""
        for pod in self._label_sets.rekey():
            self._relabelled(pod)
        for found in self._label_sets.relabel():
            for pod in found.pods.values():
                self._relabelled(pod)
        self._flush_units()
        self._flush_names()
        self._flush_prefixes()
        self._flush_classes()
        self._flush_pairs()

    def isolating(self, endpoint: str, direction: Direction) -> tuple[tuple[str, str], ...]:
        """Keys of the policies that deny a local endpoint by default what nothing allows in this direction."""
        unit = self._unit_of.get(endpoint)
        return self._specs.isolating(unit.specs, direction) if unit is not None else ()

    def selecting(self, endpoint: str) -> frozenset[tuple[str, str]]:
        """Keys of the policies that are about a local endpoint."""
        unit = self._unit_of.get(endpoint)
        return frozenset(entry.policy for entry in unit.specs) if unit is not None else frozenset()

    def in_use(self, retired: Retired) -> bool:
        """Whether a number that was retired is in use again."""
        match retired:
            case ("identity", number):
                return self._identities.uses(number) > 0
            case ("policy", number):
                return (number, Direction.INGRESS) in self._by_policy
        return self.halves.in_use(retired, self._by_policy)

    # Objects.

    def _pod(self, old: Pod | None, new: Pod | None) -> None:
        if old is not None:
            if old.host_network:
                self._addresses.node(old.node, old.addresses, there=False)
            elif new is None or new.host_network or new.addresses != old.addresses:
                self._addresses.pod(old.key, old.addresses, there=False)
            if not old.host_network and (new is None or new.host_network):
                self._label_sets.drop(old.key)
            if self._local.pop(old.key, None) is not None:
                self._stale_local[old.key] = None
        if new is None:
            return
        if new.host_network:
            self._addresses.node(new.node, new.addresses, there=True)
            return
        before = None if old is None or old.host_network else self._label_sets.of(new.key)
        found = self._label_sets.put(new)
        if found is not before or old is None or (old.addresses, old.labels) != (new.addresses, new.labels):
            self._addresses.pod(new.key, new.addresses, there=True)
        if new.node == self._node:
            self._local[new.key] = new
            self._stale_local[new.key] = None

    def _relabelled(self, pod: Pod) -> None:
        self._addresses.relabelled(pod.addresses)
        if pod.node == self._node:
            self._local[pod.key] = pod
            self._stale_local[pod.key] = None

    def _policy(self, old: NetworkPolicy | None, new: NetworkPolicy | None) -> None:
        one = new if new is not None else old
        assert one is not None
        key = object_key(one)
        came, went = self._specs.put(key, new)
        self.halves.reread |= self._rule_sets.set_policy(one.title, self._specs.terms(key))
        for entries, times in ((came, 1), (went, -1)):
            for entry in entries:
                self._label_sets.name_keys(entry.keys, times=times)
                self._label_sets.name_ports(entry.ports, times=times)
                for peer in entry.services:
                    self._services[peer] += times
                    if self._services[peer] <= 0:
                        del self._services[peer]
                    for service in list(self._directory.services(peer)):
                        self._name_service(service.key, service)
        gone = set(went)
        for unit in self._units.values():
            if not gone.isdisjoint(unit.specs) or any(
                matcher(entry.terms.spec.subject).matches(unit.facts) for entry in came
            ):
                self._stale_units[unit] = None

    def _node_object(self, old: Node | None, new: Node | None) -> None:
        for node, there in ((old, False), (new, True)):
            if node is not None:
                self._addresses.node(node.name, node.addresses, there=there)
                self._addresses.node(node.name, node.further, there=there, further=True)
                for prefix in node.pod_cidrs:
                    self._addresses.pod_range(prefix, times=1 if there else -1)
        name = new.name if new is not None else old.name if old is not None else ""
        self._addresses.node_labels(name, new)

    def _service(self, old: Service | None, new: Service | None) -> None:
        self._directory.put_service(old, new)
        if old is not None and new is not None and (old.labels, old.selector) == (new.labels, new.selector):
            return  # the rest is about load balancing
        for service in (old, new):
            if service is not None:
                self._changed_services.setdefault(service.key, []).append(service)
                self._name_service(service.key, new)

    def _name_service(self, key: str, service: Service | None) -> None:
        """What the selector of a Service names counts for identities as long as a policy means the Service."""
        before = self._service_keys.pop(key, frozenset())
        selector = service_selector(service) if service is not None else None
        if selector is not None and service is not None and any(means(peer, service) for peer in self._services):
            self._service_keys[key] = keys_of([selector])
        after = self._service_keys.get(key, frozenset())
        self._label_sets.name_keys(after - before, times=1)
        self._label_sets.name_keys(before - after, times=-1)

    def _slice(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        self._directory.put_slice(old, new)
        if old is not None and new is not None and (old.service, old.addresses) == (new.service, new.addresses):
            return
        for found, times in ((new, 1), (old, -1)):
            if found is None:
                continue
            if (found.namespace, found.service) == API_SERVER:
                self._addresses.api_server(found.addresses, times=times)
            service = self._directory.service(found.namespace, found.service)
            if service is not None:
                self._changed_services.setdefault(service.key, []).append(service)

    def _secret(self, key: str, new: Secret | None) -> None:
        if new is None:
            self._secrets.pop(key, None)
        else:
            self._secrets[key] = new
        self.halves.reread |= self._rule_sets.set_secrets(self._secrets, [key])

    # What follows.

    def _flush_units(self) -> None:
        stale, self._stale_local = self._stale_local, {}
        for key in stale:
            pod = self._local.get(key)
            old = self._unit_of.pop(key, None)
            if old is not None:
                self._local_prefixes.subtract(map(host_prefix, old.endpoints.pop(key).addresses))
            if pod is not None:
                self._local_prefixes.update(map(host_prefix, pod.addresses))
                unit = self._unit(self._label_sets.of(key).labels)
                unit.endpoints[key] = pod
                self._unit_of[key] = unit
            if old is not None and not old.endpoints:
                self._stale_units[old] = None
        if stale:
            self._moved_units = True
            self._local_prefixes = +self._local_prefixes
        units, self._stale_units = self._stale_units, {}
        for unit in units:
            if not unit.endpoints:
                self._drop_unit(unit)
                continue
            unit.specs = self._specs.about(unit.facts)
            for half in unit.halves:
                self.halves.assign(half, self.halves.program(unit.specs, half.direction, unit.ports))
            stale.update(dict.fromkeys(unit.endpoints))
        for key in stale:
            if key in self._unit_of:
                self.endpoints.set(key, self._unit_of[key].policy)
            else:
                self.endpoints.drop(key)

    def _unit(self, labels: tuple[str, ...]) -> Unit:
        unit = self._units.get(labels)
        if unit is None:
            unit = self._units[labels] = Unit(labels, self._identities.of(labels), self._numbering.policy(labels))
            for half in unit.halves:
                self._by_policy[half.policy_id, half.direction] = half
            self._stale_units[unit] = None
        return unit

    def _drop_unit(self, unit: Unit) -> None:
        del self._units[unit.labels]
        for half in unit.halves:
            self.halves.assign(half, None)
            del self._by_policy[half.policy_id, half.direction]
        self._identities.leave(unit.identity)
        self.halves.retired["policy", unit.halves[0].policy_id] = None

    def _flush_names(self) -> None:
        """What Services and CIDR groups stand for now; then the prefixes and labels of nodes that peers in use name."""
        changed, self._changed_services = self._changed_services, {}
        services = [service for found in changed.values() for service in found]
        groups, self._groups_changed = self._groups_changed, False
        if services or groups:
            for found in self._peer_sets.of_names():
                if (groups and any(peer.cidr is None for peer in found.peers.cidrs)) or any(
                    means(peer, service) for peer in found.peers.services for service in services
                ):
                    self._peer_sets.renew(found)
        atoms, self._peer_sets.atoms = self._peer_sets.atoms, []
        for (prefix, excepts, inside), times in atoms:
            for one in (prefix, *excepts):
                self._addresses.name_prefix(one, inside=inside, times=times)
        keys, self._peer_sets.node_keys = self._peer_sets.node_keys, []
        for key, times in keys:
            self._addresses.name_node_keys([key], times=times)

    def _flush_prefixes(self) -> None:
        for prefix in self._addresses.take_stale():
            if self._identities.label(prefix, self._addresses) and prefix in self._local_prefixes:
                self._moved_units = True

    def _flush_classes(self) -> None:
        stale: dict[Program, set[int]] = {}
        moved, self._peer_sets.moved = self._peer_sets.moved, {}
        touched = [(found.serial, number) for found, numbers in moved.items() for number in numbers]
        members, went = self._identities.take_moved()
        self.halves.retired.update((("identity", member.number), None) for member in went)
        members += went
        touched += [(found.serial, member.number) for member in members for found in member.sets]
        for program, numbers in self.halves.moved(touched).items():
            stale.setdefault(program, set()).update(numbers)
        for member in members:
            for name in member.ports:
                for program in self.halves.naming(name):
                    stale.setdefault(program, set()).add(member.number)
        for program in sorted(stale, key=lambda program: (program.key[0], program.key[1:])):
            self.halves.update(program, stale[program])

    def _flush_pairs(self) -> None:
        moved = self._moved_units or self.halves.steering_moved
        self._moved_units = self.halves.steering_moved = False
        self.halves.tidy(self._find_pairs() if moved else None)

    def _find_pairs(self) -> set[tuple[int, int]]:
        ends: tuple[dict[Half, set[int]], dict[Half, set[int]]] = ({}, {})
        for unit in self._units.values():
            for half in unit.halves:
                if half.program is not None and half.program.steering:
                    ends[half.direction][half] = self._identities_of(unit)
        if not ends[Direction.EGRESS] or not ends[Direction.INGRESS]:
            return set()
        return self._pairs.find(ends[Direction.EGRESS], ends[Direction.INGRESS])

    def _identities_of(self, unit: Unit) -> set[int]:
        addresses = [address for pod in unit.endpoints.values() for address in pod.addresses]
        return {unit.identity, *(number for a in addresses if (number := self.ipcache.get(host_prefix(a))))}
