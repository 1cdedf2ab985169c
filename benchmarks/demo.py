"""demo: the pong server on one host, the blaster and the ping tool on another, live: OS sockets, then AF_XDP queues.

Without two hosts it runs over loopback, and AF_XDP on a simulated device within this process.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

import fast_socket as fs
from benchmarks.processes import BLAST, OURS, PONG_SERVER, ROOT, Report, Spawn, Tool, ToolError
from examples import _cli
from fast_socket import lab

PORT = 9000
QUEUES = 2
PING_SHARE = 0.25  # of the time; the rest is the blast's
REFRESH = 0.1
GRACE = 5.0


@dataclass
class Hosts:
    """Where the two ends run."""

    where: str
    client: Spawn
    server: Spawn
    client_device: str
    server_device: str
    target: str
    modes: tuple[str, ...]


def free_address() -> str:
    with fs.OsUdpSocket.bind("127.0.0.1:0") as probe:
        return f"127.0.0.1:{probe.local_address[1]}"


@contextmanager
def two_ends(loopback: bool) -> Iterator[Hosts]:
    reason = "asked for" if loopback else lab.why_unavailable()
    if reason:
        where = f"loopback of this machine (no two-host lab: {reason})"
        yield Hosts(where, subprocess.Popen, subprocess.Popen, "lo", "lo", free_address(), ("os",))
        return
    with lab.two_hosts(queues=QUEUES) as (a, b):
        where = f"two hosts (network namespaces) joined by a veth link with {QUEUES} queues"
        target = f"{b.interface.ipv4}:{PORT}"
        yield Hosts(where, a.popen, b.popen, a.interface.name, b.interface.name, target, ("os", "xdp"))


def demo(
    seconds: Annotated[float, typer.Option(min=0.2, max=15.0, help="How long traffic flows.")] = 8.0,
    loopback: Annotated[bool, typer.Option("--loopback", help="Over loopback, also as root.")] = False,
) -> None:
    """The pong server on one host, the blaster and the ping tool on the other, with the rates of both ends: first over
    OS sockets, then over AF_XDP queues."""
    console = _cli.console()
    stop: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    rows: list[tuple[str, Report]] = []
    with two_ends(loopback) as ends:
        console.print(f"fast_socket demo over {ends.where}")
        with ExitStack() as cleanup:
            try:
                for mode in ends.modes:
                    if not stop:
                        play(console, ends, mode, seconds / len(ends.modes), rows, stop, cleanup)
                if "xdp" not in ends.modes and not stop:
                    rows.append(("simulated", simulate(min(1.0, seconds / 4))))
            except ToolError:
                if not stop:  # what was stopped before it began has no report
                    raise
        console.print(closing_table(rows, ends.where))
    if stop:
        sys.exit(128 + stop[0])


def play(
    console: Console,
    ends: Hosts,
    mode: str,
    seconds: float,
    rows: list[tuple[str, Report]],
    stop: list[int],
    cleanup: ExitStack,
) -> None:
    """Run the tools and collect their reports; `cleanup` ends what is left of them."""

    def start(argv: list[str], spawn: Spawn) -> Tool:
        tool = Tool([*argv, "--json"], spawn=spawn)
        cleanup.callback(tool.kill)
        return tool

    # Bounded too, should we be killed: nothing that we started outlives the demo for long.
    bound = ["--duration-ms", str(int((seconds + GRACE) * 1000))]
    ping_ms, blast_ms = int(seconds * PING_SHARE * 1000), int(seconds * (1 - PING_SHARE) * 1000)
    pong = [*PONG_SERVER, "--device", ends.server_device, "--target", ends.target, "--mode", mode]
    pong += ["--progress", *bound]
    ping = [*OURS, "os-ping", "--dest", ends.target, "--duration-ms", str(ping_ms)]
    blast = [*BLAST, "--device", ends.client_device, "--target", ends.target, "--mode", mode]
    blast += ["--progress", "--duration-ms", str(blast_ms)]
    console.print(f"pong: {shown(pong)}", style="dim", soft_wrap=True)
    server = start(pong, ends.server)
    server.wait_ready()
    try:
        for name, argv in (("ping", ping), ("blast", blast)):
            if not stop:
                console.print(f"{name}: {shown(argv)}", style="dim", soft_wrap=True)
                tool = start(argv, ends.client)
                watch(console, name, tool, server, stop)
                rows.append((name, {**tool.stop(), "server": mode}))
    finally:
        rows.append(("pong", server.stop()))


def simulate(seconds: float) -> Report:
    """Blast and pong over a simulated device, both ends in this thread."""
    wire = fs.Wire()
    near, far = (fs.SimulatedDevice(wire, f"sim{i}", addresses=[f"192.0.2.{i}/24"]) for i in (1, 2))
    with (
        fs.XdpUdpSocket.open(near, local="192.0.2.1:7000") as client,
        fs.XdpUdpSocket.open(far, local="192.0.2.2:9000") as server,
    ):
        peer = client.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="192.0.2.2:9000"))
        tx, answers = client.tx_batch(64), client.recv_batch(64)
        rx, back = server.recv_batch(64), server.tx_batch(64)
        begun = time.perf_counter()
        while time.perf_counter() < begun + seconds:
            tx.allocate()
            tx.fill(bytes(64))
            client.send_to(peer, tx)
            server.recv(rx)
            back.take_from(rx)
            server.send(back)
            client.recv(answers)
        return {"sent": client.stats().sent, "received": client.stats().received, "seconds": seconds}


def shown(argv: list[str]) -> str:
    return " ".join(argv).replace(sys.executable, "python").replace(f"{ROOT}/", "")


def watch(console: Console, name: str, tool: Tool, server: Tool, stop: list[int]) -> None:
    """Show the rates of both ends until the tool ends or somebody says stop."""
    live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
    with live or ExitStack():
        marks: list[tuple[float, dict[str, int]]] = []
        while not tool.wait(REFRESH) and not stop:
            counters = {f"{name} {key}": value for key, value in tool.progress.items()}
            counters |= {f"pong {key}": value for key, value in server.progress.items()}
            marks = [*marks[-10:], (time.monotonic(), counters)]
            if live:
                live.update(rates(marks), refresh=True)


def rates(marks: list[tuple[float, dict[str, int]]]) -> Table:
    """Rates over the last second."""
    (then, before), (now, after) = marks[0], marks[-1]
    table = Table("counter", "total", "per second")
    for name, value in after.items():
        change = (value - before.get(name, 0)) / (now - then) if now > then else 0.0
        table.add_row(name, f"{value:,}", f"{max(change, 0):,.0f}")
    return table


def closing_table(rows: list[tuple[str, Report]], where: str) -> Table:
    def million(count: int, seconds: float) -> str:
        return f"{count / max(seconds, 1e-9) / 1e6:.2f} M/s"

    blasts = {report["mode"]: report for name, report in rows if name == "blast"}

    def describe(name: str, report: Report) -> tuple[str, ...]:
        if name == "ping":
            rtt: dict[str, Any] = report["rtt_ns"]
            result = (
                f"round trip p50 {rtt['p50'] / 1000:.1f} us, p99 {rtt['p99'] / 1000:.1f} us, lost {report['lost']:,}"
            )
            how = f"one datagram outstanding, {report['server']} server"
            return "os-ping", how, f"{report['count']:,} round trips", result
        if name == "blast":
            ran = f"os, {report['payload_len']} bytes, GSO of {report['segments']} segments, one thread"
            if report["mode"] == "xdp":
                ran = f"xdp, {report['payload_len']} bytes, {report['batch']} a batch, one thread"
            return (
                "examples/blast.py",
                ran,
                f"{report['sent']:,} sent",
                f"{million(report['sent'], report['seconds'])}, errors {report['errors']}",
            )
        if name == "simulated":
            amounts = f"{report['sent']:,} sent, {report['received']:,} came back"
            result = f"{million(report['received'], report['seconds'])} there and back"
            return "simulated AF_XDP", "both ends in one thread, 64 bytes, 64 a batch", amounts, result
        ran = f"{report['mode']}, {report['queues']} queue(s), {'GRO, ' if report['mode'] == 'os' else ''}no copies"
        amounts = f"{report['received']:,} received, {report['sent']:,} sent back"
        result = f"{report['dropped']:,} GRO buffers, of up to 128 datagrams each, dropped by the kernel"
        if report["mode"] == "xdp":
            result = f"{report['dropped']:,} datagrams found no frame or no room in the ring"
        blasted = blasts.get(report["mode"])
        if blasted:  # the pings before it are few, and were slow on purpose
            result = f"{million(report['sent'], blasted['seconds'])} back while the blast ran, {result}"
        return "examples/pong_server.py", ran, amounts, result

    table = Table("tool", "how", "datagrams", "result", title=f"What ran: {where}", title_justify="left")
    for name, report in rows:
        table.add_row(*describe(name, report))
    return table
