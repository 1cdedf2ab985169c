"""What leaves, seen on the far side of a link by a raw socket and taken apart by scapy."""

import socket

import pytest

import fast_socket as fs
from tests.os.helpers import (
    VIRTIO_NET_HDR_GSO_UDP_L4,
    gso_segments,  # noqa: F401  (needs_gso names it)
    needs_gso,
    nothing_more,
    numbered,
    plain,
    queue,
    receive,
    send_all,
)

pytestmark = pytest.mark.root

PORT = 9000
VERSIONS = ["ipv4", "ipv6", "mapped"]  # mapped: an IPv6 socket with an IPv4 peer


def sender(link, version, **options):
    """A socket on the near side of a link."""
    local = ("::", 0) if version == "mapped" else (getattr(link.a, version), 0)
    return link.a.host.run(lambda: fs.OsUdpSocket.bind(local, **options))


def target(link, version, port=PORT):
    return str(link.b.ipv6 if version == "ipv6" else link.b.ipv4), port


# Lengths, bytes, checksums, ports and addresses


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("batch_calls", [False, True])
@pytest.mark.parametrize("gso", [False, True])
def test_lengths_bytes_checksums_and_addresses(wire, capture, version, batch_calls, gso):
    watch = capture(wire.b)
    payloads = [bytes((7 * i + j) % 256 for j in range(size)) for i, size in enumerate([0, 1, 2, 3, 64, 64, 63, 1200])]
    with sender(wire, version, batch_calls=batch_calls, gso=gso) as sock:
        assert sock.send(queue(sock, payloads, target(wire, version))) == len(payloads)
        frames = watch.udp(PORT, len(payloads))
        assert [frame.payload for frame in frames] == payloads
        for frame in frames:
            assert frame.checksum_ok
            assert frame.udp.len == 8 + len(frame.payload)
            assert frame.udp.sport == sock.local_address[1]
            assert frame.ether.src == wire.a.mac and frame.ether.dst == wire.b.mac
            assert frame.ip.src == str(wire.a.ipv6 if version == "ipv6" else wire.a.ipv4)
            assert frame.ip.dst == target(wire, version)[0]


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_checksum_of_every_short_length_is_right(wire, capture, version):
    """Odd lengths are padded for the sum only."""
    watch = capture(wire.b)
    payloads = [bytes([255 - i] * i) for i in range(65)]
    with sender(wire, version) as sock:
        send_all(sock, queue(sock, payloads, target(wire, version)))
        frames = watch.udp(PORT, 65)
        assert [frame.payload for frame in frames] == payloads
        assert all(frame.checksum_ok for frame in frames)


# GSO boundaries


@needs_gso
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 100, 1400])
def test_segments_are_the_datagrams_that_were_queued(wire, capture, version, size):
    """Without offloads on the device the kernel cuts a large send before it leaves: each datagram is a frame."""
    watch = capture(wire.b)
    payloads = [*numbered(50, size), b"z"] if size > 1 else [b"%c" % i for i in range(50)]
    with sender(wire, version) as sock:
        assert send_all(sock, queue(sock, payloads, target(wire, version))) == len(payloads)
        assert sock.stats().gso_sends > 0
        frames = watch.udp(PORT, len(payloads))
        assert [frame.payload for frame in frames] == payloads
        assert all(frame.checksum_ok and frame.gso_type == 0 for frame in frames)


@needs_gso
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [100, 1400])
def test_large_send_crosses_an_offloading_link_whole(offloading, capture, version, size):
    """One frame that says how it is to be cut."""
    watch = capture(offloading.b)
    payloads = [*numbered(20, size), b"short"]
    with sender(offloading, version) as sock:
        assert sock.send(queue(sock, payloads, target(offloading, version))) == 21
        frames = watch.udp(PORT, 21)
        assert [d for frame in frames for d in frame.datagrams] == payloads
        large = [frame for frame in frames if frame.gso_type == VIRTIO_NET_HDR_GSO_UDP_L4]
        assert len(large) == sock.stats().gso_sends == 1
        assert large[0].gso_size == size


