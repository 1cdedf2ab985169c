"""How each figure is taken: two processes, each on a CPU and a host of its own, and what their reports say.

A measurement gives a `Sample`; a `Figure` names the contenders of one comparison and what is expected of ours. Every
contender of a figure meets the same other end: senders the C loop that receives coalesced packets, receivers the C loop
that sends them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fast_socket as fs
from benchmarks.processes import BLAST, OURS, PLAIN, REFERENCE, ROOT, C, Report, Tool, ToolError
from fast_socket import lab

PORT = 9000
PAYLOAD_LEN = 64
SETTLE = 0.2  # seconds that what was sent has to arrive in, after the sender's end
LIMIT = 30.0  # seconds that a tool may take beyond its duration
LIVE_BUFFER = 32 << 20
SMALL_BUFFER = 1 << 16
DRAIN_BUFFER = 1 << 30
# Datagrams that the drain buffer holds, whatever the kernel charges for each (some 770 bytes alone, 70 within a large
# send): a drop would show in the results.
DRAIN_PLAIN, DRAIN_COALESCED = 600_000, 8_000_000


class Ends(NamedTuple):
    """Two hosts of a lab and the CPU of each end."""

    near: lab.Host
    far: lab.Host
    address: str
    near_cpu: int
    far_cpu: int

    @property
    def target(self) -> str:
        return f"{self.address}:{PORT}"

    def sender(self, argv: list[str]) -> Tool:
        return Tool(argv, spawn=self.near.popen, cpu=self.near_cpu)

    def receiver(self, argv: list[str]) -> Tool:
        return Tool(argv, spawn=self.far.popen, cpu=self.far_cpu).wait_ready()


class Sample(NamedTuple):
    """One run of one contender."""

    value: float
    details: Mapping[str, Any]
    histogram: Sequence[tuple[int, int]] = ()
    """Of round trips: the least nanoseconds of each bucket, and how many it holds."""


class Absent(ToolError):
    """A contender that cannot run here: why, and how to get it."""


Measure = Callable[[Ends, float], Sample]


@dataclass(frozen=True)
class Figure:
    """One comparison. `targets`: for a contender, the least (or, where less is better, the largest) ratio ours / it."""

    key: str
    title: str
    unit: str
    contenders: Mapping[str, Measure]
    targets: Mapping[str, float] = field(default_factory=dict)
    less_is_better: bool = False
    scale: float = 1.0
    note: str = ""
    queues: int = 1
    """Of the two hosts' devices."""
    part_of: tuple[str, str] | None = None
    """Another figure's key, and the detail of its runs that this one looks at: it has no runs of its own."""


# ---- the tools, as command lines ----


def milliseconds(seconds: float) -> list[str]:
    return ["--duration-ms", str(int(seconds * 1000))]


def c_blast(ends: Ends, mode: str, *options: str) -> list[str]:
    return [str(C / "blast"), "--dest", ends.target, "--mode", mode, "--payload-len", str(PAYLOAD_LEN), *options]


