"""A router is anybody's code: whatever it does, no frame is lost, and what was handed over is gone from the batch."""

import pytest

import fast_socket as fs
from fast_socket.xdp import kernel, queue, sim, socket, udp

HOSTS = ["192.0.2.2", "192.0.2.3"]


class Scripted:
    """Answers for the first destination, and does something else for any other."""

    generation = 1

    def __init__(self, device, then):
        self.device, self.then = device, then

    def resolve(self, destination):
        if str(destination) == HOSTS[0]:
            return self.device.make_router().resolve(destination)
        return self.then()


def open_with(then):
    wire = fs.Wire()
    near, far = (fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2))
    sock = fs.XdpUdpSocket.open(near, local="192.0.2.1:1000", router=Scripted(near, then), tx_frames=16)
    return sock, fs.XdpUdpSocket.open(far, local="192.0.2.2:2000")


def fill(sock):
    tx = sock.tx_batch(8)
    for host in (*HOSTS, HOSTS[0]):
        tx.append(b"to " + host.encode(), (host, 2000))
    return tx


def raises_value_error():
    raise ValueError("out of order")


def raises_a_send_error():
    raise fs.SendError("not yours to raise", accepted=10**9)


def answers_with_a_word():
    return "eth0"


@pytest.mark.parametrize(
    ("then", "kind"),
    [
        (raises_value_error, ValueError),
        (answers_with_a_word, fs.ConfigError),
        (raises_a_send_error, fs.SendError),
        (lambda: fs.Unresolved.BLACKHOLE, fs.SendError),
        (lambda: fs.Egress(fs.IfIndex(1), bytes(6), bytes(6), 1500), fs.SendError),
    ],
    ids=["raises", "no egress", "a send error that counts wrong", "blackhole", "another interface"],
)
def test_what_went_before_is_gone_and_the_rest_stays(then, kind):
    near, far = open_with(then)
    with near, far:
        tx, rx = fill(near), far.recv_batch(8)
        with pytest.raises(kind):
            near.send(tx)
        assert [bytes(packet) for packet in tx] == [b"to 192.0.2.3", b"to 192.0.2.2"]
        assert far.recv(rx) == 1
        tx.discard(1)
        assert near.send(tx) == 1
        assert far.recv(rx) == 1
        near.drain_tx_completions()
        assert near.pool.tx_available == 16


def test_a_neighbour_that_is_awaited_is_held_or_refused():
    near, far = open_with(lambda: fs.Unresolved.NEIGHBOR)
    with near, far:
        tx = fill(near)
        assert near.send(tx) == 1
        assert near.send(tx) == 0
        assert near.stats().held == 2
        assert near.unresolved.reason is fs.Unresolved.NEIGHBOR
        tx.discard(1)
        assert near.send(tx) == 1


@pytest.mark.parametrize("what", ["close", "send", "receive", "view"])
def test_a_router_that_uses_the_socket(what):
    def then():
        {
            "close": near.close,
            "send": lambda: near.send(tx),
            "receive": lambda: near.recv(near.recv_batch(4)),
            "view": lambda: memoryview(tx[0]),
        }[what]()
        return fs.Unresolved.NO_ROUTE

    near, far = open_with(then)
    with near, far:
        tx = fill(near)
        with pytest.raises(fs.Error):
            near.send(tx)
        tx.discard()
        if what != "close":
            near.drain_tx_completions()
        assert near.pool.tx_available == 16


class Moving:
    """Its answer changes while it is being given, if `meanwhile` says so; the next time it may fail."""

    def __init__(self, device, macs):
        self.device, self.macs = device, macs
        self.generation, self.fails, self.meanwhile = 0, False, None

    def resolve(self, destination):
        if self.fails:
            self.fails = False
            raise OSError("for a moment")
        answer = fs.Egress(self.device.ifindex, self.device.mac, self.macs[self.generation], 1500)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return answer


def moving():
    wire = fs.Wire()
    near, old, new = (fs.SimulatedDevice(wire, addresses=[f"192.0.2.{i}/24"]) for i in (1, 2, 3))
    return Moving(near, [old.mac, new.mac]), near, [fs.XdpIpPacketSocket.open(device) for device in (old, new)]


def arrived(socks):
    return [sock.recv(sock.recv_batch(64)) for sock in socks]


def test_an_answer_from_before_a_change_is_not_kept():
    router, device, peers = moving()
    with fs.XdpUdpSocket.open(device, local="192.0.2.1:1000", router=router) as sock:
        tx = sock.tx_batch(1)

        def change():
            router.generation = 1
            other = sock.tx_batch(1)
            other.append(b"of another thread", ("192.0.2.9", 9))
            sock.send(other)

        router.meanwhile = change
        for _ in range(5):
            tx.append(b"where to", ("192.0.2.8", 9))
            assert sock.send(tx) == 1
        assert arrived(peers) == [0, 6]


PACKET = bytes.fromhex("4500001c 00004000 40fd0000 c0000201 c0000202") + b"12345678"


def test_egresses_follow_a_router_that_failed_or_moved_meanwhile():
    router, device, peers = moving()
    with fs.XdpIpPacketSocket.open(device, router=router) as sock:
        first, tx = sock.resolve("192.0.2.2"), sock.tx_batch(1)

        def change():
            router.generation = 1
            other = sock.tx_batch(1)
            other.append(PACKET)
            sock.send_via(first, other)

        router.meanwhile = change
        second = sock.resolve("192.0.2.3")
        for egress in (first, second, second):
            tx.append(PACKET)
            assert sock.send_via(egress, tx) == 1
        assert arrived(peers) == [0, 4]
    router, device, peers = moving()
    with fs.XdpIpPacketSocket.open(device, router=router) as sock:
        egress, tx = sock.resolve("192.0.2.2"), sock.tx_batch(1)
        router.generation, router.fails = 1, True
        tx.append(PACKET)
        with pytest.raises(OSError, match="for a moment"):
            sock.send_via(egress, tx)
        assert sock.send_via(egress, tx) == 1
        assert arrived(peers) == [0, 1]


def test_what_is_not_made_by_hand():
    for make in (socket.XdpSocket, udp.XdpUdpSocket, fs.XdpUdpEndpoint, fs.XdpIpPacketSocket, fs.XdpEgress):
        with pytest.raises(TypeError):
            make()
        with pytest.raises(TypeError):
            make.__new__(make)


def test_a_queue_that_nobody_opened_crashes_nothing(tmp_path):
    import os

    for kind in (queue.Queue, kernel.KernelQueue, sim.SimulatedQueue):
        raw = kind(os.dup(0))
        fs.BusyPollDriver(raw).wait(0.001)
        raw.close()
    raw = sim.SimulatedQueue(os.dup(0))
    with pytest.raises(fs.Error):
        raw.inject_completion(0)
    raw.close()
