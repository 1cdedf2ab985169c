"""The comparisons of AF_XDP: our tools, C loops over libxdp, dpdk-testpmd. Copy mode over veth, native XDP."""

from collections.abc import Callable

from benchmarks import xdp_peers
from benchmarks.figures import LIMIT, PAYLOAD_LEN, Ends, Figure, Measure, Sample, milliseconds
from benchmarks.processes import BLAST, OURS, Report, ToolError

Run = Callable[[Ends, float], Report | str]


def checked(result: Report | str) -> Report:
    """A peer that could not run says why."""
    if isinstance(result, str):
        raise ToolError(result)
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


def received_by(run: Callable[[Ends, Callable[[], Report | str]], Report | str]) -> Measure:
    """Packets a second into a receiver, or sent back by it, while a C loop sends."""

    def measure(ends: Ends, seconds: float) -> Sample:
        report = checked(run(ends, lambda: xdp_peers.c_blast(ends, seconds)))
        count = report.get("sent", report["received"])
        sent = report["peer"]
        return Sample(count / sent["seconds"], {"sent": sent["sent"], "received": report["received"], "counted": count})

    return measure


def round_trip(percentile: str, wait: xdp_peers.Wait, *, ours: bool) -> Measure:
    """Nanoseconds, one datagram outstanding, the same kind of tool at both ends."""

    def measure(ends: Ends, seconds: float) -> Sample:
        if ours:
            argv = [*OURS, "xdp-ping", "--device", ends.near.interface.name, "--dest", ends.target, "--wait", wait]
            argv += ["--payload-len", str(PAYLOAD_LEN), "--json", *milliseconds(seconds)]
            report = our_receiver(ends, "xdp-pong", wait, lambda: ends.sender(argv).report(seconds + LIMIT))["peer"]
        else:
            pong = xdp_peers.c_pong(ends, lambda: xdp_peers.c_ping(ends, seconds, wait=wait), wait=wait)
            report = checked(pong)["peer"]
        return Sample(report["rtt_ns"][percentile], {**report["rtt_ns"], "count": report["count"]})

    return measure


def bounce(wait: xdp_peers.Wait, percentile: str) -> Figure:
    return Figure(
        f"xdp-ping-{wait}-{percentile}",
        f"AF_XDP: round trip, both ends {'sleeping in poll' if wait == 'poll' else 'spinning'} ({percentile})",
        "us",
        {
            "fast_socket": round_trip(percentile, wait, ours=True),
            "C loop": round_trip(percentile, wait, ours=False),
        },
        targets={"C loop": 1.05},
        less_is_better=True,
        scale=1e-3,
    )


XDP_FIGURES = (
    Figure(
        "xdp-blast",
        "AF_XDP: sending, headers written for every packet (C and testpmd send prepared frames)",
        "M packets/s",
        {
            "fast_socket": sent_by(our_blast),
            "C loop": sent_by(xdp_peers.c_blast),
            "dpdk-testpmd txonly": sent_by(xdp_peers.testpmd_txonly),
        },
        targets={"C loop": 1.0, "dpdk-testpmd txonly": 1.0},
        scale=1e-6,
    ),
    Figure(
        "xdp-count",
        "AF_XDP: receiving and counting, with sources (C looks at ports), while a C loop sends",
        "M packets/s",
        {
            "fast_socket": received_by(lambda ends, sender: our_receiver(ends, "xdp-count", "spin", sender)),
            "C loop": received_by(xdp_peers.c_count),
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
    bounce("poll", "p50"),
    bounce("poll", "p99"),
    bounce("spin", "p50"),
    bounce("spin", "p99"),
)
