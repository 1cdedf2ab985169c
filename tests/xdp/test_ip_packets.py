"""Whole IP datagrams through a queue: in and out, by destination or egress, and through a tunnel without a copy.

On simulated devices, and as root the same over a veth of the lab.
"""

import atexit
import ctypes
import functools
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fast_socket as fs
from fast_socket import Metadata
from fast_socket.core.errors import ConfigError, SendError
from fast_socket.lab import Lab, why_unavailable
from tests.conformance.backends import whole
from tests.conformance.test_handlers import DROP, FORWARD, HANDLER, address_of
from tests.xdp.helpers import SECONDS
from tests.xdp.packets import FRAGMENT_HEADER, Datagram, ethernet, ip, udp

UNAVAILABLE = why_unavailable()
V4, V6 = ("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")
HOSTS = {"v4": V4, "v6": V6}
EMPTY = {"v4": 20, "v6": 40}
families = pytest.mark.parametrize("family", ["v4", "v6"])
MIXED, V4_ONLY, V6_ONLY = fs.IpFamilies.Mixed, fs.IpFamilies.V4Only, fs.IpFamilies.V6Only
BAD = "not an IP datagram"


class Ends:
    """Sockets on a and b; what is sent to an address of the other end arrives there."""

    def __init__(self, a: tuple[Callable[..., Any], Any], b: tuple[Callable[..., Any], Any]) -> None:
        self.ends, self.sockets = (a, b), list[Any]()

    def open(self, end: int, **options: Any) -> Any:
        run, device = self.ends[end]
        self.sockets.append(run(fs.XdpIpPacketSocket.open, device, **options))
        return self.sockets[-1]

    def open_udp(self, end: int, **options: Any) -> Any:
        run, device = self.ends[end]
        self.sockets.append(run(fs.XdpUdpSocket.open, device, **options))
        return self.sockets[-1]

    def close(self) -> None:
        while self.sockets:
            self.sockets.pop().close()


