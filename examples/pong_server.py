"""Pong: every datagram goes back to its sender, in the frame that it came in. A socket for each queue, a worker each.

    python examples/pong_server.py --device eth0 --target 192.0.2.10:9000

It listens on the target's address where that is this host's, else on the device's, on the target's port. In os mode all
sockets share the port; the kernel hands each packet to the one whose CPU the packet arrived on, so it never changes
CPUs. With ``--mode xdp`` each socket is an AF_XDP queue of the device, and one XDP program redirects to all of them.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

import fast_socket as fs
from examples import _cli
from fast_socket import workers

BATCH = 64
MAX_DATAGRAM = 65_535  # a coalesced packet can be as large

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class OsPlan:
    """An OS socket for the packets that arrive on one CPU."""

    address: tuple[str, int]
    cpu: int
    gro: bool


@dataclass
class Served:
    """What one worker has to say in the end."""

    first: float
    last: float
    received: int
    sent: int
    dropped: int
    refused: int


def drain(sock: Any, tx: fs.TxBatch, going: Callable[[], bool]) -> int:
    """Send all of a batch; returns how many packets were refused, or left when it was no longer going on."""
    refused = 0
    while len(tx):
        try:
            sock.send(tx)
        except fs.SendError:  # this one is given up, those behind it may go
            refused += 1
            tx.discard(1)
            continue
        if len(tx):
            sock.driver.wait_writable(_cli.WAIT_SLICE)
            if not going():
                refused += tx.discard()
    return refused


def serve(plan: OsPlan | fs.WorkerPlan, worker: workers.Worker, *, address: tuple[str, int], count: int) -> Served:
    """One worker: what its socket receives goes back, until the run is over."""
    received, sent = worker.counter("received"), worker.counter("sent")
    first = last = 0.0
    refused = 0

    def going() -> bool:
        return worker.running

    with open_socket(plan, address) as sock:
        rx, tx = sock.recv_batch(BATCH), sock.tx_batch(BATCH)
        worker.ready()
        while worker.running and received.value < count:
            if sock.driver.wait(_cli.WAIT_SLICE):
                sock.recv(rx)
                tx.take_from(rx)
                lost = drain(sock, tx, going)
                refused += lost
                received.add(rx.datagram_count)
                sent.add(max(rx.datagram_count - lost, 0))
                last = time.perf_counter()
                first = first or last
        stats = sock.stats()
    return Served(first, last, stats.received, stats.sent, stats.kernel_drops or 0, refused)


def open_socket(plan: OsPlan | fs.WorkerPlan, address: tuple[str, int]) -> Any:
    """One socket, for one queue, or for the several that share a CPU."""
    if isinstance(plan, fs.WorkerPlan):
        return fs.XdpUdpAggregate.open(
            plan.device, fs.Queues(plan.queues), local=address, program=plan.program(), unresolved="raise"
        )
    layout = fs.BufferLayout(payload_capacity=MAX_DATAGRAM if plan.gro else 2048)
    return fs.OsUdpSocket.bind(
        address, reuse_port=True, incoming_cpu=plan.cpu, gro=plan.gro, rx_layout=layout, rx_frames=2 * BATCH
    )


@app.command(help=__doc__)
def pong_server(
    device: _cli.Device,
    target: _cli.Target,
    mode: _cli.Backend = _cli.Mode.OS,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    gro: Annotated[bool, typer.Option("--gro/--no-gro", help="Receive coalesced; it goes back as it came.")] = True,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    run = _cli.Run(
        "pong_server", count=count, duration_ms=duration_ms, default_ms=None, as_json=as_json, progress=progress
    )
    shares = _cli.shares(device)
    address = _cli.local_address(device, target)
    plans: list[OsPlan] | tuple[fs.WorkerPlan, ...]
    with ExitStack() as opened:
        if mode is _cli.Mode.OS:
            plans = [OsPlan(address, cpu, gro) for cpu, _ in shares]
        else:
            factory = fs.XdpFactory(device).claim(fs.All).ports([address[1]]).assign(*shares)
            if not ip_address(address[0]).is_unspecified:
                factory.addresses(address[0])
            plans = opened.enter_context(factory.build()).plans
        target_of_all = partial(serve, address=address, count=run.count)
        done = _cli.run_workers(run, plans, target_of_all, "received", "sent", announce=True)
    served = [worker.value for worker in done.workers if worker.value]
    first, last = _cli.span((each.first, each.last) for each in served)
    run.report(
        mode=mode.value,
        queues=sum(len(queues) for _, queues in shares),
        workers=len(plans),
        received=sum(each.received for each in served),
        sent=sum(each.sent for each in served),
        dropped=sum(each.dropped for each in served),
        seconds=round(last - first, 6),
        pps=_cli.rate(sum(each.sent for each in served), last - first),
        errors=sum(each.refused for each in served),
    )


if __name__ == "__main__":
    _cli.main(app)
