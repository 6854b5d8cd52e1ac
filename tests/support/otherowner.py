"""Another owner of sockets: a sockmap of its own with a program on it, as an observability agent or a mesh would have.

`python -m support.otherowner CGROUP CGROUP` runs it: sockops of a cgroup that is switched on put every established
connection into its sockhash, whose sk_msg program passes all messages. It ends when its stdin does, and all goes along.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spliceway.bpf import libbpf
from spliceway.bpf.source import SK_MSG, SOCK_OPS, STUBS

_TESTS = Path(__file__).resolve().parents[1]
_PROGRAM = """
struct place { u32 local; u32 remote; u32 port; u32 pad; };
BPF_ARRAY(counts, u64, 5);
BPF_SOCKHASH(other_socks, struct place, 4096);
static __always_inline void count(u32 what)
{
	u64 *n = counts.lookup(&what);
	if (n)
		__sync_fetch_and_add(n, 1);
}
static __always_inline int take(struct bpf_sock_ops *s, u32 cgroup)
{
	struct place place = {};
	u32 on = 3 + cgroup;
	u64 *is_on = counts.lookup(&on);
	if (!is_on || !*is_on)
		return 1;
	if (s->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && s->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	place.local = s->local_port;
	place.remote = s->remote_port;
	place.port = s->op;
	int refused = other_socks.sock_hash_update(s, &place, BPF_ANY);
	count(refused ? 1 : 0);
	return 1;
}
int other_sockops0(struct bpf_sock_ops *s)
{
	return take(s, 0);
}
int other_sockops1(struct bpf_sock_ops *s)
{
	return take(s, 1);
}
int other_message(struct sk_msg_md *msg)
{
	count(2);
	return SK_PASS;
}
"""


class OtherOwner:
    """It runs, switched off. `counts` asks it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def counts(self) -> dict[str, int]:
        """Sockets that it has `taken`, that the kernel `refused` it, and `messages` that its program saw."""
        return self._do("counts")

    @contextlib.contextmanager
    def on(self, cgroup: int) -> Iterator[None]:
        """The first (0) or second cgroup is switched on meanwhile, with all counts at 0."""
        self._do(f"on {cgroup}")
        try:
            yield
        finally:
            self._do(f"off {cgroup}")

    def _do(self, command: str) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid


@contextlib.contextmanager
def other_owner(*cgroups: Path) -> Iterator[OtherOwner]:
    """Run it for the sockets of two cgroups. Its process is in none of a node's cgroups."""
    process = subprocess.Popen(
        [sys.executable, "-m", "support.otherowner", *map(str, cgroups)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the other owner's programs could not be loaded"
        yield OtherOwner(process)
    finally:
        process.communicate(timeout=20)


def _load(*cgroups: str) -> Any:
    """Load and attach; what is attached by a link goes with this process. Returns the counts."""
    os.environ["BCC_KERNEL_SOURCE"] = str(STUBS)
    from bcc import BPF, lib

    module = BPF(text=_PROGRAM, cflags=["-nostdinc", f"-I{STUBS}/include"])
    message = module.load_func("other_message", SK_MSG)
    sockhash = lib.bpf_table_fd(module.module, b"other_socks")
    libbpf.attach_to_map(message.fd, sockhash, libbpf.BPF_SK_MSG_VERDICT)
    for number, cgroup in enumerate(cgroups):
        target = os.open(cgroup, os.O_RDONLY)
        sockops = module.load_func(f"other_sockops{number}", SOCK_OPS)
        libbpf.create_link(sockops.fd, target, libbpf.BPF_CGROUP_SOCK_OPS)
        os.close(target)
    return module["counts"]


def _main() -> None:
    counts = _load(*sys.argv[1:])
    print("ready", flush=True)
    for line in sys.stdin:
        command, _, cgroup = line.strip().partition(" ")
        if command == "on":
            for number in range(3):
                counts[number] = counts.Leaf(0)
        if command in ("on", "off"):
            counts[3 + int(cgroup)] = counts.Leaf(command == "on")
        names = ("taken", "refused", "messages")
        print(json.dumps({name: int(counts[number].value) for number, name in enumerate(names)}), flush=True)


if __name__ == "__main__":
    _main()
