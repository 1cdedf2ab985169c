"""The program against a classifier written a second time in Python: verdict and counters, frame by frame."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, fields
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_socket.xdp.ebpf import XdpCounters, XdpFilter, XdpProgram
from fast_socket.xdp.ebpf.libbpf import library

pytestmark = pytest.mark.root

SHORTEST = 14
"""The kernel runs no program on less than an Ethernet header."""
XDP_DROP, XDP_PASS, XDP_REDIRECT = 1, 2, 4
AF_XDP, SOL_XDP, XDP_RX_RING = 44, 283, 2
COUNTERS = [field.name for field in fields(XdpCounters)]

HERE4, HERE6, OTHER4, OTHER6 = "10.77.0.1", "fd77::1", "10.77.0.9", "fd77::9"
PORT = 9000
MAPPED = "::ffff:" + HERE4


# Frames


def ethernet(kind: int, payload: bytes, *tags: int) -> bytes:
    """`tags`: the ethertypes of VLAN tags, the outer one first."""
    kinds = [*tags, kind]
    head = bytes.fromhex("020000000001 020000000002") + kinds[0].to_bytes(2)
    return head + b"".join(b"\x60\x07" + inner.to_bytes(2) for inner in kinds[1:]) + payload


def ipv4(payload: bytes, to: str = HERE4, protocol: int = 17, options: bytes = b"", **change: int) -> bytes:
    header = 20 + len(options)
    field = {"version": 4, "words": header // 4, "length": header + len(payload), "fragment": 0} | change
    first = field["version"] << 4 | field["words"]
    head = struct.pack("!BBHHHBBH", first, 0, field["length"], 7, field["fragment"], 64, protocol, 0)
    return head + IPv4Address(OTHER4).packed + IPv4Address(to).packed + options + payload


def ipv6(
    payload: bytes, to: str = HERE6, protocol: int = 17, extensions: tuple[tuple[int, int], ...] = (), **change: int
) -> bytes:
    """`extensions`: each one's protocol and the words it says it has."""
    chain = [number for number, _ in extensions] + [protocol]
    body = b"".join(
        bytes([following, words]) + bytes(6 if number == 44 else 6 + 8 * words)
        for (number, words), following in zip(extensions, chain[1:], strict=True)
    )
    body += payload
    field = {"version": 6, "length": len(body)} | change
    head = struct.pack("!IHBB", field["version"] << 28, field["length"], chain[0], 64)
    return head + IPv6Address(OTHER6).packed + IPv6Address(to).packed + body


def udp(port: int = PORT, data: bytes = b"data", length: int | None = None) -> bytes:
    return struct.pack("!HHHH", 5000, port, 8 + len(data) if length is None else length, 0) + data


