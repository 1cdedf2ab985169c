"""Every metadata flag, received and sent, over IPv4, IPv6, and IPv4 on a dual-stack socket."""

import socket
import time

import pytest

import fast_socket as fs
from fast_socket.lab import why_unavailable
from tests.os.helpers import (
    FAMILIES,
    SECONDS,
    bind,
    collect,
    gso_segments,  # noqa: F401  (needs_gso names it)
    needs_gso,
    numbered,
    option,
    peer_of,
    plain,
    queue,
    reachable,
    receive,
    receive_batch,
)

Metadata = fs.Metadata
LOOPBACK = socket.if_nametoindex("lo")
DAY_NS = 24 * 3600 * 10**9

# What a plain peer sets to send with an ECN mark or TTL, and what it sets to hear of them.
ON_WIRE = {
    "v4": (socket.IPPROTO_IP, socket.IP_TOS, socket.IP_TTL),
    "v6": (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, socket.IPV6_UNICAST_HOPS),
}
ON_WIRE["dual"] = ON_WIRE["v4"]
EVERYTHING = Metadata.ECN | Metadata.LOCAL | Metadata.TTL | Metadata.TIMESTAMP
RECEIVE_FLAGS = [Metadata.ECN, Metadata.LOCAL, Metadata.TTL, Metadata.TIMESTAMP, Metadata.HARDWARE_TIMESTAMP]


def host_bytes(host, sock_family):
    """An address as a column has it."""
    if ":" in host:
        return list(socket.inet_pton(socket.AF_INET6, host))
    four = list(socket.inet_aton(host))
    return four if sock_family == "v4" else [0] * 10 + [255, 255, *four]


# Received


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gro", [False, True])
@pytest.mark.parametrize("metadata", [Metadata.ECN, EVERYTHING])
def test_received_ecn(family, gro, metadata):
    level, tos, _ = ON_WIRE[family]
    with bind(family, metadata=metadata, gro=gro) as sock, peer_of(family) as peer:
        for ecn in fs.Ecn:
            peer.setsockopt(level, tos, 0xB8 | ecn)
            peer.sendto(b"x", reachable(sock, family))
        rx = receive_batch(sock, 4)
        assert rx.ecn.tolist() == list(fs.Ecn)
        assert [packet.meta().ecn for packet in rx] == list(fs.Ecn)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("metadata", [Metadata.TTL, EVERYTHING])
def test_received_ttl(family, metadata):
    level, _, ttl = ON_WIRE[family]
    with bind(family, metadata=metadata) as sock, peer_of(family) as peer:
        for value in (1, 64, 128, 255):
            peer.setsockopt(level, ttl, value)
            peer.sendto(b"x", reachable(sock, family))
        rx = receive_batch(sock, 4)
        assert rx.ttl.tolist() == [1, 64, 128, 255]
        assert [packet.meta().ttl for packet in rx] == [1, 64, 128, 255]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("metadata", [Metadata.LOCAL, EVERYTHING])