def here(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return call(*args, **options)


def addresses() -> list[list[str]]:
    """The second of each family has no other purpose than to be another destination."""
    return [[f"192.0.2.{i}/24", f"2001:db8::{i}/64", f"192.0.2.{i + 10}/24", f"2001:db8::{i + 10}/64"] for i in (1, 2)]


@functools.cache
def live_link() -> Any:
    lab = Lab()
    atexit.register(lab.close)
    first, second = addresses()
    return lab.link(lab.host("ip1"), lab.host("ip2"), mtu=1500, addresses=(first, second), static_neighbors=True)


@pytest.fixture(
    params=[
        "sim",
        pytest.param(
            "xdp", marks=[pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]
        ),
    ]
)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    if request.param == "sim":
        wire = fs.xdp.sim.Wire()
        devices = [fs.xdp.sim.SimulatedDevice(wire, f"sim{i}", addresses=given) for i, given in enumerate(addresses())]
        ends = Ends((here, devices[0]), (here, devices[1]))
    else:
        link = live_link()
        ends = Ends((link.a.host.run, link.a.name), (link.b.host.run, link.b.name))
    yield ends
    ends.close()


@pytest.fixture
def simulated() -> Iterator[tuple[Ends, Any]]:
    """And the second device, to hand frames to."""
    wire = fs.xdp.sim.Wire()
    devices = [fs.xdp.sim.SimulatedDevice(wire, f"sim{i}", addresses=given) for i, given in enumerate(addresses())]
    ends = Ends((here, devices[0]), (here, devices[1]))
    yield ends, devices[1]
    ends.close()


def datagram(family: str, payload: bytes, to: str | None = None, **fields: Any) -> bytes:
    source, destination = HOSTS[family]
    destination = to or destination
    return ip(source, destination, udp(source, destination, 5000, 9000, payload), **fields)


def batch(sock: Any, packets: list[bytes]) -> Any:
    tx = sock.tx_batch(max(len(packets), 1))
    for packet in packets:
        tx.append(packet)
    return tx


def send(sock: Any, packets: list[bytes]) -> None:
    tx = batch(sock, packets)
    while len(tx):
        if sock.send(tx) == 0:
            assert sock.driver.wait_writable(SECONDS)


def is_ours(packet: bytes) -> bool:
    """Not what the kernels say to each other: only protocols used here, only addresses used here."""
    if packet[0] >> 4 == 4:
        return packet[9] in (4, 17, 41, 253)
    return packet[6] in (4, 17, 41, 253) and packet[24] != 0xFF


def receive(sock: Any, count: int) -> list[bytes]:
    rx, got = sock.recv_batch(64), list[bytes]()
    while len(got) < count:
        assert sock.driver.wait(SECONDS), f"{len(got)} of {count} came; {sock.stats()}"
        sock.recv(rx)
        got += [bytes(packet) for packet in rx if is_ours(bytes(packet))]
    return got


@families
def test_datagrams_pass_as_they_are(ends: Ends, family: str) -> None:
    near, far = ends.open(0), ends.open(1)
    generator = random.Random(3)
    sizes = [0, 1, 17, 26, 100, 999, 1500 - 8 - EMPTY[family]]
    packets = [datagram(family, generator.randbytes(size), ttl=9, tos=0x2C) for size in sizes]
    packets.append(ip(*HOSTS[family], b"an experiment", 253))  # RFC 3692
    for _ in range(3):
        send(near, packets)
        assert receive(far, len(packets)) == packets
    assert near.stats().tx_packets == 3 * len(packets)
    near.drain_tx_completions()
    assert whole(near.pool)


@families
def test_a_udp_socket_understands_them_and_the_other_way(ends: Ends, family: str) -> None:
    near, far = ends.open(0), ends.open_udp(1, local=(HOSTS[family][1], 9000))
    send(near, [datagram(family, b"made by hand")])
    rx = far.recv_batch(4)
    assert far.driver.wait(SECONDS)
    assert far.recv(rx) == 1
    assert (bytes(rx[0]), rx[0].address) == (b"made by hand", (HOSTS[family][0], 5000))
    tx = far.tx_batch(1)
    tx.append(b"and answered", (HOSTS[family][0], 5000))
    assert far.send(tx) == 1
    [answer] = receive(near, 1)
    found = Datagram.read(answer)
    assert (found.payload, found.source, found.sport) == (b"and answered", HOSTS[family][1], 9000)
    assert found.header_ok
    assert found.checksum_ok


def test_more_packets_than_the_rings_hold(ends: Ends) -> None:
    near = ends.open(0, tx_ring=16, completion_ring=16, tx_frames=32)
    far = ends.open(1, rx_ring=64, fill_ring=64, rx_frames=128)
    for number in range(500):
        packets = [datagram("v6" if i & 1 else "v4", struct.pack(">II", number, i)) for i in range(12)]
        send(near, packets)
        assert receive(far, 12) == packets


@pytest.mark.parametrize("chosen", [MIXED, V4_ONLY, V6_ONLY])
def test_families_received(ends: Ends, chosen: fs.IpFamilies) -> None:
    near, far = ends.open(0), ends.open(1, families=chosen)
    assert far.families is chosen
    four, six = datagram("v4", b"four"), datagram("v6", b"six")
    send(near, [four, six, four, six])
    expected = {MIXED: [four, six, four, six], V4_ONLY: [four, four], V6_ONLY: [six, six]}[chosen]
    assert receive(far, len(expected)) == expected
    rx = far.recv_batch(8)
    far.recv(rx)
    assert not [bytes(packet) for packet in rx if is_ours(bytes(packet))]


@pytest.mark.parametrize(("chosen", "fine", "foreign"), [(V4_ONLY, "v4", "v6"), (V6_ONLY, "v6", "v4")])
def test_families_sent(ends: Ends, chosen: fs.IpFamilies, fine: str, foreign: str) -> None:
    near, far = ends.open(0, families=chosen), ends.open(1)
    tx = batch(near, [datagram(fine, b"1"), datagram(foreign, b"2"), datagram(fine, b"3")])
    with pytest.raises(SendError, match=BAD) as caught:
        near.send(tx)
    assert caught.value.accepted == 1
    tx.discard(1)
    assert near.send(tx) == 1
    assert receive(far, 2) == [datagram(fine, b"1"), datagram(fine, b"3")]
    with pytest.raises(ConfigError, match="families"):
        near.resolve(HOSTS[foreign][1])


def spoil(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + bytes([value]) + packet[at + 1 :]


REFUSED = {
    "empty": b"",
    "version 0": spoil(datagram("v4", b"x"), 0, 0x05),
    "version 5": spoil(datagram("v4", b"x"), 0, 0x55),
    "version 6 of an IPv4 one": spoil(datagram("v4", b"x" * 30), 0, 0x65),
    "version 4 of an IPv6 one": spoil(datagram("v6", b"x"), 0, 0x45),
    "header of 16 bytes": spoil(datagram("v4", b"x"), 0, 0x44),
    "length field too large": spoil(datagram("v4", b"x"), 3, 30),
    "length field too small": spoil(datagram("v4", b"x"), 3, 28),
    "cut": datagram("v4", b"x")[:-1],
    "cut in the header": datagram("v4", b"x")[:19],
    "v6 length field too large": spoil(datagram("v6", b"x"), 5, 10),
    "v6 length field too small": spoil(datagram("v6", b"x"), 5, 8),
    "v6 cut in the header": datagram("v6", b"x")[:39],
    "bytes behind": datagram("v4", b"x") + b"y",
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("how", ["send", "send_via"])
def test_what_is_no_datagram_is_refused(simulated: Any, case: str, how: str) -> None:
    ends, _ = simulated
    near, far = ends.open(0), ends.open(1)
    good = datagram("v4", b"good")
    call = near.send if how == "send" else functools.partial(near.send_via, near.resolve(V4[1]))
    tx = batch(near, [good, REFUSED[case], good])
    with pytest.raises(SendError, match=BAD) as caught:
        call(tx)
    assert caught.value.accepted == 1
    assert bytes(tx[0]) == REFUSED[case]
    with pytest.raises(SendError) as caught:
        call(tx)
    assert caught.value.accepted == 0
    tx.discard(1)
    assert call(tx) == 1
    assert receive(far, 2) == [good, good]
    near.drain_tx_completions()
    assert whole(near.pool)


def test_lengths_that_leave_the_frame_are_refused(simulated: Any) -> None:
    ends, _ = simulated
    near = ends.open(0)
    tx = batch(near, [datagram("v4", b"x")])
    for length in (1 << 16, (1 << 32) - 1):
        tx.lengths[0] = length
        with pytest.raises(SendError, match="frame"):
            near.send(tx)
    tx.discard()
    assert whole(near.pool)


@families
@pytest.mark.parametrize("how", ["send", "send_via", "egresses"])
def test_the_mtu_holds(ends: Ends, family: str, how: str) -> None:
    near, far = ends.open(0), ends.open(1)
    room = 1500 - 8 - EMPTY[family]
    fits, large = datagram(family, bytes(room)), datagram(family, bytes(room + 1))
    egress = near.resolve(HOSTS[family][1])
    tx = batch(near, [fits, large, fits])
    if how == "egresses":
        tx.egresses[:] = egress.id
    call = functools.partial(near.send_via, egress) if how == "send_via" else near.send
    with pytest.raises(SendError, match="1500") as caught:
        call(tx)
    assert caught.value.accepted == 1
    tx.discard(1)
    assert call(tx) == 1
    assert receive(far, 2) == [fits, fits]


def test_an_egress_for_the_batch_carries_any_destination(ends: Ends) -> None:
    near, far = ends.open(0), ends.open(1)
    egress = near.resolve(V4[1])
    strangers = [datagram("v4", b"a", "198.51.100.7"), datagram("v6", b"b", "2001:db8:ffff::1"), datagram("v4", b"c")]
    tx = batch(near, strangers)
    assert near.send_via(egress, tx) == 3
    assert receive(far, 3) == strangers
    tx = batch(near, strangers[:1])
    with pytest.raises(SendError):  # by its destination it has no way
        near.send(tx)
    assert len(tx) == 1
    tx.discard()


def test_an_egress_for_each_packet(ends: Ends) -> None:
    near, far = ends.open(0), ends.open(1)
    four, six = near.resolve(V4[1]), near.resolve(V6[1])
    assert (four.id, six.id) == (1, 2)
    assert str(six.destination) == V6[1]
    packets = [datagram("v4", b"a", "198.51.100.7"), datagram("v4", b"b"), datagram("v6", b"c", "2001:db8:ffff::1")]
    tx = batch(near, [*packets, datagram("v4", b"d"), packets[0]])
    tx.egresses[:] = [six.id, 0, four.id, 3, four.id]
    with pytest.raises(SendError, match="egress") as caught:
        near.send(tx)
    assert caught.value.accepted == 3
    assert tx.egresses.tolist() == [3, 1]
    tx.discard(1)
    assert near.send(tx) == 1
    assert receive(far, 4) == [*packets, packets[0]]
    # A slot that is used again has no egress.
    tx.append(packets[0])
    assert tx.egresses.tolist() == [0]
    tx.discard()


def test_an_egress_is_of_its_socket(ends: Ends) -> None:
    near, far = ends.open(0), ends.open(1)
    egress = far.resolve(V4[0])
    tx = batch(near, [datagram("v4", b"x")])
    with pytest.raises(ConfigError, match="another socket"):
        near.send_via(egress, tx)
    with pytest.raises(ConfigError, match="another socket"):
        near.send(far.tx_batch(1))
    with pytest.raises(ConfigError, match="another socket"):
        near.recv(far.recv_batch(1))
    with pytest.raises(ConfigError):
        near.resolve("nowhere")
    with pytest.raises(fs.xdp.UnresolvedError):
        near.resolve("198.51.100.7")
    tx.discard()


def test_fragments_are_dropped_and_counted(simulated: Any) -> None:
    ends, device = simulated
    far = ends.open(1, rx_frames=64)
    fragment6 = struct.pack(">BBHI", 17, 0, 1, 9) + udp(*V6, 5000, 9000, b"x")
    fragments = [
        datagram("v4", b"x", fragment=0x2000), datagram("v4", b"x", fragment=0x0001),
        datagram("v4", b"x", fragment=0x3FFF), ip(*V6, fragment6, FRAGMENT_HEADER),
    ]  # fmt: skip
    for packet in (*fragments, datagram("v4", b"whole", fragment=0x4000)):
        far.queue.inject_frame(ethernet(device.mac, b"\2" * 6, packet))
    far.queue.inject_frame(device.mac + b"\2" * 6 + b"\x08\x06" + bytes(46))
    assert receive(far, 1) == [datagram("v4", b"whole", fragment=0x4000)]
    stats = far.stats()
    assert (stats.fragments_dropped, stats.filtered, stats.bad_packets, stats.rx_packets) == (4, 1, 0, 1)
    assert whole(far.pool)


def test_padding_and_tags_are_no_part_of_the_packet(simulated: Any) -> None:
    ends, device = simulated
    far = ends.open(1, metadata=Metadata.VLAN | Metadata.CHECKSUM)
    for family, tag in (("v4", 7), ("v6", 0xFFFF)):
        packet = datagram(family, b"short")
        far.queue.inject_frame(ethernet(device.mac, b"\2" * 6, packet, ((0x8100, tag),)) + bytes(20))
        rx = far.recv_batch(2)
        assert far.recv(rx) == 1
        assert bytes(rx[0]) == packet
        meta = rx.meta(0)
        assert (meta.vlan, meta.segments, meta.interface, meta.queue) == (tag, 1, device.ifindex, 0)
        assert meta.checksum == fs.ChecksumStatus.VERIFIED
        with pytest.raises(IndexError):
            rx.meta(1)


@families
def test_a_handler_turns_packets_round(ends: Ends, family: str) -> None:
    """Swapped addresses and ports leave checksums right. IP packets are forwarded: nobody is there to reflect to."""
    first, size = (12, 4) if family == "v4" else (8, 16)
    protocol, header = (9, 20) if family == "v4" else (6, 40)

    @HANDLER
    def turn(packet: Any, data: int, source: Any, user: int) -> int:
        frame = bytearray(ctypes.string_at(data, packet[0].length))
        if (
            frame[0] >> 4 != (4 if header == 20 else 6)
            or frame[protocol] != 17
            or any(source[2 : packet[0].source_length])
        ):
            return DROP
        for at, width in ((first, size), (header, 2)):
            frame[at : at + 2 * width] = frame[at + width : at + 2 * width] + frame[at : at + width]
        ctypes.memmove(data, bytes(frame), len(frame))
        return FORWARD

    near, far = ends.open(0), ends.open(1)
    payloads = [random.Random(i).randbytes(100 + i) for i in range(20)]
    send(near, [datagram(family, payload) for payload in payloads])
    rx, tx = far.recv_batch(64), far.tx_batch(64)
    with pytest.raises(fs.ConfigError, match="IP packets go where their headers say"):
        rx.run(address_of(turn), reflect=tx)
    turned = 0
    while turned < len(payloads):
        assert far.driver.wait(SECONDS)
        far.recv(rx)
        assert rx.run(address_of(turn), forward=tx) == 0
        turned += len(tx)
        while len(tx):
            far.send(tx)
    answers = [Datagram.read(packet) for packet in receive(near, len(payloads))]
    assert [answer.payload for answer in answers] == payloads
    assert all(answer.header_ok and (answer.sport, answer.dport) == (9000, 5000) for answer in answers)
    assert rx.handler_errors == 0


# A tunnel: v4 and v6 in each of both


@pytest.mark.parametrize("outer", ["v4", "v6"])
@pytest.mark.parametrize("inner", ["v4", "v6"])
def test_a_tunnel_wraps_and_unwraps_in_place(ends: Ends, inner: str, outer: str) -> None:
    """b wraps what it gets and sends it back to a; a unwraps, and delivers. Each on the frame that it received."""
    near, far = ends.open(0), ends.open(1)
    size = EMPTY[outer]
    packets = [datagram(inner, random.Random(i).randbytes(100 + i)) for i in range(20)]
    send(near, packets)
    rx, forward = far.recv_batch(64), far.tx_batch(64)
    wrapped = 0
    while wrapped < 20:
        assert far.driver.wait(SECONDS)
        far.recv(rx)
        taken = [packet.take() for packet in rx if is_ours(bytes(packet))]
        for packet in taken:
            frame = packet.frame
            assert packet.headroom >= size
            outside = ip(HOSTS[outer][1], HOSTS[outer][0], bytes(packet), 4 if inner == "v4" else 41)[:size]
            packet.prepend(outside)
            forward.append(packet)
            assert int(forward.frames[-1]) == frame
            assert frame < far.pool.rx_frames
        wrapped += len(taken)
        assert far.send(forward) == len(taken)
    rx, forward = near.recv_batch(64), near.tx_batch(64)
    unwrapped = list[bytes]()
    while len(unwrapped) < 20:
        assert near.driver.wait(SECONDS)
        near.recv(rx)
        for packet in [packet.take() for packet in rx if is_ours(bytes(packet))]:
            frame = packet.frame
            packet.trim_prefix(size)
            unwrapped.append(bytes(packet))
            forward.append(packet)
            assert int(forward.frames[-1]) == frame
        near.send(forward)
    assert unwrapped == packets
    assert receive(far, 20) == packets
    near.drain_tx_completions()
    far.drain_tx_completions()
    del packet, rx
    for sock in (near, far):
        sock.close()
        assert whole(sock.pool)
