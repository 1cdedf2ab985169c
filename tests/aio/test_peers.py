"""Clients and servers that others wrote, unmodified, over our endpoint: the loop's own method is replaced, no more."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from fast_socket import aio
from fast_socket.aio.transport import DatagramTransport
from tests.aio.conftest import LOOPS

SECONDS = 120


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Run a coroutine on a loop whose datagram endpoints are ours."""
    factory = LOOPS[request.param] or pytest.skip("needs uvloop")

    def start(coroutine: Any) -> Any:
        seen: list[Any] = []

        async def over_ours() -> Any:
            loop: Any = asyncio.get_running_loop()
            loop.create_datagram_endpoint = aio.create_datagram_endpoint
            loop.set_exception_handler(lambda _, context: seen.append(context))
            return await asyncio.wait_for(coroutine, SECONDS)

        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(over_ours())
        assert not seen, seen
        return result

    return start


# ---- QUIC and HTTP/3: aioquic ----


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize(("run", "megabytes"), [("asyncio", 50), ("uvloop", 10)], indirect=["run"])
def test_http3_with_its_loss_recovery(run: Any, megabytes: int) -> None:
    """Every 200th datagram to the client is thrown away; every byte arrives."""
    pytest.importorskip("aioquic")
    from aioquic.asyncio import connect, serve

    from benchmarks.aio_quic import Get, Serve, client_side, content, server_side

    size = megabytes * 1_000_000
    transports: list[Any] = []

    class Losing(Get):
        datagrams = thrown_away = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transports.append(transport)

        def datagram_received(self, data: Any, addr: Any) -> None:
            self.datagrams += 1
            if self.datagrams % 200 == 0:
                self.thrown_away += 1
            else:
                super().datagram_received(data, addr)

    async def main() -> None:
        server = await serve("::1", 0, configuration=server_side(), create_protocol=Serve)
        port = server._transport.get_extra_info("sockname")[1]
        async with connect("::1", port, configuration=client_side(), create_protocol=Losing) as client:
            assert await client.get(size) == content(size)
            assert client.thrown_away > size / 1200 / 200 * 0.9
        server.close()
        assert all(isinstance(transport, DatagramTransport) for transport in [*transports, server._transport])

    run(main())


# ---- DNS: dnspython's resolver, dnslib's records ----


def test_dns(run: Any) -> None:
    pytest.importorskip("dns")
    dnslib = pytest.importorskip("dnslib")
    import dns.asyncquery
    import dns.asyncresolver
    import dns.exception
    import dns.message

    class Server(asyncio.DatagramProtocol):
        """As dnslib's own, which has threads."""

        asked = 0

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.asked += 1
            request = dnslib.DNSRecord.parse(data)
            reply = request.reply()
            name = str(request.q.qname)
            reply.add_answer(*dnslib.RR.fromZone(f"{name} 60 A 192.0.2.{int(name[4:].partition('.')[0]) % 250 + 1}"))
            self.transport.sendto(reply.pack(), addr)

    async def main() -> None:
        transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
            Server, local_addr=("127.0.0.1", 0)
        )
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = transport.get_extra_info("sockname")[1]

        async def resolve(number: int) -> None:
            answer = await resolver.resolve(f"host{number}.example.", "A", lifetime=SECONDS)
            assert [record.address for record in answer] == [f"192.0.2.{number % 250 + 1}"]

        await asyncio.gather(*(resolve(number) for number in range(300)))
        assert server.asked >= 300
        with pytest.raises(dns.exception.Timeout):  # cancelled within the transport
            query = dns.message.make_query("host1.example.", "A")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
                silent.bind(("127.0.0.1", 0))
                await dns.asyncquery.udp(query, "127.0.0.1", port=silent.getsockname()[1], timeout=0.05)
        transport.close()

    run(main())


# ---- CoAP: aiocoap ----


def test_coap(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aiocoap = pytest.importorskip("aiocoap")
    from aiocoap import resource

    # Of its transports, those on create_datagram_endpoint.
    monkeypatch.setenv("AIOCOAP_SERVER_TRANSPORT", "simplesocketserver")
    monkeypatch.setenv("AIOCOAP_CLIENT_TRANSPORT", "simple6")

    class Reversed(resource.Resource):  # type: ignore[misc]
        async def render_put(self, request: Any) -> Any:
            return aiocoap.Message(payload=request.payload[::-1])

    async def main() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
            port = probe.getsockname()[1]
        site = resource.Site()
        site.add_resource(["reversed"], Reversed())
        server = await aiocoap.Context.create_server_context(site, bind=("::1", port))
        client = await aiocoap.Context.create_client_context()
        for payload in (b"once", bytes(range(256)) * 40):  # the second in blocks (RFC 7959)
            request = aiocoap.Message(code=aiocoap.PUT, payload=payload, uri=f"coap://[::1]:{port}/reversed")
            answer = await client.request(request).response
            assert (answer.code.is_successful(), answer.payload) == (True, payload[::-1])
        await client.shutdown()
        await server.shutdown()

    run(main())
