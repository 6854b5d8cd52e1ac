"""What speaks for and against splicing on this kernel, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import msgspec

from spliceway.agent.configsections import SpliceMode
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.types import SpliceClasses, SpliceLimits

#: The classes of connections by what the pod's end is, as they are called in status and metrics.
CLASSES = ("clients", "servers")
MODES: tuple[SpliceMode, ...] = get_args(SpliceMode)


class Proof(msgspec.Struct, frozen=True):
    """What one source says: whether each class may be spliced. `sentences` tell why not, `notes` what else there is."""

    source: str
    clients: bool
    servers: bool
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """What is spliced from now on. `why`: what keeps a class out; `warnings`: in spite of what one is spliced.

    `pending`: the self-test will say more; `asks_for_test`: its answer is wanted.
    """

    classes: SpliceClasses
    why: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    pending: bool = False
    asks_for_test: bool = False

    @property
    def spliced(self) -> tuple[str, ...]:
        """Names of the classes that are spliced."""
        classes = self.classes
        chosen = (classes.clients and classes.wanted, classes.servers and classes.wanted)
        return tuple(name for name, on in zip(CLASSES, chosen, strict=True) if on)


class SpliceStatus(msgspec.Struct, frozen=True, rename="camel"):
    """Splicing as it is. `decided` False: the self-test still runs, and nothing is spliced.

    `configured`: the mode after a restart; `spliced`: classes; `why`: what keeps the others out; `warnings`: what was
    found and is not heeded (`force`); `gate` and `measured`: what there is to say of this kernel. `self_test`: None
    when it has not run. `limits` and `unread` are bytes.
    """

    mode: str
    configured: str
    decided: bool
    spliced: tuple[str, ...]
    why: tuple[str, ...]
    warnings: tuple[str, ...]
    gate: tuple[str, ...]
    measured: tuple[str, ...]
    self_test: SelfTestReport | None
    limits: SpliceLimits
    unread: int


def decide(mode: SpliceMode, proofs: Sequence[Proof | None]) -> Decision:
    """What is spliced in this mode. `proofs`: all there are; None: the self-test, which is not over."""
    if mode == "off":
        return Decision(SpliceClasses(clients=False, servers=False, wanted=False))
    known = [proof for proof in proofs if proof is not None]
    against = tuple(text for proof in known if not (proof.clients and proof.servers) for text in proof.sentences)
    tested = None not in proofs
    if mode == "force":
        return Decision(SpliceClasses(), warnings=against, asks_for_test=not tested)
    clients, servers = all(proof.clients for proof in known), all(proof.servers for proof in known)
    if not tested and (clients or servers):
        return Decision(SpliceClasses(clients=False, servers=False), against, pending=True, asks_for_test=True)
    # What is ruled out already is not tried: some of what the gate knows of harms the kernel.
    return Decision(SpliceClasses(clients=clients, servers=servers), against)
