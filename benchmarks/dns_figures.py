"""The comparison of handlers: DNS queries answered by a compiled one, and by one written in plain Python."""

import importlib.util
import sys

from benchmarks.figures import LIMIT, Absent, Ends, Figure, Measure, Sample, milliseconds
from benchmarks.processes import OURS, ROOT

RESPONDER = [sys.executable, str(ROOT / "examples" / "dns_responder.py")]
#: Id 1, one question: www.example.com, A, IN.
QUERY = bytes.fromhex("0001 0100 0001 0000 0000 0000") + b"\3www\7example\3com\0" + bytes.fromhex("0001 0001")


def answering(handler: str) -> Measure:
    """Answers a second, while our sender floods with one query, cut from large sends."""

    def measure(ends: Ends, seconds: float) -> Sample:
        if handler == "compiled" and not importlib.util.find_spec("numba"):
            raise Absent("numba is not installed (pip install 'fast-socket[numba]')")
        argv = [
            *RESPONDER,
            "--device",
            ends.far.interface.name,
            "--target",
            ends.target,
            "--handler",
            handler,
            "--json",
        ]
        argv += ["--record", "www.example.com=192.0.2.80", *milliseconds(seconds + LIMIT)]
        responder = ends.receiver(argv)
        flood = [*OURS, "os-sender", "blast", "--dest", ends.target, "--payload-hex", QUERY.hex(), "--json"]
        sent = ends.sender([*flood, *milliseconds(seconds)]).report(seconds + LIMIT)
        report = responder.stop()
        return Sample(report["pps"], {"sent": sent["sent"], "answered": report["sent"], "refused": report["errors"]})

    return measure


DNS_FIGURES = (
    Figure(
        "dns",
        "DNS answers by a compiled handler, and by one in plain Python",
        "k answers/s",
        {"fast_socket": answering("compiled"), "handler in Python": answering("python")},
        scale=1e-3,
        note="examples/dns_responder.py over OS sockets: receiving and sending each answer is most of the work. What "
        "the handlers take of it alone is in the table of API shapes.",
    ),
)
