"""What AF_XDP from Python is measured against: C loops over libxdp, DPDK's testpmd, xdp-trafficgen; and what sends
frames through packet sockets: trafgen, scapy.

Each function runs one program on a host of a lab, pinned to that end's CPU, and returns its report: `tool`, `pps`,
`sent` or `received`, `seconds`, and what the program says beside. Where it cannot run, for it is not installed,
or the kernel or the device lacks something, it returns the reason as a string, never a number.

Senders and pings run on `ends.near`. Receivers run on `ends.far`, while the function that they are given runs, and have
its report under `peer`; a reason that it gives instead is theirs too:

    c_count(ends, lambda: c_blast(ends, 2.0))
    testpmd_rxonly(ends, lambda: c_blast(ends, 2.0))
    c_pong(ends, lambda: c_ping(ends, 2.0, wait="spin"), wait="spin")

A receiver takes everything of its queue, ARP as well: where a kernel socket is to reach it, the lab's link needs
`static_neighbors=True`, and one queue, for the kernel chooses the queue that it sends on.
"""

import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from benchmarks.figures import LIMIT, PAYLOAD_LEN, PORT, SETTLE, Ends, milliseconds
from benchmarks.machine import first_line
from benchmarks.processes import STOP_SECONDS, C, Report, Tool, ToolError
from fast_socket import lab

Result = Report | str
Peer = Callable[[], Result]
Mode = Literal["native", "generic"]
Wait = Literal["poll", "spin"]

SOURCE_PORT = 7000
HEADERS = 42  # Ethernet, IPv4, UDP
PROMPT_SECONDS = 10.0
# Enough for the rings of one queue; testpmd's own choice for two CPUs takes more than 256 MiB without huge pages.
TESTPMD_MBUFS, TESTPMD_MEGABYTES = 16384, 256
# A device that takes nothing from xdp-trafficgen is not waited for any longer.
START_SECONDS = 3.0
REMOVED_TRACEPOINT = "xdp_redirect_map_err"
TRAFGEN_PPS = 400_000  # about what it reaches over veth


def versions() -> dict[str, str]:
    """Of what the peers are made of; "absent" without it."""
    return {
        "libxdp": first_line("pkg-config", "--modversion", "libxdp") or "absent",
        "DPDK": first_line("pkg-config", "--modversion", "libdpdk") or "absent",
        "xdp-tools": first_line("xdp-trafficgen", "udp", "--version"),
    }


# ---- why one cannot run ----


def c_unavailable() -> str | None:
    if (C / "xdp_blast").exists():
        return None
    return "the C loops over AF_XDP are not built (apt-get install libxdp-dev; make -C benchmarks/reference xdp)"


def testpmd_unavailable() -> str | None:
    return None if shutil.which("dpdk-testpmd") else "dpdk-testpmd is not installed (apt-get install dpdk-dev)"


def trafficgen_unavailable() -> str | None:
    return None if shutil.which("xdp-trafficgen") else "xdp-trafficgen is not installed (apt-get install xdp-tools)"


def reason(error: ToolError) -> str:
    """What became of the program, and its last words, without the whole command."""
    command, *words = filter(None, map(str.strip, str(error).splitlines()))
    return ": ".join(filter(None, (command.rpartition(": ")[2], "; ".join(words[-3:]))))


# ---- C over libxdp ----


def xdp_options(host: lab.Host, mode: Mode, queue: int, batch: int) -> list[str]:
    return ["--iface", host.interface.name, "--mode", mode, "--queue", str(queue), "--batch", str(batch)]


def flow_options(ends: Ends) -> list[str]:
    """Frames from the near end's device to the far end's."""
    near, far = ends.near.interface, ends.far.interface
    return [
        "--source-mac", near.mac, "--dest-mac", far.mac, "--source", f"{near.ipv4}:{SOURCE_PORT}",
        "--dest", ends.target, "--payload-len", str(PAYLOAD_LEN),
    ]  # fmt: skip


