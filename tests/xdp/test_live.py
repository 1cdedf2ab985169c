"""AF_XDP sockets of the kernel, over a veth pair of the lab.

The tests that bear names of the kernel's own suite (tools/testing/selftests/bpf/xskxceiver.c) run with the program in
native and in generic mode. Of that suite these cannot be run through this API:

    *_UNALIGNED*                        chunks are aligned: other ones are not offered
    *_INV_DESC*, STAT_TX_INVALID        no invalid descriptor is ever written: what would be one is a `SendError`; that
                                        is tested here (INV_DESC_REFUSED), the kernel's counter stays 0
    POLL_TXQ_FULL                       in copy mode over a veth the kernel takes all of TX in the call that sends, and
                                        completes it there: TX is never full; tests/xdp/test_sim.py stops the device
    TX_QUEUE_CONSUMER                   the index moves within `send`: nobody can look before it has
    XDP_DROP_HALF, XDP_ADJUST_TAIL_*    are tests of their own XDP programs; the program here does neither
    XDP_METADATA_COPY*                  theirs is a program's counter; timestamps are tested with the program
    HW_SW_MIN/MAX_RING_SIZE             need a NIC whose ring sizes can be set
"""

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

import fast_socket as fs
from fast_socket import Metadata
from fast_socket.core.errors import ConfigError, DeviceError, Error, SendError
from fast_socket.lab import Lab, Link, why_unavailable
from tests.conformance.backends import whole
from tests.os.helpers import Capture
from tests.xdp.helpers import SECONDS
from tests.xdp.packets import Datagram, ethernet, ip, udp

UNAVAILABLE = why_unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]

PORT, PEER_PORT = 9000, 5000
families = pytest.mark.parametrize("family", ["v4", "v6"])
modes = pytest.mark.parametrize("attach", ["native", "generic"])


class Ends:
    """Sockets on the ends of a link; all are closed with it."""

    def __init__(self, link: Link) -> None:
        self.link, self.opened = link, list[Any]()

    def keep(self, sock: Any) -> Any:
        self.opened.append(sock)
        return sock

    def host(self, end: int, family: str = "v4") -> str:
        return str(getattr(self.link[end], {"v4": "ipv4", "v6": "ipv6"}[family]))

    def open(self, end: int, family: str = "v4", port: int | None = None, queue: int = 0, **options: Any) -> Any:
        """End 0 is near and has PEER_PORT, end 1 is far and has PORT."""
        port = (PEER_PORT, PORT)[end] if port is None else port
        device = self.link[end]
        return self.keep(device.host.run(fs.XdpUdpSocket.open, device.name, queue, local=(self.host(end, family), port),
                                         **options))  # fmt: skip

    def pair(self, family: str = "v4", **options: Any) -> tuple[Any, Any]:
        return self.open(0, family, **options), self.open(1, family, **options)

    def kernel(self, end: int, family: str = "v4", port: int | None = None, **options: Any) -> Any:
        """A socket of the kernel's UDP."""
        port = (PEER_PORT, PORT)[end] if port is None else port
        return self.keep(self.link[end].host.run(fs.OsUdpSocket.bind, (self.host(end, family), port), **options))

    def raw(self, end: int) -> Any:
        def bound() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sock.bind((self.link[end].name, 0))
            return sock

        return self.keep(self.link[end].host.run(bound))

    def mac(self, end: int) -> bytes:
        return bytes.fromhex(self.link[end].mac.replace(":", ""))

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Link]:
    with Lab() as lab:
        yield lab.link(lab.host("live1"), lab.host("live2"), static_neighbors=True)


@pytest.fixture
def ends(lasting: Link) -> Iterator[Ends]:
    ends = Ends(lasting)
    yield ends
    ends.close()


@pytest.fixture
def two_queues() -> Iterator[Ends]:
    """The kernel's own datagrams take either of them, as their flow has it."""
    with Lab() as lab:
        ends = Ends(lab.link(lab.host("live1"), lab.host("live2"), queues=2, static_neighbors=True))
        yield ends
        ends.close()


