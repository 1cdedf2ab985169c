"""Workers start together, count, fail by name, and leave nothing behind."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

import fast_socket as fs
from fast_socket import workers
from fast_socket.workers import WorkerError
from tests.workers import targets
from tests.workers.targets import Plan

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0
kinds = pytest.mark.parametrize("kind", ["process", "thread"])


def plans(count):
    return [Plan(number + 1) for number in range(count)]


def children():
    """All but the helper of multiprocessing that lives as long as this program."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = {int(pid) for path in found for pid in path.read_text().split()}
    return {pid for pid in pids if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()}


@pytest.fixture(autouse=True)
def nothing_is_left():
    threads, processes = set(threading.enumerate()), children()
    yield
    assert children() <= processes
    assert {thread for thread in threading.enumerate() if thread.name.startswith("worker ")} <= threads


@kinds
def test_counters_and_values_come_back(kind):
    done = workers.run(plans(3), targets.count, kind=kind)
    assert [worker.name for worker in done.workers] == ["worker 0", "worker 1", "worker 2"]
    assert [worker.counters["received"] for worker in done.workers] == [1000, 1000, 1002]
    assert done.total == {"received": 3002, "sent": 0}
    pids = {worker.value[0] for worker in done.workers}
    assert len(pids) == (3 if kind == "process" else 1)
    assert [worker.value[1] for worker in done.workers] == [worker.name for worker in done.workers]
    assert done.stopped_by is None


@kinds
def test_none_starts_before_all_are_ready(kind):
    begin = time.monotonic_ns()
    done = workers.run(plans(3), targets.when, kind=kind)
    assert min(worker.value for worker in done.workers) - begin > 60_000_000  # what the slowest one slept


@kinds
def test_a_plan_with_a_cpu_pins(kind):
    cpus = fs.available_cpus()
    here = os.sched_getaffinity(0)
    done = workers.run([Plan(1, cpus[-1]), Plan(2, cpus[0])], targets.where, kind=kind)
    assert [worker.value for worker in done.workers] == [{cpus[-1]}, {cpus[0]}]
    assert os.sched_getaffinity(0) == here


@kinds
def test_the_time_is_over(kind):
    looks = []
    done = workers.run(plans(2), targets.until_over, kind=kind, duration=1.0, on_progress=looks.append, interval=0.1)
    assert all(worker.counters["sent"] > 0 for worker in done.workers)
    assert len(looks) >= 2
    assert looks[-1].total["sent"] == sum(each["sent"] for each in looks[-1].workers) > looks[0].total["sent"] > 0
    assert looks[-1].rates["sent"] > 0


@kinds
@pytest.mark.parametrize("names", [["received"], [f"counter{i}" for i in range(9)]])
def test_no_cache_line_is_written_by_two(kind, names):
    """Whatever was allocated before: each worker's counters begin and end with a line of their own."""
    for odd in range(1, 4):
        blocks = [multiprocessing.get_context("spawn").RawArray(ctypes.c_char, 24 * odd)]
        done = workers.run(plans(3), partial(targets.addresses, names=names), kind=kind, counters=names)
        lines = [{address // 64 for address in worker.value} for worker in done.workers]
        if kind == "process":  # mapped elsewhere in each, but at the same place of the page
            assert len({min(worker.value) % 64 for worker in done.workers}) == 1
            assert all(min(worker.value) % 64 == 0 for worker in done.workers)
        else:
            assert not (lines[0] & lines[1] or lines[1] & lines[2])
        del blocks


@kinds
def test_whoever_follows_may_end_it(kind):
    def enough(progress):
        return progress.total["sent"] > 1000

    done = workers.run(plans(2), targets.until_over, kind=kind, on_progress=enough, interval=0.01)
    assert done.total["sent"] > 1000
    assert done.stopped_by is None


@kinds
def test_all_are_ready_and_none_has_started(kind):
    heard = []
    done = workers.run(plans(3), targets.when, kind=kind, on_ready=lambda: heard.append(time.monotonic_ns()))
    assert len(heard) == 1
    assert heard[0] < min(worker.value for worker in done.workers)


@kinds
def test_the_first_failure_stops_all_and_is_told_by_name(kind):
    with pytest.raises(WorkerError, match="worker 1 failed: ConfigError: two is too many") as caught:
        workers.run(plans(3), targets.fails, kind=kind)
    assert isinstance(caught.value.__cause__, fs.ConfigError)
    assert "in fails" in "".join(caught.value.__cause__.__notes__)


@kinds
def test_the_others_go_on_where_that_is_wanted(kind):
    done = workers.run(plans(3), targets.fails, kind=kind, on_failure="go on", duration=0.3)
    assert [worker.error is None for worker in done.workers] == [True, False, True]
    assert "two is too many" in str(done.workers[1].error)


@kinds
def test_all_have_failed(kind):
    with pytest.raises(WorkerError, match="worker 0 failed"):
        workers.run([Plan(2)], targets.fails, kind=kind, on_failure="go on")


def test_an_exception_that_cannot_travel_is_told_in_words():
    with pytest.raises(WorkerError, match="worker 0 failed: RuntimeError: OddError: 1"):
        workers.run([Plan(4)], targets.fails)


@kinds
def test_a_failure_before_it_is_ready(kind):
    with pytest.raises(WorkerError, match="worker 1 failed: CapabilityError: no such queue"):
        workers.run(plans(2), targets.fails_early, kind=kind)


@kinds
def test_one_that_is_never_ready(kind):
    with pytest.raises(WorkerError, match="worker 1 not ready"):
        workers.run(plans(2), targets.never_ready, kind=kind, ready_timeout=2.0 if kind == "process" else 0.2)


@kinds
def test_one_that_forgets_to_say_so(kind):
    with pytest.raises(WorkerError, match=r"ready\(\)"):
        workers.run(plans(1), targets.forgets_ready, kind=kind)


def test_a_value_that_cannot_travel():
    with pytest.raises(WorkerError, match="worker 0 failed: ConfigError: the target returned"):
        workers.run(plans(1), targets.returns_what_cannot_travel, kind="process")


def test_a_killed_process_is_noticed_and_the_others_stop_or_go_on():
    with pytest.raises(WorkerError, match="worker 1 ended without a word, by signal SIGKILL"):
        workers.run(plans(3), targets.dies, kind="process")
    done = workers.run(plans(3), targets.dies, kind="process", on_failure="go on", duration=0.5)
    assert [worker.error is None for worker in done.workers] == [True, False, True]
    assert done.workers[2].counters["sent"] > 0


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (targets.dies_by_a_nameless_signal, "by signal 37"),
        (targets.dies_and_leaves_a_child, "by exit code 3"),
        (targets.closes_everything, "went silent|without a word"),
        (targets.raises_what_is_no_exception, "NoException"),
        (targets.returns_what_raises, "SystemExit: in the parent"),
    ],
)
def test_odd_ends_of_a_process(target, words):
    with pytest.raises(WorkerError, match=words):
        workers.run(plans(1), target, kind="process", stop_timeout=1.0)


