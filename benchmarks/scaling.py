"""Workers: the same work by two workers on two cores and by one worker on one, over a device of two queues.

Both ends are on this machine, so that a core has a sender's worker and a listener's. Each queue's packets stay on one
core all the way.
"""

from benchmarks.figures import LIMIT, PAYLOAD_LEN, Ends, Figure, Measure, Sample, milliseconds
from benchmarks.processes import OURS, Tool


def workers(count: int) -> Measure:
    """Datagrams a second that arrive, through both queues."""

    def measure(ends: Ends, seconds: float) -> Sample:
        # What a tool may run on decides how many workers it has: queues of one CPU are one worker's.
        cpu = None if count > 1 else ends.near_cpu
        listen = [*OURS, "xdp-listener", "count", "--iface", ends.far.interface.name, "--bind", ends.target]
        listen += ["--no-sequence", "--json", *milliseconds(LIMIT)]
        send = [
            *OURS,
            "xdp-sender",
            "blast",
            "--iface",
            ends.near.interface.name,
            "--all-queues",
            "--dest",
            ends.target,
        ]
        send += ["--local", f"{ends.near.interface.ipv4}:7000", "--payload-len", str(PAYLOAD_LEN), "--no-sequence"]
        receiver = Tool(listen, spawn=ends.far.popen, cpu=cpu).wait_ready()
        sent = Tool([*send, "--json", *milliseconds(seconds)], spawn=ends.near.popen, cpu=cpu).report(seconds + LIMIT)
        received = receiver.stop()
        details = {"workers": received["workers"], "sent": sent["sent"], "received": received["received"],
                   "dropped": received["dropped"]}  # fmt: skip
        return Sample(received["received"] / sent["seconds"], details)

    return measure


SCALING_FIGURES = (
    Figure(
        "xdp-workers",
        "AF_XDP: sending and receiving with two workers on two cores, and with one on one",
        "M packets/s received",
        {"fast_socket": workers(2), "one worker": workers(1)},
        scale=1e-6,
        note="Senders and listeners share the cores: 2 is what could be, were nothing else shared.",
        queues=2,
    ),
)
