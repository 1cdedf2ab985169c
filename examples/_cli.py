"""What the examples and the benchmark tools share: options, when a run ends, the live rate, the closing report.

Exit status of every tool: 0 done, 1 the system refused something, 2 the command line asks for what cannot be.
"""

import fcntl
import json
import math
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

import fast_socket as fs
from fast_socket import workers

WAIT_SLICE = 0.1
"""Seconds of a single wait: a stop that falls between the look at `Run.going` and the wait is seen that much later."""

PROGRESS_SECONDS = 0.25
LOOK_SECONDS = 0.02
"""Between two looks at what workers have counted: with --count a run ends that much later."""
SIOCGIFADDR = 0x8915  # include/uapi/linux/sockios.h


class Mode(StrEnum):
    OS = "os"
    XDP = "xdp"


class Wait(StrEnum):
    POLL = "poll"
    SPIN = "spin"


Count = Annotated[int | None, typer.Option(min=1, help="Stop after this many datagrams.")]
DurationMs = Annotated[int | None, typer.Option(min=1, max=86_400_000, help="Stop after this many milliseconds.")]
Device = Annotated[str, typer.Option(help="The network interface.")]
Target = Annotated[str, typer.Option(metavar="IP:PORT", help="Where the pong server is; [IPv6]:PORT.")]
Bind = Annotated[str, typer.Option(metavar="IP:PORT", help="Where to listen; [IPv6]:PORT.")]
Dest = Annotated[str, typer.Option(metavar="IP:PORT", help="Where to send; [IPv6]:PORT.")]
PayloadLen = Annotated[int, typer.Option(min=1, max=65_507, help="Bytes in each datagram.")]
Iface = Annotated[str, typer.Option(metavar="DEV", help="The network interface.")]
Cpu = Annotated[int | None, typer.Option(min=0, help="Pin the tool to this CPU.")]
Backend = Annotated[Mode, typer.Option(help="OS sockets, or AF_XDP queues.")]
Waiting = Annotated[Wait, typer.Option(help="Sleep in the kernel, or spin: quicker, for a whole CPU.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Progress = Annotated[bool, typer.Option("--progress", help="With --json: also a line of progress 4 times a second.")]


def home(sock: fs.XdpUdpSocket[Any], seconds: float = 1.0) -> None:
    """Wait until the device has given back what was sent, as long as that takes at the most."""
    until = time.perf_counter() + seconds
    while sock.queue_stats().outstanding and time.perf_counter() < until:
        sock.notify_tx()
        sock.drain_tx_completions()


class Run:
    """One run of a tool: it ends by SIGINT or SIGTERM, after a time, or when the tool has done `count`.

    A run with neither a count nor a duration ends after `default_ms`, where there is one.
    """

    def __init__(
        self,
        tool: str,
        *,
        count: int | None,
        duration_ms: int | None,
        default_ms: int | None,
        as_json: bool,
        progress: bool = False,
    ) -> None:
        self.tool, self.as_json, self.progress = tool, as_json, progress
        self.count = count or sys.maxsize
        milliseconds = duration_ms or (None if count else default_ms)
        self.duration = milliseconds / 1000 if milliseconds else math.inf
        self.stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self.begin()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        signal.signal(number, signal.SIG_DFL)  # whoever asks twice does not want a report

    def begin(self) -> None:
        """The time counts from here."""
        self.start = time.perf_counter()
        self.deadline = self.start + self.duration

    def ready(self) -> None:
        """Tell a program that waits for it that datagrams sent from now on are seen."""
        if self.as_json:
            print("ready", flush=True)
        self.begin()

    def going(self) -> bool:
        return not self.stopped and time.perf_counter() < self.deadline

    @contextmanager
    def live(self, **counters: Callable[[], int]) -> Iterator[None]:
        """While it lasts show the counters and their rates: on a terminal a line that changes, with --progress JSON."""
        console = Console(stderr=True)
        if self.progress if self.as_json else console.is_terminal:
            over = threading.Event()
            thread = threading.Thread(target=self._show, args=(counters, console, over), daemon=True)
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
        else:
            yield

    def _show(self, counters: Mapping[str, Callable[[], int]], console: Console, over: threading.Event) -> None:
        if self.as_json:
            while not over.wait(PROGRESS_SECONDS):
                print(json.dumps({"progress": {name: read() for name, read in counters.items()}}), flush=True)
            return
        before = dict.fromkeys(counters, 0)
        with Live(console=console, transient=True, auto_refresh=False) as live:
            while not over.wait(PROGRESS_SECONDS):
                now = {name: read() for name, read in counters.items()}
                parts = [
                    f"{name} {now[name]:,} ({(now[name] - before[name]) / PROGRESS_SECONDS:,.0f}/s)" for name in now
                ]
                live.update(f"{self.tool}: {'  '.join(parts)}", refresh=True)
                before = now

    def report(self, **fields: Any) -> None:
        """The closing report."""
        if self.as_json:
            print(json.dumps({"tool": self.tool, **fields}), flush=True)
            return
        table = Table(title=self.tool, show_header=False, title_justify="left")
        for name, value in fields.items():
            table.add_row(name, readable(value))
        console().print(table)


def readable(value: Any) -> str:
    """For a table: numbers grouped, nothing as a dash."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {readable(part)}" for name, part in value.items())
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def run_all(run: Run, jobs: Sequence[Callable[[], None]]) -> None:
    """Do the jobs, each on a thread of its own; an error in one ends all. A single one needs no thread."""
    if len(jobs) == 1:
        jobs[0]()
        return

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException:
            run.stopped = True
            raise

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(guarded, job) for job in jobs]:
            future.result()


def shares(device: str, only: int | None = None) -> list[tuple[int, list[int]]]:
    """(CPU, queues) for each worker of a device: queues whose interrupts go to one CPU are one worker's. With `only`
    that queue alone."""
    affinity = fs.device_queue_affinity(device)
    by_cpu: dict[int, list[int]] = {}
    for queue in affinity:
        if only in (None, queue.queue):
            by_cpu.setdefault(queue.cpu, []).append(queue.queue)
    if not by_cpu:
        raise fs.ConfigError(f"{device} has no queue {only}: give one from 0 to {len(affinity) - 1}")
    return sorted(by_cpu.items())


def run_workers(
    run: Run,
    plans: Sequence[Any],
    target: Callable[[Any, workers.Worker], Any],
    *counters: str,
    announce: bool = False,
) -> workers.Run[Any]:
    """Run a worker for each plan, in a process of its own where there are several, until the run ends or the first of
    `counters` has reached its count. With `announce` they are listeners, and say when they are ready."""
    totals = dict.fromkeys(counters, 0)

    def look(progress: workers.Progress) -> bool:
        totals.update(progress.total)
        return run.stopped or totals[counters[0]] >= run.count

    with ExitStack() as shown:

        def begin() -> None:
            run.ready() if announce else run.begin()
            shown.enter_context(run.live(**{name: partial(totals.__getitem__, name) for name in counters}))

        try:
            return workers.run(
                plans,
                target,
                kind=None if len(plans) > 1 else "thread",
                counters=counters,
                duration=None if math.isinf(run.duration) else run.duration,
                on_ready=begin,
                on_progress=look,
                interval=LOOK_SECONDS,
            )
        except workers.WorkerError as error:
            if isinstance(error.__cause__, fs.Error):  # what the system refused, or the command line asks in vain
                raise error.__cause__ from None
            raise


def console() -> Console:
    """Of a terminal its own width; elsewhere wide enough for the tables."""
    made = Console()
    return made if made.is_terminal else Console(width=120)


def span(times: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """From the first to the last that anybody saw; those who saw nothing have zeros."""
    seen = [each for each in times if each[0]]
    return min((first for first, _ in seen), default=0.0), max((last for _, last in seen), default=0.0)


def rate(events: int, seconds: float) -> float:
    return round(events / seconds, 1) if seconds > 0 else 0.0


def local_address(device: str, target: str) -> tuple[str, int]:
    """The target's own address where it is this host's, else the first one of its family that the device has; and the
    target's port."""
    host, port = fs.parse_address(target, "--target")
    v6 = ":" in host
    try:
        socket.if_nametoindex(device)
    except OSError:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise fs.ConfigError(f"--device {device!r}: there is no such interface; there are {there}") from None
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
            return host, port
        except OSError:
            pass  # not an address of this host
        if not v6:
            try:
                # struct ifreq: 16 bytes of name, then a sockaddr_in whose address comes after family and port
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("16s24x", device.encode()[:15]))
                return socket.inet_ntoa(answer[20:24]), port
            except OSError:
                raise fs.ConfigError(f"--device {device!r} has no IPv4 address") from None
    with open("/proc/thread-self/net/if_inet6", encoding="ascii") as table:
        for line in table:
            address, _, _, scope, _, name = line.split()
            if name == device and scope in ("00", "10"):  # global or host: others need a zone
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)), port
    raise fs.ConfigError(f"--device {device!r} has no global IPv6 address")


def main(app: typer.Typer) -> None:
    """Run a command line. What it asks for in vain is one line on stderr."""
    try:
        app()
    except (fs.ConfigError, fs.CapabilityError) as error:
        _fail(error, 2)
    except OSError as error:
        _fail(error, 1)


def _fail(error: OSError, status: int) -> None:
    print(f"error: {error.strerror if isinstance(error, fs.Error) and error.errno else error}", file=sys.stderr)
    sys.exit(status)
