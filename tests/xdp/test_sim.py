"""AF_XDP sockets on simulated devices: what a device, a wire or a peer may do to them, without privilege.

Rings and loops are the real ones. What is on the wire is built and read by `tests.xdp.packets`.
"""

import gc
import random
import struct
from ipaddress import ip_address
from typing import Any

import numpy
import pytest

import fast_socket as fs
from fast_socket import Metadata
from fast_socket.core.errors import DeviceError, Error, SendError
from tests.conformance.backends import whole
from tests.xdp.packets import CUSTOMER_TAG, FRAGMENT_HEADER, SERVICE_TAG, Datagram, ethernet, ip, udp

PORT, PEER_PORT = 9000, 5000
V4, V6 = ("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")
HOSTS = {"v4": V4, "v6": V6}
families = pytest.mark.parametrize("family", ["v4", "v6"])


class Net:
    """Two devices on a wire: sockets on a talk to sockets on b."""

    def __init__(self, mtu: int = 1500, **wire: Any) -> None:
        self.wire = fs.xdp.sim.Wire(**wire)
        self.a, self.b = (
            fs.xdp.sim.SimulatedDevice(self.wire, name, mtu=mtu, addresses=[f"192.0.2.{i}/24", f"2001:db8::{i}/64"])
            for i, name in ((1, "a"), (2, "b"))
        )
        self.sockets: list[Any] = []

    def _keep(self, sock: Any) -> Any:
        self.sockets.append(sock)
        return sock

    def near(self, family: str = "v4", port: int = PEER_PORT, **options: Any) -> Any:
        return self._keep(fs.XdpUdpSocket.open(self.a, local=(HOSTS[family][0], port), **options))

    def far(self, family: str = "v4", port: int = PORT, **options: Any) -> Any:
        return self._keep(fs.XdpUdpSocket.open(self.b, local=(HOSTS[family][1], port), **options))

    def capture(self, **options: Any) -> Any:
        """What arrives at b, as datagrams."""
        return self._keep(fs.XdpIpPacketSocket.open(self.b, **options))

    def frame(self, payload: bytes, family: str = "v4", sport: int = PEER_PORT, dport: int = PORT,
              checksum: str = "good", tags: Any = (), **fields: Any) -> bytes:  # fmt: skip
        """From a to b, made by hand."""
        source, destination = HOSTS[family]
        source, destination = fields.pop("source", source), fields.pop("destination", destination)
        datagram = ip(source, destination, udp(source, destination, sport, dport, payload, checksum), **fields)
        return ethernet(self.b.mac, self.a.mac, datagram, tags)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def net() -> Any:
    net = Net()
    yield net
    net.close()


@pytest.fixture
def jumbo() -> Any:
    net = Net(mtu=9018)
    yield net
    net.close()


def send(sock: Any, payloads: Any, to: Any) -> Any:
    """All of them; the batch, which is empty then."""
    payloads = list(payloads)
    tx = sock.tx_batch(len(payloads))
    for payload in payloads:
        tx.append(payload, to)
    assert sock.send(tx) == len(payloads)
    return tx


def received(sock: Any, capacity: int = 64) -> list[bytes]:
    """Everything that is there."""
    rx, got = sock.recv_batch(capacity), []
    while sock.recv(rx):
        got += [bytes(packet) for packet in rx]
    return got


def captured(sock: Any) -> list[Datagram]:
    return [Datagram.read(data) for data in received(sock)]


def numbered(count: int, size: int = 32) -> list[bytes]:
    return [i.to_bytes(4, "big").ljust(size, b"%c" % (i % 251)) for i in range(count)]


TO = (V4[1], PORT)


# Corrupt rings


