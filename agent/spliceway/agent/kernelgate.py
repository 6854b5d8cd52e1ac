"""What is known of the kernel that runs, as one of the proofs of `splicing`."""

from __future__ import annotations

from collections.abc import Collection

from spliceway.agent.spliceproof import Proof
from spliceway.bpf.gate import Finding, KernelRelease, State, allowed, judge
from spliceway.bpf.gatetable import Scope


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
