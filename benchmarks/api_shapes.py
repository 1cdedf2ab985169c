"""api-shapes: what it costs to look at each received packet, by the way one looks. Nanoseconds a packet.

One batch of 64-byte packets, received once on a simulated device, looked at again and again: the sum of all first
bytes. No system call and no copy is in it, but for the rows that say so. DNS queries are received anew each time, and
only their handling is timed; asyncio's rows are of a socket on loopback and have the receive in them.
"""

import asyncio
import ctypes
import importlib.util
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import fast_socket as fs
from benchmarks.dns_figures import QUERY
from examples import _cli, dns_responder
from fast_socket import aio

BATCHES = (64, 256)
PAYLOAD = bytes(range(64))
HOSTS = ("192.0.2.1", "192.0.2.2")
PORT = 9000
WARM_UP = 20
HANDLER = """
#include <stdint.h>
struct packet { uint32_t length, room, index, source_length; };
int handler(struct packet *packet, uint8_t *data, uint8_t *source, void *user)
{
    *(uint64_t *)user += data[0];
    return 1;
}
"""

Look = Callable[[], Any]
Shapes = dict[str, dict[str, float | None]]


class Link:
    """Two sockets on a simulated wire, and a receive batch that `deliver` fills."""

    def __init__(self, size: int, payload: bytes) -> None:
        self.size, self.payload = size, payload
        self.wire = fs.Wire()
        near, far = (fs.SimulatedDevice(self.wire, addresses=[f"{host}/24"]) for host in HOSTS)
        self.client = fs.XdpUdpSocket.open(near, local=(HOSTS[0], PORT))
        self.server = fs.XdpUdpSocket.open(far, local=(HOSTS[1], PORT))
        self.peer = self.client.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=(HOSTS[1], PORT)))
        self.out, self.answers = self.client.tx_batch(size), self.client.recv_batch(size)
        self.rx, self.tx = self.server.recv_batch(size), self.server.tx_batch(size)

    def deliver(self) -> None:
        self.out.allocate()
        self.out.fill(self.payload)
        self.client.send_to(self.peer, self.out)
        assert self.server.recv(self.rx) == self.size

    def send_back(self) -> None:
        self.server.send(self.tx)
        self.client.recv(self.answers)

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextmanager
def received(size: int, payload: bytes = PAYLOAD) -> Iterator[Link]:
    link = Link(size, payload)
    try:
        link.deliver()
        yield link
    finally:
        link.close()


def timed(look: Look, size: int, rounds: int, prepare: Look | None = None, after: Look | None = None) -> float:
    """The median of the rounds, in nanoseconds a packet."""
    clock, samples = time.perf_counter_ns, list[int]()
    for turn in range(WARM_UP + rounds):
        if prepare is not None:
            prepare()
        start = clock()
        look()
        end = clock()
        if after is not None:
            after()
        if turn >= WARM_UP:
            samples.append(end - start)
    return median(samples) / size


# ---- the shapes: each sums the first bytes of a batch ----


def in_c(rx: Any) -> Look | None:
    if not shutil.which("cc"):
        return None
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "handler.so"
        command: list[str | Path] = ["cc", "-O2", "-shared", "-fPIC", "-xc", "-", "-o", library]
        subprocess.run(command, input=HANDLER, text=True, check=True)
        handler = ctypes.CDLL(str(library)).handler
    total = ctypes.c_uint64()
    address, user = ctypes.cast(handler, ctypes.c_void_p).value or 0, ctypes.addressof(total)
    return lambda: (rx.run(address, user), handler, total)


def by_numba_handler(rx: Any) -> Look | None:
    if not importlib.util.find_spec("numba"):
        return None
    import numpy as np

    from fast_socket.numba import KEEP, packet_handler

    @packet_handler(state=np.zeros(1, np.uint64))
    def add(packet: Any, data: Any, source: Any, state: Any) -> int:
        state[0] += np.uint64(data[0])
        return KEEP

    return lambda: rx.run(add)


def by_numba_columns(rx: Any) -> Look | None:
    if not importlib.util.find_spec("numba"):
        return None
    import numba

    @numba.njit  # type: ignore[untyped-decorator]
    def add(memory: Any, offsets: Any) -> int:
        total = 0
        for offset in offsets:
            total += memory[offset]
        return total

    return lambda: add(rx.memory, rx.offsets)


def by_gather(rx: Any) -> Look:
    return lambda: int(rx.gather(0, "u1").sum())


def by_numpy(rx: Any) -> Look:
    return lambda: int(rx.memory[rx.offsets].sum())


def by_objects(rx: Any) -> Look:
    def look() -> int:
        total = 0
        for packet in rx:
            total += packet.u8(0)
        return total

    return look


def by_bytes(rx: Any) -> Look:
    def look() -> int:
        total = 0
        for packet in rx:
            total += bytes(packet)[0]
        return total

    return look


def by_memoryviews(rx: Any) -> Look:
    def look() -> int:
        total = 0
        for packet in rx:
            with memoryview(packet) as view:
                total += view[0]
        return total

    return look