def bad_descriptor(kind: str, sock: Any, net: Net) -> tuple[int, int]:
    """(address, length) that no device may hand back. Frames of its own are far from those that are next in FILL."""
    chunk = sock.pool.rx_layout.chunk_size
    rx = sock.recv_batch(1)
    sock.queue.inject_frame(net.frame(b"where are we"))
    assert sock.recv(rx) == 1
    own = (rx[0].frame + sock.pool.rx_frames // 2) % sock.pool.rx_frames
    address, length = {
        "behind the UMEM": ((sock.pool.rx_frames + sock.pool.tx_frames) * chunk + 256, 64),
        "far behind the UMEM": ((1 << 64) - 64, 64),
        "a transmit frame": (sock.pool.rx_frames * chunk + 256, 64),
        "a frame that the caller has": (rx[0].frame * chunk + 256, 64),
        "straddling": (own * chunk + chunk - 10, 64),
        "longer than the UMEM": (own * chunk + 256, 0xFFFFFFFF),
        "without headroom": (own * chunk, 64),
    }[kind]
    if kind != "a frame that the caller has":
        sock.recv(rx)
    else:
        net.kept = rx  # type: ignore[attr-defined]
    return address, length


BAD_DESCRIPTORS = [
    "behind the UMEM", "far behind the UMEM", "a transmit frame", "a frame that the caller has", "straddling",
    "longer than the UMEM", "without headroom",
]  # fmt: skip


@pytest.mark.parametrize("kind", BAD_DESCRIPTORS)
@pytest.mark.parametrize("options", [{}, {"multi_buffer": True}, {"metadata": Metadata.TIMESTAMP | Metadata.CHECKSUM}],
                         ids=["plain", "pieces", "columns"])  # fmt: skip
@pytest.mark.parametrize("raw", [False, True], ids=["udp", "ip"])
def test_a_bad_receive_descriptor_is_dropped_and_told_once(net: Net, kind: str, options: Any, raw: bool) -> None:
    far = net.capture(rx_frames=64, **options) if raw else net.far(rx_frames=64, **options)
    address, length = bad_descriptor(kind, far, net)
    rx = far.recv_batch(16)
    for reported in (True, False):
        far.queue.inject_frame(net.frame(b"before"))
        far.queue.inject_receive(address, length)
        far.queue.inject_frame(net.frame(b"behind"))
        assert far.recv(rx) == 2
        assert [bytes(packet)[-6:] for packet in rx] == [b"before", b"behind"]
        if reported:
            with pytest.raises(DeviceError, match="1 descriptor"):
                far.recv(rx)
        assert far.recv(rx) == 0
        # The same frame again: its home is the pool now, or FILL once more.
        assert far.queue_stats().rx_invalid_descriptors == (1 if reported else 2)
    net.__dict__.pop("kept", None)
    assert whole(far.pool)


@pytest.mark.parametrize("size", [128, 256, 300, 512])
def test_link_headroom_larger_than_the_kernels_is_there(net: Net, size: int) -> None:
    layout = fs.BufferLayout(payload_capacity=64, l2_headroom=size, headroom=40)
    far = net.far(rx_frames=64, rx_layout=layout)
    far.queue.inject_frame(net.frame(b"packet"))
    rx = far.recv_batch(1)
    assert far.recv(rx) == 1
    assert 40 <= rx[0].headroom <= max(size, 256) + 40 + 42
    with pytest.raises(fs.ConfigError):
        rx[0].prepend(bytes(2048))


def test_a_packet_with_one_bad_piece_is_dropped_as_a_whole(jumbo: Net) -> None:
    far = jumbo.far(rx_frames=64, multi_buffer=True)
    chunk = far.pool.rx_layout.chunk_size
    rx = far.recv_batch(16)
    far.queue.inject_frame(jumbo.frame(b"before"))
    far.queue.inject_receive(far.pool.rx_frames * chunk + 256, 64, 1)  # a transmit frame, to be continued
    far.queue.inject_frame(jumbo.frame(b"its end"))
    far.queue.inject_frame(jumbo.frame(b"behind"))
    assert far.recv(rx) == 2
    assert [bytes(packet) for packet in rx] == [b"before", b"behind"]
    with pytest.raises(DeviceError):
        far.recv(rx)
    assert whole(far.pool)


def test_a_packet_without_an_end_is_dropped_when_it_fills_the_ring(jumbo: Net) -> None:
    far = jumbo.far(rx_frames=64, rx_ring=16, multi_buffer=True)
    chunk, rx = far.pool.rx_layout.chunk_size, far.recv_batch(16)
    for i in range(16):
        assert far.recv(rx) == 0
        far.queue.inject_receive((32 + i) * chunk + 256, 64, 1)
    with pytest.raises(DeviceError):
        far.recv(rx)
    far.queue.inject_frame(jumbo.frame(b"goes on"))
    assert far.recv(rx) == 1
    assert bytes(rx[0]) == b"goes on"
    assert far.recv(rx) == 0
    assert whole(far.pool)


@pytest.mark.parametrize("raw", [False, True], ids=["udp", "ip"])
def test_pieces_that_were_not_asked_for_are_dropped(net: Net, raw: bool) -> None:
    far = net.capture(rx_frames=64) if raw else net.far(rx_frames=64)
    rx = far.recv_batch(16)
    far.queue.inject_frame(net.frame(b"where"))
    assert far.recv(rx) == 1
    frame = net.frame(b"the first half of a packet")
    at = (rx[0].frame + 9) % 64 * far.pool.rx_layout.chunk_size + 256
    memoryview(far.pool.memory)[at : at + len(frame)] = frame
    far.queue.inject_receive(at, len(frame), 1)
    with pytest.raises(DeviceError):
        far.recv(rx)
    assert len(rx) == 0
    assert whole(far.pool)


def test_bad_completions_hand_no_frame_out_twice(net: Net) -> None:
    near = net.near(tx_frames=16)
    chunk = near.pool.tx_layout.chunk_size
    tx = near.tx_batch(16)
    tx.append(b"once", TO)
    frame = int(tx.frames[0])
    assert near.send(tx) == 1
    assert near.pool.tx_available == 16
    for address in (frame * chunk + 86, frame * chunk + 86, 0, (1 << 64) - 1, 1 << 40):
        near.queue.inject_completion(address)
    with pytest.raises(DeviceError, match="5 descriptor"):
        near.drain_tx_completions()
    assert near.drain_tx_completions() == 0
    assert near.pool.tx_available == 16
    assert tx.allocate() == 16
    assert len(set(tx.frames.tolist())) == 16
    assert near.queue_stats().outstanding == 0


def test_completions_that_come_late_bring_each_frame_home_once(net: Net) -> None:
    near = net.near(tx_frames=16)
    chunk = near.pool.tx_layout.chunk_size
    net.wire.hold_completions = True
    tx = near.tx_batch(4)
    for payload in numbered(4):
        tx.append(payload, TO)
    frames = tx.frames.tolist()
    assert near.send(tx) == 4
    near.queue.inject_completion(frames[2] * chunk)  # any address within the frame names it
    near.queue.inject_completion(frames[2] * chunk)
    with pytest.raises(DeviceError):
        near.drain_tx_completions()
    assert near.pool.tx_available == 13
    net.wire.hold_completions = False
    net.wire.resume()  # gives all four back, one of them for the third time
    assert near.drain_tx_completions() == 3
    assert near.queue_stats().outstanding == 0
    assert whole(near.pool)


@pytest.mark.parametrize("by", [65, 1 << 16, (1 << 32) - 1])
def test_a_receive_index_beyond_the_ring_is_an_error_of_the_device(net: Net, by: int) -> None:
    near, far = net.near(), net.far(rx_frames=64, rx_ring=64)
    far.queue.move_index("rx", by)
    rx = far.recv_batch(64)
    for _ in range(2):  # it does not get better
        with pytest.raises(DeviceError, match="index"):
            far.recv(rx)
        assert len(rx) == 0
    far.close()
    assert whole(far.pool)
    assert near.drain_tx_completions() == 0


def test_a_receive_index_ahead_of_its_entries_brings_nothing_twice(net: Net) -> None:
    near, far = net.near(), net.far(rx_frames=64, rx_ring=64)
    send(near, numbered(64), TO)
    assert received(far) == numbered(64)
    far.queue.move_index("rx", 64)  # all of the ring again, as it was
    rx = far.recv_batch(48)
    held = []
    while far.recv(rx):
        taken = [packet.take() for packet in rx]
        held += [packet.frame for packet in taken]
        for packet in taken:
            packet.release()
        assert len(held) <= 64
    # Frames in FILL pass for received ones, as they would from any device; but each is somewhere, and once.
    assert len(set(held)) == len(held)
    assert whole(far.pool)


@pytest.mark.parametrize("by", [9, 1 << 20, (1 << 32) - 1])
def test_a_completion_index_beyond_the_ring_is_an_error_of_the_device(net: Net, by: int) -> None:
    near = net.near(tx_frames=16, completion_ring=8)
    near.queue.move_index("completion", by)
    tx = near.tx_batch(1)
    tx.append(b"stays", TO)
    for _ in range(2):
        with pytest.raises(DeviceError, match="index"):
            near.drain_tx_completions()
        with pytest.raises(DeviceError, match="index"):
            near.send(tx)
    assert bytes(tx[0]) == b"stays"
    near.close()
    tx.discard()
    assert whole(near.pool)


# A wire that loses and doubles


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_drops_and_duplicates_follow_the_seed(seed: int) -> None:
    def run(seed: int) -> list[int]:
        net = Net(drop=0.25, duplicate=0.25, seed=seed)
        near, far = net.near(), net.far()
        got = []
        for i in range(0, 960, 64):
            send(near, numbered(960)[i : i + 64], TO)
            got += [int.from_bytes(payload[:4], "big") for payload in received(far)]
        assert whole(near.pool)
        assert whole(far.pool)
        net.close()
        return got

    got = run(seed)
    assert got == run(seed) != run(seed + 1)
    assert got == sorted(got)  # in order, whatever is missing
    times = [got.count(i) for i in range(960)]
    assert set(times) == {0, 1, 2}
    assert 150 < times.count(0) < 330
    assert 100 < times.count(2) < 270


def test_nothing_is_lost_or_doubled_on_a_wire_that_does_not(net: Net) -> None:
    near, far = net.near(), net.far()
    send(near, numbered(500), TO)
    assert received(far) == numbered(500)


# Rings that fill


@families
def test_held_completions_fill_the_ring_and_sending_goes_on_after_them(net: Net, family: str) -> None:
    near, far = net.near(family, tx_ring=16, completion_ring=8, tx_frames=64), net.far(family)
    to = (HOSTS[family][1], PORT)
    net.wire.hold_completions = True
    tx = near.tx_batch(40)
    for payload in numbered(40):
        tx.append(payload, to)
    assert near.send(tx) == 8
    assert near.send(tx) == 0
    assert not near.driver.wait_writable(0)
    assert near.stats().would_block == 2
    assert near.queue_stats().outstanding == 8
    assert received(far) == numbered(40)[:8]
    net.wire.hold_completions = False
    net.wire.resume()
    while len(tx):
        assert near.driver.wait_writable(0)
        assert near.send(tx) > 0
    assert received(far) == numbered(40)[8:]
    near.drain_tx_completions()
    assert whole(near.pool)


def test_a_paused_wire_fills_tx_and_sending_goes_on_after_it(net: Net) -> None:
    near, far = net.near(tx_ring=16, tx_frames=64), net.far()
    net.wire.paused = True
    tx = near.tx_batch(40)
    for payload in numbered(40):
        tx.append(payload, TO)
    assert near.send(tx) == 16
    assert len(tx) == 24
    assert [bytes(packet) for packet in tx] == numbered(40)[16:]
    assert near.send(tx) == 0
    assert not near.driver.wait_writable(0)
    assert not far.driver.wait(0)
    net.wire.paused = False
    assert near.driver.wait_writable(0)  # which has the device look
    while len(tx):
        assert near.send(tx) > 0
        near.driver.wait_writable(0)
    assert received(far) == numbered(40)
    near.drain_tx_completions()
    assert whole(near.pool)


def test_frames_on_their_way_come_home_when_the_socket_closes(net: Net) -> None:
    near = net.near(tx_frames=64)
    net.wire.paused = True
    send(near, numbered(10), TO)
    assert near.pool.tx_available == 54
    near.close()
    assert whole(near.pool)


def test_rings_go_round_many_times(net: Net) -> None:
    """Far more packets than any ring holds, indices past every power of two of theirs."""
    near = net.near(tx_ring=8, completion_ring=8, tx_frames=16)
    far = net.far(rx_ring=8, fill_ring=8, rx_frames=16)
    tx, rx = near.tx_batch(8), far.recv_batch(8)
    for number in range(5000):
        for i in range(5):
            tx.append(struct.pack(">II", number, i), TO)
        assert near.send(tx) == 5
        assert far.recv(rx) == 5
        assert [bytes(packet) for packet in rx] == [struct.pack(">II", number, i) for i in range(5)]
    far.recv(rx)
    assert whole(near.pool)
    assert whole(far.pool)


def test_a_full_receive_ring_and_an_empty_fill_ring_are_counted_apart(net: Net) -> None:
    near, far = net.near(), net.far(rx_ring=8, fill_ring=32, rx_frames=64)
    send(near, numbered(20), TO)
    assert far.queue_stats().rx_ring_full == 12
    assert received(far) == numbered(20)[:8]
    far.close()
    far = net.far(rx_ring=64, fill_ring=8, rx_frames=64)
    send(near, numbered(20), TO)
    stats = far.queue_stats()
    assert (stats.rx_fill_ring_empty, stats.rx_dropped, stats.rx_ring_full) == (12, 12, 0)
    assert received(far) == numbered(20)[:8]
    assert far.stats().kernel_drops == 12
    assert whole(far.pool)


# What is not for this socket


def drop_cases(net: Net) -> dict[str, tuple[bytes, str]]:
    """Frame, and the counter that it belongs to."""
    fragment6 = struct.pack(">BBHI", 17, 0, 1, 9) + udp(*V6, PEER_PORT, PORT, b"x")
    other = ip(*V4, b"\x08\0\xf7\xff\0\0\0\0", 1)
    return {
        "first fragment": (net.frame(b"x", fragment=0x2000), "fragments_dropped"),
        "later fragment": (net.frame(b"x", fragment=0x0005), "fragments_dropped"),
        "IPv6 fragment": (ethernet(net.b.mac, net.a.mac, ip(*V6, fragment6, FRAGMENT_HEADER)), "fragments_dropped"),
        "other port": (net.frame(b"x", dport=PORT + 1), "filtered"),
        "other port v6": (net.frame(b"x", "v6", dport=PORT + 256), "filtered"),
        "other address": (net.frame(b"x", destination="192.0.2.99"), "filtered"),
        "other protocol": (ethernet(net.b.mac, net.a.mac, other), "filtered"),
        "no IP": (net.b.mac + net.a.mac + b"\x08\x06" + bytes(46), "filtered"),
        "length field too small": (net.frame(b"x")[:38] + b"\0\x07" + net.frame(b"x")[40:], "bad_packets"),
        "length field too large": (net.frame(b"x")[:38] + b"\0\x0a" + net.frame(b"x")[40:], "bad_packets"),
        "header too short": (net.frame(b"x")[:14] + b"\x44" + net.frame(b"x")[15:], "bad_packets"),
        "version of the other family": (net.frame(b"x")[:14] + b"\x65" + net.frame(b"x")[15:], "bad_packets"),
    }


DROPPED = list(drop_cases(Net()))


@pytest.mark.parametrize("case", DROPPED)
@pytest.mark.parametrize("options", [{}, {"multi_buffer": True}], ids=["plain", "pieces"])
def test_what_is_not_for_the_socket_is_counted_by_reason_and_dropped(net: Net, case: str, options: Any) -> None:
    v6 = "6" in case
    far = net.far("v6" if v6 else "v4", rx_frames=64, **options)
    frame, counter = drop_cases(net)[case]
    far.queue.inject_frame(net.frame(b"before", "v6" if v6 else "v4"))
    far.queue.inject_frame(frame)
    far.queue.inject_frame(net.frame(b"behind", "v6" if v6 else "v4"))
    assert received(far) == [b"before", b"behind"]
    stats = far.queue_stats()
    counts = {name: getattr(stats, name) for name in ("fragments_dropped", "filtered", "bad_packets")}
    assert counts == {"fragments_dropped": 0, "filtered": 0, "bad_packets": 0} | {counter: 1}
    assert stats.rx_packets == 2
    assert whole(far.pool)


def test_a_socket_of_one_family_drops_the_other(net: Net) -> None:
    far = net.far("v4")
    far.queue.inject_frame(net.frame(b"x", "v6"))
    assert received(far) == []
    assert far.queue_stats().filtered == 1
    far.close()
    far = net._keep(fs.XdpUdpSocket.open(net.b, local=("::", PORT), v6only=True))
    far.queue.inject_frame(net.frame(b"x", "v4"))
    far.queue.inject_frame(net.frame(b"y", "v6"))
    assert received(far) == [b"y"]
    assert far.queue_stats().filtered == 1


@families
@pytest.mark.parametrize("tags", [(), ((CUSTOMER_TAG, 5),), ((SERVICE_TAG, 5), (CUSTOMER_TAG, 6))])
@pytest.mark.parametrize("options", [{}, {"multi_buffer": True}], ids=["plain", "pieces"])
def test_a_frame_cut_at_any_byte_is_dropped_and_counted(net: Net, family: str, tags: Any, options: Any) -> None:
    far = net.far(family, rx_frames=256, **options)
    raw = net.frame(b"payload", family, tags=tags)
    for cut in range(len(raw)):
        far.queue.inject_frame(raw[:cut])
        assert received(far) == [], cut
        assert far.queue_stats().bad_packets == cut + 1, cut
    far.queue.inject_frame(raw)
    far.queue.inject_frame(raw + b"padding and a frame check sequence")
    assert received(far) == [b"payload", b"payload"]
    assert whole(far.pool)


@families
def test_random_bytes_behind_an_ethernet_header_break_nothing(net: Net, family: str) -> None:
    generator = random.Random(7)
    far = net.far(family, rx_frames=256, metadata=Metadata.ECN | Metadata.TTL | Metadata.VLAN | Metadata.CHECKSUM)
    raw = net.frame(b"payload of some length", family, tags=((CUSTOMER_TAG, 5),))
    for _ in range(20_000):
        mangled = bytearray(raw)
        for _ in range(generator.randint(1, 6)):
            mangled[generator.randrange(12, len(raw))] = generator.randrange(256)
        far.queue.inject_frame(bytes(mangled[: generator.randint(1, len(raw))]))
        for payload in received(far, 4):
            assert len(payload) <= len(raw) - 42
    stats = far.queue_stats()
    assert stats.rx_packets + stats.filtered + stats.bad_packets + stats.fragments_dropped == 20_000
    assert whole(far.pool)


@families
def test_ip_options_and_extension_headers_are_walked_over(net: Net, family: str) -> None:
    far = net.far(family)
    segment = udp(*HOSTS[family], PEER_PORT, PORT, b"behind options")
    if family == "v4":
        datagram = ip(*V4, segment, options=b"\x01" * 12)
    else:
        hop = struct.pack(">BBHI", 60, 0, 0x0104, 0)
        destination = struct.pack(">BB", 17, 1) + b"\x01\x0c" + bytes(12)
        datagram = ip(*V6, hop + destination + segment, 0)
    far.queue.inject_frame(ethernet(net.b.mac, net.a.mac, datagram))
    assert received(far) == [b"behind options"]


# Columns


@families
@pytest.mark.parametrize("options", [{}, {"multi_buffer": True}], ids=["plain", "pieces"])
def test_vlan_tags_are_read_and_told(net: Net, family: str, options: Any) -> None:
    far = net.far(family, metadata=Metadata.VLAN, **options)
    far.queue.inject_frame(net.frame(b"untagged", family))
    far.queue.inject_frame(net.frame(b"tagged", family, tags=((CUSTOMER_TAG, 0xA123),)))
    far.queue.inject_frame(net.frame(b"twice", family, tags=((SERVICE_TAG, 0x0FFE), (CUSTOMER_TAG, 42))))
    far.queue.inject_frame(net.frame(b"three", family, tags=((SERVICE_TAG, 1), (CUSTOMER_TAG, 2), (CUSTOMER_TAG, 3))))
    rx = far.recv_batch(8)
    assert far.recv(rx) == 3
    assert [bytes(packet) for packet in rx] == [b"untagged", b"tagged", b"twice"]
    assert rx.vlan.tolist() == [0, 0xA123, 0x0FFE]
    assert rx[1].meta().vlan == 0xA123
    assert [packet.address for packet in rx] == [(HOSTS[family][0], PEER_PORT)] * 3
    assert far.queue_stats().filtered == 1


@families
@pytest.mark.parametrize("size", [0, 1, 2, 31, 1400])
def test_checksums_are_judged(net: Net, family: str, size: int) -> None:
    far = net.far(family, metadata=Metadata.CHECKSUM)
    payload = random.Random(size).randbytes(size)
    kinds = ["good", "partial", "bad", "absent"]
    for kind in kinds:
        far.queue.inject_frame(net.frame(payload, family, checksum=kind))
    rx = far.recv_batch(8)
    assert far.recv(rx) == 4
    status = fs.ChecksumStatus
    expected = [status.VERIFIED, status.PARTIAL, status.BAD, status.BAD if family == "v6" else status.ABSENT]
    assert rx.checksum.tolist() == expected
    assert [packet.meta().checksum for packet in rx] == expected


def test_metadata_of_received_datagrams(net: Net) -> None:
    far = net._keep(fs.XdpUdpSocket.open(net.b, local=("::", PORT),
                                         metadata=Metadata.ECN | Metadata.TTL | Metadata.LOCAL))  # fmt: skip
    far.queue.inject_frame(net.frame(b"4", ttl=7, tos=0xB9))
    far.queue.inject_frame(net.frame(b"6", "v6", ttl=255, tos=0xBA))
    rx = far.recv_batch(8)
    assert far.recv(rx) == 2
    assert rx.ttl.tolist() == [7, 255]
    assert rx.ecn.tolist() == [1, 2]
    assert rx[0].meta().local in (V4[1], "::ffff:" + V4[1])
    assert rx[1].meta().local == V6[1]
    assert set(rx.interfaces.tolist()) == {net.b.ifindex}


def test_timestamps_are_those_of_the_device(net: Net) -> None:
    near, far = net.near(), net.far(metadata=Metadata.TIMESTAMP)
    net.wire.clock_ns = 1_700_000_000_123_456_789
    send(near, numbered(3), TO)
    rx = far.recv_batch(8)
    assert far.recv(rx) == 3
    assert rx.timestamps.tolist() == [1_700_000_000_123_456_789 + 1000 * i for i in range(3)]
    assert rx[2].meta().timestamp_ns == 1_700_000_000_123_458_789


def test_timestamps_of_raw_datagrams(net: Net) -> None:
    near, far = net.near(), net.capture(metadata=Metadata.TIMESTAMP)
    net.wire.clock_ns = 77
    send(near, numbered(2), TO)
    rx = far.recv_batch(8)
    assert far.recv(rx) == 2
    assert rx.timestamps.tolist() == [77, 1077]


# What is sent


@families
@pytest.mark.parametrize("options", [{}, {"multi_buffer": True}, {"dont_fragment": False}, {"metadata": Metadata.TTL}],
                         ids=["plain", "pieces", "identified", "columns"])  # fmt: skip
@pytest.mark.parametrize("prepared", [False, True], ids=["send", "send_to"])
def test_headers_and_checksums_of_sent_datagrams_are_right(net: Net, family: str, options: Any, prepared: bool) -> None:
    near, far = net.near(family, **options), net.capture()
    to = (HOSTS[family][1], PORT)
    generator = random.Random(5)
    payloads = [generator.randbytes(size) for size in [*range(64), 255, 999, 1001, 1400, 1452]]
    tx = near.tx_batch(len(payloads))
    for payload in payloads:
        tx.append(payload, to)
    if prepared:
        endpoint = near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=to))
        assert near.send_to(endpoint, tx) == len(payloads)
    else:
        assert near.send(tx) == len(payloads)
    got = captured(far)
    assert [datagram.payload for datagram in got] == payloads
    for datagram in got:
        assert datagram.header_ok, datagram
        assert datagram.checksum_ok, datagram
        assert (datagram.source, datagram.destination) == HOSTS[family]
        assert (datagram.sport, datagram.dport, datagram.ttl, datagram.tos) == (PEER_PORT, PORT, 64, 0)


