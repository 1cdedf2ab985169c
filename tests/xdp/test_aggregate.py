"""Several queues as one socket: everything arrives once, order holds within a flow, frames come home."""

import signal
import threading
import time
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP

import fast_socket as fs
from fast_socket import ConfigError, DeviceError, Error, SendError
from fast_socket.lab import Lab, why_unavailable
from tests.conformance.backends import whole

QUEUES = 4
HOSTS = ("192.0.2.1", "192.0.2.2")
LOCAL = (HOSTS[1], 9000)
UNAVAILABLE = why_unavailable()
spreads = pytest.mark.parametrize("spread", ["flow", "round_robin"])


class Net:
    """A sender with one queue, and a device with four, to which frames go by their source port."""

    def __init__(self, **wire: Any) -> None:
        self.wire = fs.Wire(**wire)
        self.a = fs.SimulatedDevice(self.wire, "a", addresses=[f"{HOSTS[0]}/24"], queues=QUEUES)
        self.b = fs.SimulatedDevice(self.wire, "b", addresses=[f"{HOSTS[1]}/24"], queues=QUEUES)

    def flows(self, count: int, each: int, *, mixed: bool = True) -> None:
        """Datagrams (flow, number) from a, from a source port for each flow."""
        with fs.XdpUdpSocket.open(self.a, local=(HOSTS[0], 5000), ports=range(5000, 5000 + count)) as sock:
            tx = sock.tx_batch(64)
            for number in range(each):
                for flow in range(count):
                    tx.append(flow.to_bytes(2, "big") + number.to_bytes(2, "big"), LOCAL)
                    tx.source_ports[-1] = 5000 + flow
                    if len(tx) == 64:
                        sock.send(tx)
                    while len(tx) == 64:
                        sock.send(tx)
            while len(tx):
                sock.send(tx)


@pytest.fixture
def net() -> Net:
    return Net()


def udp(net: Net, queues: Any = fs.All, **options: Any) -> Any:
    return fs.XdpUdpAggregate.open(net.b, queues, local=LOCAL, **options)


def received(sock: Any, capacity: int = 64) -> list[bytes]:
    rx, got = sock.recv_batch(capacity), []
    while sock.recv(rx):
        got += [bytes(packet) for packet in rx]
    return got


@pytest.mark.parametrize("capacity", [1, 7, 64, 1024])
def test_every_datagram_of_many_flows_arrives_once_and_in_order(net: Net, capacity: int) -> None:
    with udp(net) as sock:
        net.flows(100, 20)
        got = received(sock, capacity)
        assert len(got) == 2000
        for flow in range(100):
            mine = [data[2:] for data in got if data[:2] == flow.to_bytes(2, "big")]
            assert mine == [number.to_bytes(2, "big") for number in range(20)]
        assert sock.stats().received == 2000
        assert [member.stats().received for member in sock.members] == [500] * QUEUES
        assert whole(sock.pool)


def test_a_sweep_begins_with_another_member_each_time(net: Net) -> None:
    with udp(net, rx_frames=4096) as sock:
        net.flows(4, 100)
        rx, first = sock.recv_batch(32), []
        for _ in range(8):
            assert sock.recv(rx) == 32
            first.append(bytes(rx[0])[1])
        assert sorted(first[:4]) == sorted(first[4:]) == [0, 1, 2, 3]


@spreads
@pytest.mark.parametrize("prepared", [False, True])
def test_what_is_sent_arrives_once_and_in_order_within_a_flow(net: Net, spread: str, prepared: bool) -> None:
    with (
        fs.XdpUdpAggregate.open(net.a, fs.First(3), local=(HOSTS[0], 5000), spread=spread) as near,
        udp(net) as far,
    ):
        tx = near.tx_batch(64)
        ways = [near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=LOCAL))] if prepared else None
        for number in range(640):
            tx.append(number.to_bytes(2, "big"), LOCAL)
            if len(tx) == 64:
                assert (near.send_to(ways[0], tx) if ways else near.send(tx)) == 64
        got = received(far)
        assert got == [number.to_bytes(2, "big") for number in range(640)]
        used = [member.stats().sent for member in near.members]
        assert sum(used) == near.stats().sent == 640
        assert len([count for count in used if count]) == (1 if spread == "flow" else 3)
        near.drain_tx_completions()
        assert whole(near.pool)


def test_flows_are_spread_over_members(net: Net) -> None:
    with fs.XdpUdpAggregate.open(net.a, fs.All, local=(HOSTS[0], 5000)) as near, udp(net) as far:
        tx = near.tx_batch(256)
        for port in range(256):
            tx.append(port.to_bytes(2, "big"), LOCAL)
        assert near.send(tx) == 256
        assert received(far) == [port.to_bytes(2, "big") for port in range(256)]
        for port in range(200):
            tx.append(b"to whom", (HOSTS[1], 10_000 + port))
        assert near.send(tx) == 200
        assert min(member.stats().sent for member in near.members) > 20


