# SPDX-License-Identifier: Apache-2.0
"""The Python of today: the same four jobs as the C loops beside this file, with the standard library's `socket` alone.

    plain_socket.py blast --dest IP:PORT     connected socket, one `send` a datagram
    plain_socket.py count --bind IP:PORT     one `recv_into` a datagram, or `recvfrom_into` where the sender matters
    plain_socket.py ping --dest IP:PORT      one datagram outstanding, round trips measured
    plain_socket.py pong --bind IP:PORT      every datagram back to its sender

Written as one writes it for speed without tricks: bound methods in locals, one preallocated buffer, non-blocking
sockets, and a look at the clock once a batch. Options, the `ready` line, the closing JSON and the exit status are those
of the C loops.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

# Linux include/uapi/asm-generic/socket.h and linux/sock_diag.h; the socket module names none of them.
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
MEMINFO = struct.Struct("=9I")
MEMINFO_DROPS = 8

DEFAULT_DURATION_MS = 5000
MAX_PAYLOAD = 65507  # IPv4: 65535 - 20 - 8
SPINS_PER_CLOCK = 16
SEQUENCE = struct.Struct(">Q")
# What says something about the path or the peer and not about the call: the next one may well succeed.
TRANSIENT = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOBUFS})

Address = tuple[int, tuple[Any, ...]]
Report = dict[str, Any]


class Stop:
    """Set by SIGINT, SIGTERM or a fatal error; the loops look at it once a batch, then make their closing report."""

    def __init__(self) -> None:
        self.requested = False
        self.error: OSError | None = None
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def on_error(self, error: OSError) -> None:
        """Stop, unless the next call may well succeed."""
        if error.errno not in TRANSIENT:
            self.requested = True
            self.error = error


class Bounds:
    """When a run ends: after a count, a time, or, where neither is given, the default time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.count: int = options.count or sys.maxsize
        milliseconds = options.duration_ms or (None if options.count else DEFAULT_DURATION_MS)
        self.seconds: float = math.inf if milliseconds is None else milliseconds / 1000


def refuse(message: str) -> NoReturn:
    print(f"plain_socket: {message}", file=sys.stderr)
    raise SystemExit(2)


def rate(events: int, seconds: float) -> float:
    return round(events / seconds, 1) if seconds > 0 else 0.0


def open_socket(address: Address) -> socket.socket:
    sock = socket.socket(address[0], socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


def connected_socket(options: argparse.Namespace) -> socket.socket:
    if options.bind and options.bind[0] != options.dest[0]:
        refuse("--bind and --dest are of different families")
    sock = open_socket(options.dest)
    if options.bind:
        sock.bind(options.bind[1])
    sock.connect(options.dest[1])
    return sock


def set_receive_buffer(sock: socket.socket, wanted: int | None) -> int:
    """Ask past the system's limit if privileged, else up to it, and return what the kernel made of it."""
    if wanted:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, wanted)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def kernel_drops(sock: socket.socket) -> int:
    information = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
    return int(MEMINFO.unpack(information)[MEMINFO_DROPS])


