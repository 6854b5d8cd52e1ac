"""A raw xDS client that says exactly what it is told to: state of the world and delta, aggregated and single services.

It answers nothing by itself. `names_of` and `bodies_of` read what came; `body` makes the resources of the tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET, TYPES, URLS
from support.waiting import LIMIT

NODE = "node-1"
#: Seconds in which nothing may come.
QUIET = 0.15
#: Seconds in which what must come has come, on a busy machine too.
PATIENCE = LIMIT
#: The feature by which a client says that it can forget a resource after a time.
TTL = "xds.config.supports-resource-ttl"
#: The feature by which a client of the state-of-the-world variant says that resources may come wrapped.
WRAPPED = "xds.config.resource-in-sotw"
_ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_RESOURCE = "type.googleapis.com/envoy.service.discovery.v3.Resource"
_EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  (the stubs don't have it)
_OPTIONS = [("grpc.max_send_message_length", 256 << 20), ("grpc.max_receive_message_length", 256 << 20)]


def dial(target: object, credentials: grpc.ChannelCredentials | None = None, **options: object) -> grpc.aio.Channel:
    """A channel of its own (no connection is shared) to `unix:/path` or `host:port`; a path means its Unix socket."""
    address = str(target) if ":" in str(target) else f"unix:{target}"
    arguments = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1), *options.items()]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=arguments)
    return grpc.aio.secure_channel(address, credentials, options=arguments)


class _Stream:
    """What both variants have in common: reading, silence, and how the stream ends."""

    def __init__(self, channel: grpc.aio.Channel, method: str, request: Any, response: Any, node: Any) -> None:
        open_stream: Any = channel.stream_stream(
            method, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        self._call = open_stream()
        self._node: base_pb2.Node | None = node
        self._reading: asyncio.Future[Any] | None = None

    async def send(self, message: Any) -> None:
        """Write a message; the node goes with the first one only."""
        if self._node is not None:
            message.node.CopyFrom(self._node)
            self._node = None
        await self._call.write(message)

    async def read(self, wait: float = PATIENCE) -> Any:
        """The next response.

        Raises:
            TimeoutError: none within `wait` seconds; one that comes later is not lost.
            grpc.aio.AioRpcError: the stream ended with an error.
        """
        # Cancelling a read would end the call: one that is not finished in time is left to be read later.
        self._reading = self._reading or asyncio.ensure_future(self._call.read())
        done, _ = await asyncio.wait({self._reading}, timeout=wait)
        if not done:
            raise TimeoutError(f"no response within {wait:g} s")
        found, self._reading = self._reading.result(), None
        if found is _EOF:
            raise EOFError("the server has ended the stream")
        return found

    async def silent(self, wait: float = QUIET) -> None:
        """Nothing comes for `wait` seconds."""
        try:
            found = await self.read(wait)
        except TimeoutError:
            return
        raise AssertionError(f"nothing should have come: {summary(found)}")

    async def answer(self, response: Any, error: str | None = None) -> None:
        """Acknowledge or refuse."""
        raise NotImplementedError

    async def drained(self, wait: float = QUIET) -> list[Any]:
        """Acknowledge whatever comes until nothing comes any more, and return it."""
        found = []
        while True:
            try:
                found.append(await self.read(wait))
            except TimeoutError:
                return found
            await self.answer(found[-1])

    def cancel(self) -> None:
        """Break the stream off."""
        self._call.cancel()

    async def done_writing(self) -> None:
        """Half-close: no further request will come."""
        await self._call.done_writing()

    async def code(self) -> grpc.StatusCode:
        """How the stream ended; waits for it."""
        return await asyncio.wait_for(self._call.code(), PATIENCE)

    async def details(self) -> str:
        """What the server said when it ended the stream."""
        return str(await asyncio.wait_for(self._call.details(), PATIENCE))


class SotwStream(_Stream):
    """One stream of the state-of-the-world variant. `service`: a type's short name for its own service, else ADS.

    `node`: a node id, a Node message, or None for a client that doesn't say who it is.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        node: str | base_pb2.Node | None = NODE,
        *,
        service: str | None = None,
        features: Iterable[str] = (),
    ) -> None:
        info = TYPES[URLS[service]] if service else None
        method = f"/{info.service}/{info.sotw_method}" if info else f"/{_ADS}/StreamAggregatedResources"
        super().__init__(
            channel, method, discovery_pb2.DiscoveryRequest, discovery_pb2.DiscoveryResponse, node_of(node, features)
        )
        #: Type URL -> the names that were asked for last, and the nonce of the newest response that was read.
        self.asked: dict[str, tuple[str, ...]] = {}
        self.nonces: dict[str, str] = {}

    async def read(self, wait: float = PATIENCE) -> Any:
        """The next response; see above."""
        found = await super().read(wait)
        self.nonces[found.type_url] = found.nonce
        return found

    async def ask(
        self,
        url: str,
        *names: str,
        answer: Any = None,
        error: str | None = None,
        nonce: str | None = None,
        version: str = "",
    ) -> None:
        """One request. `answer` is the response that it acknowledges (or, with `error`, refuses).

        Without it the nonce is that of the newest response of the type, as clients do it.
        """
        self.asked[url] = names
        nonce = self.nonces.get(url, "") if nonce is None else nonce
        await self.send(
            discovery_pb2.DiscoveryRequest(
                type_url=url,
                resource_names=names,
                version_info=version or (answer.version_info if answer is not None and error is None else ""),
                response_nonce=answer.nonce if answer is not None else nonce,
                error_detail={"message": error} if error is not None else None,
            )
        )

    async def answer(self, response: Any, error: str | None = None, version: str = "") -> None:
        """Acknowledge or refuse, with the names asked for last."""
        names = self.asked.get(response.type_url, ())
        await self.ask(response.type_url, *names, answer=response, error=error, version=version)

    async def take(self, url: str, *names: str) -> list[str]:
        """Read a response of that type and acknowledge it, asking for `names` if any; the names in it."""
        response = await self.read()
        assert response.type_url == url, summary(response)
        if names:
            await self.ask(url, *names, answer=response)
        else:
            await self.answer(response)
        return names_of(response)