@families
@pytest.mark.parametrize("options", [{}, {"multi_buffer": True}, {"metadata": Metadata.TTL}],
                         ids=["plain", "pieces", "columns"])  # fmt: skip
def test_a_checksum_that_comes_out_as_zero_is_sent_as_all_ones(net: Net, family: str, options: Any) -> None:
    """RFC 768: zero says that there is none."""
    near, far = net.near(family, **options), net.capture()
    plain = udp(*HOSTS[family], PEER_PORT, PORT, b"\0\0")
    payload = plain[6:8]  # what is missing to a sum of all ones
    send(near, [payload], (HOSTS[family][1], PORT))
    [datagram] = captured(far)
    assert datagram.checksum == 0xFFFF
    assert datagram.checksum_ok


@pytest.mark.parametrize("options", [{}, {"multi_buffer": True}, {"dont_fragment": False}],
                         ids=["plain", "pieces", "identified"])  # fmt: skip
def test_udp_checksums_can_be_left_out_over_ipv4_only(net: Net, options: Any) -> None:
    near = net._keep(fs.XdpUdpSocket.open(net.a, local=("::", PEER_PORT), udp_checksum=False, **options))
    far = net.capture()
    send(near, [b"without"], TO)
    send(near, [b"with"], (V6[1], PORT))
    without, with_ = captured(far)
    assert (without.checksum, without.header_ok) == (0, True)
    assert with_.checksum_ok
    near.close()
    near = net.near(udp_checksum=False, **options)
    send(near, [b"without"], TO)
    [without] = captured(far)
    assert (without.checksum, without.header_ok) == (0, True)


