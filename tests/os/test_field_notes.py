"""What the kernel does that cost other projects bugs: GSO. The other rows of the field notes are in
test_field_notes_receive.py, test_field_notes_errors.py, test_field_notes_faults.py and test_field_notes_options.py;
"need no UDP_SEGMENT, pay for control messages only where asked" is also in test_field_notes_faults.py.

Not tested anywhere:
- the rates over a veth link, and io_uring's lack of gain: figures, not behaviour; `make bench` measures the former.
- GSO refused with EIO by a real IPsec path or a device without checksum offload: this kernel has neither ESP, AH nor
  IPCOMP, and kernels since 6.11 compute the checksum themselves. test_field_notes_faults.py plays such a kernel.
"""

import logging
import socket

import pytest

import fast_socket as fs
from tests.os.helpers import (
    SO_NO_CHECK,
    SOL_UDP,
    UDP_NO_CHECK6_RX,
    UDP_NO_CHECK6_TX,
    UDP_SEGMENT,
    bind,
    collect,
    gso_segments,  # noqa: F401  (needs_gso names it)
    needs_gso,
    numbered,
    option,
    peer_of,
    queue,
    reachable,
    receive,
    send_all,
)

LARGE = fs.BufferLayout(payload_capacity=65_535)


def unchecked(family, gso_size=0):
    """A sender whose large sends the kernel refuses with EINVAL, because it must not compute checksums."""
    sock = socket.socket(socket.AF_INET6 if family == "v6" else socket.AF_INET, socket.SOCK_DGRAM)
    if family == "v6":
        sock.setsockopt(SOL_UDP, UDP_NO_CHECK6_TX, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    sock.bind(("::1" if family == "v6" else "127.0.0.1", 0))
    return fs.OsUdpSocket.from_socket(sock, gso_size=gso_size, tx_layout=LARGE, tx_frames=256)


def listener(family):
    sock = peer_of(family)
    if family == "v6":
        sock.setsockopt(SOL_UDP, UDP_NO_CHECK6_RX, 1)
    return sock


def roomy(family="v4", **options):
    """A receiver whose buffer holds thousands of datagrams."""
    sock = bind(family, recv_buffer=1 << 22, rx_frames=4096, **options)
    if sock.recv_buffer_size < 1 << 22:
        sock.close()
        pytest.skip("needs CAP_NET_ADMIN or net.core.rmem_max of 4 MiB")
    return sock


def warnings(caplog):
    return [r for r in caplog.records if r.name.startswith("fast_socket") and r.levelno >= logging.WARNING]


# GSO returns EINVAL when ... SO_NO_CHECK is set: switch it off, split in software, resend, count it, say it once.


@needs_gso
@pytest.mark.parametrize("gso_size", [0, 64, 200])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_refused_large_send_is_split_counted_and_said_once(family, gso_size, caplog):
    payloads = numbered(100, 64)
    with listener(family) as far, unchecked(family, gso_size) as sock:
        assert sock.capabilities().gso is fs.Support.YES
        assert send_all(sock, queue(sock, payloads, far.getsockname()[:2])) == 100
        assert receive(far, 100) == payloads
        stats = sock.stats()
        assert (stats.sent, stats.sent_bytes, stats.gso_sends, stats.gso_fallbacks) == (100, 6400, 0, 1)
        assert sock.capabilities().gso is fs.Support.NO
        assert sock.capabilities().max_gso_segments == 1
        assert send_all(sock, queue(sock, payloads, far.getsockname()[:2])) == 100
        assert receive(far, 100) == payloads
        assert sock.stats().gso_fallbacks == 1
    assert len(warnings(caplog)) == 1


@needs_gso
@pytest.mark.parametrize("prepared", [False, True])
def test_refused_segmented_packet_is_split_at_the_same_boundaries(prepared):
    """One packet with a segment size; the last datagram is shorter."""
    payload = b"".join(numbered(20, 500)) + b"tail"
    with listener("v4") as far, unchecked("v4") as sock:
        tx = queue(sock, [b"before", payload, b"after"], far.getsockname())
        if prepared:
            spec = fs.UdpEndpointSpec(remote=far.getsockname(), gso_size=500)
            assert sock.send_to(sock.prepare_udp_endpoint(spec), tx) == 3
        else:
            tx.segment_sizes[1] = 500
            assert sock.send(tx) == 3
        assert receive(far, 23) == [b"before", *numbered(20, 500), b"tail", b"after"]
        assert sock.stats().sent == 23


@needs_gso
def test_refusal_for_the_size_ends_in_plain_sends_too():
    """EINVAL for 2000-byte segments could mean the MTU; whatever is made of it, nothing is lost or doubled."""
    with listener("v4") as far, unchecked("v4") as sock:
        for size in (2000, 1999, 1500, 64):
            payloads = numbered(30, size)
            assert send_all(sock, queue(sock, payloads, far.getsockname())) == 30
            assert receive(far, 30) == payloads
        assert sock.stats().sent == 120


# GSO returns EINVAL (or EMSGSIZE) when segment + headers > MTU, and it may appear late, on a route change.


@needs_gso
@pytest.mark.root
@pytest.mark.parametrize("gso_size", [0, 1400, 2000])
@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_segments_above_the_mtu_are_sent_singly_and_smaller_ones_still_together(offloading, version, gso_size, caplog):
    near, far = offloading
    with (
        far.host.run(fs.OsUdpSocket.bind, (getattr(far, version), 0)) as receiver,
        near.host.run(fs.OsUdpSocket.bind, (getattr(near, version), 0), gso_size=gso_size) as sock,
    ):
        for size, fallbacks in ((1400, 0), (2000, 1), (2000, 1), (1400, 1)):
            payloads = numbered(40, size)
            before = sock.stats()
            assert send_all(sock, queue(sock, payloads, receiver.local_address)) == 40
            assert collect(receiver, 40) == payloads
            after = sock.stats()
            assert after.sent - before.sent == 40
            assert after.gso_fallbacks == fallbacks
            assert (after.gso_sends > before.gso_sends) == (size == 1400)
        assert sock.capabilities().gso is fs.Support.YES
    assert len(warnings(caplog)) == 1


@needs_gso
@pytest.mark.root
def test_mtu_that_shrinks_under_a_socket(fresh):
    """The route changes between two sends: the second batch is whole, too."""
    near, far = fresh
    payloads = numbered(40, 1400)
    with (
        far.host.run(fs.OsUdpSocket.bind, (far.ipv4, 0)) as receiver,
        near.host.run(fs.OsUdpSocket.connect, receiver.local_address) as sock,
    ):
        for fallbacks in (0, 1):
            assert send_all(sock, queue(sock, payloads)) == 40
            assert collect(receiver, 40) == payloads
            assert sock.stats().gso_fallbacks == fallbacks
            near.set_mtu(1300)


# Kernels take 64 segments (some 128), in all at most 65,535 bytes.


@needs_gso
@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("size", [1, 64, 1232, 1400, 2048])
def test_long_runs_are_cut_to_what_the_kernel_takes(family, size):
    payloads = numbered(1000, max(size, 4)) if size > 1 else [b"x"] * 1000
    with roomy(family) as far, bind(family) as sock:
        assert send_all(sock, queue(sock, payloads, reachable(far, family))) == 1000
        assert collect(far, 1000) == payloads
        stats = sock.stats()
        assert stats.gso_fallbacks == 0
        assert -(-1000 // sock.capabilities().max_gso_segments) <= stats.gso_sends < 500


@needs_gso
@pytest.mark.parametrize("size", [1, 7, 100, 1000, 1472])
@pytest.mark.parametrize("gso", [False, True])
def test_packet_with_more_segments_than_one_large_send(size, gso):
    """It leaves as several large sends, and in software as the same datagrams."""
    length = min(1000 * size, 60_000) + 3 * (size > 3)
    payload = bytes(i % 251 for i in range(length))
    parts = [payload[i : i + size] for i in range(0, length, size)]
    with roomy() as far, bind("v4", gso=gso, tx_layout=LARGE, tx_frames=8) as sock:
        tx = queue(sock, [payload], far.local_address)
        tx.segment_sizes[:] = size
        assert send_all(sock, tx) == 1
        assert collect(far, len(parts)) == parts
        assert sock.stats().sent == len(parts)
        assert (sock.stats().gso_sends > 0) == gso


@needs_gso
def test_run_ends_with_a_shorter_datagram_and_begins_anew():
    sizes = [100] * 5 + [40] + [100] * 3 + [101] * 2 + [0] + [7] * 4 + [0, 0] + [8] * 3
    payloads = [bytes([i]) * size for i, size in enumerate(sizes)]
    with peer_of("v4") as far, bind("v4") as sock:
        assert sock.send(queue(sock, payloads, far.getsockname())) == len(sizes)
        assert receive(far, len(sizes)) == payloads
        assert 1 < sock.stats().gso_sends < len(sizes)


# Probing: UDP_SEGMENT set on a socket would stay.


def test_no_socket_wide_segment_size():
    with peer_of("v4") as far, bind("v4") as sock:
        assert option(sock, SOL_UDP, UDP_SEGMENT) == 0
        sock.send(queue(sock, numbered(50, 64), far.getsockname()))
        receive(far, 50)
        assert option(sock, SOL_UDP, UDP_SEGMENT) == 0
        sock.send(queue(sock, [b"x" * 1999], far.getsockname()))
        assert receive(far, 1) == [b"x" * 1999]


def test_adopted_socket_wide_segment_size_cuts_no_datagram():
    """Whoever had the socket before may have set one; a slot without a segment size is one datagram all the same."""
    with peer_of("v4") as far, peer_of("v4") as near:
        near.setsockopt(SOL_UDP, UDP_SEGMENT, 10)
        with fs.OsUdpSocket.from_socket(near) as sock:
            sock.send(queue(sock, [b"x" * 25], far.getsockname()))
            assert receive(far, 1) == [b"x" * 25]


# No UDP_SEGMENT for a single segment. The kernel refuses it on this socket, whatever the length: nothing is refused.


@needs_gso
def test_single_datagrams_ask_for_no_segmentation():
    with listener("v4") as far, unchecked("v4") as sock:
        to = far.getsockname()
        endpoint = sock.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=to, gso_size=100))
        for payload, size in ((b"x" * 50, 0), (b"x" * 50, 50), (b"x" * 50, 100), (b"", 10)):
            tx = queue(sock, [payload], to)
            tx.segment_sizes[:] = size
            assert sock.send(tx) == 1
            assert sock.send_to(endpoint, queue(sock, [payload])) == 1
            assert receive(far, 2) == [payload, payload]
        tx = queue(sock, [b"a", b"bb", b"ccc"], to)  # growing: no two of them make a run
        assert sock.send(tx) == 3
        assert sock.stats().gso_fallbacks == 0
        assert sock.capabilities().gso is fs.Support.YES


# vlen of sendmmsg and recvmmsg is at most 1024.


@pytest.mark.parametrize("count", [1023, 1024, 1025, 3000])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_batches_longer_than_one_call_takes(count, batch_calls):
    payloads = numbered(count, 8)
    options = {"batch_calls": batch_calls, "gso": False, "tx_frames": 4096}
    with roomy(batch_calls=batch_calls) as far, bind("v4", **options) as sock:
        assert sock.send(queue(sock, payloads, far.local_address)) == count
        rx = far.recv_batch(3000)
        assert far.recv(rx) == count
        assert list(rx.datagrams()) == payloads
        assert far.recv(rx) == 0
