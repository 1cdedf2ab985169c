"""OS sockets as objects: how they are made and adopted, what they say of themselves, what passes through them."""

import dataclasses
import errno
import gc
import os
import socket
import typing

import pytest

import fast_socket as fs
from fast_socket.os.options import CheckedOptions
from tests.os.helpers import (
    FAMILIES,
    HOSTS,
    SECONDS,
    SOL_UDP,
    UDP_GRO,
    bind,
    collect,
    gso_segments,  # noqa: F401  (needs_gso names it)
    needs_gso,
    nothing_more,
    numbered,
    option,
    peer_of,
    plain,
    queue,
    reachable,
    receive,
    receive_batch,
    send_all,
)

LARGE = fs.BufferLayout(payload_capacity=65_535)


# Making one


@pytest.mark.parametrize("address", ["127.0.0.1:0", ("127.0.0.1", 0), "[::1]:0", ("::1", 0), ("::1", 0, 0, 0)])
def test_bind_takes_every_form_of_an_address(address):
    with fs.OsUdpSocket.bind(address) as sock, plain("::1" if "::1" in str(address) else "127.0.0.1") as peer:
        host, port = sock.local_address
        assert host in ("127.0.0.1", "::1") and port > 0
        peer.sendto(b"x", (host, port))
        assert collect(sock, 1) == [b"x"]
        assert sock.remote_address is None


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_connected_socket_sends_there_and_hears_nobody_else(family):
    with (
        peer_of(family) as peer,
        peer_of(family) as stranger,
        fs.OsUdpSocket.connect(peer.getsockname()[:2], local=(HOSTS[family], 0)) as sock,
    ):
        assert sock.remote_address == peer.getsockname()[:2]
        assert sock.local_address[0] == HOSTS[family]
        stranger.sendto(b"stranger", sock.local_address)
        peer.sendto(b"peer", sock.local_address)
        assert collect(sock, 1) == [b"peer"]
        sock.send(queue(sock, [b"to the peer"]))
        sock.send(queue(sock, [b"to another"], stranger.getsockname()[:2]))
        assert receive(peer, 1) == [b"to the peer"]
        assert receive(stranger, 1) == [b"to another"]


def test_connect_binds_locally_where_asked():
    with plain() as reserved, peer_of("v4") as peer:
        port = reserved.getsockname()[1]
        reserved.close()
        with fs.OsUdpSocket.connect(peer.getsockname(), local=("127.0.0.1", port)) as sock:
            assert sock.local_address == ("127.0.0.1", port)


@pytest.mark.parametrize("v6only", [True, False])
def test_v6only_decides_on_ipv4(v6only):
    with fs.OsUdpSocket.bind("[::]:0", v6only=v6only) as sock, peer_of("v4") as four, peer_of("v6") as six:
        four.sendto(b"four", ("127.0.0.1", sock.local_address[1]))
        six.sendto(b"six", ("::1", sock.local_address[1]))
        assert sorted(collect(sock, 1 if v6only else 2)) == ([b"six"] if v6only else [b"four", b"six"])
        if v6only:
            with pytest.raises(fs.SendError):
                sock.send(queue(sock, [b"x"], four.getsockname()))
        else:
            assert sock.send(queue(sock, [b"x"], four.getsockname())) == 1
            assert receive(four, 1) == [b"x"]


@pytest.mark.parametrize("driver", [fs.WaitDriver, fs.BusyPollDriver])
def test_driver_is_the_one_chosen(driver):
    with bind("v4", driver=driver, min_batch=4, max_wait=0.001) as sock, peer_of("v4") as peer:
        assert type(sock.driver) is driver
        assert (sock.driver.min_batch, sock.driver.max_wait) == (4, 0.001)
        assert not sock.driver.wait(0)
        assert not sock.driver.wait(0.01)
        assert sock.driver.wait_writable(SECONDS)
        peer.sendto(b"x", sock.local_address)
        assert sock.driver.wait(SECONDS)
        assert sock.driver.wait()
        assert collect(sock, 1) == [b"x"]
    with pytest.raises(fs.Error, match="closed"):
        sock.driver.wait(0)
    assert type(bind("v4").driver) is fs.WaitDriver