@pytest.fixture
def new_link() -> Iterator[Callable[..., Ends]]:
    """For tests that change or break it."""
    with Lab() as lab:
        made = list[Ends]()

        def make(**options: Any) -> Ends:
            made.append(Ends(lab.link(lab.host("one"), lab.host("two"), **{"static_neighbors": True} | options)))
            return made[-1]

        yield make
        for each in made:
            each.close()


def numbered(count: int, size: int = 60) -> list[bytes]:
    return [struct.pack(">I", i).ljust(size, b"%c" % (i % 251)) for i in range(count)]


def send(sock: Any, payloads: list[bytes], to: tuple[str, int]) -> None:
    tx = sock.tx_batch(max(len(payloads), 1))
    for payload in payloads:
        tx.append(payload, to)
    deadline = time.monotonic() + SECONDS
    while len(tx):
        assert time.monotonic() < deadline, f"{len(tx)} of {len(payloads)} left; {sock.stats()}"
        if sock.send(tx) == 0:
            sock.driver.wait_writable(0.1)


def receive(sock: Any, count: int) -> list[tuple[bytes, tuple[str, int]]]:
    """The next payloads with their senders, as many as there are of `count`."""
    rx, got = sock.recv_batch(64), list[tuple[bytes, tuple[str, int]]]()
    while len(got) < count:
        assert sock.driver.wait(SECONDS), f"{len(got)} of {count} came; {sock.stats()}"
        sock.recv(rx)
        got += [(bytes(packet), packet.address) for packet in rx]
    return got


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def passes(near: Any, far: Any, ends: Ends, count: int = 8, family: str = "v4", port: int = PORT) -> None:
    send(near, numbered(count), (ends.host(1, family), port))
    assert receive(far, count) == [
        (payload, (ends.host(0, family), near.local_address[1])) for payload in numbered(count)
    ]


# The kernel's list


@modes
@families
def test_send_receive(ends: Ends, attach: str, family: str) -> None:
    near, far = ends.pair(family, attach=attach)
    for _ in range(16):
        passes(near, far, ends, 256, family)
    assert far.program.mode.value == attach
    assert near.queue_stats().tx_invalid_descriptors == 0
    near.drain_tx_completions()
    assert near.queue_stats().outstanding == 0
    assert (far.stats().received, far.stats().kernel_drops, near.stats().sent) == (4096, 0, 4096)
    assert whole(near.pool)
    assert whole(far.pool)


@modes
@pytest.mark.parametrize("payload", [1, 3000], ids=["2K", "4K"])
def test_send_receive_frame_sizes(ends: Ends, attach: str, payload: int) -> None:
    layout = fs.BufferLayout(payload_capacity=payload)
    near, far = ends.pair(attach=attach, rx_layout=layout, tx_layout=layout)
    assert far.pool.rx_layout.chunk_size == (2048 if payload == 1 else 4096)
    passes(near, far, ends, 500)


@modes
@families
def test_single_packet(ends: Ends, attach: str, family: str) -> None:
    near, far = ends.pair(family, attach=attach)
    passes(near, far, ends, 1, family)
    assert far.recv(far.recv_batch(1)) == 0


@modes
def test_bidirectional(ends: Ends, attach: str) -> None:
    near, far = ends.pair(attach=attach)
    for _ in range(50):
        send(near, numbered(64), (ends.host(1), PORT))
        send(far, numbered(64, 200), (ends.host(0), PEER_PORT))
        assert [payload for payload, _ in receive(near, 64)] == numbered(64, 200)
        assert [payload for payload, _ in receive(far, 64)] == numbered(64)


@modes
def test_teardown(ends: Ends, attach: str) -> None:
    for _ in range(50):
        near, far = ends.pair(attach=attach, rx_frames=128, tx_frames=64)
        passes(near, far, ends, 16)
        ends.close()
        assert whole(near.pool)
        assert whole(far.pool)


@modes
@pytest.mark.parametrize("driver", [fs.WaitDriver, fs.BusyPollDriver])
def test_poll_rx_and_poll_tx(ends: Ends, attach: str, driver: Any) -> None:
    near, far = ends.pair(attach=attach, driver=driver)
    for _ in range(20):
        assert not far.driver.wait(0)
        assert near.driver.wait_writable(SECONDS)
        passes(near, far, ends, 32)


