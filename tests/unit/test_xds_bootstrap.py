"""Envoy's bootstrap, and which Envoy is good enough."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from google.protobuf.json_format import ParseDict

from spliceway.policy.regex import MAX_PROGRAM_SIZE
from spliceway.xds.resources.bootstrap import bootstrap
from spliceway.xds.resources.names import CLUSTER_AGENT
from spliceway.xds.resources.settings import BootstrapSettings
from spliceway.xds.versions import parse_version, unsafe

SETTINGS = BootstrapSettings(node_id="n", xds_socket=Path("/run/x.sock"), admin_socket=Path("/run/a.sock"))


def test_it_is_a_bootstrap_with_nothing_but_the_way_to_the_agent() -> None:
    parsed = ParseDict(json.loads(json.dumps(bootstrap(SETTINGS))), bootstrap_pb2.Bootstrap())
    assert [cluster.name for cluster in parsed.static_resources.clusters] == [CLUSTER_AGENT]
    assert not parsed.static_resources.listeners
    assert parsed.node.id == "n"
    assert (parsed.admin.address.pipe.path, parsed.admin.address.pipe.mode) == ("/run/a.sock", 0o600)
    assert "/run/x.sock" in str(parsed.static_resources.clusters[0].load_assignment)


def test_reconnecting_never_takes_long() -> None:
    parsed = ParseDict(bootstrap(SETTINGS), bootstrap_pb2.Bootstrap())
    back_off = parsed.dynamic_resources.ads_config.grpc_services[0].envoy_grpc.retry_policy.retry_back_off
    assert back_off.base_interval.ToTimedelta().total_seconds() == 0.1
    assert back_off.max_interval.ToTimedelta().total_seconds() == 1.0


def test_envoy_takes_expressions_as_large_as_the_parser_does() -> None:
    parsed = ParseDict(bootstrap(SETTINGS), bootstrap_pb2.Bootstrap())
    layer = parsed.layered_runtime.layers[0].static_layer
    assert layer["re2.max_program_size.error_level"] == MAX_PROGRAM_SIZE


def test_no_limit_of_connections_is_no_monitor_of_them() -> None:
    assert "downstream_max_connections" in json.dumps(bootstrap(SETTINGS))
    free = msgspec.structs.replace(SETTINGS, max_connections=0)
    assert "overload_manager" not in bootstrap(free)


def test_versions_are_found_in_what_envoy_says() -> None:
    text = "envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL"
    assert parse_version(text) == (1, 40, 0)
    assert parse_version("x/1.41.0-dev/Modified/DEBUG/BoringSSL") == (1, 41, 0)
    assert parse_version("nginx/1.22.1") is None


@pytest.mark.parametrize("version", [(1, 36, 10), (1, 37, 6), (1, 38, 9), (1, 39, 1), (1, 40, 0), (2, 0, 0)])
def test_good_versions(version: tuple[int, int, int]) -> None:
    assert unsafe(version) is None


@pytest.mark.parametrize("version", [(1, 36, 9), (1, 37, 5), (1, 38, 3), (1, 39, 0), (1, 35, 99), (1, 8, 0)])
def test_versions_with_bypasses(version: tuple[int, int, int]) -> None:
    assert "lets requests past path rules" in str(unsafe(version))