def c_sender(ends: Ends, seconds: float, argv: list[str]) -> Result:
    if missing := c_unavailable():
        return missing
    try:
        return ends.sender([*argv, *flow_options(ends), *milliseconds(seconds)]).report(seconds + LIMIT)
    except ToolError as error:
        return reason(error)


def c_receiver(ends: Ends, argv: list[str], peer: Peer) -> Result:
    if missing := c_unavailable():
        return missing
    try:
        receiver = ends.receiver([*argv, "--bind", ends.target])
    except ToolError as error:
        return reason(error)
    try:
        theirs = peer()
        time.sleep(SETTLE)
        report = receiver.stop()
    except ToolError as error:
        return reason(error)
    finally:
        # Killed at once it would leave libxdp's program on the device.
        receiver.signal(signal.SIGTERM)
        receiver.wait(STOP_SECONDS)
        receiver.kill()
    return theirs if isinstance(theirs, str) else report | {"peer": theirs}


def c_blast(
    ends: Ends,
    seconds: float,
    *,
    mode: Mode = "native",
    queue: int = 0,
    batch: int = 64,
    count: int | None = None,
    tx_budget: int | None = None,
) -> Result:
    """Prepared frames, as fast as the kernel takes them. `tx_budget`: XDP_MAX_TX_SKB_BUDGET, not the kernel's 32."""
    argv = [str(C / "xdp_blast"), *xdp_options(ends.near, mode, queue, batch)]
    argv += ["--count", str(count)] if count else []
    argv += ["--tx-budget", str(tx_budget)] if tx_budget else []
    return c_sender(ends, seconds, argv)


def c_count(
    ends: Ends,
    peer: Peer,
    *,
    mode: Mode = "native",
    wait: Wait = "spin",
    queue: int = 0,
    batch: int = 64,
    limit: float = 2 * LIMIT,
) -> Result:
    """Count what arrives while `peer` runs, at most `limit` seconds."""
    options = xdp_options(ends.far, mode, queue, batch)
    return c_receiver(ends, [str(C / "xdp_count"), *options, "--wait", wait, *milliseconds(limit)], peer)


def c_ping(
    ends: Ends,
    seconds: float,
    *,
    mode: Mode = "native",
    wait: Wait = "poll",
    queue: int = 0,
    count: int | None = None,
) -> Result:
    """Round trips of single datagrams: `rtt_ns`, `count`, `lost`."""
    argv = [str(C / "xdp_ping"), *xdp_options(ends.near, mode, queue, 64), "--wait", wait]
    return c_sender(ends, seconds, [*argv, *(["--count", str(count)] if count else [])])


def c_pong(
    ends: Ends,
    peer: Peer,
    *,
    mode: Mode = "native",
    wait: Wait = "poll",
    queue: int = 0,
    batch: int = 64,
    limit: float = 2 * LIMIT,
) -> Result:
    """Send back what arrives while `peer` runs, at most `limit` seconds."""
    options = xdp_options(ends.far, mode, queue, batch)
    return c_receiver(ends, [str(C / "xdp_pong"), *options, "--wait", wait, *milliseconds(limit)], peer)


# ---- testpmd ----