def test_a_process_that_does_not_stop_is_killed():
    start = time.monotonic()
    with pytest.raises(WorkerError, match="worker 1 did not stop"):
        workers.run(plans(2), targets.does_not_stop, kind="process", duration=0.2, stop_timeout=0.3)
    assert time.monotonic() - start < SECONDS


def test_a_target_whose_module_raises(tmp_path, monkeypatch):
    (tmp_path / "bad_module.py").write_text(
        "import os\nif os.environ.get('BAD_MODULE'): raise ImportError('not on this machine')\n"
        "def target(plan, worker): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import bad_module

    monkeypatch.setenv("BAD_MODULE", "1")
    with pytest.raises(WorkerError, match="worker 0 failed: ImportError: not on this machine"):
        workers.run(plans(1), bad_module.target, kind="process")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": []}, "plans"),
        ({"target": None}, "target"),
        ({"kind": "fibre"}, "kind"),
        ({"counters": "received"}, "counters"),
        ({"counters": ["a", "a"]}, "once"),
        ({"duration": 0}, "seconds"),
        ({"interval": -1}, "seconds"),
        ({"ready_timeout": "soon"}, "seconds"),
        ({"on_failure": "cry"}, "on_failure"),
        ({"target": lambda plan, worker: None}, "pickle"),
    ],
)
def test_what_cannot_be_run(change, message):
    with pytest.raises(fs.ConfigError, match=message):
        workers.run(**({"plans": plans(1), "target": targets.count, "kind": "process"} | change))


@kinds
def test_sockets_that_share_a_port(kind):
    """Every datagram of many flows is answered once, by one worker or another."""
    with fs.OsUdpSocket.bind("127.0.0.1:0", reuse_port=True) as reserved:
        address = reserved.local_address
    answered, asking = [], []

    def ask():
        for _ in range(20):
            with fs.OsUdpSocket.connect(address) as client:
                tx, rx = client.tx_batch(1), client.recv_batch(1)
                tx.append(b"to whoever")
                client.send(tx)
                if client.driver.wait(2.0):
                    answered.append(client.recv(rx))

    def look(progress):
        if not asking:
            asking.append(threading.Thread(target=ask))
            asking[0].start()
        elif not asking[0].is_alive():
            signal.raise_signal(signal.SIGINT)

    done = workers.run([address] * 2, targets.echo, kind=kind, duration=60, on_progress=look, interval=0.05)
    assert done.stopped_by == "SIGINT"
    assert sum(answered) == 20 == done.total["received"] == sum(worker.value for worker in done.workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_to_the_parent(tmp_path, number):
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.workers.targets"], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"WORKERS_AT": str(tmp_path)},
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "on\n"
    pids = [int((tmp_path / str(which)).read_text()) for which in (1, 2)]
    program.send_signal(number)
    output, _ = program.communicate(timeout=SECONDS)
    if number == signal.SIGKILL:
        assert program.returncode == -signal.SIGKILL
    else:
        assert output.splitlines()[-1] == f"{number.name} 2 True"
        assert program.returncode == 0

    def lives(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    deadline = time.monotonic() + SECONDS
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)