def test_option_types_and_option_checks_are_the_same_list():
    """What a type checker accepts and what the constructor accepts; the driver is apart, for it decides the type."""
    checked = {field.name for field in dataclasses.fields(CheckedOptions)}
    assert set(typing.get_type_hints(fs.OsUdpOptions)) == checked - {"driver"}
    assert fs.OsUdpOptions.__required_keys__ == frozenset()
    with pytest.raises(fs.ConfigError, match="reuse_prot"):
        bind("v4", reuse_prot=True)


# Adopting one


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("timeout", [None, 0, 3.0])
def test_adopts_any_udp_socket(family, bound, connected, timeout):
    """Its binding, peer and options stay; the given object is detached."""
    given = socket.socket(socket.AF_INET6 if family == "v6" else socket.AF_INET, socket.SOCK_DGRAM)
    given.settimeout(timeout)
    given.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    with peer_of(family) as peer:
        if bound:
            given.bind((HOSTS[family], 0))
        if connected:
            given.connect(peer.getsockname())
        number, name = given.fileno(), given.getsockname()[:2]
        with fs.OsUdpSocket.from_socket(given, ttl=5) as sock:
            assert given.fileno() == -1
            assert sock.fileno() == number
            assert sock.local_address == name
            assert sock.remote_address == (peer.getsockname()[:2] if connected else None)
            assert option(sock, socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
            assert option(sock, socket.IPPROTO_IP, socket.IP_TTL) == 5
            assert sock.recv(sock.recv_batch(4)) == 0
            assert sock.send(queue(sock, [b"x"], None if connected else peer.getsockname()[:2])) == 1
            _, back = peer.recvfrom(10)
            peer.sendto(b"y", back)
            assert collect(sock, 1) == [b"y"]


def made(kind):
    if kind == "stream":
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if kind == "unix":
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if kind == "netlink":
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    assert kind == "udplite"
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE)
    except OSError as error:
        pytest.skip(f"no UDP-Lite: {error}")


@pytest.mark.parametrize("kind", ["stream", "unix", "netlink", "udplite"])
def test_refuses_what_is_not_udp_and_leaves_it_alone(kind):
    with made(kind) as given:
        number = given.fileno()
        with pytest.raises(fs.ConfigError, match="UDP"):
            fs.OsUdpSocket.from_socket(given)
        assert given.fileno() == number
        assert given.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == given.type


def test_refuses_what_is_no_open_socket():
    closed = plain()
    closed.close()
    with pytest.raises(fs.ConfigError, match="closed"):
        fs.OsUdpSocket.from_socket(closed)
    for thing in (None, 5, "socket", object()):
        with pytest.raises(fs.ConfigError, match="socket"):
            fs.OsUdpSocket.from_socket(thing)


@pytest.mark.parametrize(
    "wrong", [{"ttl": 0}, {"nonsense": 1}, {"reuse_port": True}, {"v6only": True}, {"device": "nosuch0"}, {"gro": "x"}]
)
def test_refused_options_leave_the_given_socket_working(wrong):
    with plain() as given, peer_of("v4") as peer:
        if wrong == {"gro": "x"}:
            wrong = {"gro": True, "batch_calls": False}
        with pytest.raises(fs.Error):
            fs.OsUdpSocket.from_socket(given, **wrong)
        given.sendto(b"still here", peer.getsockname())
        assert receive(peer, 1) == [b"still here"]


@needs_gso
def test_adopted_socket_with_gro_of_its_own_delivers_single_datagrams():
    """Without gro=True there is no stride, and a coalesced packet could not be told from a long datagram."""
    with plain() as given, bind("v4") as sender:
        given.setsockopt(SOL_UDP, UDP_GRO, 1)
        with fs.OsUdpSocket.from_socket(given) as sock:
            sender.send(queue(sender, numbered(20, 64), sock.local_address))
            assert collect(sock, 20) == numbered(20, 64)


# Descriptors


def test_collector_closes_nothing_that_is_not_ours():
    """A socket in a reference cycle is closed; its number is given to another file; then the cycle is collected."""

    class Holder:
        pass

    other = os.open(os.devnull, os.O_RDONLY)
    holder = Holder()
    holder.itself, holder.sock = holder, bind("v4")
    number = holder.sock.fileno()
    holder.sock.close()
    os.dup2(other, number)  # as the kernel would, sooner or later
    os.close(other)
    del holder
    gc.collect()
    os.fstat(number)
    os.close(number)


