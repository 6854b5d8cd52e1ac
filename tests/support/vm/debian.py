"""Debian's kernel packages: fetched with apt, unpacked below a cache and never installed."""

from __future__ import annotations

import lzma
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: What a virtual machine needs: its own file systems first, then what datapath and testbeds use.
MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "overlay"),
    *("veth", "bridge", "dummy", "sch_ingress", "cls_bpf", "cls_u32", "sch_fq", "tcp_diag", "udp_diag", "af_packet"),
    *("tun", "vxlan", "ipip", "sit", "ip_gre", "ip6_tunnel", "wireguard", "bonding", "8021q", "macvlan"),
    "crc32c_generic",  # nobody names it, and without it those that follow are not loaded
    *("nf_tables", "nft_tproxy", "nft_socket", "nft_ct", "nft_chain_nat", "nft_redir", "nft_nat", "nft_masq"),
    # What the iptables commands ask for: Istio's rules in pods, kube-proxy's on nodes.
    *("nft_compat", "xt_tcpudp", "xt_multiport", "xt_owner", "xt_mark", "xt_connmark", "xt_conntrack", "xt_comment"),
    *("xt_REDIRECT", "xt_TPROXY", "xt_nat", "xt_MASQUERADE", "xt_statistic", "xt_addrtype"),
)
_BUSYBOX = "busybox-static"
_NAME = re.compile(r"linux-image-(?P<release>\d+\.\d+[.\d]*(?:-\d+)?(?:\+\w+)?)-amd64")


class PackageError(Exception):
    """A package can't be had; the message says what to do."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    series: str
    directory: Path

    @property
    def release(self) -> str:
        """What `uname -r` says there."""
        return self.image.name.removeprefix("vmlinuz-")

    @property
    def image(self) -> Path:
        """The kernel itself."""
        return next((self.directory / "boot").glob("vmlinuz-*"))

    def modules(self, wanted: Iterable[str] = MODULES) -> list[tuple[str, bytes]]:
        """(Name, content) of modules and all that they need, in the order of loading; without what is built in."""
        files = {
            file.name.split(".")[0].replace("-", "_"): file for file in self.directory.rglob("lib/modules/**/*.ko*")
        }
        loaded: dict[str, bytes] = {}

        def load(name: str) -> None:
            if name not in files or name in loaded:
                return
            content = _content(files[name])
            for needed in needs(content):
                load(needed)
            loaded[name] = content

        for name in wanted:
            load(name.replace("-", "_"))
        return list(loaded.items())


def needs(module: bytes) -> list[str]:
    """The modules that this one names in its section .modinfo."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def newest(names: Iterable[str], series: str) -> str | None:
    """The newest of these packages that is a kernel of the series (6.12), as plain as they come (no cloud, no rt)."""
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match and match["release"].startswith((f"{series}.", f"{series}-")):
            found.append(([int(number) for number in re.findall(r"\d+", match["release"])], name))
    return max(found)[1] if found else None


def kernel(series: str, cache: Path) -> Kernel:
    """The kernel of a series: the one in the cache, else the newest that apt knows. Raises PackageError."""
    directory = cache / series
    if not (directory / "boot").is_dir():
        names = _output("apt-cache", "pkgnames", f"linux-image-{series}").split()
        package = newest(names, series)
        if package is None:
            raise PackageError(
                f"apt knows no kernel {series}: add the suite that has it to apt's sources (for 6.12 that is "
                "bookworm-backports or bookworm-security), then apt-get update"
            )
        _unpack(package, directory)
    return Kernel(series, directory)


def busybox(cache: Path) -> Path:
    """A static busybox for the first seconds of a virtual machine."""
    directory = cache / _BUSYBOX
    if not directory.is_dir():
        _unpack(_BUSYBOX, directory)
    return directory / "bin" / "busybox"


def _unpack(package: str, directory: Path) -> None:
    """Fetch into the cache and unpack. The directory appears when it is whole."""
    unfinished = directory.with_name(directory.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    for old in unfinished.glob("*.deb"):
        old.unlink()
    # As root, apt would fetch as its own user, which may not write here: it says so and goes on, so do it at once.
    _output("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, directory=unfinished)
    archive = next(unfinished.glob("*.deb"))
    _output("dpkg-deb", "--extract", str(archive), str(unfinished))
    archive.unlink()
    unfinished.rename(directory)


def _output(*command: str, directory: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PackageError(f"{command[0]} is not here: this needs Debian or one of its children") from error
    if done.returncode:
        raise PackageError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content