@modes
@pytest.mark.parametrize("driver", [fs.WaitDriver, fs.BusyPollDriver])
def test_poll_rx_times_out_without_packets(ends: Ends, attach: str, driver: Any) -> None:
    far = ends.open(1, attach=attach, driver=driver)
    assert not far.driver.wait(0.05)
    assert far.recv(far.recv_batch(4)) == 0


@modes
def test_umem_headroom(ends: Ends, attach: str) -> None:
    layout = fs.BufferLayout(payload_capacity=1500, headroom=128)
    near, far = ends.open(0, attach=attach), ends.open(1, attach=attach, rx_layout=layout)
    send(near, [b"payload"], (ends.host(1), PORT))
    rx, tx = far.recv_batch(1), far.tx_batch(1)
    assert far.driver.wait(SECONDS)
    assert far.recv(rx) == 1
    assert rx[0].headroom >= 128
    packet = rx[0].take()
    packet.prepend(b"h" * 128)
    tx.append(packet, packet.address)
    assert far.send(tx) == 1
    assert receive(near, 1)[0][0] == b"h" * 128 + b"payload"


@modes
@pytest.mark.parametrize("size", [300, 512])
def test_umem_headroom_for_links(ends: Ends, attach: str, size: int) -> None:
    layout = fs.BufferLayout(payload_capacity=1500, l2_headroom=size)
    near, far = ends.pair(attach=attach, rx_layout=layout)
    passes(near, far, ends)
    send(near, [b"payload"], (ends.host(1), PORT))
    rx = far.recv_batch(1)
    assert far.driver.wait(SECONDS)
    far.recv(rx)
    assert rx[0].headroom < 4096


@modes
def test_stat_rx_dropped(new_link: Callable[..., Ends], attach: str) -> None:
    """Packets that are too large for a frame."""
    ends = new_link(mtu=3000)
    small = fs.BufferLayout(payload_capacity=1500)
    near, far = ends.open(0, attach=attach), ends.open(1, attach=attach, rx_layout=small, tx_layout=small)
    assert far.pool.rx_layout.chunk_size == 2048
    send(near, [b"before", bytes(2500), b"behind"], (ends.host(1), PORT))
    assert [payload for payload, _ in receive(far, 2)] == [b"before", b"behind"]
    assert far.queue_stats().rx_dropped == 1
    assert far.stats().kernel_drops == 1
    assert whole(far.pool)


@modes
def test_stat_rx_full(ends: Ends, attach: str) -> None:
    near, far = ends.open(0, attach=attach), ends.open(1, attach=attach, rx_ring=8, rx_frames=128)
    send(near, numbered(30), (ends.host(1), PORT))
    eventually(lambda: far.queue_stats().rx_ring_full == 22)
    assert [payload for payload, _ in receive(far, 8)] == numbered(30)[:8]
    passes(near, far, ends)
    assert whole(far.pool)


@modes
def test_stat_fill_empty(ends: Ends, attach: str) -> None:
    near, far = ends.open(0, attach=attach), ends.open(1, attach=attach, fill_ring=8, rx_frames=128)
    send(near, numbered(30), (ends.host(1), PORT))
    eventually(lambda: far.queue_stats().rx_fill_ring_empty == 22)
    assert [payload for payload, _ in receive(far, 8)] == numbered(30)[:8]
    passes(near, far, ends)
    assert whole(far.pool)


@modes
def test_xdp_prog_cleanup(ends: Ends, attach: str) -> None:
    """A second socket takes over the queue of the first; each has its program."""
    near, first = ends.open(0, attach=attach), ends.open(1, attach=attach)
    passes(near, first, ends)
    first.close()
    second = ends.open(1, port=PORT + 1, attach=attach)
    passes(near, second, ends, port=PORT + 1)
    with ends.kernel(1) as kernel:  # the first one's port is the kernel's again
        send(near, [b"for the kernel"], (ends.host(1), PORT))
        assert receive(kernel, 1)[0][0] == b"for the kernel"


