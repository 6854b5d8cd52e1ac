"""Which ports of a pod come to its sidecar first, by what Istio's injector has left at the pod. Pure.

Two places tell it, and a port counts only where both say so: the arguments of the container that writes the rules
(`istio-init`) or checks those of istio-cni (`istio-validation`), which nobody can change as long as the pod lives, and
the annotations, which istio-cni goes by. What is set for the whole mesh (interceptionMode, ports left out) may be in
the arguments alone: of a pod without such a container it is not known.
Sources: istio/istio, injection-template.yaml (arguments), tools/istio-iptables (what they mean, and that without
ISTIO_DUAL_STACK only the family of the pod's first address is led to the sidecar).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from spliceway.policy.labels import SIDECAR_KEY
from spliceway.policy.model import ContainerPort, Pod, PortRange
from spliceway.policy.table import IPAddress
from spliceway.policy.verdict import Protocol

STATUS = "sidecar.istio.io/status"
#: REDIRECT, TPROXY, or NONE: the application dials its sidecar itself, and nothing is led to it.
INTERCEPTION = "sidecar.istio.io/interceptionMode"
#: Ambient: ztunnel takes what the pod sends.
AMBIENT = "ambient.istio.io/redirection"
#: Ports that a sidecar does not see, and those that it sees alone (`*`: all).
EXCLUDED, INCLUDED = "traffic.sidecar.istio.io/excludeInboundPorts", "traffic.sidecar.istio.io/includeInboundPorts"
#: The same, each with what holds without it.
PORTS: Mapping[str, str] = {INCLUDED: "*", EXCLUDED: ""}
#: Interfaces that have rules of their own.
_INTERFACES = (
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "istio.io/reroute-virtual-interfaces",
)
#: The sidecar, and who writes the rules or checks them.
CONTAINER, WRITERS = "istio-proxy", ("istio-init", "istio-validation")
DUAL_STACK = "ISTIO_DUAL_STACK"
#: Variables that are arguments of the container that writes the rules, where it has none of that name.
_AS_ARGUMENTS = (
    "ISTIO_EXCLUDE_INTERFACES",
    "KUBE_VIRT_INTERFACES",
    "NETWORK_NAMESPACE",
    "DRY_RUN",
    "SKIP_RULE_APPLY",
    "CLEANUP_ONLY",
)
VARIABLES = frozenset({DUAL_STACK, *_AS_ARGUMENTS})
#: Ports of Istio's own, which no AuthorizationPolicy is about.
OWN_PORTS = range(15000, 15100)
_FIELDS = ("containers", "initContainers")
_MODES = ("REDIRECT", "TPROXY")
#: Arguments: mode, ports included and excluded, interfaces. The injector writes them so.
_MODE, _ONLY, _BUT, _INTERFACE = "-m", "-b", "-d", ("-c", "-k")
#: Who writes these has another template: the same in long, and what leaves the rules as they are.
_OTHERS = (
    "--istio-inbound-interception-mode",
    "--istio-inbound-ports",
    "--istio-local-exclude-ports",
    "--istio-exclude-interfaces",
    "--kube-virt-interfaces",
    "--dual-stack",
    "--network-namespace",
    "--cleanup-only",
)
#: Only who checks the rules of istio-cni writes none.
_WRITES_NONE = ("-n", "--dry-run", "--skip-rule-apply")
#: Ports and names that one pod may tell.
_MOST = 64


class Ports(msgspec.Struct, frozen=True):
    """Ports as Istio is told them. `only` None: all but `excluded`."""

    only: frozenset[int] | None = None
    excluded: frozenset[int] = frozenset()

    def has(self, port: int) -> bool:
        """Whether a port is among them."""
        return port not in self.excluded and (self.only is None or port in self.only)


class Sees(msgspec.Struct, frozen=True):
    """What a sidecar sees of its pod's ports: all but some numbers and names, or (`only`) these alone."""

    listed: frozenset[str]
    only: bool = False

    @classmethod
    def of(cls, mark: str) -> Sees:
        """What `mark` was made of."""
        kind, *listed = mark.split(" ")
        return cls(frozenset(listed), kind == "only")

    @property
    def mark(self) -> str:
        """As the pod has it among its labels. Empty: it sees nothing, or too much is listed to be kept."""
        if len(self.listed) > _MOST or (self.only and not self.listed):
            return ""
        return " ".join(("only" if self.only else "but", *sorted(self.listed)))

    def has(self, ports: PortRange) -> bool:
        """Whether it sees each of these ports, by number or by name."""
        if ports.name:
            return (ports.name in self.listed) == self.only
        if ports.first < OWN_PORTS.stop and ports.last >= OWN_PORTS.start:
            return False
        numbers = {int(one) for one in self.listed if one.isdecimal()}
        if self.only:
            return ports.last - ports.first < len(numbers) and numbers.issuperset(range(ports.first, ports.last + 1))
        return not any(ports.first <= number <= ports.last for number in numbers)


