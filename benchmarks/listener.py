"""os-listener: count what arrives, or send it back."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

import fast_socket as fs
from benchmarks.sequence import Sequences, merged
from examples import _cli
from examples.pong_server import drain

DEFAULT_MS = 60_000
MAX_DATAGRAM = 65_535
SPINS = 64  # receives of an empty socket, some 0.2 us each, before a look at the clock

app = typer.Typer(no_args_is_help=True, help="Receive datagrams over OS sockets: count them, or send them back.")

ReusePort = Annotated[bool, typer.Option("--reuse-port", help="Share the port with other processes.")]
IncomingCpu = Annotated[
    str | None,
    typer.Option(
        metavar="DEV",
        help="One socket and one pinned thread for each queue of this device; each prefers what arrives on its CPU.",
    ),
]
Gro = Annotated[
    bool,
    typer.Option(
        "--gro/--no-gro",
        help="Receive coalesced packets. The kernel then counts a whole packet as one drop, and --count ends with the "
        "packet that reaches it.",
    ),
]
Batch = Annotated[int, typer.Option(min=1, max=65_536, help="Packets a call.")]
RecvBuffer = Annotated[
    int | None, typer.Option(min=1, help="Bytes of each socket's receive buffer, overheads included.")
]
Sequence = Annotated[
    bool,
    typer.Option(
        "--sequence/--no-sequence",
        help="Tell losses and reorderings from the numbers that os-sender writes, separately for each source port. "
        "Start the listener first.",
    ),
]


@dataclass
class Worker:
    """One socket, and what its thread found."""

    sock: fs.OsUdpSocket[fs.WaitDriver]
    cpu: int | None
    sequences: Sequences
    received: int = 0
    refused: int = 0
    first: float = 0.0
    last: float = 0.0


@app.command()
def count(
    bind: _cli.Bind,
    reuse_port: ReusePort = False,
    incoming_cpu: IncomingCpu = None,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    gro: Gro = True,
    batch: Batch = 64,
    sequence: Sequence = True,
    cpu: _cli.Cpu = None,
    recv_buffer: RecvBuffer = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Count what arrives, what the kernel dropped, and what the numbers in the payload say is missing or late."""
    run = _cli.Run(
        "os-listener", count=count, duration_ms=duration_ms, default_ms=DEFAULT_MS, as_json=as_json, progress=progress
    )
    listen(
        run,
        "count",
        partial(take, batch=batch, sequence=sequence, run=run),
        open_workers(bind, reuse_port, incoming_cpu, gro, batch, cpu, recv_buffer),
    )


@app.command()
def pong(
    bind: _cli.Bind,
    reuse_port: ReusePort = False,
    incoming_cpu: IncomingCpu = None,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    gro: Gro = True,
    batch: Batch = 64,
    wait: _cli.Waiting = _cli.Wait.POLL,
    cpu: _cli.Cpu = None,
    recv_buffer: RecvBuffer = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Send everything back to where it came from."""
    run = _cli.Run(
        "os-listener", count=count, duration_ms=duration_ms, default_ms=DEFAULT_MS, as_json=as_json, progress=progress
    )
    listen(
        run,
        "pong",
        partial(send_back, batch=batch, spin=wait is _cli.Wait.SPIN, run=run),
        open_workers(bind, reuse_port, incoming_cpu, gro, batch, cpu, recv_buffer),
    )


def open_workers(
    bind: str,
    reuse_port: bool,
    device: str | None,
    gro: bool,
    batch: int,
    cpu: int | None,
    recv_buffer: int | None,
) -> list[Worker]:
    """A socket for each queue of the device, or one."""
    layout = fs.BufferLayout(payload_capacity=MAX_DATAGRAM if gro else 2048)
    cpus = [cpu] if device is None else [queue.cpu for queue in fs.device_queue_affinity(device)]
    with ExitStack() as opened:
        workers = [
            Worker(
                opened.enter_context(
                    fs.OsUdpSocket.bind(
                        bind,
                        reuse_port=reuse_port or device is not None,
                        incoming_cpu=None if device is None else each,
                        gro=gro,
                        rx_layout=layout,
                        rx_frames=2 * batch,
                        huge_pages=True,
                        recv_buffer=recv_buffer,
                    )
                ),
                each,
                Sequences(),
            )
            for each in cpus
        ]
        opened.pop_all()
    return workers


def listen(run: _cli.Run, mode: str, job: Callable[[Worker, Callable[[], int]], None], workers: list[Worker]) -> None:
    def total(counter: str) -> int:
        return sum(getattr(worker.sock.stats(), counter) or 0 for worker in workers)

    def left() -> int:
        return run.count - sum(worker.received for worker in workers)

    def work(worker: Worker) -> None:
        if worker.cpu is not None:
            fs.pin_current_thread(worker.cpu)
        job(worker, left)

    run.ready()
    cpu_start = time.process_time()
    counters = {"received": partial(total, "received")} | ({"sent": partial(total, "sent")} if mode == "pong" else {})
    with run.live(**counters):
        _cli.run_all(run, [partial(work, worker) for worker in workers])
    cpu_seconds = time.process_time() - cpu_start
    received = sum(worker.received for worker in workers)
    seconds = max(w.last for w in workers) - min((w.first for w in workers if w.first), default=0.0)
    run.report(
        mode=mode,
        received=received,
        dropped=total("kernel_drops"),
        **merged([worker.sequences for worker in workers]),
        seconds=round(seconds, 6),
        pps=_cli.rate(received, seconds),
        cpu_seconds=round(cpu_seconds, 6),
        sockets=len(workers),
        recv_buffer=workers[0].sock.recv_buffer_size,
        truncated=total("truncated"),
        **({"sent": total("sent"), "errors": sum(w.refused for w in workers)} if mode == "pong" else {}),
    )


def take(me: Worker, left: Callable[[], int], *, batch: int, sequence: bool, run: _cli.Run) -> None:
    """Count until the end of the run, from the moment that the first packet is there to be received."""
    clock, recv = time.perf_counter, me.sock.recv
    rx = me.sock.recv_batch(batch)
    rx.memory[:] = 0  # touch the pages now, not while packets wait
    while run.going() and (remaining := left()) > 0:
        if not me.sock.driver.wait(_cli.WAIT_SLICE):
            continue
        now = clock()
        me.first = me.first or now
        received = 0
        while now < run.deadline and not run.stopped:
            if remaining < batch:  # never receive more packets than were asked for
                rx = me.sock.recv_batch(remaining)
            if not recv(rx):
                break
            received += rx.datagram_count
            remaining -= rx.datagram_count
            now = clock()
            if sequence:
                me.sequences.note(rx)
            if remaining <= 0:
                break
        if received:
            me.received += received
            me.last = now


def send_back(me: Worker, left: Callable[[], int], *, batch: int, spin: bool, run: _cli.Run) -> None:
    rx, tx = me.sock.recv_batch(batch), me.sock.tx_batch(batch)
    while run.going() and left() > 0:
        if receive(me.sock, rx, spin=spin):
            tx.take_from(rx)
            me.refused += drain(me.sock, tx, run.going)
            me.received += rx.datagram_count
            me.last = time.perf_counter()  # where it delays nobody
            me.first = me.first or me.last


def receive(sock: fs.OsUdpSocket[fs.WaitDriver], rx: fs.OsRecvBatch, *, spin: bool) -> int:
    """Receive what there is, or what comes within a short time."""
    if not spin:
        return sock.recv(rx) if sock.driver.wait(_cli.WAIT_SLICE) else 0
    recv = sock.recv
    for _ in range(SPINS):
        if count := recv(rx):
            return count
    return 0
