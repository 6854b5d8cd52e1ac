"""gRPC through a real Envoy: HTTP/2 on both sides, trailers, streams, and a refusal that a gRPC client understands."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.policy.verdict import Verdict
from support.envoy import EnvoyNode, envoy_node, port_of
from support.steered import SERVER, VERSIONS

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

# In processes of their own, because gRPC opens its sockets in threads that setns does not reach.
_SERVE = """
import sys, grpc
from concurrent import futures
def say(request, context):
    context.set_trailing_metadata((("x-trailer", "t"),))
    return request + b"!"
def stream(requests, context):
    for request in requests:
        yield request + b"!"
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {
    "Say": grpc.unary_unary_rpc_method_handler(say),
    "Hidden": grpc.unary_unary_rpc_method_handler(say),
    "Stream": grpc.stream_stream_rpc_method_handler(stream),
}),))
server.add_insecure_port(sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
"""
_CALL = """
import sys, grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    reply, call = channel.unary_unary("/test.Echo/Say").with_call(b"hello", timeout=30)
    print(reply, dict(call.trailing_metadata()).get("x-trailer"))
    print(list(channel.stream_stream("/test.Echo/Stream")(iter([b"a", b"b", b"c"]), timeout=30)))
    try:
        channel.unary_unary("/test.Echo/Hidden")(b"hello", timeout=30)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""
_PORT = 8080


async def python(node: EnvoyNode, where: Path, script: str, address: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *("nsenter", f"--net={where}", sys.executable, "-c", script, address), stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_streams_trailers_and_refusals(tmp_path: Path, version: int) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), envoy_node(tmp_path, redirect_to=_PORT) as node:
            await node.apply(RuleSet(1, "echo", (HttpRule(7, "POST", "/test.Echo/(Say|Stream)"),)))
            host = SERVER[version] if version == 4 else f"[{SERVER[version]}]"
            server = await python(node, node.net.server, _SERVE, f"{host}:{_PORT}")
            try:
                assert server.stdout is not None
                assert await server.stdout.readline() == b"ready\n"
                client = await python(node, node.net.client, _CALL, f"{host}:{port_of(1)}")
                output, _ = await client.communicate()
                assert output.decode().splitlines() == [
                    "b'hello!' t",
                    "[b'a!', b'b!', b'c!']",
                    "PERMISSION_DENIED Access denied",
                ]
            finally:
                server.kill()
                await server.wait()
            flows = await node.flow(3)
            assert {flow.protocol for flow in flows} == {"HTTP/2"}
            assert {flow.path: flow.verdict for flow in flows} == {
                "/test.Echo/Say": Verdict.ALLOW,
                "/test.Echo/Stream": Verdict.ALLOW,
                "/test.Echo/Hidden": Verdict.DENY,
            }

    asyncio.run(main())
