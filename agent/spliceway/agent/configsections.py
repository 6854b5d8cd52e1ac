"""The mappings of the agent's configuration: fields, types and defaults. docs/configuration.md has the reasons."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct, field

from spliceway.policy.labelfilter import UNIQUE_KEYS
from spliceway.proxy.model import Limits as ProxyLimits
from spliceway.proxy.model import Seconds

ProxyKind = Literal["embedded", "envoy"]
SpliceMode = Literal["auto", "force", "off"]
PolicyKind = Literal[
    "CiliumNetworkPolicy",
    "CiliumClusterwideNetworkPolicy",
    "NetworkPolicy",
    "ClusterNetworkPolicy",
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
    "AuthorizationPolicy",
]
#: Kinds that are read unless `policies.kinds` says otherwise: Istio's own proxies may enforce AuthorizationPolicies.
DEFAULT_KINDS: tuple[PolicyKind, ...] = tuple(kind for kind in get_args(PolicyKind) if kind != "AuthorizationPolicy")
Port = Annotated[int, Meta(ge=1, le=65535)]
Mark = Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]
#: Elements of a map: a hash table has 16 bytes for each from the start, an LRU map the whole element.
MAX_ELEMENTS = 1 << 24
Elements = Annotated[int, Meta(ge=1, le=MAX_ELEMENTS)]


class PortRange:
    """Listener ports «first-last», both included."""

    __slots__ = ("first", "last")

    def __init__(self, first: int, last: int) -> None:
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"{first}-{last} is not a range of ports (1 to 65535, first-last)")
        self.first = first
        self.last = last

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """Read «23000-23999». Raises ValueError."""
        match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
        if match is None:
            raise ValueError(f"{text!r} is not a range of ports (write 23000-23999)")
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PortRange) and (self.first, self.last) == (other.first, other.last)

    def __hash__(self) -> int:
        return hash((self.first, self.last))

    def __repr__(self) -> str:
        return f"{self.first}-{self.last}"


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A mapping of the file."""


class NodeConfig(Section, frozen=True):
    """Which node this is; `name` is what `spec.nodeName` of its pods says.

    `not_ready_taint`: «key:effect» of a taint that the agent takes off its Node once policy is in force; empty: none.
    """

    name: str = ""
    not_ready_taint: str = ""


class CgroupsConfig(Section, frozen=True):
    """cgroup2 directories: whose sockets are pods' (None: the kubelet's, see `podcgroup`), whose are the proxy's.

    Never the root cgroup.
    """

    pods: Path | None = None
    proxy: Path = Path("/sys/fs/cgroup/spliceway.slice")


class KubernetesConfig(Section, frozen=True):
    """The API server: of a kubeconfig and one of its contexts (empty: the current one); None: of the agent's pod.

    `pod_annotations`: pods may say how they are wired. Whoever may make pods can then name any interface of the node.
    """

    kubeconfig: Path | None = None
    context: str = ""
    pod_annotations: bool = False


class SourceConfig(Section, frozen=True):
    """Where policies and manifests come from: exactly one of the two."""

    directory: Path | None = None
    kubernetes: KubernetesConfig | None = None


class AdminConfig(Section, frozen=True):
    """The admin API's Unix socket, mode 0600."""

    socket: Path = Path("/run/spliceway/agent.sock")


class ProxyConfig(Section, frozen=True):
    """The HTTP proxy: which, how many workers (0: one for each core), and the ports its listeners may have.

    `headers_timeout`: from a request's first byte to the end of its head; `idle_timeout`: a connection without
    requests; both in seconds, 0 never. Heads with more than `max_head_kib` or `max_headers` get a 431.
    `explain_denied`: whether a 403 says why. `limits`: what clients may take of it.
    `managed`: the agent starts it; else a pod of its own does, and the agent lets it in (`proxypod`).
    Of Envoy alone are `binary` and `api_type`, the variant of xDS in which it asks: what changed, or all.
    """

    kind: ProxyKind = "embedded"
    managed: bool = True
    workers: Annotated[int, Meta(ge=0, le=256)] = 0
    listener_ports: PortRange = field(default_factory=lambda: PortRange(23000, 23999))
    headers_timeout: Seconds = 60.0
    idle_timeout: Seconds = 3600.0
    max_head_kib: Annotated[int, Meta(ge=1, le=8192)] = 64
    max_headers: Annotated[int, Meta(ge=1, le=10_000)] = 100
    explain_denied: bool = False
    limits: ProxyLimits = ProxyLimits()
    binary: Path | None = None
    api_type: Literal["DELTA_GRPC", "GRPC"] = "DELTA_GRPC"


class EnvoyConfig(Section, frozen=True):
    """The user's own Envoy resources, served beside policy's: objects as in Envoy's configuration."""

    extra_listeners: tuple[Any, ...] = ()
    extra_clusters: tuple[Any, ...] = ()


class SpliceLimitsConfig(Section, frozen=True):
    """KiB that may be spliced and not yet read: in one direction of a connection, of one pod, and of the node.

    0: as the node's memory has it, see `splicelimits`.
    """

    connection_kib: Annotated[int, Meta(ge=64, le=1 << 20)] = 4096
    endpoint_kib: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    node_kib: Annotated[int, Meta(ge=0, le=1 << 40)] = 0