def test_forgotten_socket_in_a_cycle_is_closed_once():
    class Holder:
        pass

    holder = Holder()
    holder.itself, holder.sock = holder, bind("v4")
    address, number = holder.sock.local_address, holder.sock.fileno()
    del holder
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(number)
    plain(*address).close()


def test_closing():
    with bind("v4") as sock, peer_of("v4") as peer:
        number = sock.fileno()
        rx, tx = sock.recv_batch(4), queue(sock, [b"x"], peer.getsockname())
        peer.sendto(b"kept", sock.local_address)
        assert sock.recv(rx) == 1
        sock.close()
        sock.close()
        assert sock.closed and sock.fileno() == -1 and "closed" in repr(sock)
        assert bytes(rx[0]) == b"kept"
        for call in (lambda: sock.recv(rx), lambda: sock.send(tx), lambda: sock.local_address, lambda: sock.path_mtu,
                     lambda: sock.join("239.1.1.1"), lambda: sock.driver.wait(0)):  # fmt: skip
            with pytest.raises(fs.Error, match="closed") as caught:
                call()
            assert caught.value.errno == errno.EBADF
        assert len(tx) == 1
        with pytest.raises(OSError):
            os.fstat(number)


# What passes through


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_calls", [False, True])
@pytest.mark.parametrize("gso", [False, True])
def test_zero_length_datagrams(family, batch_calls, gso):
    payloads = [b"", b"", b"a", b"", b"b", b"c", b"", b""]
    options = {"batch_calls": batch_calls, "gso": gso}
    with bind(family, batch_calls=batch_calls) as far, bind("v6" if family == "v6" else "v4", **options) as sock:
        assert sock.send(queue(sock, payloads, reachable(far, family))) == 8
        rx = receive_batch(far, 8)
        assert [bytes(p) for p in rx] == payloads
        assert (rx.datagram_count, len(rx.datagrams())) == (8, 8)
        assert (far.stats().received, far.stats().received_bytes, far.stats().truncated) == (8, 3, 0)
        tx = far.tx_batch(8)
        assert tx.take_from(rx) == 8
        assert far.send(tx) == 8
        assert collect(sock, 8) == payloads


@pytest.mark.parametrize("gro", [False, True])
def test_zero_length_datagrams_between_coalesced_ones(gro):
    payloads = [b"", *numbered(10, 50), b"", *numbered(5, 60), b""]
    with bind("v4", gro=gro) as far, bind("v4") as sock:
        assert sock.send(queue(sock, payloads, far.local_address)) == len(payloads)
        assert collect(far, len(payloads)) == payloads
        assert far.stats().received == len(payloads)


@pytest.mark.parametrize(("family", "largest"), [("v4", 65_507), ("v6", 65_527), ("dual", 65_507)])
@pytest.mark.parametrize("gso", [False, True])
def test_largest_datagram_and_one_byte_more(family, largest, gso):
    options = {"rx_layout": LARGE, "tx_layout": LARGE, "rx_frames": 8, "tx_frames": 8}
    payload = bytes(i % 251 for i in range(largest))
    far_family = "v6" if family == "v6" else "v4"
    with bind(far_family, **options) as far, bind(family, gso=gso, **options) as sock:
        for payloads in ([payload], [payload, payload], [payload[:40_000]] * 2):
            assert send_all(sock, queue(sock, payloads, far.local_address)) == len(payloads)
            assert collect(far, len(payloads)) == payloads
        tx = queue(sock, [b"x", bytes(largest + 1)], far.local_address)
        with pytest.raises(fs.SendError, match=str(largest + 1)) as caught:
            sock.send(tx)
        assert (caught.value.errno, caught.value.accepted, len(tx)) == (errno.EMSGSIZE, 1, 1)
        if family != "dual":
            assert sock.capabilities().max_payload == largest


def test_max_payload_is_what_a_frame_holds():
    with bind("v4", tx_layout=fs.BufferLayout(payload_capacity=256), tx_frames=4) as sock, peer_of("v4") as far:
        assert sock.capabilities().max_payload == 256
        assert sock.send(queue(sock, [b"x" * 256], far.getsockname())) == 1
        with pytest.raises(fs.ConfigError, match="257"):
            sock.tx_batch(1).append(b"x" * 257, far.getsockname())