class DeltaStream(_Stream):
    """One stream of the delta variant; arguments as of `SotwStream`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        node: str | base_pb2.Node | None = NODE,
        *,
        service: str | None = None,
        features: Iterable[str] = (),
    ) -> None:
        info = TYPES[URLS[service]] if service else None
        method = f"/{info.service}/{info.delta_method}" if info else f"/{_ADS}/DeltaAggregatedResources"
        super().__init__(
            channel,
            method,
            discovery_pb2.DeltaDiscoveryRequest,
            discovery_pb2.DeltaDiscoveryResponse,
            node_of(node, features),
        )

    async def ask(
        self,
        url: str,
        *names: str,
        drop: Iterable[str] = (),
        have: Mapping[str, str] | None = None,
        answer: Any = None,
        error: str | None = None,
        nonce: str = "",
    ) -> None:
        """One request: subscribe to `names`, unsubscribe from `drop`; `have` are the initial resource versions."""
        await self.send(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=url,
                resource_names_subscribe=names,
                resource_names_unsubscribe=drop,
                initial_resource_versions=have,
                response_nonce=answer.nonce if answer is not None else nonce,
                error_detail={"message": error} if error is not None else None,
            )
        )

    async def answer(self, response: Any, error: str | None = None) -> None:
        """Acknowledge or refuse."""
        await self.ask(response.type_url, answer=response, error=error)

    async def take(self, url: str) -> tuple[list[str], list[str]]:
        """Read a response of that type and acknowledge it; the names in it, and those that it removes."""
        response = await self.read()
        assert response.type_url == url, summary(response)
        await self.answer(response)
        return names_of(response), sorted(response.removed_resources)

    async def responses(self) -> AsyncIterator[Any]:
        """Everything that comes, each acknowledged after the caller has seen it, until the stream ends."""
        while True:
            response = await self.read(3600)
            yield response
            await self.answer(response)


def node_of(node: str | base_pb2.Node | None, features: Iterable[str] = ()) -> base_pb2.Node | None:
    """A Node message; None stays None."""
    if isinstance(node, str):
        return base_pb2.Node(id=node, cluster="tests", user_agent_name="raw", client_features=features)
    return node


_MESSAGES: Mapping[str, Any] = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
    SECRET: secret_pb2.Secret,
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
    EXTENSION: extension_pb2.TypedExtensionConfig,
}


def body(url: str, name: str, revision: object = "", *, eds: str | None = None, to: str = "") -> bytes:
    """A serialized resource of that type. Resources of other revisions are other content.

    `eds`: for a cluster, the name of its EDS resource ("" for its own name); None: the cluster needs none. `to`: for a
    listener or a route configuration, the cluster to which it sends traffic.
    """
    text = str(revision)
    made: Any
    if url == CLUSTER:
        made = cluster_pb2.Cluster(name=name, alt_stat_name=text)
        if eds is not None:
            made.type = cluster_pb2.Cluster.EDS
            made.eds_cluster_config.service_name = eds
            made.eds_cluster_config.eds_config.ads.SetInParent()
    elif url == ENDPOINT:
        made = endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=[{"locality": {"zone": text}}])
    elif url == SECRET:
        made = secret_pb2.Secret(name=name, generic_secret={"secret": {"inline_string": text}})
    elif url == LISTENER:
        made = listener_pb2.Listener(name=name, stat_prefix=text)
        if to:
            proxy = any_pb2.Any()
            proxy.Pack(tcp_proxy_pb2.TcpProxy(stat_prefix=name, cluster=to))
            made.filter_chains.add().filters.add(name="tcp", typed_config=proxy)
    elif url == ROUTE:
        made = route_pb2.RouteConfiguration(name=name, virtual_hosts=[{"name": f"host{text}", "domains": ["*"]}])
        if to:
            made.virtual_hosts[0].routes.add(match={"prefix": "/"}, route={"cluster": to})
    else:
        made = extension_pb2.TypedExtensionConfig(name=name, typed_config=any_pb2.Any(type_url=f"test/{text}"))
    return bytes(made.SerializeToString(deterministic=True))


def unwrapped(url: str, item: Any) -> tuple[str, bytes]:
    """Name and serialized message of one resource of a response; of a heartbeat the message is empty."""
    if isinstance(item, discovery_pb2.Resource):
        return item.name, item.resource.value
    if item.type_url == _RESOURCE:
        wrapped = discovery_pb2.Resource.FromString(item.value)
        return wrapped.name, wrapped.resource.value
    assert item.type_url == url
    message = _MESSAGES[url].FromString(item.value)
    return (message.cluster_name if url == ENDPOINT else message.name), item.value


def names_of(response: Any) -> list[str]:
    """The names of the resources in a response of either variant, sorted."""
    return sorted(unwrapped(response.type_url, item)[0] for item in response.resources)


def bodies_of(response: Any) -> dict[str, bytes]:
    """Name -> serialized message of a response of either variant."""
    return dict(unwrapped(response.type_url, item) for item in response.resources)


def versions_of(response: Any) -> dict[str, str]:
    """Name -> version of the resources of a delta response."""
    return {item.name: item.version for item in response.resources}


def summary(response: Any) -> str:
    """A response in one line."""
    info = TYPES.get(response.type_url)
    removed = getattr(response, "removed_resources", ())
    return f"{info.short if info else response.type_url} {names_of(response)} removed {list(removed)} {response.nonce}"
