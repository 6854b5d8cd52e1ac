"""xDS over TCP: with mutual TLS, or in plain text where that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from spliceway.xds.errors import XdsError
from spliceway.xds.protocol.typeurls import CLUSTER
from spliceway.xds.server.listen import TcpSettings, TlsSettings
from spliceway.xds.server.server import XdsServer
from support.certificates import Authority
from support.xdsbed import state
from support.xdsclient import DeltaStream, SotwStream, dial, names_of


class Site:
    """An authority, a server's files, and clients with certificates."""

    def __init__(self, directory: Path, **settings: bool) -> None:
        self.directory = directory
        self.authority = Authority(directory)
        self.certificate, self.key = self.authority.issue("server", "server", "IP:127.0.0.1")
        tls = TlsSettings(certificate=self.certificate, key=self.key, client_ca=self.authority.path, **settings)
        tcp = TcpSettings(host="127.0.0.1", port=0, tls=tls)
        self.server = XdsServer(directory / "xds.sock", tcp=tcp, check=lambda _: None)
        self.server.set_snapshot("node-1", state("1", CDS="c"))

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await self.server.start()
            try:
                async with asyncio.timeout(30):
                    await work()
            finally:
                await self.server.stop()

        asyncio.run(main())

    def channel(
        self, common_name: str | None, *alternatives: str, authority: Authority | None = None
    ) -> grpc.aio.Channel:
        """A channel with a certificate for these names, or without one."""
        pair = (None, None)
        if common_name is not None:
            files = (authority or self.authority).issue("client", common_name, *alternatives)
            pair = (files[1].read_bytes(), files[0].read_bytes())
        credentials = grpc.ssl_channel_credentials(self.authority.path.read_bytes(), *pair)
        return dial(f"127.0.0.1:{self.server.tcp_port}", credentials)


async def asked(channel: grpc.aio.Channel, node: str = "node-1", delta: bool = False) -> list[str] | grpc.StatusCode:
    """What a client gets: names of its clusters, or how its stream ends."""
    async with channel:
        stream = DeltaStream(channel, node) if delta else SotwStream(channel, node)
        try:
            await stream.ask(CLUSTER)
            return names_of(await stream.read())
        except (grpc.aio.AioRpcError, EOFError, asyncio.InvalidStateError):
            return await stream.code()


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize(
    "names",
    [("node-1",), ("other", "DNS:node-1"), ("", "URI:spiffe://cluster.local/ns/agents/node-1")],
)
def test_a_client_whose_certificate_has_its_node_id_is_served(
    tmp_path: Path, names: tuple[str, ...], delta: bool
) -> None:
    site = Site(tmp_path)

    async def work() -> None:
        assert await asked(site.channel(*names), delta=delta) == ["c"]

    site.run(work)


@pytest.mark.parametrize(
    "names",
    [
        ("node-2",),
        ("other", "DNS:node-11"),
        ("x", "URI:spiffe://a/node-1/b"),
        # Only the path of a URI has a name, and only URIs and DNS names are names beside the common one.
        ("x", "URI:spiffe://node-1"),
        ("x", "URI:https://a/b?c=/node-1"),
        ("x", "URI:https://a/b#/node-1"),
        (r"a:\/\/b\/node-1",),
        ("x", "email:node-1"),
        ("*", "DNS:*", "DNS:node-*"),
    ],
)
def test_a_client_may_not_ask_for_another_node(tmp_path: Path, names: tuple[str, ...]) -> None:
    site = Site(tmp_path)

    async def work() -> None:
        assert await asked(site.channel(*names)) is grpc.StatusCode.PERMISSION_DENIED
        assert "node-1" in site.server.rejections()[0].error

    site.run(work)


def test_without_match_node_any_certificate_of_the_authority_will_do(tmp_path: Path) -> None:
    site = Site(tmp_path, match_node=False)

    async def work() -> None:
        assert await asked(site.channel("anybody")) == ["c"]

    site.run(work)


