"""Field notes on receiving: GRO buffers, truncation, drops, and the address that a reply leaves from."""

import contextlib
import socket

import pytest

import fast_socket as fs
from tests.os.helpers import (
    SECONDS,
    bind,
    collect,
    gso_segments,  # noqa: F401  (needs_gso names it)
    needs_gso,
    numbered,
    peer_of,
    plain,
    queue,
    reachable,
    receive,
    receive_batch,
    send_all,
)

# A GRO buffer must hold 64 times the payload, else MSG_TRUNC; so does a datagram larger than its buffer.


@needs_gso
@pytest.mark.parametrize("family", ["v4", "v6", "dual"])
@pytest.mark.parametrize("size", [1, 100, 1000, 1400])
def test_default_gro_frames_hold_the_largest_buffers(family, size):
    """Over loopback a large send arrives as it was sent."""
    payloads = numbered(140, size) if size > 1 else [b"%c" % i for i in range(140)]
    with bind(family, gro=True) as far, bind("v6" if family == "v6" else "v4") as sock:
        assert send_all(sock, queue(sock, payloads, reachable(far, family))) == 140
        rx = far.recv_batch(64)
        got = []
        while len(got) < 140:
            assert far.driver.wait(SECONDS)
            count = far.recv(rx)
            assert count < 140
            assert rx.gro_strides.tolist() == [size] * count
            walked = rx.datagrams()
            assert len(walked) == rx.datagram_count
            assert walked.lengths.sum() == rx.lengths.sum()
            got += walked
        assert got == payloads
        stats = far.stats()
        assert (stats.received, stats.received_bytes, stats.truncated) == (140, 140 * size, 0)


@needs_gso
def test_gro_packet_that_is_no_multiple_ends_shorter():
    with bind("v4", gro=True) as far, bind("v4") as sock:
        payloads = [b"a" * 100, b"b" * 100, b"c" * 30]
        sock.send(queue(sock, payloads, far.local_address))
        rx = receive_batch(far)
        assert (rx.gro_strides.tolist(), rx.lengths.tolist(), list(rx.datagrams())) == ([100], [230], payloads)
        assert rx[0].meta().gro_stride == 100


@needs_gso
def test_truncated_gro_buffer_is_reported():
    layout = fs.BufferLayout(payload_capacity=1024)
    with bind("v4", gro=True, rx_layout=layout) as far, bind("v4") as sock:
        sock.send(queue(sock, numbered(30, 100), far.local_address))
        rx = receive_batch(far)
        assert rx.lengths.tolist() == [1024]
        assert far.stats().truncated == 1
        sock.send(queue(sock, numbered(10, 100), far.local_address))
        assert collect(far, 10) == numbered(10, 100)
        assert far.stats().truncated == 1


@pytest.mark.parametrize("gro", [False, True])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_truncated_datagram_is_reported_and_its_neighbours_are_whole(gro, batch_calls):
    if gro and not batch_calls:
        pytest.skip("GRO needs the batch calls")
    layout = fs.BufferLayout(payload_capacity=128)
    with bind("v4", gro=gro, batch_calls=batch_calls, rx_layout=layout) as far, peer_of("v4") as sock:
        for size in (127, 128, 129, 2000, 5):
            sock.sendto(b"%d" % (size % 10) * size, far.local_address)
        rx = receive_batch(far, 5)
        assert rx.lengths.tolist() == [127, 128, 128, 128, 5]
        assert [bytes(p)[-1:] for p in rx] == [b"7", b"8", b"9", b"0", b"5"]
        assert far.stats().truncated == 2
        assert far.stats().received == 5


# Kernel drops show in SO_RXQ_OVFL and SO_MEMINFO: a benchmark without drop counts lies.


@pytest.mark.parametrize("gro", [False, True])
def test_kernel_drops_are_counted(gro):
    """What was sent is either received or counted as dropped."""
    with bind("v4", recv_buffer=16_384, gro=gro) as far, peer_of("v4") as sock:
        assert far.stats().kernel_drops == 0
        for _ in range(500):
            sock.sendto(b"x" * 200, far.local_address)
        rx = far.recv_batch(512)
        received = far.recv(rx)
        assert 0 < received < 500
        assert far.recv(rx) == 0
        assert far.stats().kernel_drops == 500 - received
        assert far.stats().received == received
    assert far.stats().kernel_drops is None


# Replies must leave from the address that the peer used (wildcard bind, several addresses).