def c_count(ends: Ends, mode: str, buffer: int, *options: str) -> list[str]:
    # The kernel doubles what it is asked for (socket(7)); our tools count in what it makes of it.
    return [
        str(C / "count"), "--bind", ends.target, "--mode", mode, "--rcvbuf", str(buffer // 2), *options
    ]  # fmt: skip


def our_count(ends: Ends, buffer: int, *options: str) -> list[str]:
    return [
        *OURS, "os-listener", "count", "--bind", ends.target, "--recv-buffer", str(buffer), "--json", *options
    ]  # fmt: skip


def our_blast(ends: Ends, *options: str) -> list[str]:
    device = ends.near.interface.name
    return [
        *BLAST, "--device", device, "--target", ends.target, "--payload-len", str(PAYLOAD_LEN), "--json", *options
    ]  # fmt: skip


# ---- measurements ----


def sending(argv: Callable[[Ends], list[str]], *, alone: bool = False) -> Measure:
    """Datagrams a second out of a sender. `alone`: the receiver is stopped and its buffer full, so that no datagram
    wakes it: waking it costs the sender more than the rest, and how often it sleeps is chance."""

    def measure(ends: Ends, seconds: float) -> Sample:
        buffer = SMALL_BUFFER if alone else LIVE_BUFFER
        receiver = ends.receiver(c_count(ends, "gro", buffer, *milliseconds(seconds + LIMIT)))
        if alone:
            receiver.signal(signal.SIGSTOP)
        try:
            sent = ends.sender([*argv(ends), *milliseconds(seconds)]).report(seconds + LIMIT)
        finally:
            receiver.signal(signal.SIGCONT)
        time.sleep(SETTLE)
        return Sample(sent["pps"], balance(sent, receiver.stop()))

    return measure


def iperf3(ends: Ends, seconds: float) -> Sample:
    """iperf3 takes whole seconds, and has a server of its own."""
    if not shutil.which("iperf3"):
        raise Absent("iperf3 is not installed (apt-get install iperf3)")
    server = ends.receiver(f"iperf3 --server --one-off --forceflush --bind {ends.address} --port {PORT}".split())
    client = ends.sender(
        f"iperf3 --client {ends.address} --port {PORT} --udp --length {PAYLOAD_LEN} --bitrate 0 --json"
        f" --time {max(1, round(seconds))}".split()
    )
    total = json.loads(client.output(seconds + LIMIT))["end"]["sum"]
    server.output(LIMIT)
    details = {"sent": total["packets"], "lost": total["lost_packets"]}
    return Sample(total["packets"] / total["seconds"], details)


def receiving(argv: Callable[[Ends], list[str]], *sender: str) -> Measure:
    """Datagrams a second into a receiver that runs while a C loop sends: the slower end decides. Beside it the
    receiver's CPU time for each datagram, which is its own whichever end is slower."""

    def measure(ends: Ends, seconds: float) -> Sample:
        receiver = ends.receiver([*argv(ends), *milliseconds(seconds + LIMIT)])
        sent = ends.sender([*c_blast(ends, *sender), *milliseconds(seconds)]).report(seconds + LIMIT)
        time.sleep(SETTLE)
        received = receiver.stop()
        return Sample(received["pps"], balance(sent, received))

    return measure


def draining(argv: Callable[[Ends], list[str]], count: int, *sender: str) -> Measure:
    """Datagrams a second out of a full receive buffer: the receiver is stopped while it fills, then timed alone."""

    def measure(ends: Ends, seconds: float) -> Sample:
        receiver = ends.receiver([*argv(ends), "--count", str(count), *milliseconds(LIMIT)])
        receiver.signal(signal.SIGSTOP)
        try:
            sent = ends.sender([*c_blast(ends, *sender), "--count", str(count)]).report(LIMIT)
        finally:
            receiver.signal(signal.SIGCONT)
        received = receiver.report(SETTLE + 5) if receiver.wait(5) else receiver.stop()
        return Sample(received["pps"], balance(sent, received))

    return measure


def balance(sent: Report, received: Report) -> dict[str, Any]:
    """What was sent, and where it went."""
    missing = sent["sent"] - received["received"]
    return {
        "sent": sent["sent"],
        "received": received["received"],
        "missing": missing,
        "dropped_by_kernel": received["dropped"],
        "receiver_cpu_ns": round(received["cpu_seconds"] * 1e9 / max(received["received"], 1), 2),
    }


def bouncing(pong: Callable[[Ends], list[str]], ping: Callable[[Ends], list[str]]) -> Measure:
    """Nanoseconds of the median round trip, one datagram outstanding."""

    def measure(ends: Ends, seconds: float) -> Sample:
        server = ends.receiver([*pong(ends), *milliseconds(seconds + LIMIT)])
        report = ends.sender([*ping(ends), *milliseconds(seconds)]).report(seconds + LIMIT)
        server.stop()
        return of_round_trips(report, "p50")

    return measure


def of_round_trips(report: Report, percentile: str) -> Sample:
    details = {**report["rtt_ns"], "count": report["count"], "lost": report["lost"]}
    return Sample(report["rtt_ns"][percentile], details, report["rtt_histogram"])


def bounce_figure(wait: str) -> Figure:
    size = ["--payload-len", str(PAYLOAD_LEN)]
    c = [str(C / "pingpong"), "--wait", wait]
    # One packet a call: with room for more the kernel would look for a second one before it returns the first.
    our_pong = [*OURS, "os-listener", "pong", "--no-gro", "--batch", "1", "--wait", wait, "--json"]
    return Figure(
        f"ping-{wait}",
        f"Round trip of one datagram, both ends {'sleeping in poll' if wait == 'poll' else 'spinning'} (median)",
        "us",
        {
            "fast_socket": bouncing(
                lambda ends: [*our_pong, "--bind", ends.target],
                lambda ends: [*OURS, "os-ping", "--dest", ends.target, "--wait", wait, "--json", *size],
            ),
            "C loop": bouncing(
                lambda ends: [*c, "--role", "pong", "--bind", ends.target],
                lambda ends: [*c, "--role", "ping", "--dest", ends.target, *size],
            ),
            "Python socket": bouncing(
                lambda ends: [*PLAIN, "pong", "--bind", ends.target, "--wait", wait],
                lambda ends: [*PLAIN, "ping", "--dest", ends.target, "--wait", wait, *size],
            ),
        },
        targets={"C loop": 1.05, "Python socket": 1.0},
        less_is_better=True,
        scale=1e-3,
        note="The 99th percentile is in the second table.",
    )


FIGURES = (
    Figure(
        "blast",
        "Sending with GSO",
        "M datagrams/s",
        {
            "fast_socket": sending(our_blast),
            "C loop, GSO": sending(lambda ends: c_blast(ends, "gso")),
            "Python socket.send": sending(
                lambda ends: [*PLAIN, "blast", "--dest", ends.target, "--payload-len", str(PAYLOAD_LEN)]
            ),
            "iperf3 -u -l 64 -b 0": iperf3,
        },
        targets={"C loop, GSO": 0.95, "Python socket.send": 40.0, "iperf3 -u -l 64 -b 0": 40.0},
        scale=1e-6,
    ),
    Figure(
        "receive-gro",
        "Receiving with GRO, while a C loop sends with GSO",
        "M datagrams/s",
        {
            "fast_socket": receiving(lambda ends: our_count(ends, LIVE_BUFFER, "--no-sequence"), "gso"),
            "C loop, GRO": receiving(lambda ends: c_count(ends, "gro", LIVE_BUFFER), "gso"),
        },
        targets={"C loop, GRO": 0.95},
        scale=1e-6,
        note="The sender is the slower end where nothing is missing; the drain below times the receiver alone.",
    ),
    Figure(
        "drain-gro",
        f"Draining a buffer of {DRAIN_COALESCED:,} datagrams with GRO",
        "M datagrams/s",
        {
            "fast_socket": draining(
                lambda ends: our_count(ends, DRAIN_BUFFER, "--no-sequence"), DRAIN_COALESCED, "gso"
            ),
            "C loop, GRO": draining(lambda ends: c_count(ends, "gro", DRAIN_BUFFER), DRAIN_COALESCED, "gso"),
        },
        targets={"C loop, GRO": 0.95},
        scale=1e-6,
    ),
    Figure(
        "sendmmsg",
        "Sending without GSO, 64 datagrams a call",
        "M datagrams/s",
        {
            "fast_socket": sending(lambda ends: our_blast(ends, "--no-gso", "--batch", "64")),
            "C loop, sendmmsg": sending(lambda ends: c_blast(ends, "sendmmsg")),
        },
        targets={"C loop, sendmmsg": 0.97},
        scale=1e-6,
        note="A receiver that keeps up sleeps between datagrams, and waking it is most of the sender's cost.",
    ),
    Figure(
        "sendmmsg-alone",
        "Sending without GSO to a receiver that is stopped",
        "M datagrams/s",
        {
            "fast_socket": sending(lambda ends: our_blast(ends, "--no-gso", "--batch", "64"), alone=True),
            "C loop, sendmmsg": sending(lambda ends: c_blast(ends, "sendmmsg"), alone=True),
        },
        targets={"C loop, sendmmsg": 0.97},
        scale=1e-6,
        note="No datagram wakes the receiver: this is the sender's cost alone.",
    ),
    Figure(
        "recvmmsg",
        "Receiving without GRO, while a C loop sends with sendmmsg",
        "M datagrams/s",
        {
            "fast_socket": receiving(
                lambda ends: our_count(ends, LIVE_BUFFER, "--no-sequence", "--no-gro"), "sendmmsg"
            ),
            "C loop, recvmmsg": receiving(lambda ends: c_count(ends, "recvmmsg", LIVE_BUFFER), "sendmmsg"),
        },
        targets={"C loop, recvmmsg": 0.97},
        scale=1e-6,
        note="The sender is the slower end where nothing is missing; the drain below times the receiver alone.",
    ),
    Figure(
        "drain-recvmmsg",
        f"Draining a buffer of {DRAIN_PLAIN:,} datagrams without GRO",
        "M datagrams/s",
        {
            "fast_socket": draining(
                lambda ends: our_count(ends, DRAIN_BUFFER, "--no-sequence", "--no-gro"), DRAIN_PLAIN, "sendmmsg"
            ),
            "C loop, recvmmsg": draining(lambda ends: c_count(ends, "recvmmsg", DRAIN_BUFFER), DRAIN_PLAIN, "sendmmsg"),
        },
        targets={"C loop, recvmmsg": 0.97},
        scale=1e-6,
    ),
    bounce_figure("poll"),
    bounce_figure("spin"),
)


# ---- what is not a comparison ----


def account(ends: Ends, count: int) -> dict[str, int]:
    """Whether every datagram of a flood with GSO is received or known to be lost: the sender numbers them, and the
    listener, with a small buffer so that some are lost, says how many numbers it missed."""
    listener = ends.receiver(our_count(ends, 1 << 20, "--sequence", *milliseconds(LIMIT)))
    sent = ends.sender(c_blast(ends, "gso", "--sequence", "--count", str(count))).report(LIMIT)["sent"]
    time.sleep(SETTLE)
    report = listener.stop()
    unaccounted = sent - report["received"] - (report["lost"] or 0)
    return {
        "sent": sent,
        "received": report["received"],
        "lost_by_number": report["lost"] or 0,
        "lost_after_the_last": unaccounted,
        "reordered": report["reordered"] or 0,
        "dropped_by_kernel": report["dropped"],
    }


IMPORT = "import time; t = time.perf_counter(); import fast_socket; print((time.perf_counter() - t) * 1e3)"


def import_times(rounds: int) -> list[float]:
    """Milliseconds of `import fast_socket` in a fresh interpreter, installed as a user has it: an editable install
    compares sources with what is built, which takes longer than the import."""
    with tempfile.TemporaryDirectory(prefix="fast-socket-import-") as directory:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
        # meson-python looks for ninja there.
        tools = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
        install = [*pip, "--no-deps", "--target", directory, "."]
        subprocess.run(install, cwd=ROOT, env=tools, check=True, capture_output=True)
        packages = [path for path in sys.path if path.endswith("site-packages")]
        # -S: without site there is no .pth file that would lead to the editable install.
        command = [sys.executable, "-S", "-c", IMPORT]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([directory, *packages])}
        times = [
            float(subprocess.run(command, env=environment, cwd="/", check=True, capture_output=True, text=True).stdout)
            for _ in range(rounds + 1)
        ]
    return times[1:]  # the first one reads from the disk, and compiles


def build_references() -> None:
    try:
        subprocess.run(["make", "--quiet", "-C", REFERENCE], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise fs.CapabilityError(f"cannot build the C loops: {getattr(error, 'stderr', '') or error}") from error