class Testpmd:
    """testpmd on one AF_XDP queue, or on a packet socket, forwarding since it was made: its counters, and its end.

    One lcore reads the commands and sleeps, the other forwards; both are pinned to the one CPU.
    """

    def __init__(self, host: lab.Host, cpu: int, forward: str, device: str, *options: str):
        eal = ["--no-huge", "--no-shconf", "--no-telemetry", "--no-pci", "-m", str(TESTPMD_MEGABYTES)]
        # Without stdbuf its answers would wait in a buffer of 4 KiB.
        self.tool = Tool(
            [
                "stdbuf", "-oL", "dpdk-testpmd", *eal, "--lcores", f"0@{cpu},1@{cpu}", "--vdev", device,
                "--", "-i", "--auto-start", f"--total-num-mbufs={TESTPMD_MBUFS}", f"--forward-mode={forward}", *options,
            ],
            spawn=host.popen,
            cpu=cpu,
            ready=("Start automatic packet forwarding",),
            prompt=True,
        ).wait_ready()  # fmt: skip

    def counters(self) -> Report:
        """Its port's, with the time and the CPU time of this moment."""
        seen = len(self.tool.lines)
        self.tool.say("show port stats 0")
        deadline = time.monotonic() + PROMPT_SECONDS
        while not any(re.fullmatch(r"\s*#+\s*", line) for line in self.tool.lines[seen:]):
            if not self.tool.running or time.monotonic() > deadline:
                self.tool.kill()
                raise self.tool.error("did not show its statistics")
            time.sleep(0.001)
        found = re.findall(r"([RT]X-\w+):\s+(\d+)", "\n".join(self.tool.lines[seen:]))
        return {"at": time.monotonic(), **cpu_times(self.tool.pid), **{key: int(value) for key, value in found}}

    def quit(self) -> None:
        self.tool.say("stop")
        self.tool.say("quit")
        self.tool.output(PROMPT_SECONDS)


