"""xdp-listener: count what arrives at a device's queues, or send it back, as whole IP packets.

An AF_XDP IP packet socket on each queue. Queues whose interrupts go to one CPU are one worker's, pinned there: an
aggregate, so that a batch has what all of them have. Where there are several workers each is a process.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Annotated

import numpy as np
import typer

import fast_socket as fs
from benchmarks.sequence import Sequences, merged, source_keys
from benchmarks.udp_packets import V4, V6, UdpPackets
from examples import _cli
from examples.pong_server import drain
from fast_socket import workers

DEFAULT_MS = 60_000

app = typer.Typer(no_args_is_help=True, help="Receive IP packets over AF_XDP queues: count them, or send them back.")

Batch = Annotated[int, typer.Option(min=1, max=4096, help="Packets a receive, at most.")]
Sequence = Annotated[
    bool,
    typer.Option(
        "--sequence/--no-sequence",
        help="Tell losses and reorderings from the numbers that a sender writes, separately for each source port.",
    ),
]


@dataclass
class Took:
    """What one worker has to say in the end."""

    first: float = 0.0
    last: float = 0.0
    cpu_seconds: float = 0.0
    by_queue: dict[int, int] = field(default_factory=dict)
    dropped: int = 0
    other: int = 0
    errors: int = 0
    sequences: Sequences = field(default_factory=Sequences)


@app.command("count")
def count_packets(
    iface: _cli.Iface,
    bind: _cli.Bind,
    batch: Batch = 64,
    sequence: Sequence = True,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Count what arrives, and say what was lost on the way."""
    run = _cli.Run("xdp-listener", count=count, duration_ms=duration_ms, default_ms=DEFAULT_MS, as_json=as_json,
                   progress=progress)  # fmt: skip
    listen(run, "count", iface, bind, partial(take, batch=batch, sequence=sequence, count=run.count))


@app.command()
def pong(
    iface: _cli.Iface,
    bind: _cli.Bind,
    batch: Batch = 64,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Send everything back to where it came from, in the frame that it came in."""
    run = _cli.Run("xdp-listener", count=count, duration_ms=duration_ms, default_ms=DEFAULT_MS, as_json=as_json,
                   progress=progress)  # fmt: skip
    listen(run, "pong", iface, bind, partial(send_back, batch=batch, count=run.count))


def listen(run: _cli.Run, mode: str, iface: str, bind: str, target: "partial[Took]") -> None:
    """Share the device's queues out, run a worker for each CPU, and report what all of them say."""
    host, port = fs.parse_address(bind, "--bind")
    address = ip_address(host)
    shares = _cli.shares(iface)
    factory = fs.XdpFactory(iface).claim(fs.All).ports([port]).assign(*shares)
    if not address.is_unspecified:
        factory.addresses(host)
    counters = ("received", "sent") if mode == "pong" else ("received",)
    target = partial(target, kind=V6 if address.version == 6 else V4)
    with factory.build():
        done = _cli.run_workers(run, factory.plans, target, *counters, announce=True)
    took = [worker.value for worker in done.workers if worker.value]
    first, last = _cli.span((each.first, each.last) for each in took)
    run.report(
        mode=mode,
        received=done.total["received"],
        dropped=sum(each.dropped for each in took),
        **(merged([each.sequences for each in took]) if mode == "count" else {}),
        seconds=round(last - first, 6),
        pps=_cli.rate(done.total["received"], last - first),
        cpu_seconds=round(sum(each.cpu_seconds for each in took), 6),
        workers=len(shares),
        by_queue={queue: packets for each in took for queue, packets in each.by_queue.items()},
        other=sum(each.other for each in took),
        **({"sent": done.total["sent"], "errors": sum(each.errors for each in took)} if mode == "pong" else {}),
    )


def open_socket(plan: fs.WorkerPlan, kind: UdpPackets) -> fs.XdpIpPacketAggregate:
    return fs.XdpIpPacketAggregate.open(
        plan.device, fs.Queues(plan.queues), families=kind.families, program=plan.program(), unresolved="raise"
    )


def close_books(took: Took, sock: fs.XdpIpPacketAggregate, cpu_start: float) -> Took:
    stats = sock.queue_stats()
    took.cpu_seconds = time.thread_time() - cpu_start
    took.dropped = stats.rx_dropped + stats.rx_ring_full
    took.by_queue = {member.queue_id: member.stats().rx_packets for member in sock.members}
    return took


def take(
    plan: fs.WorkerPlan, worker: workers.Worker, *, kind: UdpPackets, batch: int, sequence: bool, count: int
) -> Took:
    """Count what comes to the queues of one CPU."""
    took, received = Took(), worker.counter("received")
    with open_socket(plan, kind) as sock:
        rx = sock.recv_batch(batch)
        worker.ready()
        cpu_start = time.thread_time()
        while worker.running and received.value < count:
            if not sock.driver.wait(_cli.WAIT_SLICE):
                continue
            took.first = took.first or time.perf_counter()
            while worker.running and received.value < count and sock.recv(rx):
                received.add(len(rx))
                if sequence:
                    note(took, rx, kind)
            took.last = time.perf_counter()
        return close_books(took, sock, cpu_start)


def note(took: Took, rx: fs.XdpIpRecvBatch, kind: UdpPackets) -> None:
    plain = kind.plain(rx)
    keys = source_keys(kind.sources(rx), kind.source_ports(rx))
    numbers = kind.numbers(rx)
    if not plain.all():
        took.other += int(np.count_nonzero(~plain))
        keys, numbers = keys[plain], numbers[plain]
    took.sequences.note_columns(keys, numbers)


def send_back(plan: fs.WorkerPlan, worker: workers.Worker, *, kind: UdpPackets, batch: int, count: int) -> Took:
    """Turn round what comes to the queues of one CPU."""
    took, received, sent = Took(), worker.counter("received"), worker.counter("sent")

    def going() -> bool:
        return worker.running

    with open_socket(plan, kind) as sock:
        rx, tx = sock.recv_batch(batch), sock.tx_batch(batch)
        worker.ready()
        cpu_start = time.thread_time()
        while worker.running and received.value < count:
            if not sock.driver.wait(_cli.WAIT_SLICE) or not sock.recv(rx):
                continue
            received.add(len(rx))
            for at in np.flatnonzero(~kind.plain(rx)):
                rx[int(at)].take()  # it goes home at once: nobody keeps it
                took.other += 1
            answers = tx.take_from(rx)
            kind.turn_round(tx)
            refused = drain(sock, tx, going)
            sent.add(answers - refused)
            took.errors += refused
            took.last = time.perf_counter()
            took.first = took.first or took.last
        return close_books(took, sock, cpu_start)