def test_identifications_differ_where_fragments_are_allowed(net: Net) -> None:
    near, far = net.near(dont_fragment=False), net.capture()
    send(near, numbered(100), TO)
    tx = near.tx_batch(1)
    tx.append(b"x" * 1000, TO)
    tx.segment_sizes[:] = 100
    assert near.send(tx) == 1
    got = captured(far)
    assert len({datagram.identification for datagram in got}) == len(got) == 110
    assert all(datagram.header_ok and datagram.checksum_ok and not datagram.dont_fragment for datagram in got)
    near.close()
    near = net.near()
    send(near, numbered(2), TO)
    assert [datagram.dont_fragment for datagram in captured(far)] == [True, True]


@families
@pytest.mark.parametrize("segmented", [False, True], ids=["whole", "segmented"])
def test_ttl_ecn_and_source_of_each_slot(net: Net, family: str, segmented: bool) -> None:
    metadata = Metadata.TTL | Metadata.ECN | Metadata.LOCAL
    near, far = net.near(family, metadata=metadata, ttl=33, tos=0x48), net.capture()
    to, size = (HOSTS[family][1], PORT), 16 if family == "v6" else 4
    tx = near.tx_batch(4)
    for payload in numbered(4):
        tx.append(payload, to)
    if segmented:
        tx.segment_sizes[:] = 32 // 2
    tx.ttl[1] = 9
    tx.ecn[2] = 3
    other = "2001:db8::77" if family == "v6" else "192.0.2.77"
    tx.source_addresses[3, :size] = numpy.frombuffer(ip_address(other).packed, numpy.uint8)
    assert near.send(tx) == 4
    got = captured(far)
    assert all(datagram.header_ok and datagram.checksum_ok for datagram in got)
    assert b"".join(datagram.payload for datagram in got) == b"".join(numbered(4))
    if segmented:
        assert len(got) == 8
        got = got[1::2]
    assert [datagram.ttl for datagram in got] == [33, 9, 33, 33]
    assert [datagram.tos for datagram in got] == [0x48, 0x48, 0x4B, 0x48]
    assert [datagram.source for datagram in got] == [HOSTS[family][0]] * 3 + [other]


