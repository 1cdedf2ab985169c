"""aio-quic: an HTTP/3 download by aioquic, over whichever endpoint is asked for.

    python -m benchmarks.aio_quic --bind 127.0.0.1:4433 --endpoint fast_socket

It needs aioquic (pip install aioquic), so that it is no command of `python -m benchmarks`.
"""

import asyncio
import datetime
import ssl
import time
from contextlib import suppress
from typing import Annotated, Any

import typer
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

import fast_socket as fs
from benchmarks.aio_loops import Endpoint, Loop, creator, end_of_run, factory
from examples import _cli

BLOCK = bytes(range(256)) * 4
MEGABYTE = 1_000_000


class Serve(QuicConnectionProtocol):
    """Answers GET /<bytes> with so many."""

    http: Any = None

    def quic_event_received(self, event: Any) -> None:
        self.http = self.http or H3Connection(self._quic)
        for told in self.http.handle_event(event):
            if isinstance(told, HeadersReceived):
                self.http.send_headers(told.stream_id, [(b":status", b"200")])
                self.http.send_data(told.stream_id, content(int(dict(told.headers)[b":path"][1:])), end_stream=True)
                self.transmit()


class Get(QuicConnectionProtocol):
    """Downloads, and keeps what came."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.got = bytearray()
        self.done = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event: Any) -> None:
        for told in self.http.handle_event(event):
            if isinstance(told, DataReceived):
                self.got += told.data
                if told.stream_ended:
                    self.done.set_result(None)

    async def get(self, size: int) -> bytearray:
        path = b"/%d" % size
        headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path)]
        self.http.send_headers(self._quic.get_next_available_stream_id(), headers, end_stream=True)
        self.transmit()
        await self.done
        return self.got


def content(size: int) -> bytes:
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


def server_side() -> QuicConfiguration:
    """With a certificate for localhost that nobody signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day).sign(key, hashes.SHA256())
    return QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN, certificate=made, private_key=key)


def client_side() -> QuicConfiguration:
    most = 1 << 30
    return QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, max_data=most, max_stream_data=most
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def aio_quic(
    bind: Annotated[str | None, typer.Option(metavar="IP:PORT", help="Be the server.")] = None,
    dest: Annotated[str | None, typer.Option(metavar="IP:PORT", help="Be the client of this server.")] = None,
    megabytes: Annotated[int, typer.Option(min=1, max=1000, help="How much to download.")] = 20,
    endpoint: Annotated[Endpoint, typer.Option(help="Whose endpoint.")] = Endpoint.OURS,
    loop: Annotated[Loop, typer.Option(help="Whose event loop.")] = Loop.STANDARD,
    duration_ms: _cli.DurationMs = None,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
) -> None:
    """Download over HTTP/3, both ends aioquic."""
    if (bind is None) == (dest is None):
        raise fs.ConfigError("give --bind IP:PORT for the server, or --dest IP:PORT for the client")
    address = fs.parse_address(bind or dest or "", "--dest" if bind is None else "--bind")
    run = _cli.Run("aio-quic", count=None, duration_ms=duration_ms, default_ms=60_000, as_json=as_json)
    if cpu is not None:
        fs.pin_current_thread(cpu)

    async def serve() -> dict[str, Any]:
        over = end_of_run()
        configuration = server_side()
        transport, _ = await creator(endpoint)(
            lambda: QuicServer(configuration=configuration, create_protocol=Serve),
            local_addr=address,
        )
        run.ready()
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), run.duration)
        transport.close()
        await asyncio.sleep(0)
        return {"mode": "serve"}

    async def get() -> dict[str, Any]:
        connection = QuicConnection(configuration=client_side())
        transport, protocol = await creator(endpoint)(lambda: Get(connection), remote_addr=address)
        async with asyncio.timeout(run.duration):
            protocol.connect(address)
            await protocol.wait_connected()
            start = time.perf_counter()
            got = await protocol.get(megabytes * MEGABYTE)
            seconds = time.perf_counter() - start
        if got != content(megabytes * MEGABYTE):
            raise fs.Error("what was received is not what was sent")
        protocol.close()
        await protocol.wait_closed()
        transport.close()
        return {"mode": "get", "bytes": len(got), "seconds": round(seconds, 6), "rate": len(got) / seconds}

    with asyncio.Runner(loop_factory=factory(loop)) as runner:
        done = runner.run(serve() if bind is not None else get())
    run.report(**done, endpoint=endpoint.value, loop=loop.value)


if __name__ == "__main__":
    _cli.main(app)
