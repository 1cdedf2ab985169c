"""A send buffer that is full: on a congested link sends stop, and go on where they stopped."""

import socket
from pathlib import Path

import pytest

import fast_socket as fs
from tests.os.helpers import SECONDS, plain, queue, receive, send_all

SO_RCVBUFFORCE = 33
LARGE = fs.BufferLayout(payload_capacity=65_535)


@pytest.fixture
def congested(fresh):
    """A sender whose datagrams wait for the peer's MAC address and so keep filling its send buffer; the listener that
    they are for; and what lets them go."""
    near, far = fresh

    def listen():
        sock = plain(str(far.ipv4))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        return sock

    near.host.run(write_setting, f"neigh/{near.name}/unres_qlen_bytes", 1 << 24)  # none is dropped meanwhile
    near.host.run(write_setting, f"neigh/{near.name}/mcast_solicit", 100)
    far.host.run(write_setting, f"conf/{far.name}/arp_ignore", 8)
    options = {"gso": False, "send_buffer": 65_536, "report_enobufs": True, "tx_layout": LARGE, "tx_frames": 256}
    with (
        far.host.run(listen) as listener,
        near.host.run(lambda: fs.OsUdpSocket.bind((near.ipv4, 0), **options)) as sock,
    ):
        yield sock, listener, lambda: near.add_neighbor(str(far.ipv4), far.mac)


def write_setting(name, value):
    Path("/proc/sys/net/ipv4", name).write_text(str(value), encoding="ascii")


@pytest.mark.root
def test_full_send_buffer_leaves_the_rest_in_the_batch(congested):
    """Not an error: what did not fit waits, in order, and goes later."""
    sock, listener, release = congested
    payloads = [i.to_bytes(4, "big") * 250 for i in range(200)]
    tx = queue(sock, payloads, listener.getsockname())
    accepted = sock.send(tx)
    assert 0 < accepted < 200
    assert len(tx) == 200 - accepted
    assert sock.stats().would_block == 1
    assert not sock.driver.wait_writable(0)
    assert sock.send(tx) == 0
    assert tx[0].u32(0) == accepted
    release()
    assert sock.driver.wait_writable(SECONDS)
    send_all(sock, tx)
    assert receive(listener, 200) == payloads
    assert sock.stats().sent == 200


@pytest.mark.root
@pytest.mark.parametrize("size", [700, 1000])
def test_full_send_buffer_within_a_segmented_packet(congested, size):
    """It goes on with the datagram that did not fit: none is lost, none sent twice."""
    sock, listener, release = congested
    packets = [bytes((i + n) % 251 for i in range(60_000)) for n in range(3)]
    parts = [packet[i : i + size] for packet in packets for i in range(0, 60_000, size)]
    tx = queue(sock, packets, listener.getsockname())
    tx.segment_sizes[:] = size
    accepted = sock.send(tx)
    assert accepted < 3 and len(tx) == 3 - accepted
    assert sock.send(tx) == 0
    sent = sock.stats().sent
    assert 0 < sent < len(parts)
    release()
    send_all(sock, tx)
    assert receive(listener, len(parts)) == parts
    assert sock.stats().sent == len(parts)


@pytest.mark.root
def test_waiting_for_room_does_not_spin_on_reports_of_errors(congested):
    """The error queue of report_enobufs makes a poll for room return at once, and a sender never receives."""
    sock, listener, release = congested
    gone = sock.local_address[0], 9  # of the sender's own host: the answer is there at once
    tx = sock.tx_batch(200)
    for _ in range(3):
        tx.append(b"nobody", gone)
        sock.send(tx)
    for i in range(200):
        tx.append(i.to_bytes(4, "big") * 250, listener.getsockname())
    sock.send(tx)
    assert 0 < len(tx) < 200
    for _ in range(10):
        if not sock.driver.wait_writable(0.05):
            break
        assert sock.send(tx) == 0
    assert not sock.driver.wait_writable(0)
    release()
    send_all(sock, tx)
    assert receive(listener, 200) == [i.to_bytes(4, "big") * 250 for i in range(200)]
