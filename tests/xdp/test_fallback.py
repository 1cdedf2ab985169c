"""What no way leads to from the device goes through another socket, in its place among the others."""

from collections.abc import Iterator
from typing import Any

import pytest

import fast_socket as fs
from fast_socket.lab import Lab, why_unavailable

UNAVAILABLE = why_unavailable()


class Net:
    """A simulated device with one neighbour; this host's own loopback is what the kernel has beside."""

    def __init__(self, **options: Any) -> None:
        wire = fs.Wire()
        near, far = (fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2))
        self.kernel = fs.OsUdpSocket.bind("127.0.0.1:0", recv_buffer=1 << 20)
        self.here = self.kernel.local_address
        self.fallback = fs.OsUdpSocket.bind("127.0.0.1:0", **options)
        self.far = fs.XdpUdpSocket.open(far, local="192.0.2.2:2000")
        self.there = ("192.0.2.2", 2000)
        self.near = fs.XdpUdpSocket.open(near, local="192.0.2.1:1000", fallback=self.fallback, tx_frames=256)

    def arrived(self, sock: Any) -> list[bytes]:
        rx, got = sock.recv_batch(64), []
        while sock.driver.wait(0.05) and sock.recv(rx):
            got += [bytes(packet) for packet in rx]
        return got

    def close(self) -> None:
        for sock in (self.near, self.far, self.kernel, self.fallback):
            sock.close()


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.near.drain_tx_completions()
    assert made.near.pool.tx_available == made.near.pool.tx_frames
    made.close()


def test_packets_find_their_ways(net: Net) -> None:
    tx = net.near.tx_batch(64)
    for number in range(20):
        tx.append(b"%d" % number, net.here if number % 3 else net.there)
    assert net.near.send(tx) == 20
    assert net.arrived(net.far) == [b"%d" % number for number in range(20) if number % 3 == 0]
    assert net.arrived(net.kernel) == [b"%d" % number for number in range(20) if number % 3]
    stats = net.near.stats()
    assert (stats.sent, stats.handed_over) == (7, 13)
    assert net.fallback.stats().sent == 13


def test_an_endpoint_that_has_no_way(net: Net) -> None:
    peer = net.near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=net.here, gso_size=10))
    tx = net.near.tx_batch(8)
    for _ in range(3):
        tx.append(bytes(range(35)))
    assert net.near.send_to(peer, tx) == 3
    assert net.arrived(net.kernel) == [bytes(range(at, min(at + 10, 35))) for at in (0, 10, 20, 30)] * 3
    assert net.near.stats().handed_over == 12


def test_segments_and_empty_packets(net: Net) -> None:
    tx = net.near.tx_batch(8)
    tx.append(bytes(range(25)), net.here)
    tx.append(b"", net.here)
    tx.append(b"last", net.here)
    tx.segment_sizes[0] = 10
    assert net.near.send(tx) == 3
    assert net.arrived(net.kernel) == [bytes(range(10)), bytes(range(10, 20)), bytes(range(20, 25)), b"", b"last"]


def test_more_than_the_fallback_has_frames_for() -> None:
    net = Net(tx_frames=4)
    tx = net.near.tx_batch(64)
    for number in range(30):
        tx.append(b"%d" % number, net.here)
    sent = 0
    for _ in range(30):
        sent += net.near.send(tx)
        if not len(tx):
            break
    assert sent == 30
    assert net.arrived(net.kernel) == [b"%d" % number for number in range(30)]
    net.close()


def test_a_large_packet_that_goes_in_parts() -> None:
    """The fallback takes four datagrams a call: what is left of a packet stays first in the batch."""
    net = Net(tx_frames=4)
    tx = net.near.tx_batch(4)
    tx.append(bytes(range(100)), net.here)
    tx.append(b"behind", net.here)
    tx.segment_sizes[0] = 10
    assert net.near.send(tx) == 0
    assert bytes(tx[0]) == bytes(range(40, 100))
    while len(tx):
        net.near.send(tx)
    assert net.arrived(net.kernel) == [bytes(range(at, at + 10)) for at in range(0, 100, 10)] + [b"behind"]
    net.close()


def test_what_the_fallback_refuses_is_told_with_what_went_before(net: Net) -> None:
    tx = net.near.tx_batch(8)
    tx.append(b"one", net.there)
    tx.append(b"two", net.here)
    tx.append(b"bad", ("127.255.255.255", 9))  # the kernel: not without SO_BROADCAST
    tx.append(b"three", net.there)
    with pytest.raises(fs.SendError) as raised:
        net.near.send(tx)
    assert raised.value.accepted == 2
    assert [bytes(packet) for packet in tx] == [b"bad", b"three"]
    tx.discard(1)
    assert net.near.send(tx) == 1
    assert net.arrived(net.far) == [b"one", b"three"]
    assert net.arrived(net.kernel) == [b"two"]