def readable_wait(sock: socket.socket) -> Callable[[float], bool]:
    """Return a function that waits at most so many seconds for something to read."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    poll = poller.poll

    def wait(seconds: float) -> bool:
        # Never longer than 100 ms: a signal between the last look at `Stop` and the poll is seen that much later.
        return bool(poll(min(max(seconds, 0.0), 0.1) * 1000))

    return wait


def blast(options: argparse.Namespace, bounds: Bounds, stop: Stop) -> Report:
    sock = connected_socket(options)
    send, clock, number = sock.send, time.perf_counter, SEQUENCE.pack_into
    payload = bytearray(options.payload_len)
    sequence, batch, limit = options.sequence, options.batch, bounds.count
    sent = errors = again = 0
    start = now = clock()
    deadline = start + bounds.seconds
    while sent < limit and now < deadline and not stop.requested:
        try:
            for _ in range(min(batch, limit - sent)):
                if sequence:
                    number(payload, 0, sent)
                send(payload)
                sent += 1
        except BlockingIOError:
            again += 1
        except OSError as error:
            errors += 1
            stop.on_error(error)
        now = clock()
    seconds = clock() - start
    return {
        "mode": "send",
        "sent": sent,
        "seconds": round(seconds, 6),
        "pps": rate(sent, seconds),
        "errors": errors,
        "again": again,
        "batch": batch,
        "segments": 1,
        "payload_len": options.payload_len,
    }


def count(options: argparse.Namespace, bounds: Bounds, stop: Stop) -> Report:
    sock = open_socket(options.bind)
    rcvbuf = set_receive_buffer(sock, options.rcvbuf)
    receive: Callable[[bytearray], Any] = sock.recv_into if options.mode == "recv" else sock.recvfrom_into
    clock, wait = time.perf_counter, readable_wait(sock)
    buffer = bytearray(2048)
    batch, limit = options.batch, bounds.count
    idle = options.idle_ms / 1000 if options.idle_ms else math.inf
    received = calls = 0
    sock.bind(options.bind[1])
    print("ready", flush=True)
    now = first = last = clock()
    deadline = now + bounds.seconds
    while received < limit and now < deadline and not stop.requested:
        until = min(deadline, last + idle) if received else deadline
        if now >= until:
            break
        readable = wait(until - now)
        now = clock()
        if not readable:
            continue
        if not received:
            first = now
        try:
            while received < limit and now < deadline and not stop.requested:
                for _ in range(min(batch, limit - received)):
                    receive(buffer)
                    received += 1
                last = now = clock()
        except BlockingIOError:
            calls += 1
            last = now = clock()
    seconds = last - first if received else 0.0
    return {
        "mode": options.mode,
        "received": received,
        "dropped": kernel_drops(sock),
        "seconds": round(seconds, 6),
        "pps": rate(received, seconds),
        "calls": received + calls,
        "rcvbuf": rcvbuf,
        "batch": batch,
    }


def ping(options: argparse.Namespace, bounds: Bounds, stop: Stop) -> Report:
    sock = connected_socket(options)
    send, receive, clock, wait = sock.send, sock.recv_into, time.perf_counter_ns, readable_wait(sock)
    outgoing, incoming = bytearray(options.payload_len), bytearray(65536)
    poll_first, timeout, limit = options.wait == "poll", options.timeout_ms * 1_000_000, bounds.count
    round_trips: list[int] = []
    attempts = lost = errors = 0
    start = now = clock()
    deadline = start + bounds.seconds * 1e9
    while attempts < limit and now < deadline and not stop.requested:
        SEQUENCE.pack_into(outgoing, 0, attempts)
        answered, spins = False, 0
        before = now = clock()
        until = before + timeout
        try:
            send(outgoing)
            while now < until and not stop.requested:
                if poll_first and not wait((until - now) / 1e9):
                    now = clock()
                    continue
                try:
                    length = receive(incoming)
                except BlockingIOError:
                    spins += 1
                    if spins % SPINS_PER_CLOCK == 0:
                        now = clock()
                    continue
                # The late answer to a lost ping is not taken for this one's.
                if length == options.payload_len and SEQUENCE.unpack_from(incoming)[0] == attempts:
                    answered = True
                    break
        except OSError as error:
            errors += 1
            stop.on_error(error)
        now = clock()
        attempts += 1
        if answered:
            round_trips.append(now - before)
        elif stop.error or not stop.requested:
            lost += 1
    round_trips.sort()

    def percentile(percent: int) -> int:
        """Nearest rank: the smallest sample that at least `percent` of all do not exceed."""
        rank = -(-percent * len(round_trips) // 100)
        return round_trips[max(rank, 1) - 1] if round_trips else 0

    return {
        "mode": "ping",
        "wait": options.wait,
        "api": "send",
        "count": len(round_trips),
        "lost": lost,
        "errors": errors,
        "seconds": round((now - start) / 1e9, 6),
        "payload_len": options.payload_len,
        "rtt_ns": {
            "min": percentile(0),
            "p50": percentile(50),
            "p90": percentile(90),
            "p99": percentile(99),
            "max": percentile(100),
        },
        "rtt_histogram": histogram(round_trips),
    }


def histogram(samples: list[int]) -> list[tuple[int, int]]:
    """Eight buckets an octave: the least value of each that holds something, and how many it holds."""
    counts: dict[int, int] = {}
    for value in sorted(samples):
        shift = max(value.bit_length() - 4, 0)
        bucket = value >> shift << shift
        counts[bucket] = counts.get(bucket, 0) + 1
    return list(counts.items())


def pong(options: argparse.Namespace, bounds: Bounds, stop: Stop) -> Report:
    sock = open_socket(options.bind)
    receive, send, clock, wait = sock.recvfrom_into, sock.sendto, time.perf_counter, readable_wait(sock)
    buffer = bytearray(65536)
    view = memoryview(buffer)
    poll_first, limit = options.wait == "poll", bounds.count
    handled = reflected = errors = spins = 0
    sock.bind(options.bind[1])
    print("ready", flush=True)
    now = clock()
    deadline = now + bounds.seconds
    first = last = now
    while handled < limit and now < deadline and not stop.requested:
        try:
            length, source = receive(buffer)
        except BlockingIOError:
            spins += 1
            if poll_first:
                now = clock()
                wait(deadline - now)
            elif spins % SPINS_PER_CLOCK == 0:
                now = clock()
            continue
        handled += 1
        try:
            send(view[:length], source)
            reflected += 1
        except OSError:  # this one cannot be sent; the next may
            errors += 1
        last = now = clock()
        if handled == 1:
            first = now
    seconds = last - first
    return {
        "mode": "pong",
        "wait": options.wait,
        "api": "send",
        "count": reflected,
        "errors": errors,
        "seconds": round(seconds, 6),
        "pps": rate(reflected, seconds),
    }


def address(text: str) -> Address:
    """Read `IPv4:PORT` or `[IPv6]:PORT`."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    problem = argparse.ArgumentTypeError(f"'{text}' is no address (accepted: IPv4:PORT or [IPv6]:PORT, numbers only)")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise problem
    family = socket.AF_INET6 if bracketed else socket.AF_INET
    try:
        found = socket.getaddrinfo(
            host[1:-1] if bracketed else host, port, family, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST
        )
    except OSError:
        raise problem from None
    return family, found[0][4]


