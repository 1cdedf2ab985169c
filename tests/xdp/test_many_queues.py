"""A device of many queues and two workers: each datagram of a thousand flows arrives once, and in order in its flow."""

import json
import os
import signal
from typing import Any

import pytest

import fast_socket as fs
from fast_socket.lab import Lab, why_unavailable
from tests.xdp.far_programs import SECONDS, Link

UNAVAILABLE = why_unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]

FLOWS, ROUNDS = 1000, 12

PROGRAM = """
import json
told = None

def look(progress):
    global told
    if told is None:
        print(*(each["pid"] for each in progress.workers), flush=True)
    if progress.total["received"] != told:
        told = progress.total["received"]
        print(told, flush=True)

if __name__ == "__main__":
    factory = fs.XdpFactory(device).claim(fs.All).ports(range(9000, 10_000))
    queues = [queue.queue for queue in fs.device_queue_affinity(device)]
    cpus = fs.available_cpus()
    factory.assign((cpus[0], queues[::2]), (cpus[-1], queues[1::2]))
    with factory.build():
        done = workers.run(factory.plans, targets.collect, kind="process", counters=["received", "pid"], duration=50,
                           on_progress=look, interval=0.002, on_failure="ON_FAILURE")
    assert not attached()
    values = [worker.value for worker in done.workers if worker.value]
    print(json.dumps({
        "flows": [[*flow, numbers] for flows, _ in values for flow, numbers in flows.items()],
        "by_queue": [worker.value[1] if worker.value else None for worker in done.workers],
        "errors": [str(worker.error) for worker in done.workers if worker.error],
    }))
"""


class Far:
    """The program, and how much it has received."""

    def __init__(self, link: Link, on_failure: str = "stop") -> None:
        self.link = link
        self.process = link.start(PROGRAM.replace("ON_FAILURE", on_failure))
        line = self.process.stdout.readline()
        assert line.split() and line.replace(" ", "").strip().isdigit(), line + self.process.communicate()[0]
        self.pids = [int(word) for word in line.split()]
        self.received = -1

    def until(self, count: int) -> None:
        while self.received < count:
            line = self.process.stdout.readline()
            assert line.strip().isdigit(), line + self.process.communicate()[0]
            self.received = int(line)

    def finish(self) -> Any:
        self.process.send_signal(signal.SIGINT)
        return json.loads(self.link.finish(self.process).splitlines()[-1])


@pytest.mark.parametrize("queues", [2, 4, 8])
@pytest.mark.parametrize("sender", ["xdp", "os"])
def test_every_datagram_of_a_thousand_flows_once_and_in_order(queues: int, sender: str) -> None:
    """Flows are spread by a hash: an aggregate's by the destination, the kernel's by all four."""
    with Lab() as lab:
        link = Link(lab, queues)
        far = Far(link)
        link.near.run(send_by_aggregate if sender == "xdp" else send_by_kernel, link, far)
        found = far.finish()
    assert far.received == FLOWS * ROUNDS
    assert len(found["flows"]) == FLOWS
    assert all(numbers == list(range(ROUNDS)) for _, _, numbers in found["flows"])
    counts = [count for worker in found["by_queue"] for count in worker]
    assert len(counts) == queues
    assert all(counts), counts


def send_by_aggregate(link: Link, far: Far) -> None:
    here, there = str(link.link.a.ipv4), str(link.link.b.ipv4)
    with fs.XdpUdpAggregate.open(link.link.a.name, fs.All, local=(here, 7000)) as sock:
        tx = sock.tx_batch(FLOWS)
        for number in range(ROUNDS):
            for flow in range(FLOWS):
                tx.append(number.to_bytes(4, "big"), (there, 9000 + flow))
            while len(tx):
                if not sock.send(tx):
                    sock.driver.wait_writable(0.1)
            far.until((number + 1) * FLOWS)  # what is under way fits into rings


def send_by_kernel(link: Link, far: Far) -> None:
    clients = clients_of(link, FLOWS)
    for number in range(ROUNDS):
        send_each(clients, number)
        far.until((number + 1) * FLOWS)


def clients_of(link: Link, count: int) -> list[fs.OsUdpSocket[fs.WaitDriver]]:
    there = str(link.link.b.ipv4), 9000
    return [fs.OsUdpSocket.connect(there, tx_frames=1, rx_frames=1) for _ in range(count)]


def send_each(clients: list[fs.OsUdpSocket[fs.WaitDriver]], number: int) -> None:
    for client in clients:
        tx = client.tx_batch(1)
        tx.append(number.to_bytes(4, "big"))
        assert client.send(tx) == 1


def test_the_others_go_on_when_a_worker_is_killed() -> None:
    """And what comes to the queues of the one that is gone is the kernel's."""
    with Lab() as lab:
        link = Link(lab)
        far = Far(link, on_failure="go on")
        clients = link.near.run(clients_of, link, 200)
        send_each(clients, 0)
        far.until(200)
        with link.far.run(fs.OsUdpSocket.bind, "0.0.0.0:9000", recv_buffer=1 << 21) as kernel:
            os.kill(far.pids[0], signal.SIGKILL)
            link.gone(far.pids[0])
            send_each(clients, 1)
            rx, orphans = kernel.recv_batch(256), 0
            while kernel.driver.wait(0.5):
                orphans += kernel.recv(rx)
        far.until(400 - orphans)
        found = far.finish()
    assert found["errors"] == ["worker 0 ended without a word, by signal SIGKILL"]
    assert found["by_queue"][0] is None
    assert 0 < orphans < 200
    numbers = sorted(numbers for _, _, numbers in found["flows"])
    assert numbers == [[0, 1]] * (200 - orphans)


def test_all_stop_when_a_worker_is_killed() -> None:
    with Lab() as lab:
        link = Link(lab)
        far = Far(link)
        os.kill(far.pids[0], signal.SIGKILL)
        output = far.process.communicate(timeout=SECONDS)[0]
        assert far.process.returncode == 1
        assert "WorkerError: worker 0 ended without a word, by signal SIGKILL" in output
        assert link.far.run(lambda: fs.XdpDevice(link.link.b.name).interface.program) is None