@pytest.mark.parametrize("capacity", [1, 2, 1000, 5000])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_batches_of_any_capacity(capacity, batch_calls):
    """More arrives than fits, or less; the order stays."""
    with bind("v4", batch_calls=batch_calls, rx_frames=8192, recv_buffer=1 << 20) as far, peer_of("v4") as peer:
        for i in range(150):
            peer.sendto(b"%d" % i, far.local_address)
        rx = far.recv_batch(capacity)
        got = []
        while count := far.recv(rx):
            assert count == len(rx) == min(capacity, 150 - len(got))
            got += [bytes(p) for p in rx]
        assert got == [b"%d" % i for i in range(150)]
        assert far.stats().received == 150


# Several sockets of one pool


def shared_pool():
    layout = fs.BufferLayout(payload_capacity=2048)
    return fs.FramePool(rx_frames=256, tx_frames=256, rx_layout=layout, tx_layout=layout)


@pytest.mark.parametrize("way", ["all", "columns", "endpoint"])
def test_forwarding_between_sockets_of_one_pool(way):
    """Received on one, sent by the other, to where the caller says, without the bytes moving."""
    pool = shared_pool()
    with (
        bind("v4", pool=pool) as inside,
        bind("v4", pool=pool) as outside,
        peer_of("v4") as sender,
        peer_of("v4") as first,
        peer_of("v4") as second,
    ):
        payloads = [b"%d" % i * (i + 1) for i in range(10)]
        for payload in payloads:
            sender.sendto(payload, inside.local_address)
        rx, tx = inside.recv_batch(16), outside.tx_batch(16)
        assert inside.recv(rx) == 10
        frames = rx.frames.tolist()
        assert tx.take_from(rx, reply=False) == 10
        assert tx.frames.tolist() == frames
        assert set(tx.destination_ports.tolist()) == {0}
        if way == "all":
            tx.set_destinations(first.getsockname())
            expected = payloads, []
        elif way == "columns":
            tx.destination_addresses[:] = [127, 0, 0, 1]
            tx.destination_ports[0::2] = first.getsockname()[1]
            tx.destination_ports[1::2] = second.getsockname()[1]
            expected = payloads[0::2], payloads[1::2]
        if way == "endpoint":
            to = outside.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=second.getsockname()))
            assert outside.send_to(to, tx) == 10
            expected = [], payloads
        else:
            assert outside.send(tx) == 10
        assert receive(first, len(expected[0])) == expected[0]
        assert receive(second, len(expected[1])) == expected[1]
        assert inside.recv(rx) == 0
        del rx, tx
        assert (pool.rx_available, pool.tx_available) == (256, 256)


def test_forwarding_without_a_destination_is_refused_and_nothing_is_lost():
    pool = shared_pool()
    with bind("v4", pool=pool) as a, bind("v4", pool=pool) as b, peer_of("v4") as sender:
        sender.sendto(b"where to?", a.local_address)
        rx, tx = receive_batch(a), b.tx_batch(4)
        tx.take_from(rx, reply=False)
        with pytest.raises(fs.SendError, match="destination"):
            b.send(tx)
        tx.set_destinations(sender.getsockname())
        assert b.send(tx) == 1
        assert receive(sender, 1) == [b"where to?"]


def test_forwarding_from_ipv4_to_ipv6():
    """The families differ, so the destinations must be set: but the frames move all the same."""
    pool = shared_pool()
    with bind("v4", pool=pool) as a, bind("v6", pool=pool) as b, peer_of("v4") as sender, peer_of("v6") as far:
        sender.sendto(b"translated", a.local_address)
        rx, tx = receive_batch(a), b.tx_batch(4)
        with pytest.raises(fs.ConfigError, match="reply=False"):
            tx.take_from(rx)
        assert tx.take_from(rx, reply=False) == 1
        tx.set_destinations(far.getsockname()[:2])
        assert b.send(tx) == 1
        assert receive(far, 1) == [b"translated"]