def by_slices(rx: Any) -> Look:
    def look() -> int:
        total, memory = 0, memoryview(rx.memory)
        for offset, length in zip(rx.offsets.tolist(), rx.lengths.tolist(), strict=True):
            total += memory[offset : offset + length][0]
        return total

    return look


SHAPES: dict[str, Callable[[Any], Look | None]] = {
    "handler in C: rx.run": in_c,
    "handler by numba: rx.run": by_numba_handler,
    "numba over columns: njit(memory, offsets)": by_numba_columns,
    "column of a field: rx.gather": by_gather,
    "numpy over columns: memory[offsets]": by_numpy,
    "objects: packet.u8(0)": by_objects,
    "objects copied: bytes(packet)": by_bytes,
    "views of objects: memoryview(packet)": by_memoryviews,
    "slices of a view of all memory": by_slices,
}


# ---- what needs packets anew for each round ----


def taken(link: Link, rounds: int) -> float:
    def look() -> int:
        total = 0
        for packet in link.rx:
            total += packet.take().u8(0)
        return total

    return timed(look, link.size, rounds, prepare=link.deliver)


def answered(size: int, rounds: int, handler: str) -> float | None:
    """Looking a DNS query up and writing the answer in place, or in Python."""
    records = {dns_responder.wire_name(f"host{i}.example.com"): bytes(4) for i in range(1000)}
    records[dns_responder.wire_name("www.example.com")] = bytes(4)
    with received(size, QUERY) as link:
        rx, tx = link.rx, link.tx
        if handler == "python":
            plain = dns_responder.in_python(records)
            return timed(lambda: plain(rx, tx), size, rounds, link.deliver, link.send_back)
        if not importlib.util.find_spec("numba"):
            return None
        compiled = dns_responder.compiled(records)
        return timed(lambda: rx.run(compiled, reflect=tx), size, rounds, link.deliver, link.send_back)


class Sum(asyncio.DatagramProtocol):
    def __init__(self, size: int) -> None:
        self.size = self.left = size
        self.total = 0
        self.all: asyncio.Future[None] | None = None

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.total += data[0]
        self.note(1)

    def note(self, count: int) -> None:
        self.left -= count
        if not self.left and self.all is not None:
            self.all.set_result(None)


class SumBatches(Sum):
    def datagrams_received(self, batch: Any) -> None:
        self.total += int(batch.gather(0, "u1").sum())
        self.note(len(batch))


async def by_asyncio(size: int, rounds: int, kind: type[Sum], *, ours: bool) -> float:
    """From the first look of the loop to the last callback: the receives are in it."""
    loop = asyncio.get_running_loop()
    create: Any = aio.create_datagram_endpoint if ours else loop.create_datagram_endpoint
    transport, protocol = await create(lambda: kind(size), local_addr=("127.0.0.1", 0))
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # a batch fits
    samples = []
    with fs.OsUdpSocket.connect(transport.get_extra_info("sockname"), gso=False) as client:
        tx = client.tx_batch(size)
        for turn in range(WARM_UP + rounds):
            protocol.left, protocol.all = size, loop.create_future()
            tx.allocate()
            tx.fill(PAYLOAD)
            client.send(tx)
            start = time.perf_counter_ns()
            await asyncio.wait_for(protocol.all, 5.0)
            if turn >= WARM_UP:
                samples.append(time.perf_counter_ns() - start)
    transport.close()
    return median(samples) / size


def shapes(rounds: int) -> Shapes:
    """For each shape and batch size nanoseconds a packet, None where it cannot run here."""
    found: Shapes = {}
    for size in BATCHES:
        with received(size) as link:
            for name, make in SHAPES.items():
                look = make(link.rx)
                found.setdefault(name, {})[str(size)] = None if look is None else timed(look, size, rounds)
            found.setdefault("objects taken: packet.take()", {})[str(size)] = taken(link, rounds)
        for name, kind, ours in (
            ("asyncio, batch callback, receive included", SumBatches, True),
            ("asyncio, our endpoint, receive included", Sum, True),
            ("asyncio, its own endpoint, receive included", Sum, False),
        ):
            found.setdefault(name, {})[str(size)] = asyncio.run(by_asyncio(size, rounds, kind, ours=ours))
        for handler in ("compiled", "python"):
            found.setdefault(f"DNS answer, {handler} handler", {})[str(size)] = answered(size, rounds, handler)
    return found


def rows(taken: Shapes) -> list[tuple[str, ...]]:
    return [
        (
            name,
            *(
                "absent" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"
                for value in by.values()
            ),
        )
        for name, by in taken.items()
    ]


def api_shapes(
    rounds: Annotated[int, typer.Option(min=1, help="Of each shape.")] = 1000,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
) -> None:
    """What it costs to look at each received packet, by the way one looks."""
    if cpu is not None:
        fs.pin_current_thread(cpu)
    found = shapes(rounds)
    if as_json:
        print(json.dumps({"tool": "api-shapes", "rounds": rounds, "ns_per_packet": found}), flush=True)
        return
    table = Table("ns a packet", *(f"batch of {size}" for size in BATCHES), title_justify="left")
    for row in rows(found):
        table.add_row(*map(escape, row))
    _cli.console().print(table)