def test_received_local_address_and_interface(family, metadata):
    targets = {"v4": ["127.0.0.1", "127.0.0.2"], "v6": ["::1"], "dual": ["127.0.0.3", "::1", "127.0.0.1"]}[family]
    wildcard = "0.0.0.0" if family == "v4" else "::"
    with fs.OsUdpSocket.bind((wildcard, 0), metadata=metadata) as sock:
        for host in targets:
            with plain("::1" if ":" in host else "127.0.0.1") as peer:
                peer.sendto(b"x", (host, sock.local_address[1]))
        rx = receive_batch(sock, len(targets))
        assert rx.local_addresses.tolist() == [host_bytes(host, family) for host in targets]
        assert rx.interfaces.tolist() == [LOOPBACK] * len(targets)
        assert [(p.meta().local, p.meta().interface) for p in rx] == [(host, LOOPBACK) for host in targets]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "metadata", [Metadata.TIMESTAMP, Metadata.HARDWARE_TIMESTAMP, Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP]
)
def test_received_timestamp(family, metadata):
    """The kernel's clock where the device has none; it starts stamping a moment after the first socket asks."""
    with bind(family, metadata=metadata) as sock, peer_of(family) as peer:
        deadline = time.monotonic() + SECONDS
        while True:
            before = time.time_ns()
            peer.sendto(b"x", reachable(sock, family))
            rx = receive_batch(sock)
            after = time.time_ns()
            if rx.timestamps[0]:
                break
            assert time.monotonic() < deadline, "the kernel never stamps"
        # The clock may be set meanwhile; a wrong unit, epoch or field would be far off.
        assert before - DAY_NS < rx.timestamps[0] < after + DAY_NS
        assert rx[0].meta().timestamp_ns == rx.timestamps[0]
        for _ in range(10):
            peer.sendto(b"x", reachable(sock, family))
        rx = receive_batch(sock, 10)
        assert all(rx.timestamps)
        assert max(rx.timestamps) - min(rx.timestamps) < DAY_NS
        assert len(set(rx.timestamps.tolist())) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_all_together_with_the_right_datagram(family):
    """Each datagram's metadata is its own, whatever was in the slot before."""
    level, tos, ttl = ON_WIRE[family]
    with bind(family, metadata=EVERYTHING) as sock, peer_of(family) as peer:
        rx = sock.recv_batch(50)
        for turn in range(3):
            for i in range(50 - turn * 20):
                peer.setsockopt(level, tos, (i + turn) % 4)
                peer.setsockopt(level, ttl, 1 + (i + turn) % 255)
                peer.sendto(b"%d" % i, reachable(sock, family))
            assert sock.recv(rx) == 50 - turn * 20
            assert [bytes(p) for p in rx] == [b"%d" % i for i in range(len(rx))]
            assert rx.ecn.tolist() == [(i + turn) % 4 for i in range(len(rx))]
            assert rx.ttl.tolist() == [1 + (i + turn) % 255 for i in range(len(rx))]
            assert rx[7].meta().source == peer.getsockname()[:2]


def test_dual_stack_socket_with_both_families_in_one_batch():
    """IPv4 and IPv6 datagrams side by side, each with its metadata, through one set of columns."""
    with bind("dual", metadata=EVERYTHING) as sock, plain("127.0.0.1") as four, plain("::1") as six:
        for i in range(6):
            peer, family = (four, "v4") if i % 2 else (six, "v6")
            level, tos, ttl = ON_WIRE[family]
            peer.setsockopt(level, tos, i % 4)
            peer.setsockopt(level, ttl, 10 + i)
            peer.sendto(b"%d" % i, reachable(sock, "dual" if i % 2 else "v6"))
        rx = receive_batch(sock, 6)
        assert rx.ecn.tolist() == [0, 1, 2, 3, 0, 1]
        assert rx.ttl.tolist() == [10, 11, 12, 13, 14, 15]
        assert [p.meta().local for p in rx] == ["::1", "127.0.0.1"] * 3
        assert [p.address for p in rx] == [six.getsockname()[:2], four.getsockname()] * 3
        assert rx.source_addresses[1].tolist() == host_bytes("127.0.0.1", "dual")


@needs_gso
@pytest.mark.parametrize("family", FAMILIES)
def test_gro_with_metadata(family):
    """The stride travels in the same control data; a packet has the metadata that all its datagrams share."""
    with (
        bind(family, metadata=EVERYTHING, gro=True) as sock,
        bind("v6" if family == "v6" else "v4", metadata=Metadata.ECN) as sender,
    ):
        tx = queue(sender, numbered(40, 90), reachable(sock, family))
        tx.ecn[:20] = fs.Ecn.ECT0
        tx.ecn[20:] = fs.Ecn.CE
        assert sender.send(tx) == 40
        rx = sock.recv_batch(8)
        assert sock.recv(rx) == 2
        assert rx.datagram_count == 40
        assert rx.gro_strides.tolist() == [90, 90]
        assert rx.ecn.tolist() == [fs.Ecn.ECT0, fs.Ecn.CE]
        assert rx.interfaces.tolist() == [LOOPBACK] * 2
        assert list(rx.datagrams()) == numbered(40, 90)


