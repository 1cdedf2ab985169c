"""scapy-blast: what a program that sends with scapy reaches: `sendp`, or `sendpfast`, which has tcpreplay send.

A program of its own: python -m benchmarks.scapy_blast. Scapy need not be installed for anything else here.
"""

import json
import logging
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

CHUNK = 500  # packets a call of sendp
FAST = 1000  # packets of the file that tcpreplay sends again and again
FAST_PPS = 10_000_000  # more than it reaches: no pause between packets


class How(StrEnum):
    SENDP = "sendp"
    SENDPFAST = "sendpfast"


def scapy_blast(
    iface: Annotated[str, typer.Option(help="The network interface.")],
    source_mac: Annotated[str, typer.Option()],
    dest_mac: Annotated[str, typer.Option()],
    source: Annotated[str, typer.Option(metavar="IPv4:PORT")],
    dest: Annotated[str, typer.Option(metavar="IPv4:PORT")],
    payload_len: Annotated[int, typer.Option(help="Bytes in each datagram.")] = 64,
    how: Annotated[How, typer.Option(help="Which of scapy's ways.")] = How.SENDP,
    duration_ms: Annotated[int, typer.Option(help="About how long.")] = 1000,
) -> None:
    """Send one datagram again and again, as raw frames."""
    logging.getLogger("scapy").setLevel(logging.ERROR)
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw
    from scapy.sendrecv import sendp, sendpfast

    (here, sport), (there, dport) = source.rsplit(":", 1), dest.rsplit(":", 1)
    packet: Any = Ether(src=source_mac, dst=dest_mac) / IP(src=here, dst=there)
    packet = packet / UDP(sport=int(sport), dport=int(dport)) / Raw(bytes(payload_len))
    if how is How.SENDPFAST:
        once: Any = sendpfast([packet] * FAST, pps=FAST_PPS, iface=iface, parse_results=True, replay_args=["-K"])
        loops = max(1, round(once["pps"] * duration_ms / 1000 / FAST))
        options = ["-K", f"--loop={loops}"]  # its own parameter loop= asks tcpreplay for a run without an end
        found: Any = sendpfast([packet] * FAST, pps=FAST_PPS, iface=iface, parse_results=True, replay_args=options)
        sent, seconds = found["packets"], found["time"]
    else:
        sendp(packet, iface=iface, verbose=0)
        sent, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < duration_ms / 1000:
            sendp(packet, iface=iface, count=CHUNK, verbose=0)
            sent += CHUNK
    print(json.dumps({"tool": how.value, "mode": "blast", "sent": sent, "seconds": seconds, "pps": sent / seconds}))


if __name__ == "__main__":
    typer.run(scapy_blast)
