"""os-ping: one datagram outstanding, round trips measured."""

import struct
import time
from typing import Annotated

import numpy as np
import typer

import fast_socket as fs
from benchmarks.listener import receive
from examples import _cli

NUMBER = struct.Struct(">Q")


def percentiles(samples: list[int]) -> dict[str, int | None]:
    """By nearest rank: the smallest sample that so many percent do not exceed."""
    return {
        name: int(np.percentile(samples, percent, method="inverted_cdf")) if samples else None
        for name, percent in {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}.items()
    }


def histogram(samples: list[int]) -> list[tuple[int, int]]:
    """Eight buckets an octave: the least value of each that holds something, and how many it holds."""
    values = np.sort(np.array(samples, np.int64))
    shifts = np.maximum(np.frexp(values)[1] - 4, 0)  # of a float: exact below 2**53
    buckets, counts = np.unique(values >> shifts << shifts, return_counts=True)
    return list(zip(buckets.tolist(), counts.tolist(), strict=True))


def ping(
    dest: _cli.Dest,
    payload_len: Annotated[int, typer.Option(min=NUMBER.size, max=65_507, help="Bytes in each datagram.")] = 64,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    wait: _cli.Waiting = _cli.Wait.POLL,
    timeout_ms: Annotated[int, typer.Option(min=1, max=60_000, help="Give an answer up after this time.")] = 200,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
) -> None:
    """Measure round trips to a pong server: one datagram at a time, numbered."""
    run = _cli.Run("os-ping", count=count, duration_ms=duration_ms, default_ms=5000, as_json=as_json)
    if cpu is not None:
        fs.pin_current_thread(cpu)
    clock, spin, timeout = time.perf_counter_ns, wait is _cli.Wait.SPIN, timeout_ms * 1_000_000
    layout = fs.BufferLayout(payload_capacity=max(payload_len, 2048))
    round_trips: list[int] = []
    attempts = errors = 0
    with fs.OsUdpSocket.connect(dest, tx_layout=layout, rx_layout=layout) as sock:
        rx, tx = sock.recv_batch(1), sock.tx_batch(1)
        payload = bytearray(payload_len)
        with run.live(answers=lambda: len(round_trips)):
            run.begin()
            while run.going() and attempts < run.count:
                NUMBER.pack_into(payload, 0, attempts)
                attempts += 1
                tx.append(payload)
                before = now = clock()
                try:
                    sock.send(tx)
                    while now < before + timeout and not run.stopped:
                        got = receive(sock, rx, spin=spin)
                        now = clock()
                        # The late answer to a ping given up is not taken for this one's.
                        if got and any(packet.read(0, NUMBER.size) == payload[: NUMBER.size] for packet in rx):
                            round_trips.append(now - before)
                            break
                except fs.Error:
                    errors += 1
                    tx.discard()
    seconds = time.perf_counter() - run.start
    run.report(
        mode="ping",
        wait=wait.value,
        count=len(round_trips),
        # The one that a signal cut short was not lost.
        lost=max(attempts - len(round_trips) - run.stopped, 0),
        errors=errors,
        seconds=round(seconds, 6),
        payload_len=payload_len,
        rtt_ns=percentiles(round_trips),
        **({"rtt_histogram": histogram(round_trips)} if as_json else {}),
    )
