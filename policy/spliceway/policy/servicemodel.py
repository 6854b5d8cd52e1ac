"""Services and EndpointSlices as frozen values: what policies (`toServices`) and load balancing read of them.

Sources: Kubernetes API reference (Service v1, EndpointSlice discovery.k8s.io/v1).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from spliceway.policy.table import IPAddress, IPNetwork
from spliceway.policy.verdict import Protocol

#: Label of an EndpointSlice that names its Service.
SERVICE_NAME = "kubernetes.io/service-name"
#: Label of a Service that another service proxy than the cluster's own takes care of.
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
#: Label, with any value, of what has no cluster IP: its addresses are for DNS.
HEADLESS = "service.kubernetes.io/headless"
#: Label of a node that names its zone.
ZONE = "topology.kubernetes.io/zone"


class ServicePort(msgspec.Struct, frozen=True):
    """A port of a Service. `name` is empty where it is the only one; `node_port` 0: none.

    `target`: the number, or the name of container ports, that EndpointSlices were made by; only they count.
    """

    name: str
    protocol: Protocol
    port: int
    target: int | str
    node_port: int = 0


class Ingress(msgspec.Struct, frozen=True):
    """An address of a load balancer. `proxied` (ipMode Proxy): nobody but the load balancer may answer for it."""

    address: IPAddress
    proxied: bool = False


class Service(msgspec.Struct, frozen=True):
    """A Service (v1). `selector` None: it has none, and its endpoints come from EndpointSlices alone.

    `headless`: clusterIP is None. `families`: IP versions that it asks for, in its order; empty where it does not say.
    `internal_local`, `external_local`: the traffic policy is Local. `affinity_seconds`: how long a client stays with
    its endpoint after its last connection, 0: not at all. `distribution`: trafficDistribution as written; it acts by
    the hints of EndpointSlices, and so does `publish_not_ready` by their conditions. `created`: creationTimestamp, UTC
    in RFC 3339, empty where it is unknown.
    """

    namespace: str
    name: str
    selector: Mapping[str, str] | None = None
    labels: Mapping[str, str] = {}
    file: str = ""
    type: str = "ClusterIP"
    cluster_ips: tuple[IPAddress, ...] = ()
    headless: bool = False
    families: tuple[int, ...] = ()
    external_ips: tuple[IPAddress, ...] = ()
    ingress: tuple[Ingress, ...] = ()
    source_ranges: tuple[IPNetwork, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    internal_local: bool = False
    external_local: bool = False
    affinity_seconds: int = 0
    distribution: str = ""
    publish_not_ready: bool = False
    external_name: str = ""
    created: str = ""

    @property
    def key(self) -> str:
        """«namespace/name»."""
        return f"{self.namespace}/{self.name}"


class SlicePort(msgspec.Struct, frozen=True):
    """A port of an EndpointSlice: that of the Service of this name and protocol. `port` None: every port."""

    name: str
    protocol: Protocol
    port: int | None


class Endpoint(msgspec.Struct, frozen=True):
    """An endpoint of an EndpointSlice; conditions that are not written have these defaults.

    `node`, `zone`: where it is; `zones`, `nodes`: for whom it is meant (hints), sorted; `target`: «Kind namespace/name»
    of what it stands for.
    """

    addresses: tuple[IPAddress, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    target: str = ""

    @property
    def gets_traffic(self) -> bool:
        """Whether policies mean it: it is ready, or still serves while it terminates (as in Cilium)."""
        return self.ready or (self.serving and self.terminating)


class EndpointSlice(msgspec.Struct, frozen=True):
    """Endpoints of a Service (discovery.k8s.io/v1): `service` is the label kubernetes.io/service-name.

    `family`: 4 or 6; 0: names (FQDN), of which there are no `endpoints` here. `headless`: by its label.
    """

    namespace: str
    name: str
    service: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    file: str = ""
    family: int = 4
    ports: tuple[SlicePort, ...] = ()
    headless: bool = False

    @property
    def key(self) -> str:
        """«namespace/name»."""
        return f"{self.namespace}/{self.name}"

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Addresses of the endpoints that get traffic, each once: what `toServices` means."""
        found = (address for endpoint in self.endpoints if endpoint.gets_traffic for address in endpoint.addresses)
        return tuple(dict.fromkeys(found))
