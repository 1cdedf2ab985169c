"""os-sender: several threads, each with a socket of its own, numbered datagrams to one listener."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import typer

import fast_socket as fs
from examples import _cli
from examples.blast import FRAMES, MAX_LARGE_SEND, MAX_SEGMENTS, PLAIN_BATCH

NUMBER_LEN = 8

app = typer.Typer(no_args_is_help=True, help="Send datagrams over OS sockets, as fast as the kernel takes them.")


@app.callback()
def group() -> None:
    """Send datagrams over OS sockets, as fast as the kernel takes them."""


@dataclass
class Worker:
    """One socket, what its thread is to send, and what became of it."""

    sock: fs.OsUdpSocket[fs.WaitDriver]
    share: int
    errors: int = 0


@app.command()
def blast(
    dest: _cli.Dest,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads, each with a socket of its own.")] = 1,
    payload_len: _cli.PayloadLen = 64,
    payload_hex: Annotated[
        str | None, typer.Option(metavar="HEX", help="Send these bytes, not numbered zeros of --payload-len.")
    ] = None,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    batch: Annotated[int | None, typer.Option(min=1, max=65_536, help="Datagrams a call, at most.")] = None,
    gso: Annotated[bool, typer.Option("--gso/--no-gso", help="Let the kernel cut datagrams from large sends.")] = True,
    sequence: Annotated[
        bool, typer.Option("--sequence/--no-sequence", help="Number each thread's datagrams from 0, at offset 0.")
    ] = True,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    """Send to one listener; --count is the sum over all threads."""
    run = _cli.Run(
        "os-sender", count=count, duration_ms=duration_ms, default_ms=5000, as_json=as_json, progress=progress
    )
    payload = b""
    if payload_hex is not None:
        try:
            payload = bytes.fromhex(payload_hex)
        except ValueError:
            payload = b""
        if not 0 < len(payload) <= MAX_LARGE_SEND:
            raise fs.ConfigError(f"--payload-hex {payload_hex[:40]!r}: give 1 to {MAX_LARGE_SEND} bytes as hex digits")
        payload_len, sequence = len(payload), False
    if sequence and payload_len < NUMBER_LEN:
        raise fs.ConfigError(f"--payload-len is {payload_len}: give at least {NUMBER_LEN}, or --no-sequence")
    if cpu is not None:
        fs.pin_current_thread(cpu)
    segments = max(1, min(MAX_SEGMENTS, MAX_LARGE_SEND // payload_len, batch or MAX_SEGMENTS)) if gso else 1
    frames = max(1, (batch or (FRAMES * segments if gso else PLAIN_BATCH)) // segments)
    layout = fs.BufferLayout(payload_capacity=payload_len * segments)
    with ExitStack() as opened:
        workers = [
            Worker(
                opened.enter_context(
                    fs.OsUdpSocket.connect(
                        dest,
                        gso=gso,
                        gso_size=payload_len * gso,
                        tx_layout=layout,
                        tx_frames=frames,
                        huge_pages=True,
                    )
                ),
                run.count // threads + (thread < run.count % threads),
            )
            for thread in range(threads)
        ]
        segments = min(segments, workers[0].sock.capabilities().max_gso_segments)

        def sent() -> int:
            return sum(worker.sock.stats().sent for worker in workers)

        with run.live(sent=sent):
            run.begin()
            _cli.run_all(
                run,
                [
                    partial(send, each, dest, payload or bytes(payload_len), segments, frames, sequence, run)
                    for each in workers
                ],
            )
            seconds = time.perf_counter() - run.start
        total = sent()
    run.report(
        mode="blast",
        sent=total,
        seconds=round(seconds, 6),
        pps=_cli.rate(total, seconds),
        errors=sum(worker.errors for worker in workers),
        threads=threads,
        payload_len=payload_len,
        segments=segments,
        sequence=sequence,
        icmp_errors=sum(
            worker.sock.stats().stale_errors for worker in workers
        ),  # nobody listens there, or no way leads
    )


def send(me: Worker, dest: str, payload: bytes, segments: int, frames: int, sequence: bool, run: _cli.Run) -> None:
    payload_len = len(payload)
    peer = me.sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=dest, gso_size=payload_len))
    tx = me.sock.tx_batch(frames)
    payloads = np.tile(np.frombuffer(payload, np.uint8), (frames * segments, 1))
    numbers = payloads[:, :NUMBER_LEN].view(">u8")[:, 0] if sequence else np.empty(0)
    steps = np.arange(frames * segments, dtype=np.uint64)
    handed = 0
    while (handed < me.share or len(tx)) and run.going():
        if not len(tx):
            left = me.share - handed
            taken = tx.allocate(min(left // segments, frames) or 1)
            now = min(taken * segments, left)
            if sequence:
                numbers[:now] = steps[:now] + np.uint64(handed)
            tx.fill(
                payloads[:now].reshape(taken, -1).data
            )  # numpy's stubs give arrays no __buffer__ before Python 3.12
            handed += now
        try:
            me.sock.send_to(peer, tx)
        except fs.SendError:  # given up: the listener sees a gap in the numbers
            me.errors += 1
            tx.discard(1)
            continue
        if len(tx):
            me.sock.driver.wait_writable(_cli.WAIT_SLICE)
