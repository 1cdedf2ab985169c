"""Field notes on errors: partial sends, ICMP errors of earlier datagrams, ENOBUFS."""

import errno

import pytest

import fast_socket as fs
from tests.os.helpers import HOSTS, bind, collect, nothing_more, peer_of, plain, queue, receive

TOO_LONG = 65_508  # one more than a datagram over IPv4 takes
LARGE = fs.BufferLayout(payload_capacity=65_535)


def deserted(family):
    """An address where nobody listens."""
    with plain(HOSTS[family]) as sock:
        return sock.getsockname()[:2]


# Partial sendmmsg reports the count and loses the errno; the next call shows it.


@pytest.mark.parametrize("batch_calls", [False, True])
@pytest.mark.parametrize("gso", [False, True])
@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_refused_slot_raises_with_what_was_accepted(batch_calls, gso, at):
    """The slots before it are sent, it is the first of the rest, and after a discard the rest goes."""
    payloads = [b"%d" % i * (i + 1) for i in range(6)]
    payloads[at] = bytes(TOO_LONG)
    rest = payloads[at + 1 :]
    with peer_of("v4") as far, bind("v4", gso=gso, batch_calls=batch_calls, tx_layout=LARGE, tx_frames=8) as sock:
        tx = queue(sock, payloads, far.getsockname())
        with pytest.raises(fs.SendError, match="65508 bytes are too many") as caught:
            sock.send(tx)
        assert (caught.value.accepted, caught.value.errno) == (at, errno.EMSGSIZE)
        assert (len(tx), tx.lengths[0]) == (6 - at, TOO_LONG)
        assert receive(far, at) == payloads[:at]
        with pytest.raises(fs.SendError) as again:
            sock.send(tx)
        assert (again.value.accepted, again.value.errno) == (0, errno.EMSGSIZE)
        tx.discard(1)
        assert sock.send(tx) == len(rest)
        assert receive(far, len(rest)) == rest
        assert sock.stats().sent == 5
        assert sock.pool.tx_available == 8


@pytest.mark.parametrize("gso", [False, True])
def test_refused_slot_behind_more_than_one_call_takes(gso):
    """1500 datagrams to a port, then one that is refused: every one of them counts as accepted."""
    with peer_of("v4") as far, bind("v4", gso=gso, tx_frames=2048, send_buffer=1 << 20) as sock:
        tx = queue(sock, [b"x" * 16] * 1500, far.getsockname(), capacity=1502)
        tx.append(b"to everyone", ("255.255.255.255", 9))  # EACCES without SO_BROADCAST
        tx.append(b"last", far.getsockname())
        with pytest.raises(fs.SendError) as caught:
            sock.send(tx)
        assert (caught.value.accepted, caught.value.errno) == (1500, errno.EACCES)
        assert tx[0].address == ("255.255.255.255", 9)
        tx.discard(1)
        assert sock.send(tx) == 1
        assert sock.stats().sent == 1501


# A stale ICMP error poisons the next send or receive on a connected socket: retry once, count.


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_stale_error_does_not_stop_a_send(family, batch_calls):
    gone = deserted(family)
    with fs.OsUdpSocket.connect(gone, batch_calls=batch_calls) as sock:
        for i in range(3):
            assert sock.send(queue(sock, [b"nobody"])) == 1
            assert sock.stats().stale_errors == i
        assert sock.stats().sent == 3


@pytest.mark.parametrize("batch_calls", [False, True])
@pytest.mark.parametrize("gso", [False, True])
def test_stale_errors_within_one_batch_do_not_stop_it(batch_calls, gso):
    """Over loopback the answer to one datagram is there before the next leaves: each may find an error."""
    payloads = [bytes(10 + i) for i in range(10)]  # growing: no large sends
    with fs.OsUdpSocket.connect(deserted("v4"), batch_calls=batch_calls, gso=gso) as sock:
        assert sock.send(queue(sock, payloads)) == 10
        assert sock.stats().sent == 10


@pytest.mark.parametrize("batch_calls", [False, True])
def test_stale_error_does_not_hide_what_arrived(batch_calls):
    """The peer goes and comes back: its datagram is received although an error is pending."""
    gone = deserted("v4")
    with fs.OsUdpSocket.connect(gone, batch_calls=batch_calls) as sock:
        sock.send(queue(sock, [b"nobody"]))
        rx = sock.recv_batch(8)
        assert sock.recv(rx) == 0
        assert sock.stats().stale_errors == 1
        sock.send(queue(sock, [b"nobody"]))
        with plain(*gone) as back:
            back.sendto(b"here again", sock.local_address)
            assert collect(sock, 1) == [b"here again"]
            assert sock.stats().stale_errors == 2
            assert sock.send(queue(sock, [b"hello"])) == 1
            assert receive(back, 1) == [b"hello"]