def test_clients_without_a_certificate_or_of_another_authority_do_not_get_in(tmp_path: Path) -> None:
    site = Site(tmp_path, match_node=False)
    other = Authority(tmp_path / "other", "other")

    async def work() -> None:
        assert await asked(site.channel(None)) is grpc.StatusCode.UNAVAILABLE
        assert await asked(site.channel("node-1", authority=other)) is grpc.StatusCode.UNAVAILABLE
        plain = dial(f"127.0.0.1:{site.server.tcp_port}")
        assert await asked(plain) is grpc.StatusCode.UNAVAILABLE
        assert site.server.status() == ()

    site.run(work)


def test_the_unix_socket_needs_no_certificate_beside(tmp_path: Path) -> None:
    site = Site(tmp_path)

    async def work() -> None:
        assert await asked(dial(tmp_path / "xds.sock")) == ["c"]

    site.run(work)


def test_files_that_change_are_read_again(tmp_path: Path) -> None:
    site = Site(tmp_path)

    async def work() -> None:
        assert await asked(site.channel("node-1")) == ["c"]
        fresh = Authority(tmp_path / "fresh", "fresh")
        for source, target in zip(
            fresh.issue("server", "server", "IP:127.0.0.1"), (site.certificate, site.key), strict=True
        ):
            target.write_bytes(source.read_bytes())
        old = site.authority
        old.path.write_bytes(fresh.path.read_bytes())
        assert await asked(site.channel("node-1", authority=fresh)) == ["c"]

    site.run(work)


def test_files_that_are_broken_later_change_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)

    async def work() -> None:
        site.key.unlink()
        assert await asked(site.channel("node-1")) == ["c"]

    site.run(work)


def test_files_that_could_not_be_read_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    fresh = Authority(tmp_path / "fresh", "fresh")
    real, forbidden = Path.read_bytes, [site.authority.path]

    def read_bytes(path: Path) -> bytes:
        if path in forbidden:
            raise PermissionError(13, "Permission denied")
        return real(path)

    async def work() -> None:
        site.authority.path.write_bytes(real(fresh.path) + real(site.authority.path))
        one, another = (site.channel("node-1", authority=fresh) for _ in range(2))
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        assert await asked(one) is grpc.StatusCode.UNAVAILABLE
        forbidden.clear()  # chmod: neither time nor size of the file are others
        assert await asked(another) == ["c"]

    site.run(work)


def test_tcp_without_tls_is_refused_unless_asked_for(tmp_path: Path) -> None:
    async def start(tcp: TcpSettings) -> None:
        server = XdsServer(None, tcp=tcp, check=lambda _: None)
        try:
            await server.start()
        finally:
            await server.stop()

    with pytest.raises(XdsError, match="needs TLS"):
        asyncio.run(start(TcpSettings(host="127.0.0.1", port=0)))
    asyncio.run(start(TcpSettings(host="127.0.0.1", port=0, plaintext=True)))
    absent = TlsSettings(certificate=tmp_path / "a", key=tmp_path / "b", client_ca=tmp_path / "c")
    with pytest.raises(XdsError, match=f"^certificate: {tmp_path}/a: can't be read"):
        asyncio.run(start(TcpSettings(host="127.0.0.1", port=0, tls=absent)))
    authority = Authority(tmp_path, "ca")
    (one, key), (_, another) = authority.issue("one", "one", "DNS:one"), authority.issue("two", "two", "DNS:two")
    for tls, reason in (
        (
            TlsSettings(certificate=one, key=another, client_ca=authority.path),
            f"^certificate: {one} and key: {another} are not a certificate and its key",
        ),
        (TlsSettings(certificate=one, key=key, client_ca=key), f"^client CA: {key}: has no certificate in PEM"),
    ):
        with pytest.raises(XdsError, match=reason):
            asyncio.run(start(TcpSettings(host="127.0.0.1", port=0, tls=tls)))