@contextlib.contextmanager
def talk(near, client_ip, far, server, to):
    """A client's datagram to `to`, reflected by `server`: yields the client after the reply was sent."""
    with near(plain, client_ip) as client, far(server) as sock:
        client.sendto(b"ping", (to, sock.local_address[1]))
        rx = receive_batch(sock)
        tx = sock.tx_batch(4)
        assert tx.take_from(rx) == 1
        assert sock.send(tx) == 1
        yield client


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
@pytest.mark.parametrize("used", ["127.0.0.1", "127.0.0.2", "127.9.8.7"])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_reply_leaves_from_the_address_used_on_loopback(wildcard, used, batch_calls):
    def server():
        return fs.OsUdpSocket.bind((wildcard, 0), metadata=fs.Metadata.LOCAL, batch_calls=batch_calls)

    with talk(lambda f, *a: f(*a), "127.0.0.1", lambda f: f(), server, used) as client:
        data, sender = client.recvfrom(100)
        assert (data, sender[0]) == (b"ping", used)


@pytest.mark.root
@pytest.mark.parametrize(
    ("wildcard", "used"),
    [
        ("0.0.0.0", "10.77.0.2"),
        ("0.0.0.0", "10.77.0.77"),
        ("::", "10.77.0.77"),
        ("::", "fd77::2"),
        ("::", "fd77::77"),
        ("::", "fd77::78"),
    ],
)
def test_reply_leaves_from_the_address_used(several_addresses, wildcard, used):
    near, far = several_addresses

    def server():
        return fs.OsUdpSocket.bind((wildcard, 0), metadata=fs.Metadata.LOCAL)

    mine = str(near.ipv6 if ":" in used else near.ipv4)
    with talk(near.host.run, mine, far.host.run, server, used) as client:
        data, sender = client.recvfrom(100)
        assert (data, sender[0]) == (b"ping", used)


@pytest.mark.root
def test_reply_leaves_from_the_kernels_choice_where_nothing_else_was_asked_for(several_addresses):
    """What the tests above would see if nothing chose."""
    near, far = several_addresses
    with talk(near.host.run, "10.77.0.1", far.host.run, lambda: fs.OsUdpSocket.bind("0.0.0.0:0"), "10.77.0.77") as c:
        assert c.recvfrom(100)[1][0] == "10.77.0.2"


@pytest.mark.root
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
@pytest.mark.parametrize("to", ["10.77.0.255", "255.255.255.255", "239.1.2.3"])
def test_reply_to_a_group_leaves_from_an_address_of_this_host(several_addresses, wildcard, to):
    """Nothing can be sent from a broadcast or multicast address; the reply must go all the same."""
    near, far = several_addresses

    def server():
        sock = fs.OsUdpSocket.bind((wildcard, 0), metadata=fs.Metadata.LOCAL)
        if to.startswith("239"):
            sock.join(to, interface=far.name)
        return sock

    def client(host):
        sock = plain(host)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, near.name.encode())
        return sock

    with talk(lambda _, host: near.host.run(client, host), "10.77.0.1", far.host.run, server, to) as asking:
        data, sender = asking.recvfrom(100)
        assert (data, sender[0]) == (b"ping", "10.77.0.2")


@pytest.fixture(scope="module")
def several_addresses(lab):
    link = lab.link(lab.host("asking"), lab.host("answering"), addresses=(
        ("10.77.0.1/24", "fd77::1/64"),
        ("10.77.0.2/24", "10.77.0.77/24", "fd77::2/64", "fd77::77/64", "fd77::78/64"),
    ))  # fmt: skip
    return link


# IPv4-mapped destinations on a v6 socket need IP_TOS, not IPV6_TCLASS, for ECN.


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("ecn", [fs.Ecn.ECT0, fs.Ecn.ECT1, fs.Ecn.CE])
@pytest.mark.parametrize("to", ["127.0.0.1", "::1"])
def test_ecn_of_a_dual_stack_socket_reaches_both_families(prepared, ecn, to):
    six = to == "::1"
    with plain(to) as far, bind("dual", metadata=fs.Metadata.ECN) as sock:
        if six:
            far.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            far.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        tx = queue(sock, [b"x"], far.getsockname()[:2])
        if prepared:
            spec = fs.UdpEndpointSpec(remote=far.getsockname()[:2], ecn=ecn)
            sock.send_to(sock.prepare_udp_endpoint(spec), tx)
        else:
            tx.ecn[:] = ecn
            sock.send(tx)
        _, [(_, _, value)], _, _ = far.recvmsg(10, 100)
        assert value[0] & 3 == ecn
        assert receive(far, 0) == []