def cpu_times(pid: int) -> dict[str, float]:
    """Of a process with all its threads. User and system come in ticks, mostly of 10 ms; the sum is exact."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    running = sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return {
        "user_seconds": int(fields[11]) / ticks,
        "system_seconds": int(fields[12]) / ticks,
        "cpu_seconds": running / 1e9,
    }


def difference(before: Report, after: Report) -> Report:
    return {key: round(after[key] - value, 6) for key, value in before.items()}


def xdp_device(host: lab.Host, queue: int, busy_budget: int | None) -> str:
    device = f"net_af_xdp0,iface={host.interface.name},start_queue={queue},queue_count=1"
    return device if busy_budget is None else f"{device},busy_budget={busy_budget}"


CPU_KEYS = ("user_seconds", "system_seconds", "cpu_seconds")


def testpmd_txonly(
    ends: Ends,
    seconds: float,
    *,
    queue: int = 0,
    burst: int = 64,
    busy_budget: int | None = None,
    packet_socket: bool = False,
) -> Result:
    """One flow of equal datagrams from testpmd over net_af_xdp, which has an RX queue and an XDP program too; or, with
    `packet_socket`, over net_af_packet.

    `sent` and `pps` are of `seconds` within its run; `total` is of the whole run, which is a little longer.
    `busy_budget=0` switches the driver's busy polling off, None leaves it at the driver's default, 64.
    """
    if missing := testpmd_unavailable():
        return missing
    near = ends.near.interface
    try:
        testpmd = Testpmd(
            ends.near, ends.near_cpu, "txonly",
            f"net_af_packet0,iface={near.name}" if packet_socket else xdp_device(ends.near, queue, busy_budget),
            f"--burst={burst}", f"--txpkts={HEADERS + PAYLOAD_LEN}", f"--tx-ip={near.ipv4},{ends.address}",
            f"--tx-udp={SOURCE_PORT},{PORT}", f"--eth-peer=0,{ends.far.interface.mac}",
        )  # fmt: skip
    except ToolError as error:
        return reason(error)
    try:
        before = testpmd.counters()
        time.sleep(seconds)
        taken = difference(before, testpmd.counters())
        testpmd.tool.say("stop")
        total = testpmd.counters()["TX-packets"]
        testpmd.quit()
    except ToolError as error:
        return reason(error)
    finally:
        testpmd.tool.kill()
    return {
        "tool": "dpdk-testpmd",
        "mode": "txonly",
        "sent": int(taken["TX-packets"]),
        "seconds": taken["at"],
        "pps": taken["TX-packets"] / taken["at"],
        "dropped": int(taken["TX-errors"]),
        "total": total,
        "burst": burst,
        "payload_len": PAYLOAD_LEN,
        **{key: taken[key] for key in CPU_KEYS},
    }


def testpmd_rxonly(
    ends: Ends, peer: Peer, *, queue: int = 0, burst: int = 64, busy_budget: int | None = None
) -> Result:
    """Receive with testpmd over net_af_xdp while `peer` runs; the time is the peer's. Options as testpmd_txonly's.

    It counts every packet of the queue. `dropped` is its `RX-missed`, which is the kernel's `rx_dropped`: what found no
    chunk, and not what found the RX ring full.
    """
    if missing := testpmd_unavailable():
        return missing
    try:
        testpmd = Testpmd(
            ends.far, ends.far_cpu, "rxonly", xdp_device(ends.far, queue, busy_budget), f"--burst={burst}"
        )
    except ToolError as error:
        return reason(error)
    try:
        before = testpmd.counters()
        theirs = peer()
        time.sleep(SETTLE)
        taken = difference(before, testpmd.counters())
        testpmd.quit()
    except ToolError as error:
        return reason(error)
    finally:
        testpmd.tool.kill()
    if isinstance(theirs, str):
        return theirs
    return {
        "tool": "dpdk-testpmd",
        "mode": "rxonly",
        "received": int(taken["RX-packets"]),
        "seconds": theirs["seconds"],
        "pps": taken["RX-packets"] / theirs["seconds"],
        "dropped": int(taken["RX-missed"]),
        "burst": burst,
        **{key: taken[key] for key in CPU_KEYS},
        "peer": theirs,
    }


# ---- xdp-trafficgen ----


def trafficgen_udp(ends: Ends, seconds: float) -> Result:
    """xdp-trafficgen, of xdp-tools: the kernel makes the packets and redirects them to the device, in the live-frames
    mode of BPF_PROG_RUN (Linux 5.18). No user space touches a packet: this is a limit of the device, not of AF_XDP.

    It sends IPv6, which c_count counts as `other`, and needs the far end of a veth to have an XDP program or GRO.
    `sent` is the device's own counter.
    """
    if missing := trafficgen_unavailable():
        return missing
    near, far = ends.near.interface, ends.far.interface
    argv = [
        "xdp-trafficgen", "udp", "--dst-mac", far.mac, "--src-mac", near.mac, "--dst-addr", str(far.ipv6),
        "--src-addr", str(near.ipv6), "--dst-port", str(PORT), "--src-port", str(SOURCE_PORT), near.name,
    ]  # fmt: skip
    tool = ends.sender(argv)
    try:
        report = timed_by_device(ends, tool, seconds)
        # Its status is 1 also when all went well.
        tool.signal(signal.SIGINT)
        tool.wait(STOP_SECONDS)
    except ToolError as error:
        return without_tracepoint(error)
    finally:
        tool.kill()
    if isinstance(report, str):
        return f"xdp-trafficgen {report} (over veth the far end needs an XDP program or GRO)"
    return {"tool": "xdp-trafficgen", "mode": "udp", **report}


def without_tracepoint(error: ToolError) -> str:
    """Why a program of xdp-tools did not start."""
    if REMOVED_TRACEPOINT in str(error):
        return (
            f"xdp-tools ({versions()['xdp-tools']}) wants the tracepoint {REMOVED_TRACEPOINT}, which this kernel no "
            "longer has (xdp-tools does without since its pull request 513, of June 2025)"
        )
    return reason(error)


def timed_by_device(ends: Ends, tool: Tool, seconds: float) -> Result:
    """What the near device sends within so many seconds of a sender that tells no rate of its own."""
    counter = Path(f"/sys/class/net/{ends.near.interface.name}/statistics/tx_packets")

    def sent() -> int:
        return int(ends.near.run(counter.read_text))

    first, begun = sent(), time.monotonic()
    # Until it begins is not of its rate. What is a start, and no stray: a thousand packets.
    while sent() < first + 1000:
        if not tool.running:
            tool.output(STOP_SECONDS)
            raise tool.error("ended by itself")
        if time.monotonic() > begun + START_SECONDS:
            return "sends nothing"
        time.sleep(0.005)
    before, cpu_before = (sent(), time.monotonic()), cpu_times(tool.pid)
    time.sleep(seconds)
    after, cpu_after = (sent(), time.monotonic()), cpu_times(tool.pid)
    taken, passed = after[0] - before[0], after[1] - before[1]
    return {"sent": taken, "seconds": passed, "pps": taken / passed, **difference(cpu_before, cpu_after)}


# ---- xdp-bench ----


def bench_drop(ends: Ends, peer: Peer) -> Result:
    """xdp-bench, of xdp-tools: an XDP program counts and drops what arrives while `peer` runs. No user space sees a
    packet: this is a limit of the device."""
    if not shutil.which("xdp-bench"):
        return "xdp-bench is not installed (apt-get install xdp-tools)"
    argv = ["stdbuf", "-oL", "xdp-bench", "drop", ends.far.interface.name]
    try:
        tool = Tool(argv, spawn=ends.far.popen, cpu=ends.far_cpu, ready=("Dropping",)).wait_ready()
    except ToolError as error:
        return without_tracepoint(error)
    try:
        theirs = peer()
        time.sleep(SETTLE)
        tool.signal(signal.SIGINT)
        tool.wait(STOP_SECONDS)
    finally:
        tool.kill()
    found = re.search(r"Packets received\s*:\s*([\d,]+)", "\n".join(tool.lines))
    if isinstance(theirs, str):
        return theirs
    if not found:
        return "xdp-bench says nothing of what it received"
    received = int(found[1].replace(",", ""))
    return {"tool": "xdp-bench", "mode": "drop", "received": received, "seconds": theirs["seconds"],
            "pps": received / theirs["seconds"], "dropped": 0, "peer": theirs}  # fmt: skip


# ---- packet sockets: trafgen, scapy ----


TRAFGEN = """{{
  eth(daddr={far.mac}, saddr={near.mac}), ipv4(saddr={near.ipv4}, daddr={far.ipv4}),
  udp(sport={sport}, dport={dport}, csum=0), fill(0x00, {payload_len})
}}
"""


def trafgen(ends: Ends, seconds: float) -> Result:
    """netsniff-ng's generator: equal frames through the mapped TX ring of a packet socket, from one child process. It
    is given a count: ended early, the child would go on."""
    if not shutil.which("trafgen"):
        return "trafgen is not installed (apt-get install netsniff-ng)"
    with tempfile.NamedTemporaryFile("w", prefix="fast-socket-trafgen-", suffix=".cfg") as config:
        config.write(
            TRAFGEN.format(
                near=ends.near.interface, far=ends.far.interface, sport=SOURCE_PORT, dport=PORT, payload_len=PAYLOAD_LEN
            )
        )
        config.flush()
        argv = [
            "trafgen", "--dev", ends.near.interface.name, "--conf", config.name, "--cpus", "1",
            "--num", str(max(1, round(TRAFGEN_PPS * seconds))), "--notouch-irq", "--no-sock-mem",
        ]  # fmt: skip
        try:
            output = ends.sender(argv).output(10 * seconds + LIMIT)
        except ToolError as error:
            return reason(error)
    found = re.search(r"(\d+) sec, (\d+) usec on CPU\d+ \((\d+) packets\)", output)
    if not found:
        return "trafgen says nothing of what it sent"
    sent, taken = int(found[3]), int(found[1]) + int(found[2]) / 1e6
    return {"tool": "trafgen", "mode": "blast", "sent": sent, "seconds": taken, "pps": sent / taken}


def scapy_blast(ends: Ends, seconds: float, *, how: Literal["sendp", "sendpfast"] = "sendp") -> Result:
    """Scapy's own ways to send frames; the second has tcpreplay send."""
    if importlib.util.find_spec("scapy") is None:
        return "scapy is not installed (pip install scapy)"
    if how == "sendpfast" and not shutil.which("tcpreplay"):
        return "tcpreplay is not installed (apt-get install tcpreplay)"
    argv = [sys.executable, "-m", "benchmarks.scapy_blast", "--iface", ends.near.interface.name, "--how", how]
    try:
        return ends.sender([*argv, *flow_options(ends), *milliseconds(seconds)]).report(seconds + LIMIT)
    except ToolError as error:
        return reason(error)
