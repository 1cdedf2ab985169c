"""Workers of factories, found by name in another process."""

import os

import fast_socket as fs
from fast_socket.workers import Worker


def answer(plan: fs.WorkerPlan, worker: Worker) -> tuple[int, ...]:
    """Sends back what comes to any of the plan's queues."""
    received, sent = worker.counter("received"), worker.counter("sent")
    socks = plan.open_udp(local="0.0.0.0:9000", rx_frames=256, tx_frames=256)
    batches = [(sock, sock.recv_batch(64), sock.tx_batch(64)) for sock in socks]
    worker.ready()
    while worker.running:
        for sock, rx, tx in batches:
            if sock.driver.wait(0.002):
                received.add(sock.recv(rx))
                tx.take_from(rx)
                while len(tx):
                    sent.add(sock.send(tx))
    for sock in socks:
        sock.close()
    return plan.queues


def opens(plan: fs.WorkerPlan, worker: Worker) -> None:
    worker.ready()
    for sock in plan.open_udp(local="0.0.0.0:9000", rx_frames=64, tx_frames=64):
        sock.close()


Flow = tuple[int, int]


def collect(plan: fs.WorkerPlan, worker: Worker) -> tuple[dict[Flow, list[int]], list[int]]:
    """Of each flow, by source and destination port, the numbers that came, in that order; and what each queue had."""
    received, flows = worker.counter("received"), dict[Flow, list[int]]()
    worker.counter("pid").add(os.getpid())
    with fs.XdpUdpAggregate.open(
        plan.device,
        fs.Queues(plan.queues),
        local="0.0.0.0:9000",
        ports=range(9000, 10_000),
        program=plan.program(),
        rx_frames=8192,
    ) as sock:
        rx = sock.recv_batch(64)
        worker.ready()
        while worker.running:
            if sock.driver.wait(0.05):
                sock.recv(rx)
                columns = rx.source_ports.tolist(), rx.local_ports.tolist(), rx.gather(0, ">u4").tolist()
                for source, to, number in zip(*columns, strict=True):
                    flows.setdefault((source, to), []).append(number)
                received.add(len(rx))
        return flows, [member.stats().received for member in sock.members]