@pytest.mark.parametrize("batch_calls", [False, True])
def test_stale_error_raised_on_request(batch_calls):
    """Once for each, on the next call; the packet that met it stays and goes with the call after."""
    gone = deserted("v4")
    with fs.OsUdpSocket.connect(gone, batch_calls=batch_calls, icmp_errors="raise") as sock:
        assert sock.send(queue(sock, [b"first"])) == 1
        rx = sock.recv_batch(8)
        with pytest.raises(fs.Error) as caught:
            sock.recv(rx)
        assert caught.value.errno == errno.ECONNREFUSED
        assert sock.recv(rx) == 0
        assert sock.send(queue(sock, [b"second"])) == 1
        tx = queue(sock, [b"third"])
        with pytest.raises(fs.SendError) as refused:
            sock.send(tx)
        assert (refused.value.errno, refused.value.accepted) == (errno.ECONNREFUSED, 0)
        assert len(tx) == 1
        assert sock.send(tx) == 1
        assert sock.stats().stale_errors == 0


@pytest.mark.parametrize("report_enobufs", [False, True])
def test_stale_error_is_counted_once(report_enobufs):
    """With IP_RECVERR the kernel reports it twice: as the socket's error and in its error queue."""
    with fs.OsUdpSocket.connect(deserted("v4"), report_enobufs=report_enobufs) as sock:
        sock.send(queue(sock, [b"nobody"]))
        rx = sock.recv_batch(4)
        for _ in range(3):
            assert sock.recv(rx) == 0
        assert sock.stats().stale_errors == 1


def test_unconnected_socket_hears_of_no_refusal():
    with bind("v4") as sock:
        for _ in range(3):
            assert sock.send(queue(sock, [b"nobody"], deserted("v4"))) == 1
        assert sock.recv(sock.recv_batch(1)) == 0
        assert sock.stats().stale_errors == 0


@pytest.mark.root
@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_error_that_persists_is_raised_and_the_packet_stays(fresh, version):
    """Tried again once like a stale one, but the device is down."""
    near, far = fresh
    with near.host.run(fs.OsUdpSocket.connect, (getattr(far, version) + 100, 9)) as sock:
        near.set_up(False)
        tx = queue(sock, [b"x"])
        with pytest.raises(fs.SendError) as caught:
            sock.send(tx)
        assert caught.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
        assert caught.value.accepted == 0
        assert len(tx) == 1


@pytest.mark.root
@pytest.mark.parametrize("report_enobufs", [False, True])
def test_waiting_does_not_spin_on_reports_of_errors(fresh, report_enobufs):
    """report_enobufs is IP_RECVERR, which also queues ICMP errors on the socket, where they would keep it readable."""
    near, far = fresh
    gone = far.host.run(plain, str(far.ipv4))
    to = gone.getsockname()
    gone.close()
    with near.host.run(lambda: fs.OsUdpSocket.bind((near.ipv4, 0), report_enobufs=report_enobufs)) as sock:
        sock.send(queue(sock, [b"nobody"] * 3, to))
        rx = sock.recv_batch(4)
        for _ in range(10):
            if not sock.driver.wait(0.1):
                break
            assert sock.recv(rx) == 0
        assert not sock.driver.wait(0)


# ENOBUFS is swallowed unless IP_RECVERR is set.


@pytest.mark.root
@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_enobufs_only_on_request(fresh, version, batch_calls):
    """The far device refuses what is larger than its MTU, and veth then reports a drop in the queue."""
    near, far = fresh
    far.set_mtu(1280)
    payloads = [b"a" * 100, b"b" * 1400, b"c" * 100, b"d" * 1400, b"e" * 100]
    options = {"gso": False, "batch_calls": batch_calls}

    def sender(**more):
        return near.host.run(lambda: fs.OsUdpSocket.bind((getattr(near, version), 0), **options, **more))

    with far.host.run(plain, str(getattr(far, version))) as listener:
        to = listener.getsockname()[:2]
        with sender() as silent:
            assert silent.send(queue(silent, payloads, to)) == 5
            assert receive(listener, 3) == payloads[::2]
        with sender(report_enobufs=True) as sock:
            tx = queue(sock, payloads, to)
            for accepted in (1, 1):
                with pytest.raises(fs.SendError) as caught:
                    sock.send(tx)
                assert (caught.value.errno, caught.value.accepted) == (errno.ENOBUFS, accepted)
                assert len(bytes(tx[0])) == 1400
                tx.discard(1)
            assert sock.send(tx) == 1
            assert receive(listener, 3) == payloads[::2]
            assert sock.stats().sent == 3


# Blocking recvmmsg needs MSG_WAITFORONE; its own timeout argument is broken: no receive blocks at all.


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_receive_never_blocks_on_a_blocking_socket(timeout, batch_calls):
    """A receive that waited for its batch to fill would end in the time limit of the test run."""
    adopted = plain()
    adopted.settimeout(timeout)
    with fs.OsUdpSocket.from_socket(adopted, batch_calls=batch_calls) as sock, peer_of("v4") as far:
        rx = sock.recv_batch(8)
        assert sock.recv(rx) == 0
        for i in range(3):
            far.sendto(b"%d" % i, sock.local_address)
        assert sock.recv(rx) == 3
        assert sock.recv(rx) == 0
        assert nothing_more(far)