# Segments


def expected_segments(payloads: list[bytes], size: int) -> list[bytes]:
    return [payload[i : i + size] for payload in payloads for i in range(0, len(payload), size)]


@families
@pytest.mark.parametrize("size", [1, 7, 100, 999, 1000, 1001])
@pytest.mark.parametrize("prepared", [False, True], ids=["send", "send_to"])
def test_large_packets_are_cut_at_the_right_places(net: Net, family: str, size: int, prepared: bool) -> None:
    near, far = net.near(family, tx_frames=4096), net.capture()
    to = (HOSTS[family][1], PORT)
    payload = random.Random(size).randbytes(1000)
    tx = near.tx_batch(2)
    tx.append(payload, to)
    tx.append(payload[:500], to)
    if prepared:
        endpoint = near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=to, gso_size=size))
        assert near.send_to(endpoint, tx) == 2
    else:
        tx.segment_sizes[:] = size
        assert near.send(tx) == 2
    got = captured(far)
    assert [datagram.payload for datagram in got] == expected_segments([payload, payload[:500]], size)
    assert all(datagram.header_ok and datagram.checksum_ok for datagram in got)
    near.drain_tx_completions()
    assert near.stats().sent == len(got)
    assert near.stats().sent_bytes == 1500
    assert whole(near.pool)