@modes
def test_swap_below_one_program(two_queues: Ends, attach: str) -> None:
    """Of two queues in one program, one closes: the other goes on."""
    ends, device = two_queues, two_queues.link.b
    program = ends.keep(fs.XdpProgram.load(fs.XdpFilter(ports=frozenset({PORT})), queues=2))
    device.host.run(program.attach, device.name, fs.xdp.XdpMode(attach))
    near = ends.open(0, attach=attach)
    first, second = (ends.open(1, queue=queue, program=program) for queue in (0, 1))
    passes(near, first, ends)
    first.close()
    third = ends.open(1, queue=0, program=program)
    passes(near, third, ends)
    assert not second.driver.wait(0)


def test_xdp_shared_umem(two_queues: Ends) -> None:
    """Two queues of each end on one pool each; even numbers go through one, odd ones through the other. In native mode
    only: a generic program sees all that a veth receives as of queue 0."""
    ends, attach, sockets = two_queues, "native", list[Any]()
    for end in (0, 1):
        device = ends.link[end]
        program = ends.keep(fs.XdpProgram.load(fs.XdpFilter(ports=frozenset({(PEER_PORT, PORT)[end]})), queues=2))
        device.host.run(program.attach, device.name, fs.xdp.XdpMode(attach))
        rx_layout, tx_layout = fs.xdp.umem_layouts()
        pool = fs.FramePool(rx_frames=512, tx_frames=256, rx_layout=rx_layout, tx_layout=tx_layout)
        sockets += [ends.open(end, queue=queue, pool=pool, program=program) for queue in (0, 1)]
        assert sockets[-1].pool is sockets[-2].pool is pool
    near, far = sockets[:2], sockets[2:]
    for _ in range(20):
        for queue in (0, 1):
            send(near[queue], numbered(100)[queue::2], (ends.host(1), PORT))
        for queue in (0, 1):
            assert [payload for payload, _ in receive(far[queue], 50)] == numbered(100)[queue::2]
    # A frame that came in by one queue leaves by the other.
    send(near[0], [b"across"], (ends.host(1), PORT))
    assert far[0].driver.wait(SECONDS)
    rx, tx = far[0].recv_batch(1), far[1].tx_batch(1)
    far[0].recv(rx)
    assert tx.take_from(rx) == 1
    assert far[1].send(tx) == 1
    assert receive(near[1], 1) == [(b"across", (ends.host(1), PORT))]
    for sock in sockets:
        sock.drain_tx_completions()
    far[0].close()  # it registered the UMEM: the other goes on
    send(near[1], [b"still"], (ends.host(1), PORT))
    assert receive(far[1], 1)[0][0] == b"still"
    for sock in sockets:
        sock.close()
    assert whole(near[0].pool)
    assert whole(far[0].pool)


@modes
@families
def test_9k_packets(new_link: Callable[..., Ends], attach: str, family: str) -> None:
    ends = new_link(mtu=9018)
    near, far = ends.pair(family, attach=attach, multi_buffer=True)
    layout = fs.BufferLayout(payload_capacity=9000)
    kernel = ends.kernel(0, family, PEER_PORT + 1, rx_layout=layout, tx_layout=layout)
    payload = b"".join(struct.pack(">H", i) for i in range(4476))  # 8952 bytes: 9000 with the headers of IPv6
    for number in range(20):
        send(kernel, [payload], (ends.host(1, family), PORT))
        rx, got = far.recv_batch(16), b""
        assert far.driver.wait(SECONDS), far.queue_stats()
        count = far.recv(rx)
        got = b"".join(bytes(packet) for packet in rx)
        assert got == payload
        assert count > 1
        assert rx.continued.tolist() == [1] * (count - 1) + [0]
        tx = far.tx_batch(16)
        assert tx.take_from(rx) == count
        tx.set_destinations((ends.host(0, family), PEER_PORT + (number & 1)))
        assert far.send(tx) == count
        if number & 1:
            assert receive(kernel, 1) == [(payload, (ends.host(1, family), PORT))]
        else:
            back = near.recv_batch(16)
            assert near.driver.wait(SECONDS)
            near.recv(back)
            assert b"".join(bytes(packet) for packet in back) == payload
            near.recv(back)
        far.recv(rx)
    far.drain_tx_completions()
    assert far.stats().received == far.stats().sent == 20
    assert whole(far.pool)
    assert whole(near.pool)


