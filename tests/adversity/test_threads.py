"""Threads that break the rules: the same objects from all sides. Documented errors only, no crash, no frame lost."""

import gc
import ipaddress
import sys
import threading
import time

import pytest

import fast_socket as fs

ROUND = 0.5
#: What a second thread may hear; whatever else comes up is a failure.
ALLOWED = (fs.Error, BufferError, IndexError)


@pytest.fixture(autouse=True)
def switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def hammer(*jobs):
    """Each job over and over on a thread of its own; returns what came up that is not allowed."""
    end, wrong, gate = time.monotonic() + ROUND, [], threading.Barrier(len(jobs))

    def work(job):
        gate.wait()
        while time.monotonic() < end and not wrong:
            try:
                job()
            except ALLOWED:
                pass
            except BaseException as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return wrong


def pool_is_whole(pool):
    gc.collect()
    return (pool.rx_available, pool.tx_available) == (pool.rx_frames, pool.tx_frames)


@pytest.fixture(params=[fs.WaitDriver, fs.BusyPollDriver])
def sock(request):
    with fs.OsUdpSocket.bind("127.0.0.1:0", rx_frames=32, tx_frames=32, driver=request.param) as sock:
        yield sock


def test_one_transmit_batch_from_all_sides(sock):
    tx, rx, to = sock.tx_batch(16), sock.recv_batch(16), sock.local_address
    # An ipaddress as a host runs Python in the middle of append.
    slow = (ipaddress.ip_address(to[0]), to[1])

    def append():
        tx.append(b"x" * 32, slow)

    def append_packet():
        for packet in rx:
            tx.append(packet.take(), slow)

    wrong = hammer(append, append, append_packet, lambda: sock.send(tx), lambda: sock.recv(rx),
                   lambda: tx.allocate(3), lambda: tx.fill(b"abc"), lambda: tx.discard(2),
                   lambda: tx.set_destinations(slow), lambda: [bytes(packet) for packet in tx],
                   lambda: tx.take_from(rx))  # fmt: skip
    assert wrong == []
    assert len(tx) <= 16
    tx.discard()
    assert len(tx) == 0
    tx = rx = None
    assert pool_is_whole(sock.pool)


def test_one_receive_batch_from_all_sides(sock):
    rx, to, kept = sock.recv_batch(16), sock.local_address, []
    blaster = sock.tx_batch(16)

    def blast():
        while blaster.room:
            blaster.append(b"payload", to)
        sock.send(blaster)

    def take():
        kept.extend(packet.take() for packet in rx)
        del kept[:-8]

    def look():
        for packet in rx:
            assert bytes(packet) == b"payload"
            packet.address  # noqa: B018
            with memoryview(packet) as view:
                assert bytes(view) == b"payload"

    def walk():
        for payload in rx.datagrams():
            assert payload == b"payload"

    def freeze():
        rx[0].freeze()

    wrong = hammer(blast, lambda: sock.recv(rx), lambda: sock.recv(rx), take, look, look, walk, freeze,
                   lambda: [packet.release() for packet in rx],
                   lambda: rx.gather(0, "u1"))  # fmt: skip
    assert wrong == []
    kept.clear()
    rx = blaster = None
    assert pool_is_whole(sock.pool)


def test_one_packet_from_all_sides(sock):
    rx, tx, held = sock.recv_batch(4), sock.tx_batch(4), []

    def renew():
        tx.append(b"payload", sock.local_address)
        sock.send(tx)
        if sock.recv(rx):
            held[:] = [rx[0]]

    def use(verb, *arguments):
        def job():
            for packet in list(held):
                getattr(packet, verb)(*arguments)

        return job

    wrong = hammer(renew, use("take"), use("release"), use("freeze"), use("append", b"x"), use("trim_prefix", 1),
                   use("read", 0, 1), use("write", 0, b"y"), use("meta"), lambda: [memoryview(p) for p in held],
                   lambda: tx.append(held[0]))  # fmt: skip
    assert wrong == []
    held.clear()
    tx = rx = None
    assert pool_is_whole(sock.pool)


def test_closing_under_everybody():
    """Sockets are opened and closed while other threads call everything on them."""
    current = [fs.OsUdpSocket.bind("127.0.0.1:0")]
    pool = current[0].pool

    def renew():
        old = current[0]
        current[0] = fs.OsUdpSocket.bind("127.0.0.1:0", pool=pool)
        old.close()

    def traffic():
        sock = current[0]
        tx, rx = sock.tx_batch(8), sock.recv_batch(8)
        tx.append(b"x", sock.local_address)
        sock.send(tx)
        sock.recv(rx)

    def ask():
        sock = current[0]
        sock.stats(), sock.capabilities(), repr(sock), sock.fileno(), sock.local_address, sock.recv_buffer_size

    def close():
        current[0].close()

    wrong = hammer(renew, renew, traffic, traffic, ask, close, lambda: current[0].driver.wait(0.001),
                   lambda: current[0].driver.wait_writable(0.001))  # fmt: skip
    current[0].close()
    assert wrong == []
    assert pool_is_whole(pool)


def test_pool_from_all_sides(sock):
    """Many batches, one pool: what one gives back another one takes, from every thread."""

    def churn():
        tx = sock.tx_batch(8)
        if tx.allocate(8):
            frames = tx.frames.tolist()
            tx.fill(b"mine")
            assert tx.frames.tolist() == frames
            tx.set_destinations(sock.local_address)
            sock.send(tx)

    def receive():
        rx = sock.recv_batch(8)
        sock.recv(rx)
        for packet in list(rx):
            packet.take()

    assert hammer(churn, churn, churn, receive, receive) == []
    assert pool_is_whole(sock.pool)


def test_waiters_all_wake(sock):
    """Several threads may wait at once; closing wakes every one of them."""
    woken, started = [], threading.Semaphore(0)

    def wait():
        started.release()
        try:
            woken.append(sock.driver.wait(60))
        except fs.Error as error:
            woken.append(str(error))

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        started.acquire()
    time.sleep(0.02)
    sock.close()
    for thread in threads:
        thread.join(10)
    assert len(woken) == 4
    assert all("closed" in outcome for outcome in woken)
