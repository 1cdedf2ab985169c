"""Drivers: waiting, time-outs, gathering, signals, selectors and event loops."""

import asyncio
import os
import selectors
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import fast_socket as fs
from fast_socket.core import polling

DRIVERS = pytest.mark.parametrize("driver", [fs.WaitDriver, fs.BusyPollDriver])


def pair(**options):
    return fs.OsUdpSocket.bind("127.0.0.1:0", **options), fs.OsUdpSocket.bind("127.0.0.1:0")


def send(near, far, count=1):
    tx = near.tx_batch(count)
    for _ in range(count):
        tx.append(b"x", far.local_address)
    assert near.send(tx) == count


@DRIVERS
def test_wait(driver):
    far, near = pair(driver=driver)
    with far, near:
        assert type(far.driver) is driver
        assert far.driver.wait(0) is False
        assert far.driver.wait(0.01) is False
        send(near, far)
        for timeout in (0, 0.0, 5, None, True):
            assert far.driver.wait(timeout) is True
        far.recv(far.recv_batch(4))
        assert far.driver.wait(0) is False
        assert far.driver.wait_writable(0) is True
        assert far.driver.wait_writable(None) is True


@DRIVERS
def test_time_out_is_not_early(driver):
    far, near = pair(driver=driver)
    with far, near:
        start = time.monotonic()
        assert far.driver.wait(0.05) is False
        assert time.monotonic() - start >= 0.05


@DRIVERS
def test_wait_until_another_thread_sends(driver):
    far, near = pair(driver=driver)
    with far, near:
        timer = threading.Timer(0.05, send, (near, far))
        timer.start()
        assert far.driver.wait(30) is True
        timer.join()


@DRIVERS
def test_gathering(driver):
    """After a receive of fewer than min_batch packets the next wake-up is held back; after a full one it is not."""
    far, near = pair(driver=driver, min_batch=4, max_wait=0.3)
    with far, near:
        assert (far.driver.min_batch, far.driver.max_wait) == (4, 0.3)
        rx = far.recv_batch(8)

        def held():
            send(near, far, 1)
            sender = threading.Timer(0.05, send, (near, far, 5))
            sender.start()
            assert far.driver.wait(30)
            count = far.recv(rx)
            sender.join()
            while far.driver.wait(0):
                if not far.recv(rx):
                    break
            return count

        send(near, far, 4)
        far.recv(rx)
        assert held() == 1, "after a full receive nothing is held back"
        send(near, far, 1)
        far.recv(rx)
        assert held() == 6, "what came during the pause was gathered"


def test_nothing_is_held_back_by_default():
    far, near = pair()
    with far, near:
        assert (far.driver.min_batch, far.driver.max_wait) == (1, 0.0)


@DRIVERS
def test_pause_is_within_the_time_out(driver):
    """An empty socket times out after the time-out, however long the pause would be."""
    far, near = pair(driver=driver, min_batch=8, max_wait=1.0)
    with far, near:
        far.recv(far.recv_batch(4))
        assert far.driver.wait(0.01) is False


@DRIVERS
@pytest.mark.parametrize("timeout", ["None", "60"])
def test_ctrl_c_ends_a_wait(driver, timeout):
    script = textwrap.dedent(f"""
        import signal
        import fast_socket as fs
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sock = fs.OsUdpSocket.bind("127.0.0.1:0", driver=fs.{driver.__name__})
        print("waiting", flush=True)
        try:
            sock.driver.wait({timeout})
        except KeyboardInterrupt:
            sock.close()
            print("interrupted")
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "waiting\n"
        time.sleep(0.1)  # in the wait by now; if not, the signal is pending when it begins
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30)[0] == "interrupted\n"
        assert child.returncode == 0


@DRIVERS
def test_signal_handlers_run_during_a_wait(driver):
    """One that raises nothing does not end the wait."""
    far, near = pair(driver=driver)
    seen = []

    def handler(number, frame):
        seen.append(number)
        send(near, far)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with far, near:
            assert far.driver.wait(30) is True
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


def test_selectors():
    far, near = pair()
    with far, near, selectors.DefaultSelector() as selector:
        assert far.driver.fileno() == far.fileno() >= 0
        selector.register(far.driver, selectors.EVENT_READ)
        assert selector.select(0) == []
        send(near, far)
        assert [key.fileobj for key, _ in selector.select(5)] == [far.driver]
    assert far.driver.fileno() == far.fileno() == -1


def test_asyncio():
    far, near = pair()

    async def receive():
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(far.driver.fileno(), arrived.set)
        loop.call_later(0.01, send, near, far, 3)
        await asyncio.wait_for(arrived.wait(), 30)
        loop.remove_reader(far.driver.fileno())
        return far.recv(far.recv_batch(8))

    with far, near:
        assert asyncio.run(receive()) == 3


@pytest.mark.parametrize("options", [{"min_batch": 0}, {"min_batch": 2**21}, {"min_batch": "1"}, {"max_wait": -0.1},
                                     {"max_wait": 1.1}, {"max_wait": float("nan")}, {"max_wait": "1"}])  # fmt: skip
def test_bad_options(options):
    name, value = next(iter(options.items()))
    for kind in (fs.WaitDriver, fs.BusyPollDriver):
        with pytest.raises(fs.ConfigError, match=f"{name} is {value!r}: give"):
            kind(polling.Descriptor(os.open("/dev/null", os.O_RDONLY)), **options)


def test_descriptor_is_closed_with_its_last_owner():
    number = os.open("/dev/null", os.O_RDONLY)
    descriptor = polling.Descriptor(number, "thing")
    driver = fs.WaitDriver(descriptor)
    assert descriptor.fileno() == driver.fileno() == number
    del descriptor
    os.fstat(number)
    del driver
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_closed_descriptor_is_named():
    descriptor = polling.Descriptor(os.open("/dev/null", os.O_RDONLY), "thing")
    driver = fs.WaitDriver(descriptor)
    descriptor.close()
    descriptor.close()
    assert descriptor.closed
    with pytest.raises(fs.Error, match="this thing is closed"):
        driver.wait(0)


def test_traits_hold_for_the_drivers():
    """A driver is usable where the trait asks for it."""
    for kind, more in ((fs.WaitDriver, {"fileno"}), (fs.BusyPollDriver, set())):
        assert {"wait", "wait_writable"} | more <= set(dir(kind))
    assert not hasattr(fs.BusyPollDriver, "fileno")