@needs_gso
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(
    ("length", "size"), [(1000, 100), (1001, 100), (999, 100), (4096, 1400), (100, 100), (99, 100)]
)
def test_software_split_is_the_same_as_the_kernels(wire, capture, version, prepared, length, size):
    """The same frames but for what counts packets (IP id), and for the ports."""
    seen = []
    layout = fs.BufferLayout(payload_capacity=65_535)
    packet = bytes(i % 253 for i in range(length))
    for gso in (True, False):
        watch = capture(wire.b)
        with sender(wire, version, gso=gso, tx_layout=layout, tx_frames=8, ttl=33, tos=0x28) as sock:
            tx = queue(sock, [packet], target(wire, version))
            if prepared:
                spec = fs.UdpEndpointSpec(remote=target(wire, version), gso_size=size, ecn=fs.Ecn.ECT0)
                assert sock.send_to(sock.prepare_udp_endpoint(spec), tx) == 1
            else:
                tx.segment_sizes[:] = size
                assert sock.send(tx) == 1
            assert (sock.stats().gso_sends > 0) == (gso and length > size)
        frames = watch.udp(PORT, -(-length // size))
        assert all(frame.checksum_ok for frame in frames)
        seen.append([(f.payload, f.udp.len, f.tos, f.ttl, f.ip.src, f.ip.dst) for f in frames])
    assert seen[0] == seen[1]
    assert seen[0][0][2:4] == (0x2A if prepared else 0x28, 33)
    assert [payload for payload, *_ in seen[0]] == [packet[i : i + size] for i in range(0, length, size)]


# DSCP and ECN, TTL


@pytest.mark.parametrize("version", VERSIONS)
def test_tos_and_ttl_of_the_socket(wire, capture, version):
    watch = capture(wire.b)
    with sender(wire, version, tos=0xB9, ttl=17) as sock:
        sock.send(queue(sock, [b"x"], target(wire, version)))
        [frame] = watch.udp(PORT, 1)
        assert (frame.tos, frame.ttl) == (0xB9, 17)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tos", [0, 0xB8, 0xBB])
def test_ecn_of_an_endpoint_keeps_the_dscp_of_the_socket(wire, capture, version, tos):
    watch = capture(wire.b)
    with sender(wire, version, tos=tos) as sock:
        for ecn in (None, *fs.Ecn):
            spec = fs.UdpEndpointSpec(remote=target(wire, version), ecn=ecn)
            sock.send_to(sock.prepare_udp_endpoint(spec), queue(sock, [b"x"]))
        frames = watch.udp(PORT, 5)
        assert [frame.tos for frame in frames] == [tos, *((tos & 0xFC) | ecn for ecn in fs.Ecn)]


@pytest.mark.parametrize("version", VERSIONS)
def test_ecn_ttl_and_source_of_each_slot(wire, capture, version):
    """Equal payloads to one peer: neighbours with different metadata must not be coalesced into one send."""
    watch = capture(wire.b)
    wanted = [(0, 1), (1, 1), (1, 1), (2, 1), (2, 200), (2, 200), (3, 255), (255, 0), (255, 0), (0, 0), (2, 77)]
    with sender(wire, version, metadata=fs.Metadata.ECN | fs.Metadata.TTL, tos=0x49, ttl=99) as sock:
        payloads = numbered(len(wanted), 50)
        tx = queue(sock, payloads, target(wire, version))
        tx.ecn[:] = [ecn for ecn, _ in wanted]
        tx.ttl[:] = [ttl for _, ttl in wanted]
        assert sock.send(tx) == len(wanted)
        frames = watch.udp(PORT, len(wanted))
        assert [frame.payload for frame in frames] == payloads
        assert [frame.tos for frame in frames] == [0x49 if ecn == 255 else 0x48 | ecn for ecn, _ in wanted]
        assert [frame.ttl for frame in frames] == [ttl or 99 for _, ttl in wanted]
        assert all(frame.checksum_ok for frame in frames)


# Source address


@pytest.fixture(scope="module")
def addresses(wire):
    """Further addresses of the near side."""
    for address in ("10.77.0.55/24", "fd77::55/64"):
        wire.a.add_address(address)
    return {"ipv4": "10.77.0.55", "ipv6": "fd77::55", "mapped": "10.77.0.55"}


def kernels_choice(remote):
    with socket.socket(socket.AF_INET6 if ":" in remote[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(remote)
        return sock.getsockname()[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("way", ["endpoint", "slot"])
def test_source_address_of_a_wildcard_socket(wire, addresses, capture, version, way):
    watch = capture(wire.b)
    local = "0.0.0.0:0" if version == "ipv4" else "[::]:0"
    other = addresses[version]
    if wire.a.host.run(kernels_choice, target(wire, version)) == other:
        other = str(getattr(wire.a, "ipv6" if version == "ipv6" else "ipv4"))
    with wire.a.host.run(lambda: fs.OsUdpSocket.bind(local, metadata=fs.Metadata.LOCAL)) as sock:
        tx = queue(sock, [b"first", b"other"], target(wire, version))
        if way == "endpoint":
            spec = fs.UdpEndpointSpec(remote=target(wire, version), source=other)
            assert sock.send_to(sock.prepare_udp_endpoint(spec), tx) == 2
            expected = [other, other]
        else:
            packed = socket.inet_pton(socket.AF_INET6 if ":" in other else socket.AF_INET, other)
            tx.source_addresses[1, -len(packed) :] = list(packed)
            if version == "mapped":
                tx.source_addresses[1, 10:12] = 255
            assert sock.send(tx) == 2
            expected = [wire.a.host.run(kernels_choice, target(wire, version)), other]
        assert [frame.ip.src for frame in watch.udp(PORT, 2)] == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_interface_of_each_slot(lab, capture, version):
    """Two links with the same networks: the interface decides, not the route."""
    name = f"between-{version}"
    host, left, right = lab.host(name), lab.host(f"left-{version}"), lab.host(f"right-{version}")
    ends = ("10.5.0.1/24", "fd05::1/64"), ("10.5.0.9/24", "fd05::9/64")
    links = [lab.link(host, peer, addresses=ends if peer is left else (
        ("10.5.0.2/24", "fd05::2/64"), ("10.5.0.10/24", "fd05::a/64"))) for peer in (left, right)]  # fmt: skip
    remote = "fd05::9" if version == "ipv6" else "10.5.0.9"
    for link in links:
        link.a.add_neighbor(remote, link.b.mac)
    watches = [capture(link.b) for link in links]
    local = "0.0.0.0:0" if version == "ipv4" else "[::]:0"
    with host.run(lambda: fs.OsUdpSocket.bind(local, metadata=fs.Metadata.LOCAL)) as sock:
        tx = queue(sock, [b"0", b"1", b"0", b"1"], (remote, PORT))
        tx.interfaces[:] = [links[0].a.index, links[1].a.index] * 2
        assert sock.send(tx) == 4
        for i, watch in enumerate(watches):
            assert [frame.payload for frame in watch.udp(PORT, 2)] == [b"%d" % i] * 2


# Don't fragment


@pytest.mark.parametrize("mode", list(fs.PathMtu))
def test_df_bit_and_fragments(wire, capture, mode):
    """Small datagrams show the bit, those above the MTU of 1500 what is done about them."""
    df = {"want": True, "do": True, "probe": True, "dont": False, "interface": False, "omit": False}[mode.value]
    fragments = mode in (fs.PathMtu.DONT, fs.PathMtu.WANT, fs.PathMtu.OMIT)
    watch = capture(wire.b)
    with sender(wire, "ipv4", path_mtu=mode, gso=False) as sock, wire.b.host.run(plain, str(wire.b.ipv4)) as far:
        sock.send(queue(sock, [b"x"], far.getsockname()))
        [frame] = watch.udp(far.getsockname()[1], 1)
        assert bool(frame.ip.flags.DF) == df
        assert receive(far, 1) == [b"x"]
        tx = queue(sock, [b"y" * 2000], far.getsockname())
        if fragments:
            assert sock.send(tx) == 1
            assert receive(far, 1) == [b"y" * 2000]
        else:
            with pytest.raises(fs.SendError, match="2000 bytes"):
                sock.send(tx)
            assert nothing_more(far)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_path_mtu_of_a_connected_socket(wire, version):
    remote = target(wire, version)
    with wire.a.host.run(fs.OsUdpSocket.connect, remote) as sock, sender(wire, version) as unconnected:
        assert sock.path_mtu == 1500
        with pytest.raises(fs.Error, match="connected"):
            _ = unconnected.path_mtu


# Multicast and broadcast

GROUPS = {"ipv4": "239.7.7.7", "ipv6": "ff05::777", "mapped": "239.7.7.7"}
GROUP_MACS = {"ipv4": "01:00:5e:07:07:07", "ipv6": "33:33:00:00:07:77", "mapped": "01:00:5e:07:07:07"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ttl", [None, 1, 42])
def test_multicast_ttl_and_mac(wire, capture, version, ttl):
    """1 by default; the other TTL is for unicast."""
    watch = capture(wire.b)
    group = GROUPS[version]
    options = {"multicast_interface": wire.a.name, "ttl": 99, "multicast_ttl": ttl}
    with sender(wire, version, **options) as sock:
        sock.send(queue(sock, [b"all"], (group, PORT)))
        sock.send(queue(sock, [b"one"], target(wire, version)))
        everyone, one = watch.udp(PORT, 2)
        assert (one.payload, one.ttl) == (b"one", 99)
        assert (everyone.ip.dst, everyone.ether.dst) == (group, GROUP_MACS[version])
        assert everyone.ttl == (ttl or 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_multicast_is_received_after_join_and_not_after_leave(wire, version):
    group = GROUPS[version]
    local = ("::" if version != "ipv4" else "0.0.0.0", PORT)
    with (
        sender(wire, "ipv6" if version == "ipv6" else "ipv4", multicast_interface=wire.a.name) as near,
        wire.b.host.run(lambda: fs.OsUdpSocket.bind(local, metadata=fs.Metadata.LOCAL)) as far,
    ):
        rx = far.recv_batch(4)
        for joined in (False, True, False, True):
            near.send(queue(near, [b"news"], (group, PORT)))
            assert far.recv(rx) == joined
            if joined:
                assert rx[0].meta().local == group
                assert rx.interfaces.tolist() == [wire.b.index]
            change = far.leave if joined else far.join
            wire.b.host.run(change, group, interface=wire.b.name)
        with pytest.raises(fs.Error, match="cannot leave"):
            wire.b.host.run(far.leave, group, interface=wire.b.name)


@pytest.mark.parametrize("version", VERSIONS)
def test_multicast_of_one_source_only(wire, addresses, version):
    """Others are filtered by the kernel."""
    group = "ff35::777" if version == "ipv6" else "232.7.7.7"
    local = ("::" if version != "ipv4" else "0.0.0.0", PORT)
    wanted, other = addresses[version], str(wire.a.ipv6 if version == "ipv6" else wire.a.ipv4)
    with wire.b.host.run(fs.OsUdpSocket.bind, local) as far:
        wire.b.host.run(far.join, group, interface=wire.b.name, source=wanted)
        for source in (other, wanted, other):
            options = {"multicast_interface": wire.a.name}
            with wire.a.host.run(lambda s, o: fs.OsUdpSocket.bind((s, 0), **o), source, options) as near:
                near.send(queue(near, [source.encode()], (group, PORT)))
        rx = far.recv_batch(4)
        assert far.recv(rx) == 1
        assert (bytes(rx[0]), rx[0].address[0]) == (wanted.encode(), wanted)
        wire.b.host.run(far.leave, group, interface=wire.b.name, source=wanted)


def test_membership_on_another_interface_does_not_count(lab, wire):
    link = lab.link(lab.host("elsewhere"), wire.b.host, addresses=(("10.6.0.1/24",), ("10.6.0.2/24",)))
    with (
        wire.b.host.run(fs.OsUdpSocket.bind, ("239.7.7.7", PORT)) as far,
        link.a.host.run(lambda: fs.OsUdpSocket.bind("10.6.0.1:0", multicast_interface=link.a.name)) as near,
    ):
        rx = far.recv_batch(4)
        for name, count in ((wire.b.name, 0), (link.b.name, 1)):
            wire.b.host.run(far.join, "239.7.7.7", interface=name)
            near.send(queue(near, [b"x"], ("239.7.7.7", PORT)))
            assert far.recv(rx) == count
            wire.b.host.run(far.leave, "239.7.7.7", interface=name)
    link.remove()


@pytest.mark.parametrize("loop", [True, False])
def test_multicast_loop(wire, loop):
    """Whether the sending host hears itself."""
    options = {"multicast_interface": wire.a.name, "multicast_loop": loop}
    with (
        wire.a.host.run(fs.OsUdpSocket.bind, ("0.0.0.0", PORT)) as same,
        sender(wire, "ipv4", **options) as near,
    ):
        wire.a.host.run(same.join, "239.7.7.7", interface=wire.a.name)
        near.send(queue(near, [b"x"], ("239.7.7.7", PORT)))
        assert same.recv(same.recv_batch(4)) == loop


@pytest.mark.parametrize("to", ["10.77.0.255", "255.255.255.255"])
def test_broadcast_needs_the_option(wire, capture, to):
    watch = capture(wire.b)
    with sender(wire, "ipv4", broadcast=True, device=wire.a.name) as may, sender(wire, "ipv4") as may_not:
        with pytest.raises(fs.SendError):
            may_not.send(queue(may_not, [b"x"], (to, PORT)))
        may.send(queue(may, [b"hello"], (to, PORT)))
        [frame] = watch.udp(PORT, 1)
        assert (frame.payload, frame.ip.dst, frame.ether.dst) == (b"hello", to, "ff:ff:ff:ff:ff:ff")


# IPv6 link-local addresses with their scope


def link_local(interface):
    with open("/proc/thread-self/net/if_inet6", encoding="ascii") as table:
        [digits] = [line.split()[0] for line in table if line.startswith("fe80") and line.split()[5] == interface.name]
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))


@pytest.mark.parametrize("scope", ["name", "index"])
def test_link_local_round_trip(wire, capture, scope):
    """Inside the hosts, because a scope's name belongs to its namespace."""
    watch = capture(wire.b)
    far_host = wire.b.host.run(link_local, wire.b)
    near_zone = wire.a.name if scope == "name" else wire.a.index

    def there_and_back():
        far = wire.b.host.run(lambda: fs.OsUdpSocket.bind(f"[{far_host}%{wire.b.name}]:0"))
        with far, fs.OsUdpSocket.bind("[::]:0") as near:
            near.send(queue(near, [b"ping"], (f"{far_host}%{near_zone}", far.local_address[1])))
            rx, tx = far.recv_batch(4), far.tx_batch(4)
            assert far.recv(rx) == 1
            source = wire.b.host.run(lambda: rx[0].address)
            assert source == (f"{link_local(wire.a)}%{wire.b.name}", near.local_address[1])
            tx.take_from(rx)
            far.send(tx)
            back = near.recv_batch(4)
            assert near.recv(back) == 1
            assert back[0].address == (f"{far_host}%{wire.a.name}", far.local_address[1])
            return far.local_address[1]

    port = wire.a.host.run(there_and_back)
    [frame] = watch.udp(port, 1)
    assert frame.ip.dst == far_host
    assert frame.checksum_ok


def test_addresses_of_a_link_local_socket_can_be_used_again(wire):
    """They carry their scope, or they name nothing."""
    mine = wire.a.host.run(link_local, wire.a)

    def connect_to_its_address():
        with (
            fs.OsUdpSocket.bind(f"[{mine}%{wire.a.name}]:0") as sock,
            fs.OsUdpSocket.connect(sock.local_address) as peer,
        ):
            peer.send(queue(peer, [b"x"]))
            assert sock.recv(sock.recv_batch(1)) == 1
            assert peer.remote_address == sock.local_address

    wire.a.host.run(connect_to_its_address)
