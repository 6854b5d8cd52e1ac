"""Other network software of the node: flannel, Cilium, Calico, the AWS VPC CNI, Istio."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from spliceway.agent.configsections import PoliciesConfig
from spliceway.agent.nodecheck import devices
from spliceway.agent.nodecheck.model import Check, Target, info, ok, warn
from spliceway.agent.nodecheck.reading import Unreadable, names
from spliceway.agent.nodecheck.routing import Rule
from spliceway.agent.nodecheck.routing import read as read_rules

#: Priority of the AWS VPC CNI's rules «to all pods: main».
_AWS_TO_POD = 512
#: Programs of its own on a node; in a sidecar it is pilot-agent.
_ISTIO = frozenset({"ztunnel", "install-cni"})
_CNI = Path("/etc/cni/net.d")
#: Which of our kinds they enforce.
_CALICO_KINDS = frozenset({"NetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy"})
_CILIUM_KINDS = frozenset({"NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"})
_AWS_KINDS = frozenset({"NetworkPolicy", "ClusterNetworkPolicy"})


class Signs(msgspec.Struct, frozen=True, kw_only=True):
    """What tells who else is there: names of interfaces, of files in some directories, of programs that run; rules.

    `sidecars`: so many of Istio's run.
    """

    devices: Collection[str] = ()
    cni: Collection[str] = ()
    cilium_maps: Collection[str] = ()
    cilium_socket: bool = False
    aws_maps: Collection[str] = ()
    istio_in_cni: bool = False
    sidecars: int = 0
    programs: Collection[str] = ()
    rules: Collection[Rule] = ()


def neighbours(target: Target) -> Iterator[Check]:
    """One result for each that is there."""
    yield from judge(read(target.settings.bpffs), target.kinds, accelerates=target.settings.sidecars)


def read(bpffs: Path) -> Signs:
    """Look for them."""
    try:
        rules = asyncio.run(read_rules(0))[0]
    except OSError:
        rules = []
    programs = Counter(_programs())
    return Signs(
        devices=_devices(),
        cni=_quietly(_CNI),
        cilium_maps=_cilium_maps(bpffs),
        aws_maps=_quietly(bpffs / "globals/aws/maps"),
        cilium_socket=Path("/var/run/cilium").is_dir(),
        istio_in_cni=any(b"istio-cni" in _content(_CNI / name) for name in _quietly(_CNI)),
        sidecars=programs["pilot-agent"],
        programs=set(programs),
        rules=rules,
    )


def judge(
    signs: Signs, kinds: Collection[str] = PoliciesConfig().kinds, *, accelerates: bool = False
) -> Iterator[Check]:
    """From what was seen. `kinds`: of the policies that are enforced here; `accelerates`: `istio.enabled`."""
    found = [*_flannel(signs), *_cilium(signs), *_calico(signs), *_aws(signs), *_istio(signs, accelerates)]
    yield from found or [ok("neighbours", "no flannel, Cilium, Calico, AWS VPC CNI or Istio was seen")]
    yield _kinds(signs, kinds)


def cilium_at_work(bpffs: Path) -> str:
    """`cilium_enforces`, of this network namespace and bpffs; cheap, and needs no event loop."""
    devices = [name for _, name in socket.if_nameindex()]
    return cilium_enforces(Signs(devices=devices, cilium_maps=_cilium_maps(bpffs), programs=set(_programs())))


def cilium_enforces(signs: Signs) -> str:
    """What says that Cilium's datapath is at work on this node; empty where nothing does.

    What is left of one that was taken out (a directory, a device, a map) is none; an agent that restarts is one.
    """
    device = [name for name in signs.devices if name in ("cilium_host", "cilium_net")]
    if "cilium-agent" in signs.programs:
        return "cilium-agent runs"
    return (
        f"its device {device[0]} and its maps ({min(signs.cilium_maps)}) are there"
        if device and signs.cilium_maps
        else ""
    )


def _kinds(signs: Signs, kinds: Collection[str]) -> Check:
    """Which kinds somebody else enforces, too: then what passes is what both allow, and each edit must reach both."""
    calico = bool({"calico-node", "felix"} & set(signs.programs)) or any(
        name.startswith("cali") for name in signs.devices
    )
    others = {
        "Calico": (calico, _CALICO_KINDS),
        "Cilium": (bool(cilium_enforces(signs)), _CILIUM_KINDS),
        "the AWS network policy agent": (bool(signs.aws_maps), _AWS_KINDS),
    }
    told = [
        f"{name}: {', '.join(both)}"
        for name, (there, its) in others.items()
        if there and (both := sorted(its & set(kinds)))
    ]
    if not told:
        return ok("policy-kinds", f"ours: {', '.join(kinds)}; nobody else was seen who enforces them")
    left = [kind for kind in kinds if not any(there and kind in its for there, its in others.values())]
    todo = f"choose one for each: policies.kinds: [{', '.join(left)}] leaves them to the others"
    return info("policy-kinds", f"enforced by others, too: {'; '.join(told)}", todo)


def _flannel(signs: Signs) -> Iterator[Check]:
    seen = [name for name in signs.devices if name.startswith("flannel")]
    seen += [name for name in signs.cni if "flannel" in name]
    seen += ["flanneld"] if "flanneld" in signs.programs else []
    if seen:
        todo = "nothing: its tunnels' addresses are host and remote-node"
        yield info("flannel", f"seen: {', '.join(seen)}", todo)


def _cilium(signs: Signs) -> Iterator[Check]:
    seen = [name for name in signs.devices if name in ("cilium_host", "cilium_net", "cilium_vxlan")]
    seen += ["/sys/fs/bpf/tc/globals/cilium*"] if signs.cilium_maps else []
    seen += ["/var/run/cilium"] if signs.cilium_socket else []
    seen += ["cilium-agent"] if "cilium-agent" in signs.programs else []
    if seen:
        todo = "two datapaths must not enforce one node's policy: take Cilium out"
        if cilium_enforces(signs):
            todo += "; the agent does not start beside it, unless policies.besideCilium is true"
        yield warn("cilium", f"seen: {', '.join(seen)}", todo)


def _calico(signs: Signs) -> Iterator[Check]:
    seen = [f"{count} cali* interfaces"] if (count := sum(name.startswith("cali") for name in signs.devices)) else []
    seen += [name for name in signs.cni if "calico" in name]
    seen += sorted({"calico-node", "felix", "tigera-operator"} & set(signs.programs))
    if seen:
        todo = "Calico's policies stay in force beside ours (its eBPF data plane does not: use iptables or nftables)"
        yield info("calico", f"seen: {', '.join(seen)}", todo)


def _aws(signs: Signs) -> Iterator[Check]:
    if any(name in signs.cni for name in ("10-aws.conflist", "aws.conf")) or "aws-k8s-agent" in signs.programs:
        early = [rule for rule in signs.rules if rule.priority == _AWS_TO_POD]
        text = f"{len(early)} rules at priority {_AWS_TO_POD}" if early else "no rules of it yet"
        todo = f"keep datapath.rulePriority below {_AWS_TO_POD}, as it is by default, and its network policy agent off"
        yield info("aws-vpc-cni", f"seen; {text}", todo)
    elif any(rule.priority == _AWS_TO_POD for rule in signs.rules):
        todo = f"keep datapath.rulePriority below {_AWS_TO_POD}, as it is by default"
        yield info("aws-vpc-cni", f"rules at priority {_AWS_TO_POD}, as the AWS VPC CNI makes them", todo)


def _istio(signs: Signs, accelerates: bool) -> Iterator[Check]:
    seen = ["istio-cni in a conflist"] if signs.istio_in_cni else []
    seen += [f"{signs.sidecars} sidecar{'' if signs.sidecars == 1 else 's'}"] if signs.sidecars else []
    seen += sorted({"ztunnel (ambient)" if name == "ztunnel" else name for name in _ISTIO & set(signs.programs)})
    if not seen:
        return
    # Its redirection happens in the pod, behind the veth: what arrives here is the mesh's own traffic.
    todo = "HTTP rules can't be asked of what the mesh encrypts: `spliceway policy istio translate` makes its policies"
    if accelerates:
        yield info("istio", f"seen: {', '.join(seen)}; istio.enabled: sidecars are accelerated", todo)
    else:
        todo += "; istio.enabled: true (the chart's mode: istio) accelerates sidecars"
        yield warn("istio", f"seen: {', '.join(seen)}; istio.enabled is false", todo)


def _cilium_maps(bpffs: Path) -> list[str]:
    return [name for name in _quietly(bpffs / "tc/globals") if name.startswith("cilium")]


def _programs() -> Iterable[str]:
    """Names of what runs, as far as this process sees it."""
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                yield (each / "comm").read_text().strip()
            except OSError:
                continue  # it has ended


def _devices() -> list[str]:
    try:
        return sorted(devices.kinds())
    except Unreadable:
        return []


def _quietly(directory: Path) -> list[str]:
    try:
        return names(directory)
    except Unreadable:
        return []


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()[: 1 << 20]
    except OSError:
        return b""