@pytest.mark.parametrize(
    ("tx_ring", "completion_ring", "tx_frames"), [(8, 4096, 64), (4096, 8, 64), (4096, 4096, 9), (4, 8, 7)]
)
def test_segments_wait_where_rings_or_frames_run_out(
    net: Net, tx_ring: int, completion_ring: int, tx_frames: int
) -> None:
    near = net.near(tx_ring=tx_ring, completion_ring=completion_ring, tx_frames=tx_frames)
    far = net.capture()
    payloads = [random.Random(i).randbytes(990 + i) for i in range(4)]
    tx = near.tx_batch(4)
    for payload in payloads:
        tx.append(payload, TO)
    tx.segment_sizes[:] = 50
    net.wire.hold_completions = True
    got: list[Datagram] = []
    calls = 0
    while len(tx):
        near.send(tx)
        got += captured(far)
        net.wire.hold_completions = False
        net.wire.resume()
        net.wire.hold_completions = True
        calls += 1
        assert calls < 1000, f"{len(got)} datagrams, {len(tx)} packets pending"
    net.wire.hold_completions = False
    net.wire.resume()
    near.drain_tx_completions()
    got += captured(far)
    assert calls > 1
    assert [datagram.payload for datagram in got] == expected_segments(payloads, 50)
    assert whole(near.pool)


# Packets in pieces


def test_a_jumbo_datagram_arrives_in_pieces_and_goes_back_as_it_came(jumbo: Net) -> None:
    near, far = jumbo.near(multi_buffer=True), jumbo.far(multi_buffer=True)
    payload = random.Random(9).randbytes(8972)  # a datagram of 9000 bytes
    for _ in range(3):
        far.queue.inject_frame(jumbo.frame(payload))
        far.queue.inject_frame(jumbo.frame(b"small"))
        rx = far.recv_batch(16)
        count = far.recv(rx)
        assert count == len(rx) > 3
        assert rx.continued.tolist() == [1] * (count - 2) + [0, 0]
        assert b"".join(bytes(packet) for packet in rx) == payload + b"small"
        assert {packet.address for packet in rx} == {(V4[0], PEER_PORT)}
        tx = far.tx_batch(16)
        assert tx.take_from(rx) == count
        assert far.send(tx) == count
        back = near.recv_batch(16)
        assert near.recv(back) == count
        assert b"".join(bytes(packet) for packet in back) == payload + b"small"
        near.recv(back)
        assert near.queue_stats().rx_packets == far.queue_stats().rx_packets
    assert far.queue_stats().rx_packets == 6
    far.drain_tx_completions()
    assert whole(far.pool)
    assert whole(near.pool)