def test_one_doorbell_a_send_whatever_the_flows(net: Net) -> None:
    with fs.XdpUdpAggregate.open(net.a, fs.All, local=(HOSTS[0], 5000)) as near:
        tx = near.tx_batch(200)
        for port in range(200):
            tx.append(b"to whom", (HOSTS[1], 10_000 + port))
        before = near.queue_stats().kicks
        assert near.send(tx) == 200
        assert near.queue_stats().kicks - before == QUEUES


@spreads
def test_the_tail_stays_where_rings_are_full(net: Net, spread: str) -> None:
    with fs.XdpUdpAggregate.open(net.a, fs.First(2), local=(HOSTS[0], 5000), spread=spread, tx_ring=8) as near:
        net.wire.paused = True
        tx = near.tx_batch(64)
        for number in range(64):
            tx.append(number.to_bytes(2, "big"), LOCAL)
        accepted = near.send(tx)
        assert accepted == (8 if spread == "flow" else 16)
        assert [int.from_bytes(bytes(packet), "big") for packet in tx] == list(range(accepted, 64))
        net.wire.paused = False
        net.wire.resume()
        while len(tx):
            near.send(tx)
            near.drain_tx_completions()
        assert whole(near.pool)


def test_a_refused_packet_says_how_many_went_before(net: Net) -> None:
    with fs.XdpUdpAggregate.open(net.a, fs.All, local=(HOSTS[0], 5000)) as near:
        tx = near.tx_batch(64)
        for port in range(40):
            tx.append(b"x", (HOSTS[1], 10_000 + port))
        tx.lengths[30] = 5000
        with pytest.raises(SendError) as caught:
            near.send(tx)
        assert caught.value.accepted == 30
        assert len(tx) == 10
        tx.discard(1)
        assert near.send(tx) == 9


def test_a_member_that_fails_keeps_nothing_from_the_others(net: Net) -> None:
    with udp(net) as sock:
        net.flows(4, 3)
        sock.members[1].queue.inject_receive(1 << 40, 64)
        rx = sock.recv_batch(64)
        assert sock.recv(rx) == 12
        with pytest.raises(DeviceError):
            sock.recv(rx)
        assert sock.recv(rx) == 0
        net.flows(4, 1)
        sock.members[2].close()
        assert sock.recv(rx) == 3
        with pytest.raises(Error, match="closed"):
            sock.recv(rx)
        assert sock.stats().received == 15
        tx = sock.tx_batch(8)
        tx.take_from(rx)
        tx.discard()
    assert whole(sock.pool)


def test_frames_leave_by_any_member_and_come_home(net: Net) -> None:
    with fs.XdpUdpSocket.open(net.a, local=(HOSTS[0], 5000), ports=range(5000, 5100)) as asker, udp(net) as sock:
        tx = asker.tx_batch(100)
        for flow in range(100):
            tx.append(b"%d" % flow, LOCAL)
            tx.source_ports[-1] = 5000 + flow
        assert asker.send(tx) == 100
        rx, back = sock.recv_batch(128), sock.tx_batch(128)
        assert sock.recv(rx) == 100
        assert back.take_from(rx) == 100
        assert sock.send(back) == 100
        sock.drain_tx_completions()
        assert sorted(received(asker, 128)) == sorted(b"%d" % flow for flow in range(100))
        assert whole(sock.pool)


def test_ip_packets_tell_their_queue(net: Net) -> None:
    with fs.XdpIpPacketAggregate.open(net.b, fs.All) as sock:
        net.flows(8, 2)
        rx = sock.recv_batch(64)
        assert sock.recv(rx) == 16
        ports = rx.gather(20, ">u2").tolist()
        assert [rx.meta(i).queue for i in range(16)] == [port % QUEUES for port in ports]
        tx = sock.tx_batch(4)
        tx.append(bytes(rx[0]))
        with pytest.raises(SendError):  # to its own address: nobody is there
            tx.lengths[0] = 3
            sock.send(tx)
        tx.discard()
        assert sock.stats().rx_packets == 16


@spreads
def test_ip_packets_by_an_egress(net: Net, spread: Any) -> None:
    """Wherever their destination is: to one of the neighbour's private networks, say."""
    with (
        fs.XdpIpPacketAggregate.open(net.b, fs.All, spread=spread) as sock,
        fs.XdpIpPacketAggregate.open(net.a, fs.All) as far,
    ):
        egress = sock.resolve(HOSTS[0])
        assert str(egress.destination) == HOSTS[0]
        tx, rx = sock.tx_batch(64), far.recv_batch(64)
        packet = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / b"inner"
        for _ in range(10):
            for _ in range(8):
                tx.append(bytes(packet))
            assert sock.send_via(egress, tx) == 8
        while far.recv(rx):
            assert {bytes(each) for each in rx} == {bytes(packet)}
        assert far.stats().rx_packets == 80
        assert len([member for member in sock.members if member.stats().tx_packets]) == (1 if spread == "flow" else 4)
        with pytest.raises(ConfigError):
            far.send_via(egress, far.tx_batch(1))
        with pytest.raises(fs.UnresolvedError):
            sock.resolve("198.51.100.1")
    with pytest.raises(Error):
        sock.resolve(HOSTS[0])


