"""Networks that push back: full send buffers and queues, peers that are gone, privileges that are missing."""

import errno
import gc
import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import fast_socket as fs
from fast_socket.lab import Lab, why_unavailable

UNAVAILABLE = why_unavailable()
needs_lab = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]


def deaf_peer():
    """A loopback port that nobody listens on: what is sent there comes back as an ICMP error."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()


def home(pool):
    gc.collect()
    return (pool.rx_available, pool.tx_available) == (pool.rx_frames, pool.tx_frames)


# A peer that is gone


def test_stale_errors_are_counted_and_lose_nothing():
    with fs.OsUdpSocket.connect(deaf_peer(), gso=False) as sock:
        tx = sock.tx_batch(4)
        for lap in range(5):
            tx.append(b"%d" % lap)
            assert sock.send(tx) == 1, "the earlier datagram's error is not this one's"
        assert sock.stats().stale_errors > 0
        assert sock.stats().sent == 5
        rx = sock.recv_batch(4)
        assert sock.recv(rx) == 0
        assert home(sock.pool) or len(rx) == 0


def test_stale_errors_are_raised_where_wanted():
    with fs.OsUdpSocket.connect(deaf_peer(), icmp_errors="raise", gso=False) as sock:
        tx = sock.tx_batch(4)
        tx.append(b"first")
        assert sock.send(tx) == 1
        tx.append(b"second")
        with pytest.raises(fs.SendError) as caught:
            sock.send(tx)
        assert caught.value.errno == errno.ECONNREFUSED
        assert caught.value.accepted == 0
        assert len(tx) == 1, "it stays, and goes with the next call"
        assert sock.send(tx) == 1
        rx = sock.recv_batch(4)
        with pytest.raises(fs.Error) as received:
            sock.recv(rx)
        assert received.value.errno == errno.ECONNREFUSED
        assert sock.recv(rx) == 0


def test_an_unconnected_socket_hears_nothing():
    with fs.OsUdpSocket.bind("127.0.0.1:0", icmp_errors="raise") as sock:
        tx, to = sock.tx_batch(4), deaf_peer()
        for _ in range(4):
            tx.append(b"x", to)
            assert sock.send(tx) == 1
        assert sock.recv(sock.recv_batch(2)) == 0


# Full buffers and queues


@pytest.fixture(scope="module")
def link():
    with Lab() as lab:
        yield lab.link(lab.host("a"), lab.host("b"))


class TestPressure:
    pytestmark = needs_lab

    def nowhere(self, link):
        address = link.a.ipv4
        network = int(address) & 0xFFFF_FF00
        return str(type(address)(network + 200)), 9

    def test_full_send_buffer_accepts_a_prefix(self, link):
        """Datagrams that wait for a neighbour fill the send buffer; the tail stays with the caller."""
        to = self.nowhere(link)

        def fill():
            with fs.OsUdpSocket.bind("0.0.0.0:0", send_buffer=4608, gso=False) as sock:
                tx = sock.tx_batch(64)
                for i in range(64):
                    tx.append(b"%03d" % i + bytes(1000), to)
                accepted = sock.send(tx)
                rest = [bytes(packet)[:3] for packet in tx]
                again = sock.send(tx)
                blocked = sock.stats().would_block
                free = sock.pool.tx_frames - sock.pool.tx_available
                return accepted, again, rest, blocked, free, len(tx), sock.driver.wait_writable(0)

        accepted, again, rest, blocked, held, left, writable = link.a.host.run(fill)
        assert 0 < accepted < 64
        assert rest == [b"%03d" % i for i in range(accepted, 64)]
        assert again == 0
        assert blocked == 2
        assert held == left == 64 - accepted
        assert not writable

    @pytest.mark.parametrize("report", [False, True])
    def test_queue_overflow(self, link, report):
        """Drops in the host's own queue are silent, or SendError (ENOBUFS) where that was asked for."""
        link.a.set_qdisc("tbf", rate="8kbit", burst=2000, limit=4000)
        try:

            def storm():
                refused = accepted = 0
                with fs.OsUdpSocket.bind("0.0.0.0:0", report_enobufs=report, gso=False) as sock:
                    tx = sock.tx_batch(32)
                    for _ in range(4):
                        for _ in range(32):
                            tx.append(bytes(1000), (str(link.b.ipv4), 9))
                        while len(tx):
                            before = len(tx)
                            try:
                                accepted += sock.send(tx)
                            except fs.SendError as error:
                                assert error.errno == errno.ENOBUFS, error
                                assert len(tx) == before - error.accepted
                                accepted += error.accepted
                                refused += tx.discard(1)
                    return accepted, refused, sock.pool.tx_available == sock.pool.tx_frames

            accepted, refused, complete = link.a.host.run(storm)
        finally:
            link.a.set_qdisc(None)
        assert accepted + refused == 128
        assert (refused > 0) == report
        assert complete

    def test_unreachable_network(self, link):
        def send():
            with fs.OsUdpSocket.bind("0.0.0.0:0", gso=False) as sock:
                tx = sock.tx_batch(3)
                tx.append(b"before", (str(link.b.ipv4), 9))
                tx.append(b"x", ("203.0.113.9", 9))
                try:
                    return sock.send(tx)
                except fs.SendError as error:
                    tx.discard()
                    return error.errno, error.accepted, "203.0.113.9" in str(error)

        assert link.a.host.run(send) == (errno.ENETUNREACH, 1, True)

    def test_datagram_above_the_mtu_where_fragments_are_not_allowed(self, link):
        def send():
            with fs.OsUdpSocket.bind("0.0.0.0:0", path_mtu=fs.PathMtu.DO) as sock:
                tx = sock.tx_batch(3)
                for size in (10, link.a.mtu, 10):
                    tx.append(bytes(size), (str(link.b.ipv4), 9))
                try:
                    return sock.send(tx)
                except fs.SendError as error:
                    left = len(tx)
                    tx.discard(1)
                    return error.errno, error.accepted, left, sock.send(tx), str(link.a.mtu) in str(error)

        assert link.a.host.run(send) == (errno.EMSGSIZE, 1, 2, 1, True)

    def test_device_that_goes_down(self, link):
        """Sending says so; receiving goes on once it is back."""

        def down():
            with fs.OsUdpSocket.bind((str(link.a.ipv4), 0), gso=False) as sock:
                tx = sock.tx_batch(2)
                tx.append(b"x", (str(link.b.ipv4), 9))
                try:
                    return sock.send(tx)
                except fs.SendError as error:
                    tx.discard()
                    return error.errno

        link.b.set_up(False)
        link.a.set_up(False)
        try:
            assert link.a.host.run(down) in (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EINVAL)
        finally:
            link.a.set_up(True)
            link.b.set_up(True)