# Sent


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gso", [False, True])
@pytest.mark.parametrize("batch_calls", [False, True])
def test_sent_ecn_and_ttl_per_slot(family, gso, batch_calls):
    """Equal payloads to one peer: what differs in metadata must not go as one."""
    runs = [(0, 5), (3, 5), (3, 6), (255, 0), (1, 0), (255, 9), (2, 255)]
    wanted = [pair for pair in runs for _ in range(4)]
    level, tos, ttl = ON_WIRE[family]
    names = (tos, ttl)
    with (
        bind("v6" if family == "v6" else "v4", metadata=Metadata.ECN | Metadata.TTL) as far,
        bind(family, metadata=Metadata.ECN | Metadata.TTL, gso=gso, batch_calls=batch_calls) as sock,
    ):
        tx = queue(sock, numbered(len(wanted), 30), far.local_address)
        assert set(tx.ecn.tolist()) == {255}
        assert set(tx.ttl.tolist()) == {0}
        tx.ecn[:] = [ecn for ecn, _ in wanted]
        tx.ttl[:] = [value for _, value in wanted]
        assert sock.send(tx) == len(wanted)
        rx = receive_batch(far, len(wanted))
        assert [bytes(p) for p in rx] == numbered(len(wanted), 30)
        default = option(sock, level, names[1])
        assert rx.ecn.tolist() == [0 if ecn == 255 else ecn for ecn, _ in wanted]
        assert rx.ttl.tolist() == [value or (64 if default < 0 else default) for _, value in wanted]
        assert (sock.stats().gso_sends > 0) == (gso and batch_calls and sock.capabilities().max_gso_segments > 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_metadata_of_a_reused_slot_is_back_to_the_sockets_own(family):
    with (
        bind("v6" if family == "v6" else "v4", metadata=Metadata.ECN) as far,
        bind(family, metadata=EVERYTHING) as sock,
    ):
        tx = sock.tx_batch(2)
        for ecn in (3, None):
            tx.append(b"x", far.local_address)
            if ecn:
                tx.ecn[:] = ecn
            sock.send(tx)
            assert receive_batch(far).ecn.tolist() == [ecn or 0]


@pytest.mark.parametrize("metadata", [*RECEIVE_FLAGS, EVERYTHING])
def test_connected_socket_sends_with_metadata_to_its_peer(metadata):
    with peer_of("v4") as far, fs.OsUdpSocket.connect(far.getsockname(), metadata=metadata) as sock:
        tx = queue(sock, [b"x"] * 3)
        if Metadata.ECN in metadata:
            tx.ecn[1] = 1
        assert sock.send(tx) == 3
        assert receive(far, 3) == [b"x"] * 3


def test_dual_stack_connected_to_ipv4_sends_with_ipv4_metadata():
    """No destination in the slot, so the peer's family decides which control message it takes."""
    with bind("v4", metadata=Metadata.ECN | Metadata.TTL) as far:
        to = (f"::ffff:{far.local_address[0]}", far.local_address[1])
        with fs.OsUdpSocket.connect(to, metadata=Metadata.ECN | Metadata.TTL) as sock:
            tx = queue(sock, [b"x"])
            tx.ecn[:], tx.ttl[:] = 2, 44
            assert sock.send(tx) == 1
            rx = receive_batch(far)
            assert (rx.ecn.tolist(), rx.ttl.tolist()) == ([2], [44])


def test_source_of_the_wrong_family_is_refused():
    with plain() as far, bind("dual", metadata=Metadata.LOCAL) as sock:
        tx = queue(sock, [b"x"], far.getsockname())
        tx.source_addresses[0] = host_bytes("2001:db8::1", "v6")
        with pytest.raises(fs.SendError) as caught:
            sock.send(tx)
        assert (caught.value.accepted, len(tx)) == (0, 1)


# Departure times. The fq and etf qdiscs alone delay; everything else sends at once.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clock", ["monotonic", pytest.param("tai", marks=pytest.mark.root)])
def test_departure_now_and_in_the_past(family, clock):
    number = {"monotonic": time.CLOCK_MONOTONIC, "tai": time.CLOCK_TAI}[clock]
    with (
        bind("v6" if family == "v6" else "v4") as far,
        bind(family, metadata=Metadata.TXTIME, pacing_clock=clock) as sock,
    ):
        tx = queue(sock, [b"now", b"then"], far.local_address)
        assert tx.departure_times.tolist() == [0, 0]
        tx.departure_times[1] = time.clock_gettime_ns(number) - 10**6
        assert sock.send(tx) == 2
        assert collect(far, 2) == [b"now", b"then"]


@needs_gso
def test_different_departures_are_not_coalesced():
    with peer_of("v4") as far, bind("v4", metadata=Metadata.TXTIME) as sock:
        now = time.monotonic_ns()
        tx = queue(sock, [b"x" * 10] * 6, far.getsockname())
        tx.departure_times[:] = [now, now, now, now - 5, now - 5, now - 9]
        assert sock.send(tx) == 6
        assert len(receive(far, 6)) == 6
        assert sock.stats().gso_sends == 2


# Not marked root: this machine's kernel may well have no fq, and a test marked root must not be skipped.
@pytest.mark.skipif(why_unavailable() is not None, reason=f"no lab: {why_unavailable()}")
def test_departure_in_the_future_waits_on_fq(lab):
    try:
        link = lab.link(lab.host("paced"), lab.host("listening"), qdisc="fq")
    except fs.CapabilityError as error:
        pytest.skip(str(error))
    with (
        link.b.host.run(fs.OsUdpSocket.bind, (link.b.ipv4, 0)) as far,
        link.a.host.run(lambda: fs.OsUdpSocket.bind((link.a.ipv4, 0), metadata=Metadata.TXTIME)) as sock,
    ):
        tx = queue(sock, [b"late", b"early"], far.local_address)
        departure = time.monotonic_ns() + 50 * 10**6
        tx.departure_times[:] = [departure, 0]
        assert sock.send(tx) == 2
        assert collect(far, 2) == [b"early", b"late"]
        assert time.monotonic_ns() >= departure


# Not asked for


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_not_asked_for(family):
    """They say what to ask for; an object's fields are None."""
    with bind(family) as sock, peer_of(family) as peer:
        peer.sendto(b"x", reachable(sock, family))
        rx, tx = receive_batch(sock), sock.tx_batch(4)
        for name, needed in (("ecn", "ECN"), ("ttl", "TTL"), ("local_addresses", "LOCAL"), ("interfaces", "LOCAL"),
                             ("timestamps", "TIMESTAMP"), ("gro_strides", "gro=True")):  # fmt: skip
            with pytest.raises(fs.ConfigError, match=needed):
                getattr(rx, name)
        for name, needed in (("ecn", "ECN"), ("ttl", "TTL"), ("source_addresses", "LOCAL"), ("interfaces", "LOCAL"),
                             ("departure_times", "TXTIME")):  # fmt: skip
            with pytest.raises(fs.ConfigError, match=needed):
                getattr(tx, name)
        meta = rx[0].meta()
        assert meta.source == peer.getsockname()[:2]
        assert (meta.local, meta.interface, meta.ecn, meta.ttl, meta.timestamp_ns, meta.gro_stride) == (None,) * 6


@pytest.mark.parametrize("flag", RECEIVE_FLAGS)
def test_one_flag_brings_its_own_columns_only(flag):
    columns = {
        Metadata.ECN: ["ecn"],
        Metadata.LOCAL: ["local_addresses", "interfaces"],
        Metadata.TTL: ["ttl"],
        Metadata.TIMESTAMP: ["timestamps"],
        Metadata.HARDWARE_TIMESTAMP: ["timestamps"],
    }
    with bind("v4", metadata=flag) as sock, peer_of("v4") as peer:
        peer.sendto(b"x", sock.local_address)
        rx = receive_batch(sock)
        present = []
        for name in ("ecn", "local_addresses", "interfaces", "ttl", "timestamps"):
            try:
                assert len(getattr(rx, name)) == 1
                present.append(name)
            except fs.ConfigError:
                pass
        assert present == columns[flag]
        assert sock.metadata == flag


def test_metadata_that_an_os_socket_cannot_have():
    for flag in (Metadata.CHECKSUM, Metadata.VLAN):
        with pytest.raises(fs.CapabilityError, match=flag.name):
            bind("v4", metadata=flag)
    with pytest.raises(fs.ConfigError, match="TXTIME"):
        bind("v4", metadata=Metadata.TXTIME | Metadata.TIMESTAMP)
    with pytest.raises(fs.ConfigError, match="metadata"):
        bind("v4", metadata=3)


@pytest.mark.parametrize(
    "metadata", [Metadata.NONE, Metadata.ECN, EVERYTHING, EVERYTHING | Metadata.HARDWARE_TIMESTAMP]
)
def test_capabilities_name_what_was_chosen(metadata):
    with bind("v4", metadata=metadata) as sock:
        caps = sock.capabilities()
        assert caps.recv_metadata == metadata
        assert caps.send_metadata == metadata & (Metadata.ECN | Metadata.LOCAL | Metadata.TTL | Metadata.TXTIME)
        assert sock.recv_batch(1).metadata == caps.recv_metadata
        assert sock.tx_batch(1).metadata == caps.send_metadata