@families
@pytest.mark.parametrize("size", [3000, 3001, 5000, 8971])
def test_datagrams_from_pieces_have_right_headers(jumbo: Net, family: str, size: int) -> None:
    near, far = jumbo.near(family, multi_buffer=True), jumbo.capture(multi_buffer=True)
    payload = random.Random(size).randbytes(size - 60)
    parts = [payload[:1001], payload[1001:2002], payload[2002:]] if size < 4000 else [
        payload[i : i + 1501] for i in range(0, len(payload), 1501)
    ]  # fmt: skip
    tx = near.tx_batch(8)
    for part in parts:
        tx.append(part, (HOSTS[family][1], PORT))
    tx.continued[:-1] = 1
    assert near.send(tx) == len(parts)
    rx = far.recv_batch(16)
    assert far.recv(rx) > 0
    datagram = Datagram.read(b"".join(bytes(packet) for packet in rx))
    assert datagram.payload == payload
    assert datagram.header_ok
    assert datagram.checksum_ok
    assert near.stats().sent == near.queue_stats().tx_packets == 1


def test_the_checksum_of_a_raw_datagram_in_pieces_is_not_known(jumbo: Net) -> None:
    far = jumbo.capture(multi_buffer=True, metadata=Metadata.CHECKSUM)
    far.queue.inject_frame(jumbo.frame(random.Random(2).randbytes(8000)))
    far.queue.inject_frame(jumbo.frame(random.Random(3).randbytes(80)))
    rx = far.recv_batch(16)
    count = far.recv(rx)
    assert count > 2
    assert rx.checksum.tolist() == [fs.ChecksumStatus.UNKNOWN] * (count - 1) + [fs.ChecksumStatus.VERIFIED]


def test_a_packet_of_more_pieces_than_the_batch_holds_is_dropped(jumbo: Net) -> None:
    far = jumbo.far(multi_buffer=True, rx_frames=64)
    far.queue.inject_frame(jumbo.frame(bytes(8900)))
    far.queue.inject_frame(jumbo.frame(b"small"))
    rx = far.recv_batch(2)
    assert far.recv(rx) == 1
    assert bytes(rx[0]) == b"small"
    assert far.queue_stats().bad_packets == 1
    far.recv(rx)
    assert whole(far.pool)


def test_a_packet_whose_pieces_do_not_fit_now_waits(jumbo: Net) -> None:
    far = jumbo.far(multi_buffer=True, rx_frames=64)
    payload = random.Random(1).randbytes(8900)
    far.queue.inject_frame(jumbo.frame(b"small"))
    far.queue.inject_frame(jumbo.frame(payload))
    rx = far.recv_batch(3)
    assert far.recv(rx) == 1
    assert far.recv(rx) == 3
    assert b"".join(bytes(packet) for packet in rx) == payload
    assert not rx.continued[-1]


def test_without_multi_buffer_a_jumbo_frame_is_the_devices_to_drop() -> None:
    net = Net(mtu=3000)
    far = net.far()
    far.queue.inject_frame(net.frame(bytes(8000)))
    assert received(far) == []
    assert far.queue_stats().rx_dropped == 1


# Several ports


@families
def test_several_ports_are_told_apart_and_answered_from(net: Net, family: str) -> None:
    near = net.near(family)
    far = net.far(family, ports=range(9000, 9010))
    assert far.ports == frozenset(range(9000, 9010))
    tx = near.tx_batch(12)
    for port in range(8999, 9011):
        tx.append(str(port).encode(), (HOSTS[family][1], port))
    assert near.send(tx) == 12
    rx = far.recv_batch(16)
    assert far.recv(rx) == 10
    assert rx.local_ports.tolist() == list(range(9000, 9010))
    assert rx[3].meta().local_port == 9003
    assert far.queue_stats().filtered == 2
    replies = far.tx_batch(16)
    assert replies.take_from(rx) == 10
    assert far.send(replies) == 10
    back = near.recv_batch(16)
    assert near.recv(back) == 10
    assert [(bytes(packet), packet.address[1]) for packet in back] == [
        (str(port).encode(), port) for port in range(9000, 9010)
    ]


@pytest.mark.parametrize("metadata", [Metadata.NONE, Metadata.TTL], ids=str)
def test_segments_leave_from_the_port_of_their_slot(net: Net, metadata: Metadata) -> None:
    near, far = net.near(ports=range(5000, 5004), metadata=metadata), net.capture()
    tx = near.tx_batch(2)
    tx.append(b"x" * 50, TO)
    tx.append(b"y" * 50, TO)
    tx.source_ports[:] = [0, 5003]
    tx.segment_sizes[:] = 20
    assert near.send(tx) == 2
    got = captured(far)
    assert [(datagram.sport, len(datagram.payload)) for datagram in got] == [
        (5000, 20), (5000, 20), (5000, 10), (5003, 20), (5003, 20), (5003, 10),
    ]  # fmt: skip
    assert all(datagram.checksum_ok for datagram in got)


# Refusals


@families
def test_a_datagram_larger_than_the_mtu_is_refused_and_the_rest_keeps_its_order(net: Net, family: str) -> None:
    near, far = net.near(family), net.capture()
    most = 1500 - 8 - (40 if family == "v6" else 20)
    tx = near.tx_batch(3)
    for size in (most, most + 1, 5):
        tx.append(bytes(size), (HOSTS[family][1], PORT))
    with pytest.raises(SendError, match=str(most)) as caught:
        near.send(tx)
    assert caught.value.accepted == 1
    assert len(tx) == 2
    assert tx.discard(1) == 1
    assert near.send(tx) == 1
    assert [len(datagram.payload) for datagram in captured(far)] == [most, 5]


def test_more_pieces_than_the_rings_take_are_refused(jumbo: Net) -> None:
    for raw in (False, True):
        options: Any = {"tx_ring": 2, "multi_buffer": True}
        far = jumbo.far(port=PORT + 1, multi_buffer=True)
        near = jumbo.near(**options) if not raw else jumbo._keep(fs.XdpIpPacketSocket.open(jumbo.a, **options))
        if raw:
            datagram = ip(V4[0], V4[1], udp(V4[0], V4[1], 1, 2, bytes(4000), "good"))
            parts = [datagram[:1400], datagram[1400:2800], datagram[2800:]]
        else:
            parts = [bytes(1400)] * 3
        tx = near.tx_batch(4)
        for part in parts:
            tx.append(part) if raw else tx.append(part, (V4[1], PORT + 1))
        tx.continued[:2] = True
        for _ in range(2):
            with pytest.raises(SendError, match="tx_ring") as caught:
                near.send(tx)
            assert caught.value.accepted == 0
        tx.discard()
        near.close()
        far.close()