class SpliceConfig(Section, frozen=True):
    """`auto`: splice what is proved safe on this kernel; `force`: in spite of what was found; `off`: never.

    `exclude_ports`: ports of servers whose connections are not spliced. `kernel_fixes`: commits or CVE numbers that
    this kernel has, whatever its version says. `self_test_dir`: where results of the self-test are kept.
    """

    mode: SpliceMode = "auto"
    exclude_ports: tuple[Port, ...] = ()
    kernel_fixes: tuple[str, ...] = ()
    limits: SpliceLimitsConfig = SpliceLimitsConfig()
    self_test_dir: Path = Path("/run/spliceway/selftest")


class DatapathConfig(Section, frozen=True):
    """Numbers that the node's other network software must not share, and map sizes.

    `program_cache`: where compiled programs are kept; None: `programs` in the state directory, empty: nowhere. `tcx`:
    how programs are attached to interfaces, `auto` by TCX where the kernel has it, `off` as clsact filters. `devices`:
    by which interfaces packets come from outside, names with wildcards; `auto`: by the kind of each (docs/devices.md).
    `socket_lb`: Services for pods' sockets; `auto` and `on` make way for others who translate, and `on` calls that a
    problem.
    """

    mark: Mark = 0x1000
    mark_mask: Mark = 0x1002
    proxy_mark: Mark = 0x1002
    route_table: Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)] = 2480
    rule_priority: Annotated[int, Meta(ge=1, le=32765)] = 7
    max_connections: Annotated[int, Meta(ge=1024, le=MAX_ELEMENTS)] = 262_144
    max_ipcache: Elements = 524_288
    max_rows: Elements = 262_144
    max_endpoints: Annotated[int, Meta(ge=1, le=65_535)] = 1024
    max_pairs: Elements = 4096
    event_buffer_bytes: Annotated[int, Meta(ge=4096, le=1 << 30)] = 4 << 20
    program_cache: str | None = None
    tcx: Literal["auto", "off"] = "auto"
    devices: Literal["auto"] | tuple[str, ...] = "auto"
    socket_lb: Literal["auto", "on", "off"] = "off"
    max_frontends: Elements = 65_536
    max_backends: Elements = 262_144
    max_affinities: Elements = 32_768


class LabelsConfig(Section, frozen=True):
    """Keys of pod labels that make identities; `*` stands for anything. `include` empty: all; `exclude` wins."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = UNIQUE_KEYS


class IdentityConfig(Section, frozen=True):
    """What identities are made of."""

    labels: LabelsConfig = LabelsConfig()


class MetricsConfig(Section, frozen=True):
    """`listen`: host:port of a Prometheus endpoint over TCP; empty: only `/metrics` of the admin socket.

    `health`: host:port where probes are answered, and nothing else. What `listen` answers already is not opened twice.
    """

    listen: str = ""
    health: str = ""


class XdsTlsConfig(Section, frozen=True):
    """Files in PEM for xDS over TCP; they are read again when they change.

    `client_ca_file`: who signs clients' certificates; one without is refused. `match_node`: a client's node id must be
    one of the names in its certificate.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path
    match_node: bool = True


class XdsConfig(Section, frozen=True):
    """The xDS server beside its Unix socket. `listen`: host:port, empty for none; with `tls`, or else `insecure`.

    `unsafe_envoy`: what to do with a client whose version has known bypasses of path rules.
    """

    listen: str = ""
    tls: XdsTlsConfig | None = None
    insecure: bool = False
    unsafe_envoy: Literal["refuse", "warn"] = "refuse"


class KillSwitchConfig(Section, frozen=True):
    """What turns enforcement and steering off: `file` on the node, or `annotation` of its Node object with «true».

    Null, and empty: not looked at.
    """

    file: Path | None = Path("/etc/spliceway/disabled")
    annotation: str = "spliceway.io/disabled"


class PoliciesConfig(Section, frozen=True):
    """`kinds`: which kinds of policies are enforced here; others are left to whoever else enforces them, unread.

    `beside_cilium`: start though Cilium is active on the node.
    """

    kinds: tuple[PolicyKind, ...] = DEFAULT_KINDS
    beside_cilium: bool = False


class StatusConfig(Section, frozen=True):
    """Whether it is told in the API what becomes of policies (docs/kubernetes.md), and by which Lease who writes.

    `namespace`: the Lease's; `writes_per_second`: of the one agent that writes status objects and Events.
    """

    write: bool = False
    namespace: str = "kube-system"
    lease: str = "spliceway-policy-status"
    writes_per_second: Annotated[float, Meta(ge=0.1, le=1000)] = 20.0


class DebugConfig(Section, frozen=True):
    """`listen`: host:port of the loopback device where `/debug/*` is answered, too; empty: admin socket only."""

    listen: str = ""


class CniConfig(Section, frozen=True):
    """The plugin at the end of the node's CNI chain (docs/cni.md). `timeout`: seconds that a pod's start may wait.

    `on_failure`: what becomes of pods for which the agent does nothing in time; those in `exempt_namespaces` start.
    `node_conf_dir`: what the node itself calls `conf_dir`, where that is mounted elsewhere for us.
    """

    enabled: bool = False
    socket: Path = Path("/run/spliceway/cni.sock")
    conf_dir: Path = Path("/etc/cni/net.d")
    node_conf_dir: Path | None = None
    bin_dir: Path = Path("/opt/cni/bin")
    timeout: Annotated[float, Meta(ge=1, le=600)] = 15.0
    on_failure: Literal["fail", "allow"] = "fail"
    exempt_namespaces: tuple[str, ...] = ("kube-system",)


class FlowsConfig(Section, frozen=True):
    """`buffer_size`: how many of the latest flows the agent remembers."""

    buffer_size: Annotated[int, Meta(ge=1, le=1_000_000)] = 8192
