"""Queue affinity and pinning."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fast_socket as fs


@pytest.fixture(autouse=True)
def unpinned():
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_pinning():
    usable = fs.available_cpus()
    assert usable == tuple(sorted(os.sched_getaffinity(0)))
    assert fs.pin_current_thread(usable[-1]) == usable
    assert fs.available_cpus() == usable[-1:]
    assert fs.pin_current_thread(usable) == usable[-1:]
    assert fs.pin_current_thread(iter(usable)) == usable
    assert fs.available_cpus() == usable


def test_pinned_for_a_block():
    usable = fs.available_cpus()
    with pytest.raises(ZeroDivisionError), fs.pinned(usable[0]):
        assert fs.available_cpus() == usable[:1]
        raise ZeroDivisionError
    assert fs.available_cpus() == usable


def test_pinning_is_the_threads_own():
    usable, seen = fs.available_cpus(), []

    def work():
        fs.pin_current_thread(usable[0])
        seen.append(fs.available_cpus())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [usable[:1]]
    assert fs.available_cpus() == usable


@pytest.mark.parametrize("cpus", [-1, 10**6, 10**30, (), (-1,), (10**6,), "0", "x", [None]], ids=repr)
def test_bad_cpus(cpus):
    before = fs.available_cpus()
    with pytest.raises(fs.ConfigError) as caught:
        fs.pin_current_thread(cpus)
    assert str(before) in str(caught.value), "it says what may be used"
    assert fs.available_cpus() == before


@pytest.mark.parametrize("cpus", [None, 1.5])
def test_things_that_are_no_cpus(cpus):
    with pytest.raises((fs.ConfigError, TypeError)):
        fs.pin_current_thread(cpus)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), max_size=6))
def test_cpu_lists(ranges):
    text = ",".join(f"{first}-{first + more}" if more else str(first) for first, more in ranges)
    want = [cpu for first, more in ranges for cpu in range(first, first + more + 1)]
    assert fs.parse_cpu_list(text + "\n") == tuple(want)


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "0--1", "1-2-3", "1;2", "0-99999999999", "1.5"])
def test_bad_cpu_lists(text):
    with pytest.raises(fs.ConfigError) as caught:
        fs.parse_cpu_list(text)
    assert repr(text) in str(caught.value)


def test_loopback_queues():
    queues = fs.device_queue_affinity("lo")
    assert [affinity.queue for affinity in queues] == list(range(len(queues)))
    for affinity in queues:
        assert affinity.cpu in fs.available_cpus()
        assert affinity.cpu == affinity.cpus[0]


@pytest.mark.parametrize("device", ["nosuchif0", "", ".", "..", "../net/lo", "/", "lo/queues", "lo\0"])
def test_unknown_devices(device):
    with pytest.raises(fs.ConfigError) as caught:
        fs.device_queue_affinity(device)
    assert repr(device) in str(caught.value)
    assert "lo" in str(caught.value)


@pytest.mark.parametrize(("queue", "cpus", "named"), [(-1, (0,), "queue is -1"), (0, (), "cpus"), (0, (-1,), "cpus")])
def test_bad_affinities(queue, cpus, named):
    with pytest.raises(fs.ConfigError, match=named):
        fs.QueueAffinity(fs.QueueId(queue), cpus)


def test_numa_node():
    assert fs.cpu_numa_node(fs.available_cpus()[0]) >= -1
    assert fs.cpu_numa_node(10**6) == -1


@pytest.mark.parametrize("cpus", [None, "one", 1.5, [None], -1, 1 << 20, []])
def test_cpus_that_are_none(cpus):
    before = fs.available_cpus()
    with pytest.raises(fs.ConfigError, match="cannot pin"):
        fs.pin_current_thread(cpus)
    with pytest.raises(fs.ConfigError, match="cannot pin"), fs.pinned(cpus):
        pass
    assert fs.available_cpus() == before
