"""Workers of factories, found by name in another process."""

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
