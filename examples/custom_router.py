"""A router of one's own: what an AF_XDP socket asks for the way to a destination is any object with two members.

    python examples/custom_router.py --device eth0 --target 192.0.2.10:9000 --mac 02:00:00:00:00:02

Sends a datagram of 64 bytes a second through a router that has one answer for everything: this device, that MAC.
No kernel table is looked at, no neighbour asked for.
"""

import sys
import time
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

import fast_socket as fs
from examples import _cli

SOURCE_PORT = 50_000
PAYLOAD = bytes(64)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ConstantRouter:
    """Satisfies `XdpUdpRouter`."""

    generation = 0  # its answers never change

    def __init__(self, egress: fs.Egress) -> None:
        self.egress = egress

    def resolve(self, destination: IPv4Address | IPv6Address) -> fs.Egress | fs.Unresolved:
        return self.egress


@app.command(help=__doc__)
def custom_router(
    device: _cli.Device,
    target: _cli.Target,
    mac: Annotated[str, typer.Option(metavar="MAC", help="What ARP would have answered.")],
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    as_json: _cli.AsJson = False,
) -> None:
    run = _cli.Run("custom_router", count=count, duration_ms=duration_ms, default_ms=None, as_json=as_json)
    facts = fs.XdpDevice(device)
    try:
        destination_mac = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        raise fs.ConfigError(f"--mac {mac!r}: give six bytes, as in 02:00:00:00:00:02") from None
    router = ConstantRouter(fs.Egress(facts.ifindex, facts.mac, destination_mac, facts.mtu))
    local = (_cli.local_address(device, target)[0], SOURCE_PORT)
    with fs.XdpUdpSocket.open(device, local=local, router=router) as sock:
        tx = sock.tx_batch(1)
        run.begin()
        while run.going() and sock.stats().sent < run.count:
            tx.append(PAYLOAD, target)
            sock.send(tx)
            due = run.start + sock.stats().sent
            while run.going() and sock.stats().sent < run.count and time.perf_counter() < due:
                time.sleep(min(_cli.WAIT_SLICE, max(due - time.perf_counter(), 0)))
        _cli.home(sock)
        sent = sock.stats().sent
    seconds = time.perf_counter() - run.start
    run.report(sent=sent, seconds=round(seconds, 6), pps=_cli.rate(sent, seconds))


if __name__ == "__main__":
    _cli.main(app)