def test_a_neighbour_that_is_awaited_is_not_handed_over(net: Net) -> None:
    class Asking:
        generation = 0

        def resolve(self, destination: object) -> fs.Unresolved:
            return fs.Unresolved.NEIGHBOR

    device = fs.SimulatedDevice(fs.Wire(), addresses=["192.0.2.9/24"])
    with fs.XdpUdpSocket.open(device, local="192.0.2.9:1", router=Asking(), fallback=net.fallback) as sock:
        tx = sock.tx_batch(2)
        tx.append(b"wait", net.here)
        peer = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=net.here))
        assert sock.send(tx) == sock.send_to(peer, tx) == 0
        assert (sock.stats().held, sock.stats().handed_over) == (2, 0)


def test_a_slot_without_a_destination_and_one_outside_its_frame(net: Net) -> None:
    for spoil in (lambda tx: tx.destination_ports.fill(0), lambda tx: tx.lengths.fill(60_000)):
        tx = net.near.tx_batch(2)
        tx.append(b"spoilt", net.here)
        spoil(tx)
        with pytest.raises(fs.SendError):
            net.near.send(tx)
        assert len(tx) == 1
        tx.lengths[:] = 6
        tx.discard()


def test_a_fallback_that_is_closed_or_of_the_other_family(net: Net) -> None:
    tx = net.near.tx_batch(2)
    tx.append(b"kept", net.here)
    net.fallback.close()
    with pytest.raises(fs.Error):
        net.near.send(tx)
    assert [bytes(packet) for packet in tx] == [b"kept"]
    tx.discard()


def test_a_socket_that_sends_into_itself_from_the_fallback(net: Net) -> None:
    """Whatever a fallback does with the batch that it is called for, the batch is busy."""

    class Odd:
        def tx_batch(self, capacity: int) -> Any:
            return net.fallback.tx_batch(capacity)

        def send(self, batch: Any) -> int:
            with pytest.raises(fs.Error) as busy:
                tx.discard()
            raised.append(busy)
            return net.fallback.send(batch)

    raised: list[Any] = []
    device = fs.SimulatedDevice(fs.Wire(), addresses=["192.0.2.9/24"])
    with fs.XdpUdpSocket.open(device, local="192.0.2.9:1", fallback=Odd()) as sock:
        tx = sock.tx_batch(2)
        tx.append(b"x", net.here)
        assert sock.send(tx) == 1
    assert len(raised) == 1
    assert net.arrived(net.kernel) == [b"x"]


@pytest.mark.parametrize("count", [-1, 2, "one"])
def test_a_fallback_that_counts_wrong(net: Net, count: Any) -> None:
    class Odd:
        def tx_batch(self, capacity: int) -> Any:
            return net.fallback.tx_batch(capacity)

        def send(self, batch: Any) -> Any:
            return count

    device = fs.SimulatedDevice(fs.Wire(), addresses=["192.0.2.9/24"])
    with fs.XdpUdpSocket.open(device, local="192.0.2.9:1", fallback=Odd()) as sock:
        tx = sock.tx_batch(2)
        tx.append(b"x", net.here)
        with pytest.raises(fs.ConfigError, match="fallback"):
            sock.send(tx)
        assert len(tx) == 1


@pytest.mark.parametrize("fallback", ["lo", object(), 3])
def test_what_is_no_socket(fallback: Any) -> None:
    device = fs.SimulatedDevice(fs.Wire(), addresses=["192.0.2.9/24"])
    with pytest.raises(fs.ConfigError, match="fallback"):
        fs.XdpUdpSocket.open(device, local="192.0.2.9:1", fallback=fallback)


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_this_host_and_another_device() -> None:
    """What the tables send through another device, or to this host, arrives all the same."""
    with Lab() as lab:
        host, east, west = lab.host("host"), lab.host("east"), lab.host("west")
        eastward, westward = lab.link(host, east), lab.link(host, west)
        here = str(eastward.a.ipv4)

        def open_here() -> Any:
            fallback = fs.OsUdpSocket.bind("0.0.0.0:7000")
            local = fs.OsUdpSocket.bind((here, 9000))
            return fallback, local, fs.XdpUdpSocket.open(eastward.a.name, local=(here, 7000), fallback=fallback)

        fallback, local, sock = host.run(open_here)
        listeners = [
            east.run(fs.OsUdpSocket.bind, "0.0.0.0:9000"),
            west.run(fs.OsUdpSocket.bind, "0.0.0.0:9000"),
            local,
        ]
        tx = sock.tx_batch(8)
        for name, to in (("east", eastward.b.ipv4), ("west", westward.b.ipv4), ("here", here)):
            tx.append(name.encode(), (str(to), 9000))
        for _ in range(500):
            sock.send(tx)
            if not len(tx) or not sock.driver.wait_writable(0.01):
                break
        assert sock.stats().handed_over == 2
        for listener, name in zip(listeners, (b"east", b"west", b"here"), strict=True):
            rx = listener.recv_batch(4)
            assert listener.driver.wait(2.0)
            assert listener.recv(rx) == 1
            assert bytes(rx[0]) == name
        for each in (*listeners, sock, fallback):
            each.close()
