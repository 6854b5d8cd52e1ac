"""Which Services an address and port are of: as where clients dial to, or as one of those who answer."""

from __future__ import annotations

from collections import Counter

from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.loadbalancing import Changes
from spliceway.policy.table import IPAddress
from spliceway.policy.verdict import Protocol

_PROTOCOLS = frozenset((Protocol.TCP, Protocol.UDP, Protocol.SCTP))


class ServiceNames:
    """Kept up by the changes of load balancing. `update` is for one thread at a time; `of` may be asked meanwhile."""

    def __init__(self) -> None:
        self._frontends: dict[Frontend, FrontendState] = {}
        # For each frontend that leads there the name of its Service, so that one comes as often as its frontends do.
        # Backends of one Service have equal names, and share them: there may be a hundred thousand.
        self._backends: dict[Backend, tuple[str, ...]] = {}
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"ServiceNames(frontends={len(self._frontends)}, backends={len(self._backends)})"

    def update(self, changes: Changes) -> None:
        """These frontends are so from now on; None: there is none any more."""
        for frontend, state in changes.items():
            before = self._frontends.pop(frontend, None)
            if state is not None:
                self._frontends[frontend] = state
            old, new = _leads(before), _leads(state)
            if before is not None and state is not None and before.service == state.service:
                old, new = old - new, new - old
            for backend in old:
                assert before is not None  # it had backends
                self._keep(backend, _without(self._backends[backend], before.service))
            for backend in new:
                assert state is not None
                self._keep(backend, (*self._backends.get(backend, ()), state.service))
        if not self._frontends:
            self._shared.clear()

    def of(self, address: IPAddress, port: int, protocol: int) -> tuple[str, ...]:
        """Names («namespace/name»), sorted: of the Service that is dialled there, else of all that lead there."""
        if protocol not in _PROTOCOLS:
            return ()
        dialled = self._frontends.get(Frontend(address, port, Protocol(protocol)))
        if dialled is not None:
            return (dialled.service,)
        return tuple(sorted(set(self._backends.get(Backend(address, port), ()))))

    def _keep(self, backend: Backend, names: tuple[str, ...]) -> None:
        if not names:
            del self._backends[backend]
        else:
            self._backends[backend] = self._shared.setdefault(names, names)


def _leads(state: FrontendState | None) -> frozenset[Backend]:
    return frozenset(state.backends) if state is not None else frozenset()


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Names with one of this name less."""
    return tuple((Counter(names) - Counter((name,))).elements())
