"""The pure parts of the proxy's processes: what workers are told, sums of counters, settings, metrics."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.proxy.errors import ProxyError
from spliceway.proxy.model import Change, ClusterConfig, ListenerConfig, ProxySettings, RouteConfig
from spliceway.proxy.process.config import Config, difference, is_empty
from spliceway.proxy.process.listeners import ListenError, Sockets
from spliceway.proxy.process.messages import Counters
from spliceway.proxy.process.metrics import Statistics, prometheus_name
from spliceway.proxy.process.settings import load_settings
from spliceway.proxy.process.totals import Totals

NAMES = ("a", "b", "c")


def listener(name: str, port: int = 1, backlog: int = 1) -> ListenerConfig:
    return ListenerConfig(
        name=name,
        addresses=(("127.0.0.1", port),),
        backlog=backlog,
        buffer_limit=1,
        upstream_mark=1,
        route=name,
        headers_timeout=1,
        idle_timeout=1,
        max_head_bytes=1,
        max_headers=1,
        denied_body=b"",
    )


def route(name: str, revision: int) -> RouteConfig:
    return RouteConfig(name=name, rule_set=RuleSet(revision, name, (HttpRule(revision),)))


def cluster(timeout: float = 1) -> ClusterConfig:
    return ClusterConfig(name="c", connect_timeout=timeout, buffer_limit=1, max_headers=1, max_head_bytes=1)


class Told:
    """What a worker knows that was told only changes. A change that it could not follow is an error."""

    def __init__(self) -> None:
        self.listeners: dict[str, ListenerConfig] = {}
        self.rules: dict[str, RuleSet] = {}
        self.bound: dict[str, Any] = {}
        self.cluster: ClusterConfig | None = None

    def apply(self, change: Change) -> None:
        self.cluster = change.cluster or self.cluster
        for name in change.gone:
            del self.listeners[name], self.rules[name], self.bound[name]
        self.rules |= change.rules
        for name, item in change.listeners.items():
            assert self.cluster is not None
            assert item.route in self.rules
            if name in change.sockets:
                self.bound[name] = item.addresses
            assert self.bound[name] == item.addresses
            self.listeners[name] = item
        assert set(change.sockets) <= change.listeners.keys()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("listener"), st.sampled_from(NAMES), st.integers(1, 2), st.integers(1, 2)),
        st.tuples(st.just("route"), st.sampled_from(NAMES), st.integers(1, 3)),
        st.tuples(st.just("gone"), st.sampled_from(NAMES)),
        st.tuples(st.just("cluster"), st.integers(1, 2)),
    ),
    max_size=20,
)


@given(STEPS)
def test_changes_lead_to_what_is_served(steps: list[tuple[Any, ...]]) -> None:
    config, told = Config(), Told()
    for number, (kind, *values) in enumerate(steps):
        if kind == "listener":
            new = config.with_listeners({values[0]: listener(*values)}).pruned()
        elif kind == "route":
            new = config.with_routes({values[0]: route(*values)}).pruned()
        elif kind == "gone":
            new = config.without({values[0]}).pruned()
        else:
            new = config.with_cluster(cluster(values[0]))
        names = {values[0]} if kind in ("listener", "gone") else set(new.users({values[0]}))
        names = set(new.listeners) if kind == "cluster" else names
        change = difference(config, new, names, number)
        told.apply(change)
        # Back and forth again is nothing.
        other = Told()
        other.apply(new.whole(number))
        assert (told.listeners, told.bound) == (other.listeners, other.bound)
        assert {name: told.rules[name] for name in told.listeners} == other.rules
        assert is_empty(difference(new, new, NAMES, number))
        config = new


def test_rules_stay_as_long_as_a_listener_names_them() -> None:
    config = Config().with_cluster(cluster()).with_listeners({"a": listener("a")}).with_routes({"a": route("a", 1)})
    assert config.pruned() is config
    assert config.without({"a"}).pruned().routes == {}


def test_sums_never_go_back() -> None:
    totals = Totals()
    totals.take(0, Counters({"rq": 5}, {"cx": 2}, 1))
    totals.take(1, Counters({"rq": 7}, {"cx": 1}, 0))
    assert (totals.counters(), totals.gauges(), totals.dropped) == ({"rq": 12}, {"cx": 3}, 1)
    totals.end(0)
    assert (totals.counters(), totals.gauges(), totals.dropped) == ({"rq": 12}, {"cx": 1}, 1)
    totals.take(0, Counters({"rq": 1}, {"cx": 1}, 2))
    assert (totals.counters(), totals.gauges(), totals.dropped) == ({"rq": 13}, {"cx": 2}, 3)
    totals.end(3)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        (
            "http.spliceway.downstream_rq_total",
            'envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="spliceway"}',
        ),
        (
            "http.spliceway.downstream_rq_5xx",
            'envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="spliceway",envoy_response_code_class="5"}',
        ),
        (
            "cluster.original-destination.upstream_cx_total",
            'envoy_cluster_upstream_cx_total{envoy_cluster_name="original-destination"}',
        ),
        ("http.spliceway.rbac.denied", 'envoy_http_rbac_denied{envoy_http_conn_manager_prefix="spliceway"}'),
        ("listener_manager.lds.update_success", "envoy_listener_manager_lds_update_success"),
        ("spliceway.refused.http-tls", 'spliceway_proxy_refused_total{reason="http-tls"}'),
        ("spliceway.no_port", "spliceway_proxy_no_port_total"),
        ("spliceway.worker_restarts_total", "spliceway_proxy_worker_restarts_total"),
    ],
)
def test_prometheus_names(name: str, metric: str) -> None:
    text = Statistics(lambda: {name: 3}, lambda: {"spliceway.workers": 2}).prometheus().decode()
    assert f"{metric} 3.0\n" in text
    assert "# TYPE spliceway_proxy_workers gauge\nspliceway_proxy_workers 2.0\n" in text


def test_prometheus_name_takes_any_name() -> None:
    assert prometheus_name("a-b c.d") == ("envoy_a_b_c_d", (), ())


def test_statistics_are_filtered_by_a_pattern() -> None:
    statistics = Statistics(lambda: {"a.b": 1, "c": 2}, lambda: {"d": 3})
    assert statistics.named("^[ad]") == [{"name": "a.b", "value": 1}, {"name": "d", "value": 3}]


GOOD = {
    "nodeId": "n",
    "xdsSocket": "/run/x",
    "adminSocket": "/run/a",
    "handoverSocket": "/run/h",
    "stateFile": "/run/s",
}


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "proxy.json"
    file.write_text(json.dumps(GOOD | {"limits": {"drain": 1}}))
    found = load_settings(file)
    assert isinstance(found, ProxySettings)
    assert (found.xds_socket, found.limits.drain) == (Path("/run/x"), 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "the whole: Expected `object`"),
        (json.dumps({}), "nodeId"),
        (json.dumps(GOOD | {"xdsSocket": 1}), "xdsSocket: Expected a path, got 1"),
        (json.dumps(GOOD | {"stateFile": "s"}), "stateFile: s is not an absolute path"),
        (json.dumps(GOOD | {"wrong": 1}), "wrong"),
        (json.dumps(GOOD | {"logLevel": "loud"}), "logLevel: 'loud' is none of debug, info, warning, error"),
        (json.dumps(GOOD | {"limits": {"drain": "x"}}), "limits.drain: Expected `float`"),
        (json.dumps(GOOD | {"workers": -1}), "workers"),
    ],
)
def test_settings_errors_name_file_field_and_reason(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "proxy.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ProxyError) as caught:
        load_settings(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert why in str(caught.value)


def test_whole_is_a_message() -> None:
    config = Config().with_cluster(cluster()).with_listeners({"a": listener("a")}).with_routes({"a": route("a", 1)})
    raw = msgspec.msgpack.encode(config.whole(3))
    assert msgspec.msgpack.decode(raw, type=Change) == config.whole(3)


@pytest.mark.kernel
def test_sockets_of_a_listener() -> None:
    sockets = Sockets()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    addresses = (("127.0.0.1", port),)
    sockets.stage("a", addresses)
    with pytest.raises(ListenError, match="address already in use by listener a"):
        sockets.stage("b", addresses)
    sockets.commit()
    with pytest.raises(ListenError, match="address already in use by listener a"):
        sockets.stage("b", addresses)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(addresses[0])
    sockets.listen("a", 8)
    with socket.create_connection(addresses[0]) as waiting:
        assert len(sockets.queued()) == 1
        sockets.silence(["a"])
        with pytest.raises(ConnectionResetError):
            waiting.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(addresses[0])
    sockets.listen("a", 8)
    (descriptor,) = sockets.descriptors(["a"])
    sockets.stage("a", (*addresses, ("::1", port)))
    assert sockets.descriptors(["a"])[0] == descriptor
    sockets.commit()
    socket.create_connection(addresses[0]).close()
    sockets.close(["a"])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(addresses[0])
    assert sockets.names() == []


@pytest.mark.kernel
def test_sockets_that_take_nothing_new_keep_what_they_have() -> None:
    sockets = Sockets()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    sockets.stage("a", [address])
    sockets.commit()
    sockets.listen("a", 8)
    with socket.create_connection(address) as waiting, socket.socket() as late:
        sockets.drop_new()
        late.setblocking(False)
        late.connect_ex(address)
        (listener,) = sockets.queued()
        assert late.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x02"  # TCP_SYN_SENT
        waiting.sendall(b"x")
        accepted, peer = listener.accept()
        with accepted:
            assert peer == waiting.getsockname()
            accepted.settimeout(20)
            assert accepted.recv(1) == b"x"
        assert sockets.queued() == []
    sockets.close(["a"])
