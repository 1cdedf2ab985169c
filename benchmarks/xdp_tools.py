"""xdp-count and xdp-ping: what the comparison of AF_XDP needs beside the examples. One queue, one thread."""

import os
import time
from typing import Annotated

import typer

import fast_socket as fs
from benchmarks.ping import NUMBER, histogram, percentiles
from examples import _cli

PING_PORT = 50_001
Queue = Annotated[int, typer.Option(min=0, help="The device queue.")]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Packets a receive, at most.")]


def driver_of(wait: _cli.Wait) -> type[fs.WaitDriver] | type[fs.BusyPollDriver]:
    return fs.BusyPollDriver if wait is _cli.Wait.SPIN else fs.WaitDriver


def open_queue(device: str, queue: int, local: tuple[str, int], wait: _cli.Wait) -> fs.XdpUdpSocket[fs.WaitDriver]:
    """The driver decides the type; what both can do is enough here."""
    return fs.XdpUdpSocket.open(device, queue, local=local, driver=driver_of(wait))  # type: ignore[arg-type]


def count(
    device: _cli.Device,
    bind: _cli.Bind,
    queue: Queue = 0,
    batch: Batch = 64,
    wait: _cli.Waiting = _cli.Wait.SPIN,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Count what arrives at one AF_XDP queue, and what found no frame or no room."""
    run = _cli.Run("xdp-count", count=count, duration_ms=duration_ms, default_ms=60_000, as_json=as_json,
                   progress=progress)  # fmt: skip
    if cpu is not None:
        fs.pin_current_thread(cpu)
    received, first, last = 0, 0.0, 0.0
    with open_queue(device, queue, fs.parse_address(bind), wait) as sock, run.live(received=lambda: received):
        rx = sock.recv_batch(batch)
        run.ready()
        before = os.times()
        while run.going() and received < run.count:
            if sock.driver.wait(_cli.WAIT_SLICE):
                received += sock.recv(rx)
                last = time.perf_counter()
                first = first or last
        after = os.times()
        stats = sock.queue_stats()
    run.report(
        mode="count",
        received=received,
        dropped=stats.rx_dropped + stats.rx_ring_full,
        seconds=round(last - first, 6),
        pps=_cli.rate(received, last - first),
        user_seconds=round(after.user - before.user, 2),
        system_seconds=round(after.system - before.system, 2),
    )


def pong(
    device: _cli.Device,
    bind: _cli.Bind,
    queue: Queue = 0,
    batch: Batch = 64,
    wait: _cli.Waiting = _cli.Wait.POLL,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Send back what arrives at one AF_XDP queue, in the frames that it came in."""
    run = _cli.Run("xdp-pong", count=count, duration_ms=duration_ms, default_ms=60_000, as_json=as_json,
                   progress=progress)  # fmt: skip
    if cpu is not None:
        fs.pin_current_thread(cpu)
    received, first, last = 0, 0.0, 0.0
    with open_queue(device, queue, fs.parse_address(bind), wait) as sock, run.live(received=lambda: received):
        rx, tx = sock.recv_batch(batch), sock.tx_batch(batch)
        run.ready()
        while run.going() and received < run.count:
            if sock.driver.wait(_cli.WAIT_SLICE):
                received += sock.recv(rx)
                tx.take_from(rx)
                while len(tx) and not sock.send(tx) and run.going():
                    sock.driver.wait_writable(_cli.WAIT_SLICE)
                last = time.perf_counter()
                first = first or last
        stats, sent = sock.queue_stats(), sock.stats().sent
    run.report(
        mode="pong",
        received=received,
        sent=sent,
        dropped=stats.rx_dropped + stats.rx_ring_full,
        seconds=round(last - first, 6),
        pps=_cli.rate(sent, last - first),
    )


def ping(
    device: _cli.Device,
    dest: _cli.Dest,
    queue: Queue = 0,
    payload_len: Annotated[int, typer.Option(min=NUMBER.size, max=1472, help="Bytes in each datagram.")] = 64,
    wait: _cli.Waiting = _cli.Wait.POLL,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    timeout_ms: Annotated[int, typer.Option(min=1, max=60_000, help="Give an answer up after this time.")] = 200,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
) -> None:
    """Measure round trips through an AF_XDP queue: one datagram at a time, numbered."""
    run = _cli.Run("xdp-ping", count=count, duration_ms=duration_ms, default_ms=5000, as_json=as_json)
    if cpu is not None:
        fs.pin_current_thread(cpu)
    clock = time.perf_counter_ns
    round_trips: list[int] = []
    attempts = 0
    local = (_cli.local_address(device, dest)[0], PING_PORT)
    with open_queue(device, queue, local, wait) as sock:
        peer = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=dest))
        rx, tx = sock.recv_batch(1), sock.tx_batch(1)
        payload = bytearray(payload_len)
        run.begin()
        while run.going() and attempts < run.count:
            NUMBER.pack_into(payload, 0, attempts)
            tx.append(payload)
            before = clock()
            if not sock.send_to(peer, tx):  # the neighbour is still being asked for
                tx.discard()
                time.sleep(0.001)
                continue
            attempts += 1
            until = before + timeout_ms * 1_000_000
            while (now := clock()) < until and not run.stopped:
                if sock.driver.wait((until - now) / 1e9) and sock.recv(rx):
                    now = clock()
                    if any(packet.read(0, NUMBER.size) == payload[: NUMBER.size] for packet in rx):
                        round_trips.append(now - before)
                        break
    seconds = time.perf_counter() - run.start
    run.report(
        mode="ping",
        wait=wait.value,
        count=len(round_trips),
        lost=max(attempts - len(round_trips) - run.stopped, 0),
        seconds=round(seconds, 6),
        payload_len=payload_len,
        rtt_ns=percentiles(round_trips),
        **({"rtt_histogram": histogram(round_trips)} if as_json else {}),
    )
