"""What of the user's own resources would keep policy waiting when Envoy starts. Pure.

Envoy asks for listeners when all clusters that it got first are ready, and its workers start when all listeners are. A
cluster that waits for DNS (with a resolver that is away: more than 25 s in Envoy 1.40), for a certificate (15 s) or for
a health check (its timeout) holds back policy's listeners so long. While Envoy runs nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2

from spliceway.xds.resources.walking import joined

#: Longest wait, in seconds.
MAX_WAIT = 2.0
_STATIC, _EDS = cluster_pb2.Cluster.STATIC, cluster_pb2.Cluster.EDS
_WAITS = "policy waits for it when Envoy starts"


def _cluster(cluster: Any, at: str) -> Iterator[tuple[str, str]]:
    is_type = cluster.WhichOneof("cluster_discovery_type") != "cluster_type"
    if is_type and cluster.type == _EDS:
        yield joined(at, "type"), f"EDS is not allowed: {_WAITS}; write the endpoints here"
    elif not (is_type and cluster.type == _STATIC):
        waits = cluster.wait_for_warm_on_init
        if not cluster.HasField("wait_for_warm_on_init") or waits.value:
            yield joined(at, "wait_for_warm_on_init"), f"must be false: else {_WAITS}"


def _health_check(check: Any, at: str) -> Iterator[tuple[str, str]]:
    if _seconds(check.timeout) + _seconds(check.initial_jitter) > MAX_WAIT:
        yield joined(at, "timeout"), f"must be at most {MAX_WAIT:g}s, with initial_jitter: {_WAITS}"


def _secret(config: Any, at: str) -> Iterator[tuple[str, str]]:
    source = config.sds_config
    # Files are read at once, also when they are missing or have something else in them.
    asks = source.WhichOneof("config_source_specifier") == "api_config_source"
    if asks and not 0 < _seconds(source.initial_fetch_timeout) <= MAX_WAIT:
        where = joined(joined(at, "sds_config"), "initial_fetch_timeout")
        yield where, f"is required, more than 0s and at most {MAX_WAIT:g}s: {_WAITS}"


def _remote(_: Any, at: str) -> Iterator[tuple[str, str]]:
    yield at, f"what is fetched from elsewhere is not allowed: {_WAITS}"


def _keys(fetch: Any, at: str) -> Iterator[tuple[str, str]]:
    if not fetch.fast_listener:
        yield joined(at, "fast_listener"), f"must be true: else {_WAITS}"


def _seconds(duration: Any) -> float:
    return float(duration.ToNanoseconds() / 1e9)


#: By the full name of a message, wherever it is: (path, reason) of what must not be.
WARMING: dict[str, Callable[[Any, str], Iterator[tuple[str, str]]]] = {
    "envoy.config.cluster.v3.Cluster": _cluster,
    "envoy.config.core.v3.HealthCheck": _health_check,
    "envoy.config.core.v3.RemoteDataSource": _remote,
    "envoy.extensions.filters.http.jwt_authn.v3.JwksAsyncFetch": _keys,
    "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": _secret,
}
