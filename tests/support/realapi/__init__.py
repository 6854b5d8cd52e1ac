"""A real kube-apiserver on a real etcd, in the place of the double (`support.kubeapi`).

Used where `SPLICEWAY_KUBE_BINARIES` names a directory with `kube-apiserver` and `etcd` (docs/kubernetes.md says where
they come from). `server` runs them and has what tests use of the double, `objects` is its client, `front` the forwarder
by which agents reach the server, and which is what is stopped, cut and stalled for them.
"""

from __future__ import annotations

from collections.abc import Callable

from support.kubeapi import KubeApi
from support.realapi.server import BINARIES, RealApi

__all__ = ["BINARIES", "AnyApi", "RealApi", "api_server"]

#: What either of them can do.
AnyApi = KubeApi | RealApi


def api_server(*, enter: Callable[[], None], bookmark_seconds: float) -> AnyApi:
    """The real one where its binaries are, else the double."""
    return (RealApi if BINARIES else KubeApi)(enter=enter, bookmark_seconds=bookmark_seconds)