def seen_ports(annotations: Any, spec: Any, ports: Iterable[ContainerPort], addresses: Iterable[IPAddress]) -> str:
    """Mark of a pod (`Sees`); empty: it has no sidecar, or it is not known what comes to it.

    `annotations` and `spec` as they were read, of which nothing is sure. `addresses`: by the pod's status.
    """
    if not isinstance(annotations, Mapping) or not isinstance(spec, Mapping):
        return ""
    if not isinstance(annotations.get(STATUS), str) or annotations.get(AMBIENT) == "enabled":
        return ""
    proxy = next((one for one in containers(spec) if one.get("name") == CONTAINER), None)
    writers = [one for one in containers(spec, _FIELDS[1:]) if one.get("name") in WRITERS]
    if proxy is None or len(writers) != 1 or not _has_each_family((proxy, *writers), addresses):
        return ""
    (writer,) = writers
    if any(one.get("name") in _AS_ARGUMENTS for one in _variables(writer)):
        return ""
    if annotations.get(INTERCEPTION, _MODES[0]) not in _MODES or any(annotations.get(one) for one in _INTERFACES):
        return ""
    told, done = ports_told(annotations), _ports_done(writer.get("args"), writes=writer.get("name") == WRITERS[0])
    return "" if told is None or done is None else _both(told, done, tuple(ports)).mark


def ports_told(annotations: Mapping[str, Any]) -> Ports | None:
    """What annotations say of ports; None: it can't be read."""
    found = {name: annotations.get(name) for name in PORTS}
    only, excluded = (PORTS[name] if value is None else value for name, value in found.items())
    return _ports(only, excluded)


def containers(spec: Mapping[str, Any], fields: Iterable[str] = _FIELDS) -> Iterator[Mapping[str, Any]]:
    """Containers of a pod's spec, of which nothing is sure."""
    for field in fields:
        listed = spec.get(field)
        yield from (one for one in listed if isinstance(one, Mapping)) if isinstance(listed, list) else ()


def rewired(pod: Pod, addresses: tuple[IPAddress, ...]) -> Pod:
    """The pod with the addresses that it is wired with. Of a family that its status lacks nothing was told."""
    known = {one.version for one in pod.addresses}
    labels = pod.labels
    if SIDECAR_KEY in labels and not {one.version for one in addresses} <= known:
        labels = {key: value for key, value in labels.items() if key != SIDECAR_KEY}
    return msgspec.structs.replace(pod, addresses=addresses, labels=labels)


def _both(told: Ports, done: Ports, named: tuple[ContainerPort, ...]) -> Sees:
    """What both have; names with a number that is not so are not."""

    def sees(port: int) -> bool:
        return port not in OWN_PORTS and told.has(port) and done.has(port)

    numbers: dict[str, list[int]] = {}
    for one in named:
        if one.protocol is Protocol.TCP:
            numbers.setdefault(one.name, []).append(one.port)
    good = {name for name, found in numbers.items() if all(map(sees, found))}
    if told.only is None and done.only is None:
        but = {str(port) for port in told.excluded | done.excluded if port not in OWN_PORTS}
        return Sees(frozenset(but | (numbers.keys() - good)))
    listed = (told.only if told.only is not None else done.only) or ()
    return Sees(frozenset(good | {str(port) for port in listed if sees(port)}), only=True)


def _ports_done(arguments: Any, *, writes: bool) -> Ports | None:
    """What the rules do by the arguments of their container; None: something else, or it can't be told."""
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        return None
    known, others = (_MODE, _ONLY, _BUT, *_INTERFACE), (*_OTHERS, *(_WRITES_NONE if writes else ()))
    found: dict[str, str] = {}
    for name, value in zip(arguments, (*arguments[1:], ""), strict=True):
        joined = name not in known and name[:2] in known
        if joined or name in found or name.partition("=")[0] in others:
            return None
        if name in known:
            found[name] = value
    if found.get(_MODE) not in _MODES or any(found.get(one) for one in _INTERFACE):
        return None
    return _ports(found[_ONLY], found[_BUT]) if _ONLY in found and _BUT in found else None


def _ports(only: Any, excluded: Any) -> Ports | None:
    less, more = _numbers(excluded), None if only == "*" else _numbers(only)
    if less is None or (more is None and only != "*"):
        return None
    return Ports(more, less)


def _numbers(text: Any) -> frozenset[int] | None:
    if not isinstance(text, str):
        return None
    parts = [part for part in text.replace(" ", "").split(",") if part]
    # Istio checks a number as a decimal one, and iptables takes it with a leading 0 for octal: 0120 is port 80.
    if not all(part.isascii() and part.isdecimal() and len(part) <= 5 and part[0] != "0" for part in parts):
        return None
    return frozenset(map(int, parts))


def _has_each_family(who: Iterable[Mapping[str, Any]], addresses: Iterable[IPAddress]) -> bool:
    """Whether the rules are there for both families, or the pod is known to have one only."""
    return len({one.version for one in addresses}) == 1 or all(map(_is_dual_stack, who))


def _is_dual_stack(container: Mapping[str, Any]) -> bool:
    told = [one.get("value") for one in _variables(container) if one.get("name") == DUAL_STACK]
    return told == ["true"]


def _variables(container: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    listed = container.get("env")
    yield from (one for one in listed if isinstance(one, Mapping)) if isinstance(listed, list) else ()
