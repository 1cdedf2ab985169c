"""Queues shared out among workers: the arithmetic, the hand-over, and that nothing is left behind."""

import pickle
import signal
import subprocess
import sys
from typing import Any

import pytest

import fast_socket as fs
from fast_socket import ConfigError, DeviceError, NumaNode, QueueAffinity, QueueId
from fast_socket.lab import Lab, why_unavailable
from fast_socket.xdp.factory import here, own_shares, partition
from tests.xdp.far_programs import ROOT, SECONDS, Link

UNAVAILABLE = why_unavailable()


def queues(*nodes: int, cpus: Any = None) -> list[QueueAffinity]:
    """One for each node given; its interrupt goes to the CPU of its number, or where `cpus` says."""
    return [
        QueueAffinity(QueueId(number), (cpus[number] if cpus else number,), NumaNode(node))
        for number, node in enumerate(nodes)
    ]


def test_one_worker_for_each_queue_runs_where_its_interrupt_goes() -> None:
    assert partition(queues(0, 0, 0), 3, {0: [0, 1, 2, 3]}) == [(0, 0, (0,)), (1, 0, (1,)), (2, 0, (2,))]


def test_two_queues_for_each_worker_and_nodes_are_kept_apart() -> None:
    shares = partition(queues(0, 1, 0, 1), 2, {0: [0, 2], 1: [1, 3]})
    assert shares == [(0, 0, (0, 2)), (1, 1, (1, 3))]


def test_a_cpu_is_had_by_one_worker_only() -> None:
    shares = partition(queues(0, 0, cpus=[5, 5]), 2, {0: [4, 5, 6]})
    assert [cpu for cpu, _, _ in shares] == [5, 4]


def test_an_interrupt_on_a_foreign_node_does_not_draw_the_worker_there() -> None:
    assert partition(queues(0, cpus=[9]), 1, {0: [1], 1: [9]}) == [(1, 0, (0,))]


def test_a_device_without_a_node_takes_any_cpu() -> None:
    assert [cpu for cpu, _, _ in partition(queues(-1, -1, cpus=[9, 9]), 2, {0: [0], 1: [9]})] == [9, 0]


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "message"),
    [
        ((0, 0, 0, 0), 3, {0: [0, 1, 2, 3]}, "4 queue.s. over 3 workers are 1 each and 1 left over: give 1 or 2 or 4"),
        ((0, 0), 4, {0: [0, 1, 2, 3]}, "0 each and 2 left over: give 1 or 2 workers"),
        ((0, 0, 0, 1), 2, {0: [0], 1: [1]}, "3 on node 0, 1 on node 1.*2 each.*does not divide the 3 of node 0"),
        ((0, 0), 2, {0: [7]}, r"2 workers on node 0 need a CPU each, but this process may use 1 there \(\[7\]\)"),
    ],
)
def test_what_does_not_come_out_even(nodes: Any, workers: int, cpus: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition(queues(*nodes), workers, cpus)


def test_the_callers_own_assignment() -> None:
    cpu = fs.available_cpus()[0]
    assert own_shares([(cpu, (1,)), (None, (0, 2))], queues(0, 0, 0)) == [(cpu, 0, (1,)), (None, 0, (0, 2))]
    for wrong, message in (
        ([(cpu, (0,))], "are claimed"),
        ([(cpu, (0, 1, 2)), (None, (2,))], "are claimed"),
        ([(cpu, (0, 1, 3))], "are claimed"),
        ([(cpu, (0, 1, "2"))], "are claimed"),
        ([(1 << 20, (0, 1, 2))], "this process may use"),
        ([("0", (0, 1, 2))], "this process may use"),
        ([(cpu, (0, 1, 2)), (None, ())], "no queues"),
    ):
        with pytest.raises(ConfigError, match=message):
            own_shares(wrong, queues(0, 0, 0))  # type: ignore[arg-type]


def test_plans_are_small_values() -> None:
    plan = fs.WorkerPlan("eth0", (0, 1), 3, 0, here(), b"\0name", b"secret")
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert "secret" not in repr(plan)


def test_a_plan_of_another_place() -> None:
    with pytest.raises(ConfigError, match="another machine"):
        fs.WorkerPlan("eth0", (0,), place="elsewhere", factory=b"\0name").open_udp(local="0.0.0.0:9")


def test_a_plan_whose_factory_is_closed() -> None:
    with pytest.raises(DeviceError, match="closed"):
        fs.WorkerPlan("eth0", (0,), place=here(), factory=b"\0nobody listens there").open_udp(local="0.0.0.0:9")


@pytest.mark.parametrize(("factory", "token"), [("text", b""), (5, b""), (b"x" * 200, b""), (b"\0name", "text")])
def test_plans_made_by_hand_with_what_no_factory_gives(factory: Any, token: Any) -> None:
    with pytest.raises((fs.ConfigError, fs.DeviceError), match="this plan for lo"):
        fs.WorkerPlan("lo", (0,), place=here(), factory=factory, token=token).open_udp(local="0.0.0.0:9")


def test_a_plan_by_hand_for_several_queues_needs_a_program() -> None:
    with pytest.raises(ConfigError, match="program="):
        fs.WorkerPlan("lo", (0, 1)).open_udp(local="0.0.0.0:9")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="nothing0"):
        fs.XdpFactory("nothing0")