def test_kernel_drops_are_counted():
    """More than the receive buffer holds, and nobody reading: what the kernel dropped is in the counters."""
    with fs.OsUdpSocket.bind("127.0.0.1:0", recv_buffer=4608) as far, fs.OsUdpSocket.bind("127.0.0.1:0") as near:
        tx = near.tx_batch(64)
        for _ in range(64):
            tx.append(bytes(500), far.local_address)
        sent = near.send(tx)
        rx = far.recv_batch(64)
        received = far.recv(rx)
        assert sent == 64
        assert received < 64
        assert far.stats().kernel_drops == 64 - received


# Privileges

UNPRIVILEGED = """
import logging, os
import fast_socket as fs
import fast_socket.os, numpy
logging.basicConfig()
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


def unprivileged(body):
    """The editable package rebuilds at import and needs its build directory: privileges go after that."""
    return subprocess.run([sys.executable, "-c", UNPRIVILEGED + textwrap.dedent(body)], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip


def test_buffers_without_privilege_are_what_the_system_allows():
    """Cut, not refused, and said in the log."""
    done = unprivileged("""
        with fs.OsUdpSocket.bind("127.0.0.1:0", recv_buffer=2**30, send_buffer=2**30) as sock:
            assert 0 < sock.recv_buffer_size < 2**30 and 0 < sock.send_buffer_size < 2**30
        """)
    assert done.returncode == 0, done.stderr
    for name in ("recv_buffer", "send_buffer", "rmem_max", "wmem_max", "CAP_NET_ADMIN"):
        assert name in done.stderr


def test_missing_privileges_are_named():
    done = unprivileged("""
        # Newer kernels let anybody set busy_poll; the budget and the preference stay privileged.
        for name, value, always in (("busy_poll", 2**20, False), ("prefer_busy_poll", True, True),
                                    ("busy_poll_budget", 1000, True)):
            try:
                fs.OsUdpSocket.bind("127.0.0.1:0", **{name: value}).close()
                if always: raise SystemExit(f"{name} was allowed")
            except fs.CapabilityError as error:
                assert "CAP_NET_ADMIN" in str(error) and name in str(error), error
        """)
    assert done.returncode == 0, done.stderr


def test_low_port_without_privilege():
    limit = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if limit <= 1:
        pytest.skip("every port may be bound here")
    done = unprivileged(f"""
        try:
            fs.OsUdpSocket.bind(("127.0.0.1", {limit - 1})).close()
            raise SystemExit("it was allowed")
        except fs.Error as error:
            assert "CAP_NET_BIND_SERVICE" in str(error), error
        """)
    assert done.returncode == 0, done.stderr


def test_nothing_needs_privilege_by_default():
    done = unprivileged("""
        with fs.OsUdpSocket.bind("127.0.0.1:0", gro=True) as a, fs.OsUdpSocket.connect(a.local_address) as b:
            tx, rx = b.tx_batch(4), a.recv_batch(4)
            tx.append(b"x"); b.send(tx)
            assert a.driver.wait(5) and a.recv(rx) == 1
            a.stats(), a.capabilities()
        """)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_warning_only_where_something_was_cut(caplog):
    with caplog.at_level(logging.WARNING, "fast_socket"):
        fs.OsUdpSocket.bind("127.0.0.1:0", recv_buffer=65_536, send_buffer=65_537).close()
    assert caplog.records == []


def test_nothing_is_left_open():
    """Sockets that could not be opened leave no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    for attempt in (
        lambda: fs.OsUdpSocket.bind("192.0.2.1:0"),
        lambda: fs.OsUdpSocket.bind("127.0.0.1:0", device="nosuchif0"),
        lambda: fs.OsUdpSocket.bind("127.0.0.1:0", multicast_interface="nosuchif0"),
        lambda: fs.OsUdpSocket.connect("255.255.255.255:9"),
        lambda: fs.OsUdpSocket.connect("127.0.0.1:9", local="192.0.2.1:0"),
    ):
        with pytest.raises(fs.Error):
            attempt()
    for _ in range(3):
        fs.OsUdpSocket.bind("127.0.0.1:0")
    for _ in range(100):  # garbage with a thread of its own to free may take a moment
        if len(os.listdir("/proc/self/fd")) <= before:
            break
        gc.collect()
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before