def test_a_packet_trimmed_to_the_end_of_its_frame_has_no_room(net: Net) -> None:
    near, far = net.near(tx_frames=8), net.capture()
    tx = near.tx_batch(8)
    assert tx.allocate() == 8
    tx.fill(b"n" * tx[0].tailroom)
    tx.set_destinations(TO)
    tx[3].trim_prefix(len(tx[3]))
    tx.lengths[:] = 10
    tx.lengths[3] = 200
    with pytest.raises(SendError) as caught:
        near.send(tx)
    assert caught.value.accepted == 3
    tx.discard()
    assert len(captured(far)) == 3
    assert whole(near.pool)


def test_packets_in_pieces_are_taken_whole(jumbo: Net) -> None:
    near, far = jumbo.near(multi_buffer=True), jumbo.far(multi_buffer=True)
    tx = near.tx_batch(8)
    for part in (b"a" * 3000, b"a" * 3000, b"b" * 10, b"c" * 3000, b"c" * 3000, b"d"):
        tx.append(part, TO)
    tx.continued[:] = [1, 0, 0, 1, 0, 0]
    assert near.send(tx) == 6
    rx, small, large = far.recv_batch(16), far.tx_batch(1), far.tx_batch(16)
    assert far.recv(rx) == 6
    assert rx.datagram_count == 4
    assert small.take_from(rx) == 0  # two pieces do not fit, and none goes alone
    rx[4].take().release()  # the end of c
    assert large.take_from(rx) == 4
    assert [bytes(packet)[:1] for packet in large] == [b"a", b"a", b"b", b"d"]
    assert far.send(large) == 4
    back = near.recv_batch(16)
    assert near.recv(back) == 4
    assert back.continued.tolist() == [1, 0, 0, 0]
    del back


@pytest.mark.parametrize("prepared", [False, True])
def test_packets_in_pieces_are_not_cut(jumbo: Net, prepared: bool) -> None:
    near = jumbo.near(multi_buffer=True)
    tx = near.tx_batch(2)
    tx.append(bytes(1000), TO)
    tx.append(bytes(700), TO)
    tx.continued[0] = 1
    if prepared:
        for options, message in (({"gso_size": 500}, "not cut"), ({"payload_len": 1000}, "payload_len")):
            to = near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=TO, **options))
            with pytest.raises(SendError, match=message):
                near.send_to(to, tx)
        to = near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=TO, payload_len=1700))
        assert near.send_to(to, tx) == 2
    else:
        tx.segment_sizes[0] = 500
        with pytest.raises(SendError, match="not cut"):
            near.send(tx)


def test_sources_and_destinations_are_of_the_sockets_families(net: Net) -> None:
    for options in ({"local": (V6[0], 7000)}, {"local": ("::", 7000), "v6only": True}):
        with fs.XdpUdpSocket.open(net.a, **options) as near:  # type: ignore[arg-type]
            tx = near.tx_batch(1)
            tx.append(b"over IPv4", TO)
            with pytest.raises(SendError, match="family"):
                near.send(tx)
    near = net._keep(fs.XdpUdpSocket.open(net.a, local=("::", 7000), metadata=Metadata.LOCAL))
    tx = near.tx_batch(1)
    for to, source in ((V4[1], V6[0]), (V6[1], f"::ffff:{V4[0]}")):
        tx.append(b"from where", (to, PORT))
        tx.source_addresses[0] = list(ip_address(source).packed)
        with pytest.raises(SendError, match="source address"):
            near.send(tx)
        tx.discard()


@pytest.mark.parametrize("group", ["224.0.0.5", "255.255.255.255"])
def test_nothing_leaves_from_a_group(net: Net, group: str) -> None:
    near = net._keep(fs.XdpUdpSocket.open(net.a, local=(group, PEER_PORT)))
    far = net.capture()
    send(near, [b"from a host"], TO)
    assert captured(far)[0].source == V4[0]


def test_the_rest_of_a_cut_packet_may_go_to_an_endpoint_of_fixed_length(net: Net) -> None:
    near, far = net.near(tx_ring=4, tx_frames=64), net.far()
    to = near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=TO, gso_size=100, payload_len=1000))
    tx = near.tx_batch(2)
    tx.append(bytes(range(250)) * 4, TO)
    sent = 0
    while len(tx):
        sent += near.send_to(to, tx)
    assert sent == 1
    assert b"".join(received(far)) == bytes(range(250)) * 4
    tx.append(bytes(950), TO)
    with pytest.raises(SendError, match="payload_len"):
        near.send_to(to, tx)


def test_a_socket_that_was_dropped_gives_its_queue_back(net: Net) -> None:
    far = fs.XdpUdpSocket.open(net.b, local=(V4[1], PORT))
    with pytest.raises(Error, match="taken"):
        net.far()
    del far
    gc.collect()
    far = net.far()
    send(net.near(), [b"to the second"], TO)
    assert received(far) == [b"to the second"]


def test_a_closed_socket_leaves_the_batch_as_it_was(net: Net) -> None:
    near, far = net.near(), net.far()
    send(near, [b"kept"], TO)
    rx = far.recv_batch(4)
    assert far.recv(rx) == 1
    far.close()
    with pytest.raises(Error, match="closed"):
        far.recv(rx)
    assert [bytes(packet) for packet in rx] == [b"kept"]


def test_a_queue_is_had_by_one(net: Net) -> None:
    net.far()
    with pytest.raises(Error, match="taken"):
        net.far(port=PORT + 1)
    with pytest.raises(Error, match="queue"):
        fs.XdpUdpSocket.open(net.b, 1, local=(V4[1], PORT))