@pytest.mark.parametrize("driver", [fs.WaitDriver, fs.BusyPollDriver])
def test_waiting_for_any_member(net: Net, driver: Any) -> None:
    sock = udp(net, driver=driver)
    assert not sock.driver.wait(0)
    assert not sock.driver.wait(0.05)
    asking = threading.Timer(0.05, net.flows, (2, 1))
    asking.start()
    assert sock.driver.wait(5.0)
    asking.join()
    assert sorted(received(sock)) == [bytes(4), b"\0\1\0\0"]
    assert sock.driver.wait_writable(0)
    threading.Timer(0.05, sock.close).start()
    with pytest.raises(Error, match="closed"):
        sock.driver.wait(5.0)
    with pytest.raises(Error, match="closed"):
        sock.recv(sock.recv_batch(1))
    for bad in (-1, "soon"):
        with pytest.raises(ConfigError, match="timeout"):
            sock.driver.wait(bad)


def test_a_member_that_closes_under_a_wait_is_not_looked_at_again(net: Net) -> None:
    with udp(net) as sock:
        threading.Timer(0.1, sock.members[0].close).start()
        before = time.thread_time()
        assert not sock.driver.wait(0.6)
        assert time.thread_time() - before < 0.3  # asleep, but for the looks in between


def test_a_signal_ends_a_wait(net: Net) -> None:
    with udp(net) as sock:

        def raise_it(*_: Any) -> None:
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, raise_it)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(TimeoutError):
                sock.driver.wait()
        finally:
            signal.signal(signal.SIGALRM, before)


def test_receive_frames_that_are_all_taken(net: Net) -> None:
    with udp(net, fs.First(1), rx_frames=16) as sock:
        net.flows(4, 20)
        rx = sock.recv_batch(16)
        assert sock.recv(rx) == 16
        kept = [packet.take() for packet in rx]
        with pytest.raises(Error, match="receive frames are taken"):
            sock.recv(rx)
        for packet in kept:
            packet.release()


def test_what_cannot_be_opened_leaves_nothing(net: Net) -> None:
    for queues, message in ((fs.First(5), "has 4 queue"), (fs.First(0), "no queue"), ("all", "give All"),
                            (fs.Queues([0, 0]), "once"), (fs.Queues([9]), "has 4 queue")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            udp(net, queues)
    with pytest.raises(ConfigError, match="spread"):
        udp(net, spread="evenly")
    with pytest.raises(ConfigError, match="port 0"):
        fs.XdpUdpAggregate.open(net.b, fs.All, local=(HOSTS[1], 0))
    with pytest.raises(ConfigError, match="families"):
        fs.XdpIpPacketAggregate.open(net.b, fs.All, families="v4")
    taken = fs.XdpUdpSocket.open(net.b, 2, local=LOCAL)
    with pytest.raises(Error, match="queue 2 of b is taken"):
        udp(net)
    taken.close()
    with udp(net) as sock, pytest.raises(Error, match="taken"):
        udp(net)
    with pytest.raises(ConfigError, match="another aggregate"), udp(net) as one:
        endpoint = one.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=(HOSTS[0], 9)))
        with fs.XdpUdpAggregate.open(net.a, fs.All, local=(HOSTS[0], 5000)) as other:
            other.send_to(endpoint, other.tx_batch(1))
    for made in (fs.XdpUdpAggregate, fs.XdpIpPacketAggregate, fs.XdpAggregateEndpoint, fs.XdpAggregateEgress):
        with pytest.raises(TypeError):
            made()
    assert sock.closed


@pytest.mark.root
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_four_queues_of_a_veth() -> None:
    with Lab() as lab:
        near, far = lab.host("near"), lab.host("far")
        link = lab.link(near, far, queues=QUEUES)
        far_host = str(link.b.ipv4)
        sock = far.run(fs.XdpUdpAggregate.open, link.b.name, fs.All, local=(far_host, 9000))
        with sock:
            assert sock.queue_ids == (0, 1, 2, 3)

            def ask() -> None:
                for flow in range(200):
                    with fs.OsUdpSocket.connect((far_host, 9000)) as client:
                        tx = client.tx_batch(5)
                        for number in range(5):
                            tx.append(b"%d/%d" % (flow, number))
                        client.send(tx)

            near.run(ask)
            rx, got = sock.recv_batch(64), []
            deadline = time.monotonic() + 5.0
            while len(got) < 1000 and time.monotonic() < deadline:
                if sock.driver.wait(0.1):
                    sock.recv(rx)
                    got += [bytes(packet) for packet in rx]
            assert sorted(got) == sorted(b"%d/%d" % (flow, number) for flow in range(200) for number in range(5))
            for flow in range(200):
                mine = [data for data in got if data.startswith(b"%d/" % flow)]
                assert mine == [b"%d/%d" % (flow, number) for number in range(5)]
            assert all(member.stats().received for member in sock.members)
        assert far.run(lambda: fs.XdpDevice(link.b.name).interface.program) is None
        del rx
        assert whole(sock.pool)
