"""What there is to know of the kernel that runs: its version's faults, what it can measure, what the self-test says."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from spliceway.agent.spliceproof import Proof
from spliceway.bpf import ownfiles
from spliceway.bpf.gate import Finding, KernelRelease, State, allowed, judge
from spliceway.bpf.gatetable import Scope
from spliceway.bpf.install import measuring
from spliceway.bpf.selftest import cache
from spliceway.bpf.selftest.identity import identity
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.selftest.run import load_or_run
from spliceway.bpf.types import DatapathSettings


class KernelEvidence:
    """See the module; methods as `splicing.Evidence` has them."""

    def gate(self, fixed: Collection[str]) -> Proof:
        """What is known of its version. `fixed`: commits and CVE numbers that it has all the same."""
        try:
            release = KernelRelease.running()
        except ValueError as error:
            return Proof("gate", False, False, (f"the kernel's version is not known: {error}",))
        return gate_proof(judge(release, fixed))

    def unmeasured(self) -> str:
        """Why it does not tell what a reader has not read; empty when it does."""
        return measuring()[1]

    def kept(self, directory: Path) -> SelfTestReport | None:
        """What the self-test said of it and of these programs, if that was kept since the machine was started."""
        try:
            ownfiles.prepare(directory)
        except OSError:
            return None
        return cache.load(directory, identity())

    async def self_test(self, settings: DatapathSettings, directory: Path) -> SelfTestReport:
        """Run the self-test, and keep what it says."""
        return await load_or_run(settings, directory)


def gate_proof(findings: Collection[Finding]) -> Proof:
    """Findings as a proof: what switches something off is why, what is only told or declared fixed is a note."""
    clients, servers = allowed(findings)
    why = tuple(each.sentence for each in findings if each.off is not Scope.TOLD)
    told = (each for each in findings if each.off is Scope.TOLD)
    notes = tuple(each.sentence for each in told if each.state in (State.AFFECTED, State.DECLARED_FIXED))
    return Proof("gate", clients, servers, why, notes)