@needs_gso
@pytest.mark.parametrize("gso", [False, True])
def test_forwarded_gro_packet_leaves_as_its_datagrams(gso):
    large, small = LARGE, fs.BufferLayout(payload_capacity=64)
    pool = fs.FramePool(rx_frames=16, tx_frames=16, rx_layout=large, tx_layout=small)
    with (
        bind("v4", pool=pool, gro=True) as a,
        bind("v4", pool=pool, gso=gso) as b,
        bind("v4") as sender,
        peer_of("v4") as far,
    ):
        payloads = [*numbered(30, 100), b"rest"]
        sender.send(queue(sender, payloads, a.local_address))
        rx, tx = receive_batch(a), b.tx_batch(4)
        assert tx.take_from(rx, reply=False) == 1
        assert tx.segment_sizes.tolist() == [100]
        tx.set_destinations(far.getsockname())
        assert b.send(tx) == 1
        assert receive(far, 31) == payloads
        assert b.stats().sent == 31


@needs_gso
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gso", [False, True])
def test_reflecting_gro_packets(family, gso):
    """The pong server: what came coalesced goes back as the same datagrams."""
    with bind(family, gro=True, gso=gso) as server, bind("v6" if family == "v6" else "v4") as client:
        payloads = numbered(50, 80)
        client.send(queue(client, payloads, reachable(server, family)))
        rx, tx = server.recv_batch(8), server.tx_batch(8)
        assert server.recv(rx) > 0
        tx.take_from(rx)
        send_all(server, tx)
        assert collect(client, 50) == payloads
        assert server.stats().sent == 50


def test_batch_of_another_socket_is_refused():
    with bind("v4") as a, bind("v4") as b, bind("v4", pool=a.pool, metadata=fs.Metadata.ECN) as c, bind("v6") as six:
        for other in (b, c, six):
            with pytest.raises(fs.ConfigError, match="another socket"):
                a.recv(other.recv_batch(1))
            with pytest.raises(fs.ConfigError, match="another socket"):
                a.send(queue(other, [b"x"], other.local_address))
        endpoint = six.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="[::1]:9"))
        with pytest.raises(fs.ConfigError, match="family"):
            a.send_to(endpoint, queue(a, [b"x"]))


# Prepared endpoints


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("connected", [False, True])
def test_endpoint_overrules_the_slots(family, connected):
    with peer_of(family) as far, peer_of(family) as other:
        to = reachable_peer(far, family)
        sock = fs.OsUdpSocket.connect(to) if connected else bind(family)
        with sock:
            endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=to))
            assert sock.send_to(endpoint, queue(sock, numbered(9, 20), reachable_peer(other, family))) == 9
            assert receive(far, 9) == numbered(9, 20)
            assert nothing_more(other)


def reachable_peer(peer, family):
    host, port = peer.getsockname()[:2]
    return (f"::ffff:{host}" if family == "dual" else host), port


def test_endpoint_with_a_fixed_length_refuses_others():
    with peer_of("v4") as far, bind("v4") as sock:
        endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=far.getsockname(), payload_len=10))
        tx = queue(sock, [b"x" * 10, b"y" * 10, b"z" * 9, b"w" * 10])
        with pytest.raises(fs.SendError, match="payload_len") as caught:
            sock.send_to(endpoint, tx)
        assert caught.value.accepted == 2
        tx.discard(1)
        assert sock.send_to(endpoint, tx) == 1
        assert receive(far, 3) == [b"x" * 10, b"y" * 10, b"w" * 10]


def test_endpoint_that_this_socket_cannot_serve():
    with bind("v4") as sock:
        with pytest.raises(fs.ConfigError, match="source_port"):
            sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="127.0.0.1:9", source_port=1))
        with pytest.raises(fs.ConfigError, match="IPv6"):
            sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote="[::1]:9"))
        with pytest.raises(fs.ConfigError, match="UdpEndpointSpec"):
            sock.prepare_udp_endpoint(("127.0.0.1", 9))
        same = sock.prepare_udp_endpoint(
            fs.UdpEndpointSpec(remote="127.0.0.1:9", source_port=sock.local_address[1], source="127.0.0.1")
        )
        assert same.spec.remote == ("127.0.0.1", 9)
        assert sock.drain_tx_completions() == 0
        assert sock.notify_tx() is None
