"""Pong: every datagram goes back to its sender, in the frame that it came in. One socket and one thread for each queue.

    python examples/pong_server.py --device eth0 --target 192.0.2.10:9000

It listens on the target's address where that is this host's, else on the device's, on the target's port. In os mode all
sockets share the port; the kernel hands each packet to the one whose CPU the packet arrived on, so it never changes
CPUs. With ``--mode xdp`` each socket is an AF_XDP queue of the device, and one XDP program redirects to all of them.
"""

import sys
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

import fast_socket as fs
from examples import _cli

BATCH = 64
MAX_DATAGRAM = 65_535  # a coalesced packet can be as large

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


Socket = fs.UdpSocket[Any, Any, fs.WaitDriver, Any]


@dataclass
class Worker:
    sock: Socket
    cpu: int
    received: int = 0
    refused: int = 0
    first: float = 0.0
    last: float = 0.0


def reflect(sock: Socket, rx: fs.RecvBatch, tx: fs.TxBatch, run: _cli.Run) -> int:
    """Send back what was received, without a copy; returns how many packets the kernel refused to send."""
    refused = 0
    tx.take_from(rx)
    while len(tx):
        try:
            sock.send(tx)
        except fs.SendError:  # this one is given up, those behind it may go
            refused += 1
            tx.discard(1)
            continue
        if len(tx) and not sock.driver.wait_writable(_cli.WAIT_SLICE) and not run.going():
            refused += tx.discard()
    return refused


def serve(me: Worker, workers: list[Worker], run: _cli.Run) -> None:
    fs.pin_current_thread(me.cpu)
    rx, tx = me.sock.recv_batch(BATCH), me.sock.tx_batch(BATCH)
    while run.going() and sum(worker.received for worker in workers) < run.count:
        if me.sock.driver.wait(_cli.WAIT_SLICE):
            me.sock.recv(rx)
            me.refused += reflect(me.sock, rx, tx, run)
            me.received += rx.datagram_count
            me.last = time.perf_counter()
            me.first = me.first or me.last


def open_os(queue: fs.QueueAffinity, address: tuple[str, int], *, gro: bool) -> Socket:
    layout = fs.BufferLayout(payload_capacity=MAX_DATAGRAM if gro else 2048)
    return fs.OsUdpSocket.bind(
        address, reuse_port=True, incoming_cpu=queue.cpu, gro=gro, rx_layout=layout, rx_frames=2 * BATCH
    )


def open_xdp(queue: fs.QueueAffinity, device: str, address: tuple[str, int], program: fs.XdpProgram) -> Socket:
    return fs.XdpUdpSocket.open(device, queue.queue, local=address, program=program)


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
    queues = fs.device_queue_affinity(device)
    address = _cli.local_address(device, target)
    if mode is _cli.Mode.OS:
        open_one = partial(open_os, address=address, gro=gro)
    else:
        # One program for all: it stays attached as long as this process lives.
        any_host = ip_address(address[0]).is_unspecified
        addresses = () if any_host else (address[0],)
        program = fs.XdpProgram.load(fs.XdpFilter(addresses=addresses, ports=frozenset({address[1]})))
        program.attach(device)
        open_one = partial(open_xdp, device=device, address=address, program=program)
    workers = [Worker(open_one(queue), queue.cpu) for queue in queues]

    def total(counter: str) -> int:
        return sum(getattr(worker.sock.stats(), counter) or 0 for worker in workers)

    run.ready()
    with run.live(received=partial(total, "received"), sent=partial(total, "sent")):
        _cli.run_all(run, [partial(serve, worker, workers, run) for worker in workers])
    seconds = max(worker.last for worker in workers) - min((w.first for w in workers if w.first), default=0.0)
    run.report(
        mode=mode.value,
        queues=len(queues),
        received=total("received"),
        sent=total("sent"),
        dropped=total("kernel_drops"),
        seconds=round(seconds, 6),
        pps=_cli.rate(total("sent"), seconds),
        errors=sum(worker.refused for worker in workers),
    )


if __name__ == "__main__":
    _cli.main(app)