@pytest.fixture
def link() -> Any:
    with Lab() as lab:
        yield Link(lab)


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_every_flow_is_answered_by_the_worker_of_its_queue(link: Link, kind: str) -> None:
    """Forty flows over four queues of two workers; each of their datagrams comes back once."""
    answered: list[int] = []

    def ask() -> None:
        for _ in range(40):
            with fs.OsUdpSocket.connect((str(link.link.b.ipv4), 9000)) as client:
                tx, rx = client.tx_batch(5), client.recv_batch(5)
                for i in range(5):
                    tx.append(b"%d" % i)
                client.send(tx)
                got = 0
                while got < 5 and client.driver.wait(5.0):
                    got += client.recv(rx)
                answered.append(got)

    program = link.start(f"""
begun = []
def look(progress):
    if not begun:
        begun.append(print("begun", flush=True))

if __name__ == "__main__":
    with fs.XdpFactory(device).claim(fs.All).ports([9000]).workers(2).build() as factory:
        assert attached()
        done = workers.run(factory.plans, targets.answer, kind={kind!r}, duration=60, on_progress=look, interval=0.05)
    assert not attached()
    print([worker.value for worker in done.workers], done.total, [w.counters["received"] for w in done.workers])
""")
    assert program.stdout.readline() == "begun\n", program.communicate()[0]
    link.near.run(ask)
    program.send_signal(signal.SIGINT)
    output = link.finish(program)
    assert answered == [5] * 40
    assert output.startswith("[(0, 1), (2, 3)] {'received': 200, 'sent': 200}"), output


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_a_factory_without_descriptors_hands_over_again_later(link: Link) -> None:
    program = link.start("""
import os, resource
if __name__ == "__main__":
    with fs.XdpFactory(device).claim(fs.All).ports([9000]).build() as factory:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        asking, kept = socket.socket(socket.AF_UNIX), []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        try:
            while True:
                kept.append(os.dup(0))
        except OSError:
            pass
        asking.connect(factory.plans[0].factory)
        time.sleep(0.3)
        for fd in kept:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        asking.close()
        factory.plans[0].program().close()
""")
    link.finish(program)


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_what_goes_wrong_leaves_nothing_attached(link: Link) -> None:
    program = link.start("""
if __name__ == "__main__":
    Config, Device = fs.ConfigError, fs.DeviceError
    make = lambda: fs.XdpFactory(device)
    refused(lambda: make().build(), Config, "nothing is claimed")
    refused(lambda: make().claim(fs.All).build(), Config, "nothing is asked for")
    refused(lambda: make().claim("all"), Config, "give All")
    refused(lambda: make().claim(fs.First(0)), Config, "that is no queue")
    refused(lambda: make().claim(fs.First(5)), Config, "has 4 queue(s)")
    refused(lambda: make().claim(fs.Queues([0, 0])), Config, "once")
    refused(lambda: make().claim(fs.Queues([True])), Config, "from 0")
    refused(lambda: make().workers(0), Config, "from 1")
    refused(lambda: make().assign((0, [0], 1)), Config, "(cpu, [queue, ...])")
    refused(lambda: make().claim(fs.All).ports([9000]).workers(3).build(), Config, "1 each and 1 left over")
    refused(lambda: make().claim(fs.All).ports([0.5]).build(), Config, "ports")
    refused(lambda: make().program, Config, "not built")
    assert not attached()

    factory = make().claim(fs.Queues([3, 1])).ports(range(9000, 9002)).assign((None, [1]), (None, [3])).build()
    assert [plan.queues for plan in factory.plans] == [(1,), (3,)] and attached()
    refused(factory.build, Config, "built already")
    refused(make().claim(fs.All).ports([9000]).build, Device, "another XDP program")
    assert attached()
    (sock,) = factory.plans[0].open_udp(local="0.0.0.0:9000")
    refused(lambda: factory.plans[0].open_udp(local="0.0.0.0:9000"), fs.Error, "taken")
    assert not sock.closed
    sock.close()
    (again,) = factory.plans[0].open_udp(local="0.0.0.0:9000")
    again.close()
    (raw,) = factory.plans[1].open_ip()
    raw.close()

    # Whoever knows the name and not the secret gets nothing; whoever says nothing holds nobody up.
    idle = socket.socket(socket.AF_UNIX); idle.connect(factory.plans[0].factory)
    guess = socket.socket(socket.AF_UNIX); guess.connect(factory.plans[0].factory); guess.sendall(bytes(32))
    assert guess.recv(1) == b""
    idle.close()
    factory.plans[0].program().close()

    done = workers.run(factory.plans, targets.opens)
    assert all(worker.error is None for worker in done.workers)
    factory.close()
    factory.close()
    assert not attached()
    refused(lambda: factory.plans[0].open_udp(local="0.0.0.0:9000"), Device, "closed")
    print("all", [thread.name for thread in threading.enumerate()])
""")
    output = link.finish(program)
    assert output == "all ['MainThread']\n"


