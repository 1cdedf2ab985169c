"""Clients and servers that others wrote, unmodified, over our endpoint: the loop's own method is replaced, no more."""

import asyncio
import datetime
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    pytest.importorskip("aioquic")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "certificate.pem", folder / "key.pem"


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize(("run", "megabytes"), [("asyncio", 50), ("uvloop", 10)], indirect=["run"])
def test_http3_with_its_loss_recovery(run: Any, certificate: tuple[Path, Path], megabytes: int) -> None:
    """Every 200th datagram to the client is thrown away; every byte arrives."""
    from aioquic.asyncio import QuicConnectionProtocol, connect, serve
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration

    size = megabytes * 1_000_000
    block = bytes(range(256)) * 4
    content = (block * (size // len(block) + 1))[:size]
    transports: list[Any] = []

    class Server(QuicConnectionProtocol):  # type: ignore[misc]
        http: Any = None

        def quic_event_received(self, event: Any) -> None:
            self.http = self.http or H3Connection(self._quic)
            for told in self.http.handle_event(event):
                if isinstance(told, HeadersReceived):
                    self.http.send_headers(told.stream_id, [(b":status", b"200")])
                    self.http.send_data(told.stream_id, content, end_stream=True)
                    self.transmit()

    class Client(QuicConnectionProtocol):  # type: ignore[misc]
        datagrams = thrown_away = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transports.append(transport)
            self.http = H3Connection(self._quic)
            self.got = bytearray()
            self.done = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: Any, addr: Any) -> None:
            self.datagrams += 1
            if self.datagrams % 200 == 0:
                self.thrown_away += 1
            else:
                super().datagram_received(data, addr)

        def quic_event_received(self, event: Any) -> None:
            for told in self.http.handle_event(event):
                if isinstance(told, DataReceived):
                    self.got += told.data
                    if told.stream_ended:
                        self.done.set_result(None)

        async def get(self) -> None:
            stream = self._quic.get_next_available_stream_id()
            headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/")]
            self.http.send_headers(stream, headers, end_stream=True)
            self.transmit()
            await self.done

    async def main() -> None:
        here = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
        here.load_cert_chain(*certificate)
        there = QuicConfiguration(
            is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, max_data=1 << 30, max_stream_data=1 << 30
        )
        server = await serve("::1", 0, configuration=here, create_protocol=Server)
        port = server._transport.get_extra_info("sockname")[1]
        async with connect("::1", port, configuration=there, create_protocol=Client) as client:
            await client.get()
            assert client.got == content
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
