"""xdp-sender: numbered datagrams through one queue of a device or all of them, to one listener.

A UDP socket on each queue, with a source port of its own where there are several. Queues whose interrupts go to one CPU
are one worker's, pinned there. The next hop is resolved before the time begins.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Any

import numpy as np
import typer

import fast_socket as fs
from benchmarks.sender import NUMBER_LEN
from examples import _cli
from fast_socket import workers

RESOLVE_SECONDS = 3.0

app = typer.Typer(no_args_is_help=True, help="Send datagrams over AF_XDP queues, as fast as the device takes them.")

Local = Annotated[str, typer.Option(metavar="IP:PORT", help="Where from; with --all-queues the first of the ports.")]


@app.callback()
def group() -> None:
    """Send datagrams over AF_XDP queues, as fast as the device takes them."""


@dataclass
class Sent:
    """What one worker has to say in the end."""

    first: float
    last: float
    by_queue: dict[int, int]
    completions: int
    unfinished: int
    errors: int


@dataclass
class Lane:
    """One queue: its socket, and the datagrams under way to it."""

    sock: fs.XdpUdpSocket[fs.WaitDriver]
    tx: fs.XdpUdpTxBatch
    peer: Any
    left: int
    handed: int = 0


@app.command()
def blast(
    iface: _cli.Iface,
    local: Local,
    dest: _cli.Dest,
    all_queues: Annotated[
        bool, typer.Option("--all-queues", help="All queues of the device, with a source port each.")
    ] = False,
    queue: Annotated[int, typer.Option(min=0, help="The queue, where it is one.")] = 0,
    payload_len: _cli.PayloadLen = 64,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Datagrams a call, at most.")] = 64,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    sequence: Annotated[
        bool, typer.Option("--sequence/--no-sequence", help="Number each queue's datagrams from 0, at offset 0.")
    ] = True,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Send to one listener; --count is the sum over all queues."""
    run = _cli.Run("xdp-sender", count=count, duration_ms=duration_ms, default_ms=5000, as_json=as_json,
                   progress=progress)  # fmt: skip
    if sequence and payload_len < NUMBER_LEN:
        raise fs.ConfigError(f"--payload-len is {payload_len}: give at least {NUMBER_LEN}, or --no-sequence")
    host, port = fs.parse_address(local, "--local")
    shares = _cli.shares(iface, None if all_queues else queue)
    queues = sorted(queue for _, queues in shares for queue in queues)
    if port + len(queues) - 1 > 65_535:
        raise fs.ConfigError(f"--local has port {port}: {len(queues)} queues take as many ports, up to 65535")
    ports = {number: port + at for at, number in enumerate(queues)}
    each, more = divmod(run.count, len(queues))
    target = partial(
        send, host=host, ports=ports, dest=dest, payload_len=payload_len, batch=batch, sequence=sequence,
        counts={number: each + (at < more) for at, number in enumerate(queues)},
    )  # fmt: skip
    factory = fs.XdpFactory(iface).claim(fs.Queues(queues)).ports(ports.values()).assign(*shares)
    with factory.build():
        done = _cli.run_workers(run, factory.plans, target, "sent")
    sent = [worker.value for worker in done.workers if worker.value]
    first, last = _cli.span((each.first, each.last) for each in sent)
    total = sum(sum(each.by_queue.values()) for each in sent)
    run.report(
        mode="blast",
        sent=total,
        seconds=round(last - first, 6),
        pps=_cli.rate(total, last - first),
        errors=sum(each.errors for each in sent),
        workers=len(shares),
        by_queue={queue: packets for each in sent for queue, packets in each.by_queue.items()},
        source_ports=sorted(ports.values()),
        completions=sum(each.completions for each in sent),
        unfinished=sum(each.unfinished for each in sent),
        payload_len=payload_len,
        sequence=sequence,
    )


def send(
    plan: fs.WorkerPlan,
    worker: workers.Worker,
    *,
    host: str,
    ports: dict[int, int],
    dest: str,
    payload_len: int,
    batch: int,
    sequence: bool,
    counts: dict[int, int],
) -> Sent:
    """Send through the queues of one CPU, in turn."""
    counter, errors = worker.counter("sent"), 0
    payloads = np.zeros((batch, payload_len), np.uint8)
    numbers = payloads[:, :NUMBER_LEN].view(">u8")[:, 0] if sequence else None
    steps = np.arange(batch, dtype=np.uint64)
    with ExitStack() as opened:
        program = plan.program()
        lanes = []
        for queue in plan.queues:
            sock = opened.enter_context(
                fs.XdpUdpSocket.open(
                    plan.device, queue, local=(host, ports[queue]), program=program, tx_frames=max(4096, 2 * batch)
                )
            )
            peer = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=dest))
            lanes.append(Lane(sock, sock.tx_batch(batch), peer, counts[queue]))
        resolve(lanes[0].sock, dest, worker)
        worker.ready()
        first = time.perf_counter()
        busy = list(lanes)
        while busy and worker.running:
            stuck = True
            for lane in busy:
                if not len(lane.tx):
                    now = lane.tx.allocate(min(batch, lane.left))
                    if numbers is not None:
                        numbers[:now] = steps[:now] + np.uint64(lane.handed)
                    lane.tx.fill(payloads[:now].data)
                    lane.handed += now
                    lane.left -= now
                try:
                    accepted = lane.sock.send_to(lane.peer, lane.tx)
                except fs.SendError as error:
                    accepted = error.accepted
                    errors += 1
                    lane.tx.discard(1)
                counter.add(accepted)
                stuck = stuck and not accepted
            busy = [lane for lane in busy if lane.left or len(lane.tx)]
            if stuck and busy:  # all rings are full
                busy[0].sock.driver.wait_writable(_cli.WAIT_SLICE)
        for lane in lanes:
            _cli.home(lane.sock)
        last = time.perf_counter()
        stats = {queue: lane.sock.queue_stats() for queue, lane in zip(plan.queues, lanes, strict=True)}
    return Sent(
        first,
        last,
        {queue: each.tx_packets for queue, each in stats.items()},
        sum(each.completions for each in stats.values()),
        sum(each.outstanding for each in stats.values()),
        errors,
    )


def resolve(sock: fs.XdpUdpSocket[fs.WaitDriver], dest: str, worker: workers.Worker) -> None:
    """Have the next hop known before the time begins. Raises DeviceError where there is no way."""
    destination = ip_address(fs.parse_address(dest, "--dest")[0])
    until = time.perf_counter() + RESOLVE_SECONDS
    while not (egress := sock.router.resolve(destination)):
        if egress is not fs.Unresolved.NEIGHBOR or time.perf_counter() > until:
            raise fs.DeviceError(f"--dest {dest}: {egress.text}")
        if not worker.running:
            return
        time.sleep(0.005)
