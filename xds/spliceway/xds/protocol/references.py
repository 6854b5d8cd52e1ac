"""Which other resources a resource names, as far as the order of sending depends on it. Pure."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf.message import DecodeError


def endpoints_of(cluster: bytes) -> tuple[str, ...]:
    """Names of the EDS resources that a serialized cluster waits for: one if it is of type EDS, else none."""
    try:
        found = cluster_pb2.Cluster.FromString(cluster)
    except DecodeError:
        return ()  # not a cluster; whoever gets it will say so
    if found.WhichOneof("cluster_discovery_type") != "type" or found.type != cluster_pb2.Cluster.EDS:
        return ()
    return (found.eds_cluster_config.service_name or found.name,)