def frames() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for tags in ((), (0x8100,), (0x88A8,), (0x88A8, 0x8100), (0x8100, 0x8100), (0x88A8, 0x8100, 0x8100)):
        name = "-".join(f"{tag:x}" for tag in tags) or "untagged"
        found[f"{name} v4"] = ethernet(0x0800, ipv4(udp()), *tags)
        found[f"{name} v6"] = ethernet(0x86DD, ipv6(udp()), *tags)
        found[f"{name} arp"] = ethernet(0x0806, bytes(28), *tags)
    four: dict[str, bytes] = {
        "other address": ipv4(udp(), OTHER4),
        "broadcast": ipv4(udp(), "255.255.255.255"),
        "multicast": ipv4(udp(), "239.1.2.3"),
        "no data": ipv4(udp(data=b"")),
        "long udp length": ipv4(udp(length=13)),
        "short udp length": ipv4(udp(length=11)),
        "udp length 7": ipv4(udp(length=7)),
        "udp length 0": ipv4(udp(length=0)),
        "no room for udp": ipv4(bytes(7)),
        "length without udp": ipv4(udp(), length=27),
        "length of header": ipv4(udp(), length=20),
        "length below header": ipv4(udp(), length=19),
        "length 0": ipv4(udp(), length=0),
        "longer than frame": ipv4(udp(), length=33),
        "length 65535": ipv4(udp(), length=65535),
        "padded": ipv4(udp()) + bytes(18),
        "version 5": ipv4(udp(), version=5),
        "version 6": ipv4(udp(), version=6),
        "more fragments": ipv4(udp(), fragment=0x2000),
        "last fragment": ipv4(udp(), fragment=0x0001),
        "middle fragment": ipv4(udp(), fragment=0x2100),
        "may not fragment": ipv4(udp(), fragment=0x4000),
        "reserved bit": ipv4(udp(), fragment=0x8000),
        "fragment of another": ipv4(udp(), OTHER4, fragment=0x2000),
    }
    four |= {f"{words} words": ipv4(udp(), words=words) for words in (0, 4, 6, 15)}
    four |= {f"options {size}": ipv4(udp(), options=b"\x01" * size) for size in (4, 20, 40)}
    four |= {f"protocol {number}": ipv4(udp(), protocol=number) for number in (0, 1, 2, 6, 43, 44, 47, 51, 58, 60, 255)}
    four |= {f"port {port}": ipv4(udp(port)) for port in (0, 1, 63, 64, PORT - 1, PORT + 1, 9063, 9064, 40, 65535)}
    found |= {f"v4 {name}": ethernet(0x0800, packet) for name, packet in four.items()}
    six: dict[str, bytes] = {
        "other address": ipv6(udp(), OTHER6),
        "multicast": ipv6(udp(), "ff02::1"),
        "mapped address": ipv6(udp(), MAPPED),
        "no data": ipv6(udp(data=b"")),
        "no room for udp": ipv6(bytes(7)),
        "long udp length": ipv6(udp(length=13)),
        "udp length 0": ipv6(udp(length=0)),
        "payload 0": ipv6(udp(), length=0),
        "payload 7": ipv6(udp(), length=7),
        "payload too long": ipv6(udp(), length=13),
        "padded": ipv6(udp()) + bytes(9),
        "version 4": ipv6(udp(), version=4),
        "extension beyond payload": ipv6(udp(), extensions=((60, 1),), length=15),
        "fragment of another": ipv6(udp(), OTHER6, extensions=((44, 0),)),
        "fragment behind": ipv6(udp(), extensions=((0, 0), (60, 1), (44, 0))),
        "atomic fragment with words": ipv6(udp(), extensions=((44, 255),)),
        "udp length with extensions": ipv6(udp(length=16), extensions=((60, 0),)),
        "nothing next": ipv6(b"", protocol=59),
        "long extension": ipv6(udp(), extensions=((60, 60),)),
        "all extensions": ipv6(udp(), extensions=((0, 1), (60, 0), (43, 2), (60, 0))),
        "icmp behind extensions": ipv6(b"\x87" + bytes(23), protocol=58, extensions=((0, 0), (60, 0))),
        "icmp empty": ipv6(b"", protocol=58),
        "icmp empty and padded": ipv6(b"", protocol=58) + bytes(6),
        "discovery in the padding": ipv6(b"", protocol=58) + b"\x87" + bytes(23),
        "icmp of another": ipv6(b"\x87" + bytes(23), "ff02::1:ff00:1", protocol=58),
    }
    six |= {f"{n} extensions": ipv6(udp(), extensions=((60, 0),) * n) for n in (1, 7, 8, 9, 12)}
    six |= {f"extension {number}": ipv6(udp(), extensions=((number, 0),)) for number in (0, 43, 44, 50, 51, 60, 135)}
    six |= {
        f"icmp {kind}": ipv6(bytes([kind]) + bytes(7), protocol=58) for kind in (1, 128, 132, *range(133, 139), 143)
    }
    six |= {f"protocol {number}": ipv6(udp(), protocol=number) for number in (1, 6, 58, 59, 255)}
    six |= {f"port {port}": ipv6(udp(port)) for port in (0, 64, PORT - 1, PORT + 1, 65535)}
    found |= {f"v6 {name}": ethernet(0x86DD, packet) for name, packet in six.items()}
    found |= {
        f"ethertype {kind:04x}": ethernet(kind, bytes(50)) for kind in (0, 0x0026, 0x05DC, 0x8847, 0x8863, 0xFFFF)
    }
    found["ipv4 as ipv6"] = ethernet(0x86DD, ipv4(udp()) + bytes(40))
    found["ipv6 as ipv4"] = ethernet(0x0800, ipv6(udp()))
    return found


