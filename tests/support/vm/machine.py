"""A virtual machine in software emulation that runs one command on the host's own files and ends.

The guest sees the host's root read-only (9p); what it writes stays in its memory, except for one directory that both
share: there it finds its command and leaves output, exit status and the kernel's log.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from support.vm.initramfs import SHARE

_QEMU = "qemu-system-x86_64"
#: Seconds from switching on to the command, and from its end to the end of the machine.
_AROUND = 180.0

_KERNEL_OPTIONS = "console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on"

_START = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
hostname kernels
ip link set lo up
echo 4194304 >/proc/sys/net/core/rmem_max
echo 4194304 >/proc/sys/net/core/wmem_max
cut -d ' ' -f 1 /proc/uptime >{share}/up
uname -a >{share}/uname
cd {checkout}
bash {share}/command >{share}/output 2>&1 </dev/null
status=$?
dmesg >{share}/dmesg
echo $status >{share}/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class MachineError(Exception):
    """The machine did not come up or did not end; the message says where its console is."""


@dataclass(frozen=True)
class Ended:
    """How a command ended there."""

    #: Exit status of the command.
    status: int
    #: From switching on to the end.
    seconds: float
    uname: str
    #: The kernel's log.
    kernel_log: str


@dataclass(frozen=True)
class Machine:
    """What to boot. Files of one run are below `share`: command, output, status, uname, dmesg, console."""

    image: Path
    initramfs: Path
    checkout: Path
    #: The copy of the checkout that the guest sees in its place.
    tree: Path
    share: Path
    mib: int = 4096

    def arguments(self) -> list[str]:
        """The emulator's command line: no network, no disk, nothing of the host to write but the share.

        The guest's clock counts instructions (one takes a nanosecond): to itself the machine is a slow one, not one
        that stands still for most of the time, so that time limits mean there what they mean elsewhere. With a second
        processor Linux 6.1 then does not get past the start of that one.
        """
        return [
            *(_QEMU, "-accel", "tcg,thread=single,tb-size=1024", "-icount", "shift=0", "-cpu", "max"),
            *("-machine", "q35,hpet=off", "-smp", "1", "-m", str(self.mib), "-no-reboot"),
            *("-nodefaults", "-nographic", "-nic", "none"),
            *("-kernel", str(self.image), "-initrd", str(self.initramfs), "-append", _KERNEL_OPTIONS),
            *("-serial", f"file:{self.share / 'console'}"),
            *_exported("host", Path("/"), readonly=True),
            *_exported("tree", self.tree, readonly=True),
            *_exported("share", self.share, readonly=False),
        ]

    def run(self, command: str, limit: float, tell: Callable[[], None], stop: Event) -> Ended:
        """Run a shell command for at most `limit` seconds, or until `stop`; `tell` is called now and then.

        Raises MachineError.
        """
        self.share.mkdir(parents=True, exist_ok=True)
        (self.share / "command").write_text(command)
        (self.share / "start").write_text(_START.format(share=SHARE, checkout=shlex.quote(str(self.checkout))))
        (self.share / "status").unlink(missing_ok=True)
        began = time.monotonic()
        try:
            process = subprocess.Popen(self.arguments(), stdin=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise MachineError(f"{error.filename} is not here") from error
        try:
            while not _over(process):
                tell()
                if stop.is_set():
                    raise MachineError("it was stopped")
                if time.monotonic() > began + limit + _AROUND:
                    raise MachineError(f"it hung: see {self.share}/console")
            tell()
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - began
        if process.returncode or not (self.share / "status").exists():
            raise MachineError(f"it ended without a result: see {self.share}/console (is {_QEMU} installed?)")
        return Ended(
            status=int((self.share / "status").read_text()),
            seconds=seconds,
            uname=(self.share / "uname").read_text().strip(),
            kernel_log=(self.share / "dmesg").read_text(errors="replace"),
        )


def _over(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; waits a moment for that."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    return process.returncode is not None


def complaints(kernel_log: str) -> list[str]:
    """The lines of a kernel's log that say that something is wrong with it."""
    signs = ("BUG:", "Oops", "WARNING:", "general protection", "refcount_t", "INFO: task", "soft lockup", "KASAN")
    return [line for line in kernel_log.splitlines() if any(sign in line for sign in signs)]


def _exported(tag: str, directory: Path, *, readonly: bool) -> list[str]:
    device = f"local,id={tag},path={directory},security_model=none,multidevs=remap"
    return [
        *("-fsdev", device + (",readonly=on" if readonly else "")),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]
