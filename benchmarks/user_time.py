"""user-time: what user space does for a packet of an AF_XDP socket, in nanoseconds, without the kernel.

On a simulated device whose wire is paused: sockets, rings and loops are the real ones, and what the kernel would do
happens between the steps that are timed. Each sample is a batch, calls from Python included.
"""

import time
from statistics import median

import fast_socket as fs

BATCH = 64
PAYLOAD = bytes(64)
WARM_UP = 50
TARGETS = {"fill and send": 15.0, "receive": 8.0}  # nanoseconds a packet
HOSTS = ("192.0.2.1", "192.0.2.2")
PORTS = (7000, 9000)


def user_times(batches: int) -> dict[str, list[float]]:
    """Nanoseconds a packet of each step, a sample per batch. On the CPU of the calling thread, best a pinned one."""
    clock = time.perf_counter_ns
    wire = fs.Wire()
    devices = [fs.SimulatedDevice(wire, addresses=[f"{host}/24"]) for host in HOSTS]
    taken: dict[str, list[float]] = {"fill": [], "send": [], "fill and send": [], "receive": [], "send back": []}

    def carry() -> None:
        wire.paused = False
        wire.resume()
        wire.paused = True

    with (
        fs.XdpUdpSocket.open(devices[0], local=(HOSTS[0], PORTS[0])) as client,
        fs.XdpUdpSocket.open(devices[1], local=(HOSTS[1], PORTS[1])) as server,
    ):
        peer = client.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=(HOSTS[1], PORTS[1])))
        out, rx, back = client.tx_batch(BATCH), server.recv_batch(BATCH), server.tx_batch(BATCH)
        answers = client.recv_batch(BATCH)
        for turn in range(WARM_UP + batches):
            wire.paused = True
            start = clock()
            out.allocate()
            out.fill(PAYLOAD)
            filled = clock()
            sent = client.send_to(peer, out)
            done = clock()
            carry()
            before = clock()
            received = server.recv(rx)
            after = clock()
            reflected = back.take_from(rx)
            server.send(back)
            end = clock()
            carry()
            client.recv(answers)
            if not sent == received == reflected == len(answers) == BATCH:
                raise SystemExit(f"user-time: {sent} sent, {received} received, {len(answers)} sent back of {BATCH}")
            if turn >= WARM_UP:
                spans = (filled - start, done - filled, done - start, after - before, end - after)
                for samples, span in zip(taken.values(), spans, strict=True):
                    samples.append(span / BATCH)
    return taken


def rows(taken: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """Step, median, the middle nine tenths, target, reached."""
    made: list[tuple[str, ...]] = []
    for step, samples in taken.items():
        ordered = sorted(samples)
        low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
        target = TARGETS.get(step)
        reached = "" if target is None else "yes" if median(samples) <= target else "NO"
        made.append((step, f"{median(samples):.1f}", f"{low:.1f} .. {high:.1f}", f"<= {target:g}" if target else "",
                     reached))  # fmt: skip
    return made
