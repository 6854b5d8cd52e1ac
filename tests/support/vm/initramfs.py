"""The first file system of a virtual machine: busybox, modules, and a script that puts the machine's root together."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

#: Where the directory that host and guest share is in the guest.
SHARE = "/run/share"

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in $($b cat /modules/order); do
    $b insmod /modules/$module || echo "init: $module can't be loaded"
done
root=/root{checkout}
options=trans=virtio,version=9p2000.L,msize=524288
$b mount -t 9p -o $options,ro,cache=loose host /host || $b poweroff -f
$b mount -t 9p -o $options,ro,cache=loose tree /tree || $b poweroff -f
# The host's root with all that is written kept in memory; the checkout is the copy that was made for this run.
$b mount -t tmpfs -o size=75% writes /writes
$b mkdir /writes/root /writes/rootwork /writes/tree /writes/treework
$b mount -t overlay -o lowerdir=/host,upperdir=/writes/root,workdir=/writes/rootwork root /root || $b poweroff -f
$b mount -t overlay -o lowerdir=/tree,upperdir=/writes/tree,workdir=/writes/treework tree $root || $b poweroff -f
$b mkdir -p $root/.venv
$b mount -o bind /host{checkout}/.venv $root/.venv
for each in proc sys dev; do $b mount -o move /$each /root/$each; done
for each in tmp run; do $b mount -t tmpfs $each /root/$each; done
$b mkdir /root{share}
$b mount -t 9p -o $options,cache=none share /root{share}
exec $b switch_root /root /bin/bash {share}/start
"""


def archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive («newc») of (path, mode with type, content)."""
    parts = []
    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), device it names (2), length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def initramfs(busybox: Path, modules: Iterable[tuple[str, bytes]], checkout: Path) -> bytes:
    """The archive for a machine whose tests are in `checkout`."""
    directories = ("bin", "proc", "sys", "dev", "host", "tree", "writes", "root", "modules")
    files = [(f"modules/{name}.ko", content) for name, content in modules]
    order = " ".join(Path(name).name for name, _ in files)
    init = _INIT.format(checkout=shlex.quote(str(checkout)), share=SHARE)
    return archive(
        [
            *((name, 0o040755, b"") for name in directories),
            ("bin/busybox", 0o100755, busybox.read_bytes()),
            ("init", 0o100755, init.encode()),
            ("modules/order", 0o100644, order.encode()),
            *((name, 0o100644, content) for name, content in files),
        ]
    )