FRAMES = frames()


# The reference


class Reference:
    """What docs/src/xdp-program.md says, step by step."""

    def __init__(self, filter: XdpFilter, vlan: bool = True) -> None:
        self.filter, self.vlan = filter, vlan

    def __call__(self, frame: bytes) -> str:
        try:
            return self.packet(frame)
        except (IndexError, struct.error):
            return "malformed"

    def packet(self, frame: bytes) -> str:
        at = 12
        tags = 0
        (kind,) = struct.unpack_from("!H", frame, at)
        while kind in (0x8100, 0x88A8) and tags < 2:
            if not self.vlan:
                return "not_ip"
            at += 4
            (kind,) = struct.unpack_from("!H", frame, at)
            tags += 1
        packet = frame[at + 2 :]
        if kind == 0x0800:
            return self.ipv4(packet) if self.filter.ipv4 else "other_protocol"
        if kind == 0x86DD:
            return self.ipv6(packet) if self.filter.ipv6 else "other_protocol"
        return "not_ip"

    def ipv4(self, packet: bytes) -> str:
        first, _, length, _, fragment = struct.unpack_from("!BBHHH", packet)
        header = 4 * (first & 15)
        if first >> 4 != 4 or header < 20 or not header <= length <= len(packet):
            return "malformed"
        if fragment & 0x2000 or fragment & 0x1FFF:
            return "fragment"
        return self.transport(packet[9], packet[header:length], IPv4Address(packet[16:20]))

    def ipv6(self, packet: bytes) -> str:
        first, length, protocol, _ = struct.unpack_from("!IHBB", packet)
        body = packet[40 : 40 + length]
        if first >> 28 != 6 or len(packet) < 40 or len(body) != length:
            return "malformed"
        count = 0
        while protocol in (0, 43, 60):
            if count == 8:
                return "other_protocol"
            size = 8 * (body[1] + 1)
            if size > len(body):
                return "malformed"
            protocol, body = body[0], body[size:]
            count += 1
        if protocol == 44:
            return "fragment"
        return self.transport(protocol, body, IPv6Address(packet[24:40]))

    def transport(self, protocol: int, body: bytes, to: IPv4Address | IPv6Address) -> str:
        if self.filter.addresses and to not in self.filter.addresses:
            return "other_address"
        if self.filter.all_ip:
            discovery = to.version == 6 and protocol == 58 and 133 <= body[0] <= 137
            return "other_protocol" if discovery else "redirected"
        if protocol != 17:
            return "other_protocol"
        _, port, length, _ = struct.unpack_from("!HHHH", body)
        if not 8 <= length <= len(body):
            return "malformed"
        return "redirected" if port in (self.filter.ports or ()) else "other_port"


def check(
    program: XdpProgram, reference: Reference, frame: bytes, *, socket: bool = True, miss: int = XDP_PASS
) -> None:
    expected = reference(frame)
    if expected == "redirected" and not socket:
        expected = "no_socket"
    verdict = {"redirected": XDP_REDIRECT, "no_socket": miss}.get(expected, XDP_PASS)
    before = astuple(program.counters())
    result = library().test_run(program.fd, frame)
    moved = [after - earlier for earlier, after in zip(before, astuple(program.counters()), strict=True)]
    assert (dict(zip(COUNTERS, moved, strict=True)), result) == (
        {name: int(name == expected) for name in COUNTERS},
        (verdict, frame),
    ), frame.hex()