def number_between(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not accepted (accepted: a number from {least} to {most})")
        return value

    return read


JOBS: dict[str, Callable[[argparse.Namespace, Bounds, Stop], Report]] = {
    "blast": blast,
    "count": count,
    "ping": ping,
    "pong": pong,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    milliseconds = number_between(1, 86_400_000)
    common.add_argument("--count", type=number_between(1, 2**63 - 1), help="stop after this many datagrams")
    common.add_argument("--duration-ms", type=milliseconds, help="stop after this time (5000 if no --count either)")
    common.add_argument("--cpu", type=number_between(0, 1023), help="pin the tool to this CPU")

    parser = argparse.ArgumentParser(
        prog="plain_socket", description="Blast, count, ping and pong with the standard library's socket alone."
    )
    jobs = parser.add_subparsers(dest="job", required=True)
    tools = {name: jobs.add_parser(name, parents=[common]) for name in JOBS}
    sender, counter, pinger = tools["blast"], tools["count"], tools["ping"]
    for name in ("blast", "ping"):
        least = 1 if name == "blast" else SEQUENCE.size
        tools[name].add_argument("--dest", type=address, required=True, help="where to send")
        tools[name].add_argument("--bind", type=address, help="where to send from")
        tools[name].add_argument("--payload-len", type=number_between(least, MAX_PAYLOAD), default=64)
    for name in ("count", "pong"):
        tools[name].add_argument("--bind", type=address, required=True, help="where to receive")
    for name in ("blast", "count"):
        tools[name].add_argument(
            "--batch", type=number_between(1, 1024), default=64, help="calls per look at the clock"
        )
    for name in ("ping", "pong"):
        tools[name].add_argument("--wait", choices=("poll", "spin"), default="poll", help="how to wait")
    sender.add_argument("--sequence", action="store_true", help="number the datagrams: 64 bits at offset 0, big-endian")
    counter.add_argument("--mode", choices=("recv", "recvfrom"), default="recv", help="recv_into or recvfrom_into")
    counter.add_argument("--idle-ms", type=milliseconds, help="stop this long after the last datagram")
    counter.add_argument("--rcvbuf", type=number_between(1, 2**30), help="receive buffer in bytes")
    pinger.add_argument("--timeout-ms", type=number_between(1, 60_000), default=200, help="give up after this")

    options = parser.parse_args(arguments)
    if options.job == "blast" and options.sequence and options.payload_len < SEQUENCE.size:
        refuse(f"--sequence needs a --payload-len of at least {SEQUENCE.size}, not {options.payload_len}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.cpu is not None:
        try:
            os.sched_setaffinity(0, {options.cpu})
        except OSError as error:
            refuse(f"--cpu: CPU {options.cpu} cannot be used ({error.strerror})")
    stop = Stop()
    try:
        report = JOBS[options.job](options, Bounds(options), stop)
    except OSError as error:  # no socket, no run, no report
        print(f"plain_socket: {options.job}: {error.strerror or error}", file=sys.stderr)
        return 1
    if stop.error:
        print(f"plain_socket: {options.job}: {stop.error.strerror}", file=sys.stderr)
    print(json.dumps({"tool": f"python-{options.job}", **report}))
    return 1 if stop.error else 0


if __name__ == "__main__":
    sys.exit(main())
