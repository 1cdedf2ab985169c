"""Blast: one thread, one socket, datagrams to one peer as fast as the backend accepts them.

    python examples/blast.py --device eth0 --target 192.0.2.10:9000 --duration-ms 3000

What makes it quick: the peer is prepared once, and a batch goes with one call. In os mode the socket is connected, so
the kernel looks the route up once, and a frame holds as many datagrams as the kernel cuts from one large send (GSO).
With ``--mode xdp`` the same loop drives an AF_XDP queue: the headers are written here, the network stack is not passed.
"""

import sys
import time
from errno import EPERM
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

import fast_socket as fs
from examples import _cli

MAX_LARGE_SEND = 65_487  # bytes that one large send may carry, in both families
MAX_SEGMENTS = 128  # datagrams that one may carry (Linux 6.12; 64 before)
FRAMES = 32  # frames a call: enough that the call itself does not count
PLAIN_BATCH = 64  # datagrams a call without GSO
SOURCE_PORT = 50_000  # in xdp mode, where no kernel chooses one

Socket = fs.UdpSocket[Any, Any, fs.WaitDriver, Any]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def open_socket(
    device: str, target: str, *, gso_size: int, payload_capacity: int, frames: int
) -> fs.OsUdpSocket[fs.WaitDriver]:
    options: fs.OsUdpOptions = {
        "device": device,
        "gso": gso_size > 0,
        "gso_size": gso_size,
        "tx_layout": fs.BufferLayout(payload_capacity=payload_capacity),
        "tx_frames": frames,
        "huge_pages": True,  # the kernel copies out of these frames all the time: a TLB entry for all of them
        # Nobody reads the answers here: with GRO the kernel drops them whole, without it would first cut them up.
        "gro": True,
        "rx_frames": 1,
    }
    try:
        return fs.OsUdpSocket.connect(target, **options)
    except fs.CapabilityError as error:
        if error.errno != EPERM:  # binding to a device needs CAP_NET_RAW before Linux 5.7; its address is as good
            raise
        del options["device"]
        return fs.OsUdpSocket.connect(target, local=(_cli.local_address(device, target)[0], 0), **options)


def blast_through(
    sock: Socket,
    target: str,
    run: _cli.Run,
    *,
    payload_len: int,
    segments: int,
    frames: int,
) -> int:
    """The loop, for any backend; returns how many datagrams were refused."""
    peer = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=target, gso_size=payload_len))
    tx = sock.tx_batch(frames)
    payload = bytes(payload_len * segments)
    left, errors = run.count, 0
    run.begin()
    while (left or len(tx)) and run.going():
        if not len(tx):
            taken = tx.allocate(min(left // segments, frames) or 1)
            tx.fill(payload if left >= segments else payload[: left * payload_len])
            left -= min(left, taken * segments)
        try:
            sock.send_to(peer, tx)
        except fs.SendError:  # say, no route: this one is given up, those behind it may go
            errors += 1
            tx.discard(1)
            continue
        if len(tx):  # the send buffer or the rings are full
            sock.driver.wait_writable(_cli.WAIT_SLICE)
    return errors


@app.command(help=__doc__)
def blast(
    device: _cli.Device,
    target: _cli.Target,
    mode: _cli.Backend = _cli.Mode.OS,
    payload_len: _cli.PayloadLen = 64,
    count: _cli.Count = None,
    duration_ms: _cli.DurationMs = None,
    batch: Annotated[int | None, typer.Option(min=1, max=65_536, help="Datagrams a call, at most.")] = None,
    gso: Annotated[bool, typer.Option("--gso/--no-gso", help="Let the kernel cut datagrams from large sends.")] = True,
    queue: Annotated[int, typer.Option(min=0, help="xdp: the device queue.")] = 0,
    cpu: _cli.Cpu = None,
    as_json: _cli.AsJson = False,
    progress: _cli.Progress = False,
) -> None:
    run = _cli.Run("blast", count=count, duration_ms=duration_ms, default_ms=5000, as_json=as_json, progress=progress)
    if cpu is not None:
        fs.pin_current_thread(cpu)
    gso = gso and mode is _cli.Mode.OS
    segments = max(1, min(MAX_SEGMENTS, MAX_LARGE_SEND // payload_len, batch or MAX_SEGMENTS)) if gso else 1
    frames = max(1, (batch or (FRAMES * segments if gso else PLAIN_BATCH)) // segments)
    sock: Socket
    if mode is _cli.Mode.OS:
        gso_size = payload_len if gso else 0
        sock = open_socket(
            device, target, gso_size=gso_size, payload_capacity=payload_len * segments, frames=frames
        )  # fmt: skip
        segments = min(segments, sock.capabilities().max_gso_segments)
    else:
        local = (_cli.local_address(device, target)[0], SOURCE_PORT)
        sock = fs.XdpUdpSocket.open(device, queue, local=local, tx_frames=max(4096, 2 * frames))
    with sock, run.live(sent=lambda: sock.stats().sent):
        errors = blast_through(sock, target, run, payload_len=payload_len, segments=segments, frames=frames)
        seconds = time.perf_counter() - run.start
        more: dict[str, Any] = {}
        if isinstance(sock, fs.XdpUdpSocket):
            _cli.home(sock)
            device_stats = sock.queue_stats()
            more = {"zero_copy": sock.zero_copy, "kicks": device_stats.kicks, "completions": device_stats.completions}
            if sock.stats().sent == 0 and sock.unresolved is not None:
                raise sock.unresolved
        stats = sock.stats()
    run.report(
        mode=mode.value,
        sent=stats.sent,
        seconds=round(seconds, 6),
        pps=_cli.rate(stats.sent, seconds),
        errors=errors,
        payload_len=payload_len,
        segments=segments,
        batch=frames * segments,
        would_block=stats.would_block,
        gso_fallbacks=stats.gso_fallbacks,
        icmp_errors=stats.stale_errors,  # nobody listens there, or no way leads there
        **more,
    )


if __name__ == "__main__":
    _cli.main(app)
