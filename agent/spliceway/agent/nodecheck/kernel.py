"""The kernel: its version and the gate, what it is built with, whether readers can be measured, the self-test."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from spliceway.agent.nodecheck.model import Check, Target, fail, info, ok, skipped, warn
from spliceway.agent.nodecheck.reading import Unreadable, data, text
from spliceway.agent.nodecheck.texts import kernel_config
from spliceway.bpf import gate, kernelstructs
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.gatetable import Scope
from spliceway.bpf.selftest.report import Result
from spliceway.bpf.selftest.run import run

#: Option → what it is for. A module will do.
_NEEDED = {
    "CONFIG_BPF_SYSCALL": "programs",
    "CONFIG_CGROUP_BPF": "programs at cgroups",
    "CONFIG_BPF_STREAM_PARSER": "sockhashes (splicing)",
    "CONFIG_NET_CLS_ACT": "filters of pods",
    "CONFIG_NET_CLS_BPF": "filters of pods",
    "CONFIG_NET_SCH_INGRESS": "clsact, where filters are",
    "CONFIG_IP_MULTIPLE_TABLES": "the rule for steered packets",
    "CONFIG_IPV6_MULTIPLE_TABLES": "the rule for steered packets",
    "CONFIG_INET_DIAG": "looking for listeners",
    "CONFIG_INET_DIAG_DESTROY": "ending connections that lost their verdict",
}
#: Without these splicing or speed suffers, nothing else.
_WANTED = {
    "CONFIG_DEBUG_INFO_BTF": "measuring readers, which splicing needs",
    "CONFIG_BPF_JIT": "speed",
}


def release(target: Target) -> Iterator[Check]:
    """Version, features of that version, and the gate's findings."""
    running = gate.KernelRelease.running()
    missing = [feature for feature in gate.missing(running) if feature.required]
    if missing:
        listed = ", ".join(f"{feature.name} ({feature.since})" for feature in missing)
        todo = "boot Linux 5.15 or newer, unless the distribution has brought them back (the self-test tells)"
        yield warn("kernel-release", f"{running} is older than {listed}", todo)
    else:
        yield ok("kernel-release", str(running))
    yield from judge_gate(running, target.fixes)


def judge_gate(running: gate.KernelRelease, fixes: tuple[str, ...]) -> Iterator[Check]:
    """What is known to be wrong with this version. Raises ValueError for a fix that nobody knows."""
    findings = gate.judge(running, fixes)
    hits = [finding for finding in findings if finding.state is gate.State.AFFECTED]
    for finding in hits:
        if finding.off is Scope.TOLD:
            yield info("kernel-gate", finding.sentence, "nothing that you must do; a newer kernel has the fix")
        else:
            todo = "boot a kernel with the fix, or declare it in splice.kernelFixes if this one has it"
            yield warn("kernel-gate", finding.sentence, todo)
    if not hits:
        yield ok("kernel-gate", f"none of {len(findings)} known faults")


def config(_target: Target) -> Iterator[Check]:
    """The kernel's configuration, where it can be read."""
    yield from judge_config(kernel_config(_config_text()))


def judge_config(options: Mapping[str, str]) -> Iterator[Check]:
    """From option → y or m; what is not set is not there."""
    name, clean = "kernel-config", True
    for wanted, make in ((_NEEDED, fail), (_WANTED, warn)):
        for option, purpose in wanted.items():
            if options.get(option) not in ("y", "m"):
                clean = False
                yield make(name, f"{option} is not set: {purpose}", "boot a kernel that has it")
    if clean:
        yield ok(name, f"{len(_NEEDED) + len(_WANTED)} options are set")


def measured(_target: Target) -> Iterator[Check]:
    """BTF, and in it the fields that readers are measured by."""
    try:
        found = kernelstructs.offsets()
    except (LookupError, DatapathError) as error:
        todo = "boot a kernel with BTF; until then nothing is spliced in mode auto, policy is enforced all the same"
        yield warn("measure", f"readers can't be measured: {error}", todo)
    else:
        yield ok("measure", f"the kernel's BTF has the {len(found)} fields that are needed")


def self_test(target: Target) -> Iterator[Check]:
    """Run the self-test on sockets and namespaces of its own."""
    name = "self-test"
    if not target.self_test:
        yield skipped(name, "left out (--no-self-test)")
        return
    if not target.configured:
        yield skipped(name, "no configuration says where the cgroups are", "name it: --config FILE")
        return
    found = asyncio.run(run(target.settings))
    if found.error:
        yield warn(name, found.error, "nothing is spliced in mode auto; policy is enforced all the same")
        return
    for check in found.checks:
        told = f"{check.name}: {check.text}"
        if check.result is Result.BAD:
            off = " and ".join(side.value for side in check.switches_off) or "nothing"
            yield warn(name, told, f"nothing to do: not spliced for it: {off}. A newer kernel may do it right")
        elif check.result is Result.NOT_RUN:
            yield info(name, told, "nothing: it does not count against splicing")
        elif check.result is Result.KNOWN:
            yield info(name, told, 'pods that need it opt out: annotation spliceway.io/splice: "false"')
    results = [check.result for check in found.checks]
    told = ", ".join(f"{results.count(result)} {result.value}" for result in Result if result in results)
    yield ok(name, f"{told}, in {found.seconds:.1f} s")


def _config_text() -> str:
    """The configuration of the running kernel. Raises Unreadable."""
    try:
        return gzip.decompress(data(Path("/proc/config.gz"))).decode(errors="replace")
    except (Unreadable, OSError):
        pass
    try:
        return text(Path(f"/boot/config-{os.uname().release}"))
    except Unreadable as error:
        raise Unreadable(f"neither /proc/config.gz nor {error}") from error
