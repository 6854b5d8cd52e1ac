"""The exceptions of Spliceway's own: one small hierarchy, rooted here because every package may import `policy`."""

from __future__ import annotations


class SplicewayError(Exception):
    """Base of all own exceptions. `str()` is one sentence for people."""


class PolicyError(SplicewayError):
    """A document that is refused whole.

    `file` is where it was read, `document` is «Kind namespace/name» (or «document 2» while that is unknown), `field`
    the path inside it. Any of them may be empty. `str()` joins what there is:
    `web.yaml: CiliumNetworkPolicy default/web: spec.ingress[0].toPorts[0].ports[0].port: 70000 is not a port (1 to …)`.
    """

    def __init__(self, file: str, document: str, field: str, reason: str) -> None:
        super().__init__(file, document, field, reason)
        self.file = file
        self.document = document
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.document, self.field, self.reason) if part)


class NumberingError(SplicewayError):
    """Numbers ran out, or a saved numbering cannot be read."""
