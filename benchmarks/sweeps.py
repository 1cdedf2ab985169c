"""Series of runs along one axis: batch sizes, payload sizes, ways to wait. What a `Figure` is for one point."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks import xdp_peers
from benchmarks.figures import (
    LIMIT,
    SETTLE,
    Ends,
    Measure,
    Sample,
    c_blast,
    milliseconds,
    our_blast,
    sending,
)
from benchmarks.processes import BLAST, OURS, PLAIN
from benchmarks.waiting import Policy
from benchmarks.xdp_figures import sent_by


@dataclass(frozen=True)
class Sweep:
    """`lines`: for each contender how a point is measured."""

    key: str
    title: str
    axis: str
    unit: str
    points: tuple[int | str, ...]
    lines: Mapping[str, Callable[[int | str], Measure]]
    scale: float = 1e-6
    note: str = ""


def ours_by_batch(batch: int | str) -> Measure:
    return sending(lambda ends: our_blast(ends, "--no-gso", "--batch", str(batch)), alone=True)


def c_by_batch(batch: int | str) -> Measure:
    return sending(lambda ends: c_blast(ends, "sendmmsg", "--batch", str(batch)), alone=True)


def ours_by_payload(size: int | str) -> Measure:
    return sending(lambda ends: our_blast(ends, "--payload-len", str(size)))


def c_by_payload(size: int | str) -> Measure:
    return sending(lambda ends: c_blast(ends, "gso", "--payload-len", str(size)))


def socket_by_payload(size: int | str) -> Measure:
    return sending(lambda ends: [*PLAIN, "blast", "--dest", ends.target, "--payload-len", str(size)])


def xdp_by_batch(batch: int | str) -> Measure:
    def run(ends: Ends, seconds: float) -> xdp_peers.Result:
        argv = [*BLAST, "--mode", "xdp", "--device", ends.near.interface.name, "--target", ends.target]
        argv += ["--payload-len", "64", "--batch", str(batch), "--json", *milliseconds(seconds)]
        return ends.sender(argv).report(seconds + LIMIT)

    return sent_by(run)


def c_xdp_by_batch(batch: int | str) -> Measure:
    return sent_by(lambda ends, seconds: xdp_peers.c_blast(ends, seconds, batch=int(batch)))


def waiting(policy: int | str) -> Measure:
    """Datagrams a receive, while a C loop sends 64 a call; beside it the receiver's CPU time for each."""

    def measure(ends: Ends, seconds: float) -> Sample:
        argv = [*OURS, "waiting", "--bind", ends.target, "--policy", str(policy), "--json"]
        receiver = ends.receiver([*argv, *milliseconds(seconds + LIMIT)])
        ends.sender([*c_blast(ends, "sendmmsg"), *milliseconds(seconds)]).report(seconds + LIMIT)
        time.sleep(SETTLE)
        report = receiver.stop()
        details = {key: report[key] for key in ("cpu_ns", "received", "dropped")}
        return Sample(report["mean_batch"], {**details, "M datagrams/s": report["pps"] / 1e6})

    return measure


SWEEPS = (
    Sweep(
        "by-batch",
        "Sending without GSO, by datagrams a call",
        "datagrams a call",
        "M datagrams/s",
        (1, 4, 16, 64, 256),
        {"fast_socket": ours_by_batch, "C loop, sendmmsg": c_by_batch},
        note="The receiver is stopped, as with --only sendmmsg-alone.",
    ),
    Sweep(
        "by-payload",
        "Sending with GSO, by payload size",
        "bytes of payload",
        "M datagrams/s",
        (16, 64, 256, 640, 1472),
        {"fast_socket": ours_by_payload, "C loop, GSO": c_by_payload, "Python socket.send": socket_by_payload},
    ),
    Sweep(
        "xdp-by-batch",
        "AF_XDP: sending, by packets a call",
        "packets a call",
        "M packets/s",
        (1, 4, 16, 64, 256),
        {"fast_socket": xdp_by_batch, "C loop": c_xdp_by_batch},
    ),
    Sweep(
        "by-waiting",
        "Datagrams a receive finds, by the way of waiting",
        "policy",
        "datagrams a receive",
        tuple(policy.value for policy in Policy),
        {"fast_socket": waiting},
        scale=1.0,
        note="While a C loop sends 64 datagrams a call. Gathering holds a wake-up back where the receive before it "
        "found less than half a batch; in the kernel a pause of 20 us is up to 70 (docs/src/polling.md).",
    ),
)
