"""The comparisons of asyncio endpoints: the same protocol over asyncio's own, uvloop's and ours."""

import importlib.util
import sys

from benchmarks.figures import LIMIT, PAYLOAD_LEN, Absent, Ends, Figure, Measure, Sample, bouncing, milliseconds
from benchmarks.processes import OURS

QUIC = [sys.executable, "-m", "benchmarks.aio_quic"]


def server(ends: Ends, endpoint: str, loop: str) -> list[str]:
    if loop == "uvloop" and not importlib.util.find_spec("uvloop"):
        raise Absent("uvloop is not installed (pip install uvloop)")
    return [*OURS, "aio-echo", "--bind", ends.target, "--endpoint", endpoint, "--loop", loop, "--json"]


def echoing(endpoint: str, loop: str) -> Measure:
    """Datagrams a second that come back, while our sender floods with GSO."""

    def measure(ends: Ends, seconds: float) -> Sample:
        receiver = ends.receiver([*server(ends, endpoint, loop), *milliseconds(seconds + LIMIT)])
        flood = [*OURS, "os-sender", "blast", "--dest", ends.target, "--payload-len", str(PAYLOAD_LEN), "--json"]
        sent = ends.sender([*flood, *milliseconds(seconds)]).report(seconds + LIMIT)
        report = receiver.stop()
        return Sample(report["pps"], {"sent": sent["sent"], "echoed": report["received"]})

    return measure


def round_trip(endpoint: str, loop: str) -> Measure:
    return bouncing(
        lambda ends: server(ends, endpoint, loop),
        lambda ends: [*OURS, "os-ping", "--dest", ends.target, "--json", "--payload-len", str(PAYLOAD_LEN)],
    )


def download(endpoint: str, loop: str) -> Measure:
    """Bytes a second of an HTTP/3 download, aioquic at both ends, over the same kind of endpoint."""

    def measure(ends: Ends, seconds: float) -> Sample:
        if not importlib.util.find_spec("aioquic"):
            raise Absent("aioquic is not installed (pip install aioquic)")
        kind = ["--endpoint", endpoint, "--loop", loop, "--json", *milliseconds(seconds + LIMIT)]
        server = ends.receiver([*QUIC, "--bind", ends.target, *kind])
        size = str(max(int(10 * seconds), 1))  # megabytes, of which aioquic moves some 10 a second
        get = ends.sender([*QUIC, "--dest", ends.target, "--megabytes", size, *kind])
        report = get.report(seconds + LIMIT)
        server.stop()
        return Sample(report["rate"], {"bytes": report["bytes"]})

    return measure


AIO_FIGURES = (
    Figure(
        "aio-echo",
        "asyncio: echo from a plain DatagramProtocol",
        "k datagrams/s",
        {
            "fast_socket": echoing("fast_socket", "asyncio"),
            "asyncio": echoing("asyncio", "asyncio"),
            "uvloop": echoing("asyncio", "uvloop"),
        },
        targets={"asyncio": 6.0, "uvloop": 1.5},
        scale=1e-3,
        note="A flood with GSO: what a server has no time for is dropped by the kernel.",
    ),
    Figure(
        "aio-echo-batches",
        "asyncio: echo from the batch callback",
        "k datagrams/s",
        {"fast_socket": echoing("batches", "asyncio"), "uvloop": echoing("asyncio", "uvloop")},
        targets={"uvloop": 2.5},
        scale=1e-3,
    ),
    Figure(
        "aio-ping",
        "asyncio: round trip of one datagram to an echoing protocol (median)",
        "us",
        {"fast_socket": round_trip("fast_socket", "asyncio"), "asyncio": round_trip("asyncio", "asyncio")},
        targets={"asyncio": 1.0},
        less_is_better=True,
        scale=1e-3,
    ),
    Figure(
        "aio-quic",
        "asyncio: HTTP/3 download by aioquic",
        "MB/s",
        {"fast_socket": download("fast_socket", "asyncio"), "asyncio": download("asyncio", "asyncio")},
        targets={"asyncio": 1.3},
        scale=1e-6,
        note="Both ends over the same kind of endpoint, on the standard loop; no loss but the kernel's.",
    ),
)
