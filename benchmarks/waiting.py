"""waiting: how many datagrams a receive finds, by how it is waited for; and what CPU time each datagram costs then."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

import fast_socket as fs
from examples import _cli

BATCH = 64
SPINS = 64  # receives of an empty socket before a look at the clock


class Policy(StrEnum):
    SPIN = "spin"
    BUSY_POLL = "busy-poll"
    POLL = "poll"
    GATHER_20 = "gather-20us"
    BUSY_GATHER_20 = "busy-gather-20us"
    GATHER_100 = "gather-100us"


#: Seconds that a wake-up is held back where the receive before it found less than half a batch.
PAUSES = {Policy.GATHER_20: 20e-6, Policy.BUSY_GATHER_20: 20e-6, Policy.GATHER_100: 100e-6}
BUSY = {Policy.BUSY_POLL, Policy.BUSY_GATHER_20}


def waiting(
    bind: _cli.Bind,
    policy: Annotated[Policy, typer.Option(help="Receive again and again, or wait: in which way.")] = Policy.POLL,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
) -> None:
    """Receive over an OS socket, 64 datagrams a call at the most, and tell how many there were on average."""
    run = _cli.Run("waiting", count=count, duration_ms=duration_ms, default_ms=60_000, as_json=as_json)
    if cpu is not None:
        fs.pin_current_thread(cpu)
    received = receives = 0
    first = last = cpu_start = cpu_end = 0.0
    driver: Any = fs.BusyPollDriver if policy in BUSY else fs.WaitDriver
    with fs.OsUdpSocket.bind(
        bind,
        driver=driver,
        min_batch=BATCH // 2 if policy in PAUSES else 1,
        max_wait=PAUSES.get(policy, 0.0),
        recv_buffer=32 << 20,
    ) as sock:
        rx = sock.recv_batch(BATCH)
        recv, wait = sock.recv, sock.driver.wait
        run.ready()
        while run.going() and received < run.count:
            if policy is Policy.SPIN:
                found = next(filter(None, (recv(rx) for _ in range(SPINS))), 0)
            else:
                found = recv(rx) if wait(_cli.WAIT_SLICE) else 0
            if not found:
                continue
            received += found
            receives += 1
            last, cpu_end = time.perf_counter(), time.process_time()
            if not first:
                first, cpu_start = last, cpu_end
        dropped = sock.stats().kernel_drops
    run.report(
        mode=policy.value,
        received=received,
        receives=receives,
        mean_batch=round(received / receives, 2) if receives else 0.0,
        cpu_ns=round((cpu_end - cpu_start) * 1e9 / received, 1) if receives else 0.0,
        dropped=dropped,
        seconds=round(last - first, 6),
        pps=_cli.rate(received, last - first),
    )
