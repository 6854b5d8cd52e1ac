"""What the admin API answers, as plain values. Each view reads the components as they are at that moment."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from spliceway.agent import sidecardump
from spliceway.agent.audit import AuditLog, AuditSummary
from spliceway.agent.blame import Blamer, Isolating
from spliceway.agent.cni.side import CniSide
from spliceway.agent.config import Config
from spliceway.agent.flowlog import FlowLog
from spliceway.agent.flows import Names, rfc3339
from spliceway.agent.inventory import Inventory
from spliceway.agent.inventoryfiles import Refusal
from spliceway.agent.istioviews import IstioViews, Setting, is_accelerated, istio_status
from spliceway.agent.jsonable import plain
from spliceway.agent.killswitch import KillSwitch
from spliceway.agent.metrics import DatapathCounters
from spliceway.agent.policyrows import policy_rows
from spliceway.agent.policystatus.told import WritingStatus
from spliceway.agent.provenance import PolicyState, Unapplied, policy_states, unapplied
from spliceway.agent.proxylink import ProxyLink
from spliceway.agent.reconcile import Reconciler
from spliceway.agent.serviceviews import service_counts, service_rows
from spliceway.agent.sources.kubernetes.source import SourceStatus
from spliceway.agent.sourceviews import source_place
from spliceway.agent.splicing import Splicing
from spliceway.agent.verdicts import with_audit
from spliceway.agent.xdsviews import XdsViews
from spliceway.bpf.portuse import PortUse
from spliceway.bpf.services import FrontendRow
from spliceway.bpf.types import CtEntry, LocalEndpoint, SockEntry
from spliceway.policy.loadbalancing import Balance

Query = dict[str, str]


class DatapathViews(DatapathCounters, Protocol):
    """What views read from the datapath."""

    def attached(self, endpoint: LocalEndpoint) -> LocalEndpoint | None:
        """This endpoint as it is attached."""

    def conntrack(self) -> list[CtEntry]:
        """Connections."""

    def socks(self) -> list[SockEntry]:
        """Redirected connections."""

    def dump_policy(self) -> Sequence[object]:
        """Rows as they are in the kernel."""

    def dump_ipcache(self) -> Sequence[object]:
        """Prefixes as they are in the kernel."""

    async def held_services(self) -> list[FrontendRow]:
        """Frontends as they are in the kernel."""


class ProxyStatus(Protocol):
    """What views read from the supervisor of the proxy."""

    def status(self) -> object:
        """Process, version, restarts, problems."""


class Views:
    """Binds the components to the paths of the API (`routes`)."""

    def __init__(
        self,
        *,
        config: Config,
        inventory: Inventory,
        cni: CniSide,
        reconciler: Reconciler,
        datapath: DatapathViews,
        proxy: ProxyLink,
        supervisor: ProxyStatus,
        flows: FlowLog,
        audit: AuditLog,
        lost: Callable[[], dict[str, int]],
        refusals: Callable[[], Sequence[Refusal]],
        refused_pairs: Callable[[], int],
        balance: Callable[[], Balance],
        names: Callable[[], Names],
        splicing: Splicing,
        kill_switch: KillSwitch,
        isolating: Isolating,
        xds: XdsViews,
        warnings: Callable[[], Sequence[str]],
        port_use: Callable[[], PortUse],
        source: Callable[[], SourceStatus | None],
        told: Callable[[], WritingStatus],
    ) -> None:
        """What is a function is asked anew for each answer: `lost` are records by place, `refused_pairs` a count.

        `warnings`: sentences on xDS and ports that are no problem of policy.
        """
        self._config = config
        self._inventory = inventory
        self._cni = cni
        self._reconciler = reconciler
        self._datapath = datapath
        self._proxy = proxy
        self._supervisor = supervisor
        self._flows = flows
        self._audit = audit
        self._lost = lost
        self._refusals = refusals
        self._refused_pairs = refused_pairs
        self._balance = balance
        self._names = names
        self._splicing = splicing
        self._kill_switch = kill_switch
        self._isolating = isolating
        self._xds = xds
        self._warnings = warnings
        self._port_use = port_use
        self._source = source
        self._told = told
        self._istio = IstioViews()
        self._started = time.time_ns()

    def routes(self) -> dict[str, Callable[[Query], Any]]:
        """Path below /v1/ → view; they read the agent's own state and must run in its event loop."""
        return {
            "status": self.status,
            "endpoints": self.endpoints,
            "audit": self.audit,
        }

    def asks(self) -> dict[str, Callable[[Query], Awaitable[Any]]]:
        """Path below /v1/ → what reads the agent's own state first, and then takes long."""
        return {
            "policy": self.policy,
            "socks": self.socks,
            "bpf/lb": self.load_balancer,
            "names": self.names,
            **self._xds.asks(),
            **sidecardump.asks(lambda: self._cni.endpoints),
        }

    def posts(self) -> dict[str, Callable[[Query, bytes], Awaitable[Any]]]:
        """Path below /v1/ → what answers a body."""
        return {"xds/diff": self._xds.diff}

    def dumps(self) -> dict[str, Callable[[Query], Any]]:
        """Path below /v1/ → view of a whole table or map; they may take long and run in a thread."""
        return {
            "identities": self.identities,
            "services": self.services,
            "bpf/policy": _plainly(self._datapath.dump_policy),
            "bpf/ipcache": _plainly(self._datapath.dump_ipcache),
            "bpf/ct": _plainly(self._conntrack),
            "bpf/reasons": _plainly(self._reasons),
        }

    def resets(self) -> dict[str, Callable[[], Any]]:
        """Path below /v1/ → what begins anew, and answers what there was."""
        return {"audit": lambda: self._audit.reset(self._lost(), Blamer(self._reconciler.table, self._isolating))}

    def status(self, query: Query) -> dict[str, Any]:
        """Everything a person wants to see first."""
        _only(query)
        policies, in_audit = self._inventory.policies
        endpoints = self._cni.endpoints
        return {
            "node": self._config.node_name,
            "pid": os.getpid(),
            "started": rfc3339(self._started),
            "source": {
                **source_place(self._config.source, self._source()),
                "files": self._inventory.files,
                "objects": self._inventory.objects,
                "refusals": self._refusals(),
            },
            "policy": {
                **plain(self._reconciler.status()),
                "refusedPairs": self._refused_pairs(),
                "notApplied": self.not_applied(),
            },
            "services": service_counts(self._balance()),
            "cni": self._cni.status(),
            "policyStatus": self._told(),
            "istio": istio_status(endpoints, self._beside_istio(), self._inventory.left.found(endpoints)),
            "enforcement": {"mode": self._config.enforcement, "policies": policies, "policiesInAudit": in_audit},
            "killSwitch": self._kill_switch.status(),
            "datapath": self._datapath.status(),
            "proxy": {
                "kind": self._config.proxy.kind,
                "process": self._supervisor.status(),
                "clients": self._proxy.clients,
                "warnings": (
                    *self._warnings(),
                    *self._istio.warnings(self._cni.endpoints, self._beside_istio(), self._reconciler.table),
                ),
                "nacks": self._proxy.nacks,
                "lastNack": self._proxy.last_nack,
                "unfit": self._proxy.unfit,
                "refused": self._proxy.others(),
                "listeners": self._reconciler.ports,
                "ports": self._port_use(),
            },
            "splice": {**plain(self._splicing.status()), "counters": self._datapath.splice_counters()},
            "flows": {
                "published": self._flows.published,
                "kept": len(self._flows),
                "lost": self._flows.lost,
                "followers": self._flows.followers,
            },
        }

    def endpoints(self, query: Query) -> list[dict[str, Any]]:
        """Local endpoints with identity and which directions a policy covers."""
        _only(query)
        table = self._reconciler.table
        wired = {endpoint.name: endpoint for endpoint in self._cni.endpoints}
        names = wired.keys() | (table.endpoints.keys() if table else set())
        found = []
        for name in sorted(names):
            endpoint, policy = wired.get(name), table.endpoints.get(name) if table else None
            # In the kernel: an interface may be one that can't be attached, annotations are a moment ahead.
            there = self._datapath.attached(endpoint) if endpoint else None
            shown = there or endpoint
            found.append(
                {
                    "name": name,
                    "interface": endpoint.interface if endpoint else "",
                    "addresses": endpoint.addresses if endpoint else (),
                    "ready": policy is not None and there is not None,
                    "identity": policy.identity if policy else 0,
                    "labels": table.identities.get(policy.identity, ()) if table and policy else (),
                    "policyId": policy.policy_id if policy else 0,
                    "ingress": policy.ingress if policy else False,
                    "egress": policy.egress if policy else False,
                    "splice": shown.splice if shown else False,
                    "unsplicedPorts": sorted(shown.unspliced_ports) if shown else (),
                    "sidecar": endpoint.sidecar if endpoint else None,
                    "mesh": endpoint.mesh if endpoint else "",
                    "accelerated": is_accelerated(endpoint, self._beside_istio()) if endpoint else False,
                }
            )
        return found

    def identities(self, query: Query) -> list[dict[str, Any]]:
        """Identities with labels and the prefixes that have them."""
        _only(query)
        table = self._reconciler.table
        if table is None:
            return []
        prefixes: dict[int, list[str]] = defaultdict(list)
        for prefix, identity in table.ipcache.items():
            prefixes[identity].append(str(prefix))
        return [
            {"id": number, "labels": labels, "prefixes": prefixes.get(number, [])}
            for number, labels in sorted(table.identities.items())
        ]

    def services(self, query: Query) -> dict[str, Any]:
        """Frontends of Services (of `namespace`, or all) with what they lead to, and what has none."""
        _only(query, "namespace")
        return service_rows(self._balance(), query.get("namespace"))

    async def names(self, query: Query) -> dict[str, list[str]]:
        """What the source knows, whatever node it is of: `pods`, `services` («namespace/name»), `namespaces`."""
        _only(query)
        pods, services = self._inventory.names("Pod"), self._inventory.names("Service")
        namespaces = {*self._inventory.names("Namespace"), *(name.partition("/")[0] for name in (*pods, *services))}
        return {"pods": sorted(pods), "services": sorted(services), "namespaces": sorted(namespaces)}

    async def policy(self, query: Query) -> list[dict[str, Any]]:
        """The policy of every endpoint, or of `endpoint`, with peers, rules and HTTP rules by name.

        `state` of a row: whether the proxy has taken over what its rule set is now, and in `why` what it says.
        """
        _only(query, "endpoint")
        table = self._reconciler.table
        name = query.get("endpoint")
        if table is None:
            return []
        if name is not None and name not in table.endpoints:
            raise LookupError(f"no endpoint {name!r} on this node (there are {', '.join(sorted(table.endpoints))})")
        chosen = {name: table.endpoints[name]} if name else table.endpoints
        policies: dict[int, list[str]] = defaultdict(list)
        for endpoint, policy in chosen.items():
            policies[policy.policy_id].append(endpoint)
        rows = await asyncio.to_thread(policy_rows, table, policies.keys(), self._missing())
        return [
            {
                "policyId": policy_id,
                "endpoints": sorted(names),
                "ingress": table.endpoints[names[0]].ingress,
                "egress": table.endpoints[names[0]].egress,
                "rows": rows.get(policy_id, []),
            }
            for policy_id, names in sorted(policies.items())
        ]

    async def socks(self, query: Query) -> list[dict[str, Any]]:
        """Redirected connections, with what is unread now."""
        _only(query)
        await self._splicing.measure()
        return await asyncio.to_thread(self._socks)

    async def load_balancer(self, query: Query) -> list[FrontendRow]:
        """Frontends of Services as they are in the kernel; none where it is switched off."""
        _only(query)
        return await self._datapath.held_services()

    def audit(self, query: Query) -> AuditSummary:
        """What policies in audit mode would deny."""
        _only(query)
        return self._audit.summary(self._lost(), Blamer(self._reconciler.table, self._isolating))

    def not_applied(self) -> list[PolicyState]:
        """Policies that the proxy has refused or not acknowledged."""
        rules = table.rules if (table := self._reconciler.table) else {}
        return policy_states(self._missing(), self._proxy.wanted, rules, self._inventory.file_of)

    def _beside_istio(self) -> Setting:
        return Setting(self._config.istio.enabled, self._splicing.mode, self._config.datapath.socket_lb)

    def _missing(self) -> dict[int, Unapplied]:
        return unapplied(self._proxy.answers(), self._proxy.wanted)

    def _conntrack(self) -> list[dict[str, Any]]:
        names = self._names()
        return [
            {**with_audit(plain(entry)), "endpointPod": names.pod(entry.endpoint), "ruleName": names.rule(entry.rule)}
            for entry in self._datapath.conntrack()
        ]

    def _reasons(self) -> list[dict[str, Any]]:
        return [with_audit(plain(entry)) for entry in self._datapath.reasons()]

    def _socks(self) -> list[dict[str, Any]]:
        names = self._names()
        return [
            {**plain(entry), "endpointPod": names.pod(entry.endpoint), "ruleSetName": names.rule_set(entry.rule_set)}
            for entry in self._datapath.socks()
        ]


def _plainly(read: Callable[[], object]) -> Callable[[Query], object]:
    def view(query: Query) -> object:
        _only(query)
        return read()

    return view


def _only(query: Query, *known: str) -> None:
    if unknown := query.keys() - set(known):
        raise ValueError(f"unknown parameter {', '.join(sorted(unknown))}")