FACTORY = """
import pickle, sys, time
import fast_socket as fs
factory = fs.XdpFactory(sys.argv[1]).claim(fs.First(1)).ports([9000]).build()
print(pickle.dumps(factory.plans[0]).hex(), flush=True)
time.sleep(30)
"""
WORKER = """
import pickle, sys
import fast_socket as fs
(sock,) = pickle.loads(bytes.fromhex(sys.argv[2])).open_udp(local="0.0.0.0:9000")
print("open", flush=True)
rx, alone = sock.recv_batch(256), False
while sock.driver.wait(10.0):
    sock.recv(rx)
    for packet in rx:
        print(bytes(packet).decode(), flush=True)
        alone = alone or bytes(packet) == b"alone"
    if alone:
        break
"""


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_a_worker_goes_on_when_the_factory_is_killed(link: Link) -> None:
    def start(code: str, *arguments: str) -> Any:
        return link.far.popen([sys.executable, "-c", code, link.link.b.name, *arguments], stdout=subprocess.PIPE,
                              text=True, cwd=ROOT)  # fmt: skip

    def ask(words: bytes) -> None:
        """Sixty-four flows: of four queues the first one has its share."""
        for _ in range(64):
            with fs.OsUdpSocket.connect((str(link.link.b.ipv4), 9000)) as client:
                tx = client.tx_batch(1)
                tx.append(words)
                client.send(tx)

    def attached() -> bool:
        shown: bool = link.far.run(lambda: fs.XdpDevice(link.link.b.name).interface.program is not None)
        return shown

    factory = start(FACTORY)
    try:
        worker = start(WORKER, factory.stdout.readline().strip())
        try:
            assert worker.stdout.readline() == "open\n"
            link.near.run(ask, b"with the factory")
            assert worker.stdout.readline() == "with the factory\n"
            factory.kill()
            factory.wait()
            assert attached()
            link.near.run(ask, b"alone")
            assert worker.wait(SECONDS) == 0
        finally:
            worker.kill()
            worker.communicate()
    finally:
        factory.kill()
        factory.communicate()
    assert not attached()
