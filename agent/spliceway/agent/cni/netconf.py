"""What a runtime says of a pod: the variables CNI_… and the document of stdin, checked. Pure.

Sources: containernetworking/cni SPEC.md 1.1.0, the kubelet's CNI_ARGS (containerd internal/cri, cri-o ocicni).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

import msgspec

from spliceway.agent.cni.wire import Question

IPAddress = IPv4Address | IPv6Address

#: Codes of the spec, and our own.
BAD_ENVIRONMENT, BAD_JSON, BAD_CONFIG, TRY_AGAIN, NOT_AVAILABLE = 4, 6, 7, 11, 50
NO_HOST_SIDE, NOT_IN_FORCE, NOT_WIRED = 100, 101, 102

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
#: Spec, section «Parameters»; dev_valid_name() of the kernel.
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,254}")
_INTERFACE = re.compile(r"(?!\.{1,2}$)[!-.0-9;-~]{1,15}")
_UID = re.compile(r"[-A-Za-z0-9._]{0,128}")


class CniError(Exception):
    """What the runtime is told. `code` as in the spec; from 100 our own."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        self.code = code
        self.details = details
        super().__init__(message)

    def encode(self, version: str) -> bytes:
        """As JSON."""
        told = {"cniVersion": version, "code": self.code, "msg": f"spliceway: {self}"[:4096]}
        return msgspec.json.encode(told | ({"details": self.details[:4096]} if self.details else {}))


class Interface(msgspec.Struct, frozen=True):
    """One of prevResult."""

    name: str = ""
    sandbox: str | None = ""


class Address(msgspec.Struct, frozen=True):
    """One of prevResult: «10.240.1.7/24», and whose it is."""

    address: str
    interface: int | None = None


class Result(msgspec.Struct, frozen=True):
    """prevResult, in versions 0.3.0 to 1.1.0."""

    interfaces: tuple[Interface, ...] | None = ()
    ips: tuple[Address, ...] | None = ()


class Attachment(msgspec.Struct, frozen=True, rename={"container": "containerID", "interface": "ifname"}):
    """One that is valid, of GC."""

    container: str
    interface: str = ""


class NetConf(msgspec.Struct, frozen=True, rename="camel"):
    """The document, as far as anybody asks."""

    cni_version: str = "1.0.0"
    prev_result: Result | None = None
    valid: tuple[Attachment, ...] | None = msgspec.field(default=None, name="cni.dev/valid-attachments")


class Container(msgspec.Struct, frozen=True):
    """A pod's sandbox and its interface, as the runtime names them. `pod` is «namespace/name»."""

    id: str
    interface: str
    netns: Path | None
    pod: str
    uid: str


def read_conf(document: bytes) -> NetConf:
    """The document. Raises CniError."""
    try:
        return msgspec.json.decode(document, type=NetConf)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise CniError(BAD_JSON, f"the configuration can't be understood: {error}") from error


def version_of(document: bytes) -> str:
    """The version that errors are told in."""
    try:
        version = read_conf(document).cni_version
    except CniError:
        return "1.0.0"
    return version if re.fullmatch(r"\d+\.\d+\.\d+", version) else "1.0.0"


def read_container(question: Question) -> Container:
    """Whose it is, by the variables. ADD and CHECK need a namespace and a pod. Raises CniError."""
    told = question.variables
    strict = question.command in ("ADD", "CHECK")
    container, interface = told.get("CNI_CONTAINERID", ""), told.get("CNI_IFNAME", "")
    if not _CONTAINER.fullmatch(container):
        raise CniError(BAD_ENVIRONMENT, f"CNI_CONTAINERID {container[:64]!r} is no container's id")
    if not _INTERFACE.fullmatch(interface):
        raise CniError(BAD_ENVIRONMENT, f"CNI_IFNAME {interface[:64]!r} is not an interface's name")
    netns = told.get("CNI_NETNS", "")
    if (strict or netns) and (not Path(netns).is_absolute() or len(netns) > 4095):
        raise CniError(BAD_ENVIRONMENT, f"CNI_NETNS {netns[:64]!r} is not an absolute path")
    arguments = _arguments(told.get("CNI_ARGS", ""))
    namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    named = bool(_NAME.fullmatch(namespace) and _NAME.fullmatch(name))
    if strict and not named:
        raise CniError(BAD_ENVIRONMENT, "CNI_ARGS has no K8S_POD_NAMESPACE and K8S_POD_NAME: only pods can be wired")
    uid = arguments.get("K8S_POD_UID", "")
    if not _UID.fullmatch(uid):
        raise CniError(BAD_ENVIRONMENT, "CNI_ARGS: K8S_POD_UID is no uid")
    return Container(container, interface, Path(netns) if netns else None, f"{namespace}/{name}" if named else "", uid)


def addresses_of(result: Result | None, interface: str) -> tuple[IPAddress, ...]:
    """The pod's addresses at that interface: the first of each family, as Kubernetes has them. Raises CniError."""
    if result is None:
        raise CniError(BAD_CONFIG, "there is no prevResult: it can't be the first plugin of a chain")
    interfaces = result.interfaces or ()
    found: dict[int, IPAddress] = {}
    for one in result.ips or ():
        try:
            address = ip_interface(one.address).ip
        except ValueError as error:
            raise CniError(BAD_CONFIG, f"prevResult.ips: {one.address[:64]!r} is not an address") from error
        if one.interface is not None:
            if not 0 <= one.interface < len(interfaces):
                raise CniError(BAD_CONFIG, f"prevResult.ips: there is no interface {one.interface}")
            of = interfaces[one.interface]
            if of.sandbox and of.name != interface:  # some plugins give the node's end in place of the pod's
                continue
        if address.is_unspecified or address.is_loopback or address.is_multicast:
            raise CniError(BAD_CONFIG, f"prevResult.ips: {address} can't be a pod's")
        found.setdefault(address.version, address)
    if not found:
        raise CniError(BAD_CONFIG, f"prevResult has no address for {interface}")
    return tuple(found[version] for version in sorted(found))


def _arguments(text: str) -> Mapping[str, str]:
    """«K8S_POD_NAMESPACE=a;K8S_POD_NAME=b». Raises CniError."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(";")):
        name, equals, value = part.partition("=")
        if not equals or name in found:
            raise CniError(BAD_ENVIRONMENT, "CNI_ARGS has something else than NAME=VALUE, or a name twice")
        found[name] = value
    return found