@pytest.fixture(scope="module")
def receiver() -> Iterator[int]:
    """An AF_XDP socket with as little as the map asks for: a receive ring."""
    with socket.socket(AF_XDP, socket.SOCK_RAW) as sock:
        sock.setsockopt(SOL_XDP, XDP_RX_RING, 64)
        yield sock.fileno()


PORTS = frozenset({0, 40, 64, PORT, 65535})
FILTERS = {
    "ports": XdpFilter(ports=PORTS),
    "range": XdpFilter(ports=range(PORT - 1, PORT + 1)),
    "addresses": XdpFilter(ports=PORTS, addresses=(HERE4, HERE6)),
    "ipv4 address": XdpFilter(ports=PORTS, addresses=(HERE4,)),
    "only ipv4": XdpFilter(ports=PORTS, ipv6=False),
    "only ipv6": XdpFilter(ports=PORTS, addresses=(HERE6,), ipv4=False),
    "all": XdpFilter(all_ip=True),
    "all to addresses": XdpFilter(all_ip=True, addresses=(HERE4, HERE6)),
    "all ipv6": XdpFilter(all_ip=True, ipv4=False),
    "nothing": XdpFilter(),
}


@pytest.mark.parametrize("name", FILTERS)
def test_every_frame_cut_at_every_byte(name: str, receiver: int) -> None:
    reference = Reference(FILTERS[name])
    with XdpProgram.load(FILTERS[name], queues=1) as program:
        program.insert(0, receiver)
        for frame in FRAMES.values():
            for size in range(SHORTEST, len(frame) + 1):
                check(program, reference, frame[:size])


@pytest.mark.parametrize("name", ["ports", "all"])
def test_without_vlan(name: str, receiver: int) -> None:
    reference = Reference(FILTERS[name], vlan=False)
    with XdpProgram.load(FILTERS[name], queues=1, vlan=False) as program:
        program.insert(0, receiver)
        for frame in FRAMES.values():
            check(program, reference, frame)


def test_the_reference_meets_every_outcome() -> None:
    met = {Reference(filter)(frame) for filter in FILTERS.values() for frame in FRAMES.values()}
    assert met == set(COUNTERS) - {"no_socket"}
    assert len(FRAMES) > 100


@pytest.mark.parametrize(("miss", "verdict"), [("pass", XDP_PASS), ("drop", XDP_DROP)])
def test_a_queue_without_a_socket(miss: Literal["pass", "drop"], verdict: int, receiver: int) -> None:
    reference = Reference(FILTERS["ports"])
    with XdpProgram.load(FILTERS["ports"], miss=miss) as program:
        for frame in FRAMES.values():
            check(program, reference, frame, socket=False, miss=verdict)
        program.insert(0, receiver)
        check(program, reference, FRAMES["v4 padded"], miss=verdict)
        program.remove(0)
        program.remove(0)
        check(program, reference, FRAMES["v4 padded"], socket=False, miss=verdict)


def test_a_closed_socket_leaves_its_queue() -> None:
    with XdpProgram.load(FILTERS["ports"]) as program:
        with socket.socket(AF_XDP, socket.SOCK_RAW) as sock:
            sock.setsockopt(SOL_XDP, XDP_RX_RING, 64)
            program.insert(0, sock.fileno())
            check(program, Reference(FILTERS["ports"]), FRAMES["v4 padded"])
        check(program, Reference(FILTERS["ports"]), FRAMES["v4 padded"], socket=False)


@pytest.mark.parametrize("size", [1400, 3000, 9000, 60000])
def test_a_frame_of_several_buffers(size: int, receiver: int) -> None:
    reference = Reference(FILTERS["addresses"])
    with XdpProgram.load(FILTERS["addresses"]) as program:
        program.insert(0, receiver)
        for packet in (ethernet(0x0800, ipv4(udp(data=bytes(size)))), ethernet(0x86DD, ipv6(udp(data=bytes(size))))):
            check(program, reference, packet)
            check(program, reference, packet[:-1])


