"""The comparisons of AF_XDP: our tools, C loops over libxdp, dpdk-testpmd. Copy mode over veth, native XDP."""

from collections.abc import Callable
from functools import partial

from benchmarks import xdp_peers
from benchmarks.figures import LIMIT, PAYLOAD_LEN, Absent, Ends, Figure, Measure, Sample, milliseconds, of_round_trips
from benchmarks.processes import BLAST, OURS, Report
from fast_socket import lab

Run = Callable[[Ends, float], Report | str]


def checked(result: Report | str) -> Report:
    """A peer that could not run says why."""
    if isinstance(result, str):
        raise Absent(result)
    return result


def our_blast(ends: Ends, seconds: float) -> Report:
    device = ends.near.interface.name
    argv = [*BLAST, "--mode", "xdp", "--device", device, "--target", ends.target]
    argv += ["--payload-len", str(PAYLOAD_LEN), "--json", *milliseconds(seconds)]
    return ends.sender(argv).report(seconds + LIMIT)


def our_receiver(ends: Ends, tool: str, wait: str, sender: Callable[[], Report | str]) -> Report:
    argv = [*OURS, tool, "--device", ends.far.interface.name, "--bind", ends.target, "--wait", wait, "--json"]
    receiver = ends.receiver([*argv, *milliseconds(LIMIT)])
    sent = checked(sender())
    return {**receiver.stop(), "peer": sent}


def sent_by(run: Run) -> Measure:
    """Packets a second out of a sender, while a C loop receives."""

    def measure(ends: Ends, seconds: float) -> Sample:
        received = checked(xdp_peers.c_count(ends, lambda: run(ends, seconds)))
        sent = received["peer"]
        details = {"sent": sent.get("sent"), "received": received["received"],
                   "lost": received["rx_dropped"] + received["ring_full"]}  # fmt: skip
        return Sample(sent["pps"], details)

    return measure


def apart(measure: Measure) -> Measure:
    """In a lab of its own, for a contender that takes the device down when it ends, and the neighbours with it."""

    def inside(ends: Ends, seconds: float) -> Sample:
        with lab.two_hosts(static_neighbors=True) as (near, far):
            return measure(Ends(near, far, str(far.interface.ipv4), ends.near_cpu, ends.far_cpu), seconds)

    return inside


def received_by(run: Callable[[Ends, Callable[[], Report | str]], Report | str]) -> Measure:
    """Packets a second into a receiver, or sent back by it, while a C loop sends."""

    def measure(ends: Ends, seconds: float) -> Sample:
        report = checked(run(ends, lambda: xdp_peers.c_blast(ends, seconds)))
        count = report.get("sent", report["received"])
        sent = report["peer"]
        return Sample(count / sent["seconds"], {"sent": sent["sent"], "received": report["received"], "counted": count})

    return measure


def round_trip(wait: xdp_peers.Wait, *, ours: bool) -> Measure:
    """Nanoseconds, one datagram outstanding, the same kind of tool at both ends."""

    def measure(ends: Ends, seconds: float) -> Sample:
        if ours:
            argv = [*OURS, "xdp-ping", "--device", ends.near.interface.name, "--dest", ends.target, "--wait", wait]
            argv += ["--payload-len", str(PAYLOAD_LEN), "--json", *milliseconds(seconds)]
            report = our_receiver(ends, "xdp-pong", wait, lambda: ends.sender(argv).report(seconds + LIMIT))["peer"]
        else:
            pong = xdp_peers.c_pong(ends, lambda: xdp_peers.c_ping(ends, seconds, wait=wait), wait=wait)
            report = checked(pong)["peer"]
        return of_round_trips(report, "p50")

    return measure


def bounces(wait: xdp_peers.Wait) -> tuple[Figure, Figure]:
    """The median, and of the same runs the 99th percentile."""
    key = f"xdp-ping-{wait}"
    title = f"AF_XDP: round trip, both ends {'sleeping in poll' if wait == 'poll' else 'spinning'}"
    contenders = {"fast_socket": round_trip(wait, ours=True), "C loop": round_trip(wait, ours=False)}
    targets = {"C loop": 1.05}
    return (
        Figure(f"{key}-p50", f"{title} (p50)", "us", contenders, targets, less_is_better=True, scale=1e-3),
        Figure(
            f"{key}-p99", f"{title} (p99)", "us", contenders, targets, less_is_better=True, scale=1e-3,
            part_of=(f"{key}-p50", "p99"),
        ),
    )  # fmt: skip


XDP_FIGURES = (
    Figure(
        "xdp-blast",
        "AF_XDP: sending, headers written for every packet (C and testpmd send prepared frames)",
        "M packets/s",
        {
            "fast_socket": sent_by(our_blast),
            "C loop": sent_by(xdp_peers.c_blast),
            "dpdk-testpmd txonly": sent_by(xdp_peers.testpmd_txonly),
            "dpdk-testpmd txonly, net_af_packet": apart(sent_by(partial(xdp_peers.testpmd_txonly, packet_socket=True))),
            "trafgen": sent_by(xdp_peers.trafgen),
            "scapy sendp": sent_by(xdp_peers.scapy_blast),
            "scapy sendpfast (tcpreplay)": sent_by(partial(xdp_peers.scapy_blast, how="sendpfast")),
            "xdp-trafficgen": sent_by(xdp_peers.trafficgen_udp),
        },
        targets={"C loop": 1.0, "dpdk-testpmd txonly": 1.0},
        scale=1e-6,
        note="The last five send through packet sockets or from within the kernel.",
    ),
    Figure(
        "xdp-count",
        "AF_XDP: receiving and counting, with sources (C looks at ports), while a C loop sends",
        "M packets/s",
        {
            "fast_socket": received_by(lambda ends, sender: our_receiver(ends, "xdp-count", "spin", sender)),
            "C loop": received_by(xdp_peers.c_count),
            "dpdk-testpmd rxonly": received_by(xdp_peers.testpmd_rxonly),
            "xdp-bench drop": received_by(xdp_peers.bench_drop),
        },
        targets={"C loop": 1.0},
        scale=1e-6,
        note="The sender is the slower end where as many are received as were sent.",
    ),
    Figure(
        "xdp-pong",
        "AF_XDP: sending everything back, while a C loop sends",
        "M packets/s sent back",
        {
            "fast_socket": received_by(lambda ends, sender: our_receiver(ends, "xdp-pong", "spin", sender)),
            "C loop": received_by(lambda ends, sender: xdp_peers.c_pong(ends, sender, wait="spin")),
        },
        targets={"C loop": 1.0},
        scale=1e-6,
    ),
    *bounces("poll"),
    *bounces("spin"),
)
