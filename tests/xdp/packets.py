"""Frames and datagrams built and read here, by the RFCs and not by the code under test."""

import struct
from dataclasses import dataclass
from ipaddress import ip_address

UDP, FRAGMENT_HEADER = 17, 44
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
CUSTOMER_TAG, SERVICE_TAG = 0x8100, 0x88A8


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of RFC 1071."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source: str, destination: str, length: int) -> bytes:
    """RFC 768, RFC 8200 section 8.1."""
    from_, to = ip_address(source), ip_address(destination)
    if from_.version == 4:
        return from_.packed + to.packed + struct.pack(">BBH", 0, UDP, length)
    return from_.packed + to.packed + struct.pack(">II", length, UDP)


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes, checksum: str = "good") -> bytes:
    """`checksum`: good, bad, absent, or partial: of the pseudo-header alone."""
    length = 8 + len(payload)
    header = struct.pack(">HHHH", sport, dport, length, 0)
    sums = pseudo(source, destination, length)
    value = {
        "good": ~ones_sum(sums + header + payload) & 0xFFFF or 0xFFFF,
        "bad": (~ones_sum(sums + header + payload) & 0xFFFF) ^ 0x5555,
        "partial": ones_sum(sums),
        "absent": 0,
    }[checksum]
    return header[:6] + struct.pack(">H", value) + payload


def ip(
    source: str, destination: str, body: bytes, protocol: int = UDP, *, ttl: int = 64, tos: int = 0, fragment: int = 0,
    options: bytes = b"",
) -> bytes:  # fmt: skip
    """A datagram. `fragment` is IPv4's field of flags and offset, `options` IPv4's."""
    from_, to = ip_address(source), ip_address(destination)
    if from_.version == 6:
        return struct.pack(">IHBB", 6 << 28 | tos << 20, len(body), protocol, ttl) + from_.packed + to.packed + body
    words = 5 + len(options) // 4
    header = struct.pack(">BBHHHBBH", 0x40 | words, tos, words * 4 + len(body), 7, fragment, ttl, protocol, 0)
    header += from_.packed + to.packed + options
    return header[:10] + struct.pack(">H", ~ones_sum(header) & 0xFFFF) + header[12:] + body


def ethernet(to: bytes, from_: bytes, datagram: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """`tags`: (ethertype, tag control information), the outer one first."""
    inner = struct.pack(">H", ETHERTYPES.get(datagram[0] >> 4, 0x0806))
    return to + from_ + b"".join(struct.pack(">HH", *tag) for tag in tags) + inner + datagram


@dataclass(frozen=True)
class Datagram:
    """An IP datagram with UDP, as it was found."""

    version: int
    source: str
    destination: str
    tos: int
    ttl: int
    identification: int | None
    dont_fragment: bool | None
    sport: int
    dport: int
    checksum: int
    payload: bytes
    header_ok: bool
    checksum_ok: bool

    @classmethod
    def read(cls, data: bytes) -> "Datagram":
        version = data[0] >> 4
        if version == 4:
            size = (data[0] & 15) * 4
            (total,) = struct.unpack_from(">H", data, 2)
            source, destination = str(ip_address(data[12:16])), str(ip_address(data[16:20]))
            tos, ttl, protocol = data[1], data[8], data[9]
            identification, flags = struct.unpack_from(">HH", data, 4)
            header_ok = ones_sum(data[:size]) == 0xFFFF and total == len(data)
            dont_fragment = bool(flags & 0x4000)
        else:
            size = 40
            (length,) = struct.unpack_from(">H", data, 4)
            source, destination = str(ip_address(data[8:24])), str(ip_address(data[24:40]))
            tos, ttl, protocol = struct.unpack_from(">H", data)[0] >> 4 & 255, data[7], data[6]
            identification = dont_fragment = None
            header_ok = length + 40 == len(data)
        assert protocol == UDP
        sport, dport, udp_length, checksum = struct.unpack_from(">HHHH", data, size)
        segment = data[size:]
        whole = ones_sum(pseudo(source, destination, len(segment)) + segment) == 0xFFFF
        return cls(
            version, source, destination, tos, ttl, identification, dont_fragment, sport, dport, checksum, segment[8:],
            header_ok and udp_length == len(segment), whole and checksum != 0,
        )  # fmt: skip
