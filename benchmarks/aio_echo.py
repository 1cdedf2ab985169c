"""aio-echo: an asyncio server that sends every datagram back, over whichever endpoint is asked for."""

import asyncio
import contextlib
import time
from typing import Annotated, Any

import typer

import fast_socket as fs
from benchmarks.aio_loops import Endpoint, Loop, creator, end_of_run, factory
from examples import _cli


class Echo(asyncio.DatagramProtocol):
    """As anybody would write it."""

    received = 0
    last = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received += 1
        self.transport.sendto(data, addr)


class BatchEcho(asyncio.DatagramProtocol):
    """With the batch callback: the frames go back as they came."""

    received = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.tx = transport.get_extra_info("fast_socket").tx_batch(256)

    def datagrams_received(self, batch: fs.RecvBatch) -> None:
        self.received += batch.datagram_count
        self.tx.take_from(batch)
        with contextlib.suppress(fs.SendError):
            self.transport.send_batch(self.tx)
        self.tx.discard()  # what had no room is lost, as a datagram is


def aio_echo(
    bind: _cli.Bind,
    endpoint: Annotated[Endpoint, typer.Option(help="Whose endpoint, and with which callback.")] = Endpoint.OURS,
    loop: Annotated[Loop, typer.Option(help="Whose event loop.")] = Loop.STANDARD,
    duration_ms: _cli.DurationMs = None,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
) -> None:
    """Send every datagram back, from an asyncio protocol."""
    run = _cli.Run("aio-echo", count=None, duration_ms=duration_ms, default_ms=60_000, as_json=as_json)
    if cpu is not None:
        fs.pin_current_thread(cpu)
    address = fs.parse_address(bind, "--bind")

    async def serve() -> tuple[int, float]:
        protocol_factory = BatchEcho if endpoint is Endpoint.BATCHES else Echo
        transport, protocol = await creator(endpoint)(protocol_factory, local_addr=address)
        over = end_of_run()
        run.ready()
        try:
            # From the first datagram to the last, as far as a look every 5 ms can tell.
            first = last = 0.0
            seen = 0
            while not over.is_set() and time.perf_counter() < run.deadline:
                await asyncio.sleep(0.005)
                if protocol.received != seen:
                    last = time.perf_counter()
                    first, seen = first or last, protocol.received
            return protocol.received, last - first
        finally:
            transport.close()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=factory(loop)) as runner:
        received, seconds = runner.run(serve())
    run.report(
        mode="echo", endpoint=endpoint.value, loop=loop.value, received=received, seconds=round(seconds, 6),
        pps=_cli.rate(received, seconds),
    )  # fmt: skip
