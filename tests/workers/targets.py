"""What the workers of the tests do: found by name in another process."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fast_socket as fs
from fast_socket import workers
from fast_socket.workers import Worker


@dataclass(frozen=True)
class Plan:
    number: int
    cpu: int | None = None


def count(plan: Plan, worker: Worker) -> tuple[int, str]:
    received = worker.counter("received")
    worker.ready()
    while worker.running and received.value < 1000:
        received.add(plan.number)
    return os.getpid(), worker.name


def when(plan: Plan, worker: Worker) -> int:
    time.sleep(0.02 * plan.number)
    worker.ready()
    return time.monotonic_ns()


def where(plan: Plan, worker: Worker) -> set[int]:
    worker.ready()
    return os.sched_getaffinity(0)


def until_over(plan: Plan, worker: Worker) -> None:
    worker.ready()
    go_on(worker)


def go_on(worker: Worker) -> None:
    sent = worker.counter("sent")
    while worker.running:
        sent.add(1)
        time.sleep(0.001)


def addresses(plan: Plan, worker: Worker, names: list[str]) -> list[int]:
    """Where each of its counters is."""
    worker.ready()
    counters = [worker.counter(name) for name in names]
    return [np.asarray(counter._words).ctypes.data + 8 * counter._at for counter in counters]


class OddError(Exception):
    """Cannot be made again from what pickle keeps."""

    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(one)


class NoException(Exception):
    """Comes out of pickle as something else."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return str, ("boo",)


class RaisesOnLoad:
    """Cannot be made in the parent."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return leave, ()


def leave() -> None:
    raise SystemExit("in the parent")


def raises_what_is_no_exception(plan: Plan, worker: Worker) -> None:
    worker.ready()
    raise NoException


def returns_what_raises(plan: Plan, worker: Worker) -> RaisesOnLoad:
    worker.ready()
    return RaisesOnLoad()


def dies_by_a_nameless_signal(plan: Plan, worker: Worker) -> None:
    worker.ready()
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def dies_and_leaves_a_child(plan: Plan, worker: Worker) -> None:
    """Which has the channel open, so that nobody hears of the end by it."""
    worker.ready()
    if os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    os._exit(3)


def closes_everything(plan: Plan, worker: Worker) -> None:
    worker.ready()
    os.closerange(3, 200)
    time.sleep(30)


def fails(plan: Plan, worker: Worker) -> None:
    worker.ready()
    if plan.number == 2:
        raise fs.ConfigError("two is too many")
    if plan.number == 4:
        raise OddError(1, two=2)
    go_on(worker)


def fails_early(plan: Plan, worker: Worker) -> None:
    if plan.number == 2:
        raise fs.CapabilityError("no such queue")
    worker.ready()


def never_ready(plan: Plan, worker: Worker) -> None:
    if plan.number == 2:
        go_on(worker)
    else:
        worker.ready()


def forgets_ready(plan: Plan, worker: Worker) -> None:
    return


def returns_what_cannot_travel(plan: Plan, worker: Worker) -> object:
    worker.ready()
    return lambda: None


def dies(plan: Plan, worker: Worker) -> None:
    worker.ready()
    if plan.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    go_on(worker)


def does_not_stop(plan: Plan, worker: Worker) -> None:
    worker.ready()
    if plan.number == 2:
        time.sleep(30)


def writes_its_pid(plan: Plan, worker: Worker) -> None:
    Path(os.environ["WORKERS_AT"], str(plan.number)).write_text(str(os.getpid()))
    until_over(plan, worker)


def echo(address: tuple[str, int], worker: Worker) -> int:
    received = worker.counter("received")
    with fs.OsUdpSocket.bind(address, reuse_port=True) as sock:
        rx, tx = sock.recv_batch(16), sock.tx_batch(16)
        worker.ready()
        while worker.running:
            if sock.driver.wait(0.02):
                received.add(sock.recv(rx))
                tx.take_from(rx)
                sock.send(tx)
    return received.value


def main() -> None:
    """A program with two workers, for tests that send it signals."""
    done = workers.run(
        [Plan(1), Plan(2)], writes_its_pid, kind="process", on_progress=lambda _: print("on", flush=True), interval=0.05
    )
    print(done.stopped_by, len(done.workers), done.total["sent"] > 0, flush=True)


if __name__ == "__main__":
    main()