@modes
def test_too_many_frags(new_link: Callable[..., Ends], attach: str) -> None:
    ends = new_link(mtu=9018)
    near, far = ends.pair(attach=attach, multi_buffer=True)
    to = (ends.host(1), PORT)
    for pieces, goes in ((17, True), (19, False)):
        tx = near.tx_batch(32)
        for payload in numbered(pieces, 100):
            tx.append(payload, to)
        tx.continued[:-1] = 1
        tx.append(b"neighbour", to)
        if not goes:
            with pytest.raises(SendError):
                near.send(tx)
            assert tx.discard(pieces) == pieces
        assert near.send(tx) > 0
        rx = far.recv_batch(32)
        assert far.driver.wait(SECONDS)
        data = b""
        while not data.endswith(b"neighbour"):
            assert far.driver.wait(SECONDS), (data, near.queue_stats(), far.queue_stats())
            far.recv(rx)
            data += b"".join(bytes(packet) for packet in rx)
        assert data == (b"".join(numbered(pieces, 100)) if goes else b"") + b"neighbour"
    assert near.queue_stats().tx_invalid_descriptors == 0


@modes
def test_inv_desc_refused(ends: Ends, attach: str) -> None:
    """What would make an invalid descriptor is refused; its neighbours go."""
    near, far = ends.pair(attach=attach)
    for length in (near.pool.tx_layout.chunk_size, 1 << 16, (1 << 32) - 1):
        tx = near.tx_batch(3)
        for payload in numbered(3):
            tx.append(payload, (ends.host(1), PORT))
        tx.lengths[1] = length
        with pytest.raises(SendError) as caught:
            near.send(tx)
        assert caught.value.accepted == 1
        tx.discard(1)
        assert near.send(tx) == 1
        assert [payload for payload, _ in receive(far, 2)] == [numbered(3)[0], numbered(3)[2]]
    assert near.queue_stats().tx_invalid_descriptors == 0
    near.drain_tx_completions()
    assert whole(near.pool)


# Far more than any ring holds


def run_through(near: Any, far: Any, count: int, to: tuple[str, int]) -> None:
    """Numbered packets, none missing, none twice, in order. Sends no more than the rings hold."""
    tx, rx = near.tx_batch(64), far.recv_batch(64)
    import numpy

    done = 0
    while done < count:
        assert tx.allocate(64) == 64
        tx.lengths[:] = 16
        tx.set_destinations(to)
        tx.scatter(0, numpy.arange(done, done + 64, dtype=">u8"))
        expected = done + 64
        while len(tx):
            if near.send(tx) == 0:
                assert near.driver.wait_writable(SECONDS), near.queue_stats()
        while done < expected:
            if far.recv(rx) == 0:
                assert far.driver.wait(SECONDS), (done, far.queue_stats(), near.queue_stats())
                continue
            numbers = rx.gather(0, ">u8")
            assert (numbers == numpy.arange(done, done + len(numbers))).all()
            done += len(numbers)
    far.recv(rx)
    near.drain_tx_completions()
    assert whole(near.pool)
    assert whole(far.pool)


RINGS = {"rx_ring": 64, "tx_ring": 64, "fill_ring": 64, "completion_ring": 64, "rx_frames": 192, "tx_frames": 128}