def test_every_port_has_its_bit(receiver: int) -> None:
    with XdpProgram.load(XdpFilter(ports=frozenset())) as program:
        program.insert(0, receiver)
        for port in (*range(130), *range(4000, 4200), *range(65400, 65536)):
            program.set_filter(filter := XdpFilter(ports=frozenset({port})))
            for near in {max(port - 1, 0), port, min(port + 1, 65535), port ^ 64, port ^ 256}:
                check(program, Reference(filter), ethernet(0x0800, ipv4(udp(near))))


# Frames that nobody thought of


@pytest.fixture(scope="module")
def programs(receiver: int) -> Iterator[list[tuple[XdpProgram, Reference]]]:
    with ExitStack() as stack:
        loaded = []
        for name in ("ports", "addresses", "all to addresses"):
            program = stack.enter_context(XdpProgram.load(FILTERS[name]))
            program.insert(0, receiver)
            loaded.append((program, Reference(FILTERS[name])))
        yield loaded


@given(
    frame=st.sampled_from(list(FRAMES.values())),
    changes=st.lists(st.tuples(st.integers(12, 120), st.binary(min_size=1, max_size=2)), max_size=6),
    tail=st.binary(max_size=40),
    cut=st.integers(0, 60),
)
def test_changed_frames(
    programs: list[tuple[XdpProgram, Reference]],
    frame: bytes,
    changes: list[tuple[int, bytes]],
    tail: bytes,
    cut: int,
) -> None:
    changed = bytearray(frame + tail)
    for at, value in changes:
        changed[at : at + len(value)] = value[: max(len(changed) - at, 0)]
    kept = bytes(changed[: max(len(changed) - cut, SHORTEST)])
    for program, reference in programs:
        check(program, reference, kept)


@given(kind=st.sampled_from([0x0800, 0x86DD, 0x8100, 0x88A8]), packet=st.binary(max_size=200))
def test_random_bytes(programs: list[tuple[XdpProgram, Reference]], kind: int, packet: bytes) -> None:
    for program, reference in programs:
        check(program, reference, ethernet(kind, packet))


@given(
    to=st.sampled_from([HERE6, OTHER6, "ff02::1", MAPPED]),
    extensions=st.lists(st.tuples(st.sampled_from([0, 43, 44, 51, 60]), st.integers(0, 4)), max_size=10).map(tuple),
    protocol=st.sampled_from([0, 6, 17, 17, 17, 43, 44, 58, 59, 60]),
    payload=st.one_of(st.binary(max_size=30), st.sampled_from([0, 64, 80, PORT]).map(udp)),
)
def test_chains_of_extensions(
    programs: list[tuple[XdpProgram, Reference]],
    to: str,
    extensions: tuple[tuple[int, int], ...],
    protocol: int,
    payload: bytes,
) -> None:
    frame = ethernet(0x86DD, ipv6(payload, to, protocol, extensions))
    for program, reference in programs:
        check(program, reference, frame)


def test_addresses_are_compared_whole(receiver: int) -> None:
    """Each byte of an address counts, in both families."""
    filter = XdpFilter(all_ip=True, addresses=(HERE4, "2001:db8:1:2:3:4:5:6"))
    reference = Reference(filter)
    with XdpProgram.load(filter) as program:
        program.insert(0, receiver)
        for address in filter.addresses:
            packed = ip_address(address).packed
            for at in range(len(packed)):
                near = ip_address(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :])
                for to in (address, near):
                    four = to.version == 4
                    packet = ipv4(udp(), str(to)) if four else ipv6(udp(), str(to))
                    check(program, reference, ethernet(0x0800 if four else 0x86DD, packet))