@pytest.mark.parametrize(
    ("attach", "count"),
    [
        ("generic", 1_000_000),
        pytest.param("native", 10_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_rings_of_64_carry_far_more_than_they_hold(ends: Ends, attach: str, count: int) -> None:
    near, far = ends.pair(attach=attach, **RINGS)
    run_through(near, far, count, (ends.host(1), PORT))
    assert far.stats().received >= count
    assert far.stats().kernel_drops == 0


# With the kernel's network stack


@modes
@families
def test_to_and_from_kernel_sockets(ends: Ends, attach: str, family: str) -> None:
    far, kernel = ends.open(1, family, attach=attach), ends.kernel(0, family)
    payloads = [bytes([size % 251]) * size for size in (0, 1, 17, 18, 19, 500, 1452)]
    send(kernel, payloads, (ends.host(1, family), PORT))
    assert receive(far, 7) == [(payload, (ends.host(0, family), PEER_PORT)) for payload in payloads]
    send(far, payloads, (ends.host(0, family), PEER_PORT))  # which the kernel verifies the checksums of
    assert receive(kernel, 7) == [(payload, (ends.host(1, family), PORT)) for payload in payloads]
    tx = far.tx_batch(1)
    tx.append(b"0123456789", (ends.host(0, family), PEER_PORT))
    tx.segment_sizes[:] = 3
    assert far.send(tx) == 1
    assert [payload for payload, _ in receive(kernel, 4)] == [b"012", b"345", b"678", b"9"]


@families
def test_what_is_not_asked_for_stays_the_kernels(ends: Ends, family: str) -> None:
    far, kernel = ends.open(1, family), ends.kernel(1, family, PORT + 1)
    near = ends.kernel(0, family)
    send(near, [b"kernel"], (ends.host(1, family), PORT + 1))
    send(near, [b"queue"], (ends.host(1, family), PORT))
    assert receive(kernel, 1)[0][0] == b"kernel"
    assert receive(far, 1)[0][0] == b"queue"


@families
def test_sent_frames_as_others_read_them(ends: Ends, family: str) -> None:
    near = ends.open(0, family, ttl=7, tos=0xB9, metadata=Metadata.TTL | Metadata.ECN)
    capture = ends.keep(Capture(ends.link.b))
    tx = near.tx_batch(4)
    for payload in (b"", b"odd", b"even", bytes(1400)):
        tx.append(payload, (ends.host(1, family), PORT))
    tx.ttl[1] = 200
    tx.ecn[2] = 3
    assert near.send(tx) == 4
    frames = capture.udp(PORT, 4)
    assert [frame.payload for frame in frames] == [b"", b"odd", b"even", bytes(1400)]
    assert [frame.ttl for frame in frames] == [7, 200, 7, 7]
    assert [frame.tos for frame in frames] == [0xB9, 0xB9, 0xBB, 0xB9]
    for frame in frames:
        assert frame.checksum_ok
        assert (frame.ether.src, frame.ether.dst) == (ends.link.a.mac, ends.link.b.mac)
        assert (frame.ip.src, frame.ip.dst) == (ends.host(0, family), ends.host(1, family))
        assert (frame.udp.sport, frame.udp.len) == (PEER_PORT, len(frame.payload) + 8)
        if family == "v4":
            assert frame.ip.flags.DF
        found = Datagram.read(bytes(frame.ether)[14 : 14 + (frame.ip.len if family == "v4" else 40 + frame.ip.plen)])
        assert found.header_ok
        assert found.checksum_ok


@modes
@families
def test_tagged_frames_are_received(ends: Ends, attach: str, family: str) -> None:
    far, raw = ends.open(1, family, attach=attach, metadata=Metadata.VLAN | Metadata.CHECKSUM), ends.raw(0)
    source, destination = ends.host(0, family), ends.host(1, family)
    network = IP(src=source, dst=destination) if family == "v4" else IPv6(src=source, dst=destination)
    inner = network / UDP(sport=PEER_PORT, dport=PORT) / b"by scapy"
    outer = Ether(src=ends.link.a.mac, dst=ends.link.b.mac)
    raw.send(bytes(outer / inner))
    raw.send(bytes(outer / Dot1Q(vlan=42, prio=5) / inner))
    raw.send(bytes(outer / Dot1Q(type=0x8100, vlan=7) / Dot1Q(vlan=8) / inner))
    rx, got = far.recv_batch(8), list[Any]()
    while len(got) < 3:
        assert far.driver.wait(SECONDS), (got, far.queue_stats())
        far.recv(rx)
        got += [(bytes(packet), packet.meta()) for packet in rx]
    assert [payload for payload, _ in got] == [b"by scapy"] * 3
    assert [meta.vlan for _, meta in got] == [0, 5 << 13 | 42, 7]
    assert [meta.checksum for _, meta in got] == [fs.ChecksumStatus.VERIFIED] * 3


@families
def test_checksums_of_the_kernels_datagrams_may_be_partial(ends: Ends, family: str) -> None:
    far, kernel, raw = ends.open(1, family, metadata=Metadata.CHECKSUM), ends.kernel(0, family), ends.raw(0)
    send(kernel, [b"from the kernel"], (ends.host(1, family), PORT))
    source, destination = ends.host(0, family), ends.host(1, family)
    bad = ip(source, destination, udp(source, destination, PEER_PORT, PORT, b"spoiled", "bad"))
    raw.send(ethernet(ends.mac(1), ends.mac(0), bad))
    rx, got = far.recv_batch(8), list[Any]()
    while len(got) < 2:
        assert far.driver.wait(SECONDS)
        far.recv(rx)
        got += rx.checksum.tolist()
    assert got[0] in (fs.ChecksumStatus.PARTIAL, fs.ChecksumStatus.VERIFIED)
    assert got[1] == fs.ChecksumStatus.BAD


# What goes wrong


def attached(ends: Ends) -> bool:
    shown = ends.link.b.host.popen(["ip", "link", "show", "dev", ends.link.b.name], stdout=subprocess.PIPE, text=True)
    return "prog/xdp" in shown.communicate(timeout=SECONDS)[0]


@modes
def test_a_killed_process_leaves_the_device_to_the_kernel(ends: Ends, attach: str) -> None:
    code = (
        "import fast_socket as fs, sys\n"
        f"sock = fs.XdpUdpSocket.open({ends.link.b.name!r}, local=({ends.host(1)!r}, {PORT}), attach={attach!r})\n"
        "print('open', flush=True); sys.stdin.read()\n"
    )
    process = ends.link.b.host.popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert attached(ends)
        near, kernel = ends.kernel(0), ends.kernel(1)
        send(near, [b"taken"], (ends.host(1), PORT))
        assert not kernel.driver.wait(0.05)
        process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()
    eventually(lambda: not attached(ends))
    send(near, [b"flows"], (ends.host(1), PORT))
    assert receive(kernel, 1)[0][0] == b"flows"
    kernel.close()
    far = ends.open(1, attach=attach)
    send(near, [b"and again"], (ends.host(1), PORT))
    assert receive(far, 1)[0][0] == b"and again"


@modes
def test_close_leaves_nothing_attached(ends: Ends, attach: str) -> None:
    far = ends.open(1, attach=attach)
    assert attached(ends)
    far.close()
    far.close()
    assert not attached(ends)
    assert far.queue_stats().rx_packets == 0
    for use in (far.notify_tx, far.drain_tx_completions, lambda: far.recv(far.recv_batch(1))):
        with pytest.raises(Error, match="closed"):
            use()


def test_memory_is_where_it_was_asked_for(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    near = ends.open(0, huge_pages=True, numa_node=0)
    placement = near.pool.memory.placement()
    assert placement.resident in (near.pool.memory.size, None)  # registered, so all of it is in use
    assert placement.nodes == {0: near.pool.memory.size} or "numa_node" in caplog.text
    assert placement.huge == near.pool.memory.size or "huge_pages" in caplog.text
    passes(near, ends.open(1, numa_node="device"), ends)


@modes
def test_a_forked_child_takes_nothing_along(ends: Ends, attach: str) -> None:
    near, far = ends.pair(attach=attach)
    passes(near, far, ends)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for use in (near.forget_routes, near.router.refresh):
                with pytest.raises(DeviceError, match="parent"):
                    use()
            far.close()
            code = 0 if far.closed else 1
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert attached(ends)
    passes(near, far, ends)


@modes
def test_a_device_that_goes_away(new_link: Callable[..., Ends], attach: str) -> None:
    ends = new_link()
    near, far = ends.pair(attach=attach)
    passes(near, far, ends)
    to = (ends.host(1), PORT)
    ends.link.remove()
    tx = near.tx_batch(8)
    for payload in numbered(8):
        tx.append(payload, to)
    deadline = time.monotonic() + SECONDS
    with pytest.raises(Error) as caught:
        while time.monotonic() < deadline:
            near.send(tx)
            near.notify_tx()
    assert isinstance(caught.value, DeviceError | SendError), caught.value
    rx = far.recv_batch(8)
    try:
        assert far.recv(rx) == 0
    except Error as error:
        assert isinstance(error, DeviceError)
    for sock in (near, far):
        sock.close()
        sock.stats()
    tx.discard()
    assert whole(near.pool)
    assert whole(far.pool)


@modes
def test_a_device_that_goes_down_and_comes_up(new_link: Callable[..., Ends], attach: str) -> None:
    ends = new_link()
    near, far = ends.pair(attach=attach)
    passes(near, far, ends)
    ends.link.a.set_up(False)
    with pytest.raises(DeviceError, match="down"):
        ends.open(0, attach=attach, queue=0)
    tx = near.tx_batch(4)
    for payload in numbered(4):
        tx.append(payload, (ends.host(1), PORT))
    deadline = time.monotonic() + SECONDS
    with pytest.raises((DeviceError, SendError)):
        while time.monotonic() < deadline:
            near.send(tx)
            near.notify_tx()
    ends.link.a.set_up(True)
    tx.discard()
    for end, other in ((0, 1), (1, 0)):  # down means that permanent neighbours are gone
        for family in ("v4", "v6"):
            ends.link[end].add_neighbor(ends.host(other, family), ends.link[other].mac)

    def works() -> bool:
        tx.append(b"works again", (ends.host(1), PORT))
        with contextlib.suppress(DeviceError, SendError):
            near.send(tx)
        tx.discard()
        rx = far.recv_batch(8)
        return far.driver.wait(0.05) and far.recv(rx) > 0 and any(bytes(packet) == b"works again" for packet in rx)

    eventually(works)
    near.close()
    assert whole(near.pool)


def test_a_queue_that_is_taken(ends: Ends) -> None:
    ends.open(1)
    with pytest.raises(Error, match="taken") as caught:
        ends.open(1, port=PORT + 1)
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("queue", [1, 63, 1 << 16, -1, True, "0"])
def test_a_queue_that_is_not_there(ends: Ends, queue: Any) -> None:
    with pytest.raises(ConfigError, match="queue"):
        ends.open(1, queue=queue)
    assert not attached(ends)


def test_values_that_cannot_work(ends: Ends) -> None:
    for options, message in (
        ({"port": 0}, "port 0"),
        ({"attach": "nowhere"}, "attach"),
        ({"rx_ring": 63}, "power of two"),
        ({"program": "mine"}, "XdpProgram"),
        ({"nonsense": 1}, "nonsense"),
    ):
        with pytest.raises(ConfigError, match=message):
            ends.open(1, **options)
        assert not attached(ends)
    with pytest.raises(ConfigError):
        ends.link.b.host.run(fs.XdpUdpSocket.open, "nothing0", local=("192.0.2.1", PORT))
    passes(*ends.pair(), ends)


def test_zero_copy_is_refused_where_the_driver_has_none(ends: Ends) -> None:
    with pytest.raises(fs.CapabilityError, match="zero-copy"):
        ends.open(1, mode="zero_copy", rx_frames=16, tx_frames=16, rx_ring=4096)
    assert not attached(ends)
    assert not ends.open(1, mode="auto").zero_copy


@pytest.mark.parametrize("mtu", [4000, 9000])
def test_an_mtu_too_large_for_a_frame(new_link: Callable[..., Ends], mtu: int) -> None:
    ends = new_link(mtu=mtu)
    with pytest.raises(ConfigError, match="multi_buffer"):
        ends.open(1)
    assert not attached(ends)


def test_batches_of_another_socket(ends: Ends) -> None:
    near, far = ends.pair()
    with pytest.raises(ConfigError, match="another socket"):
        near.send(far.tx_batch(1))
    with pytest.raises(ConfigError, match="another socket"):
        near.recv(far.recv_batch(1))
    with pytest.raises(ConfigError, match="another socket"):
        near.send_to(far.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=(ends.host(0), 1))), near.tx_batch(1))
