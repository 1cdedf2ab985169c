"""What a filter accepts, and changing it while frames arrive."""

import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from fast_socket.core.errors import ConfigError
from fast_socket.xdp.ebpf import XdpFilter, XdpProgram
from fast_socket.xdp.ebpf.libbpf import library

XDP_PASS, XDP_REDIRECT = 2, 4
AF_XDP, SOL_XDP, XDP_RX_RING = 44, 283, 2


# Values


def test_as_it_stands_a_filter_wants_nothing() -> None:
    filter = XdpFilter()
    assert not filter.all_ip and not filter.keys() and not any(filter.bitmap())


def test_addresses_become_objects() -> None:
    filter = XdpFilter(addresses=("10.0.0.1", "fd00::1", IPv4Address("10.0.0.2"), "::ffff:10.0.0.1"))
    first, second = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    assert filter.addresses == (first, IPv6Address("fd00::1"), second, first)
    assert filter.keys() == {IPv6Address(text).packed for text in ("::ffff:10.0.0.1", "::ffff:10.0.0.2", "fd00::1")}
    assert filter == XdpFilter(addresses=filter.addresses) and hash(filter)


@pytest.mark.parametrize(
    "ports", [range(0), frozenset[int](), range(65536), range(10, 0, -3), frozenset({0, 63, 64, 65535})]
)
def test_ports_become_bits(ports: Any) -> None:
    words = struct.unpack("=1024Q", XdpFilter(ports=ports).bitmap())
    assert {port for port in range(65536) if words[port // 64] >> port % 64 & 1} == set(ports)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"addresses": "10.0.0.1"}, "addresses=.*tuple"),
        ({"addresses": ["10.0.0.1"]}, "addresses=.*tuple"),
        ({"addresses": ("10.0.0.300",)}, "addresses: '10.0.0.300' is not"),
        ({"addresses": ("10.0.0.0/8",)}, "without a prefix"),
        ({"addresses": (167772161,)}, "addresses: 167772161"),
        ({"addresses": (b"\x0a\x00\x00\x01",)}, "is not an IPv4 or IPv6 address"),
        ({"addresses": ("fe80::1%eth0",)}, "scope"),
        ({"addresses": ("0.0.0.0",)}, "for any address give none"),
        ({"addresses": ("::",)}, "for any address give none"),
        ({"addresses": ("10.0.0.1",), "ipv4": False}, "ipv4=False"),
        ({"addresses": ("::ffff:10.0.0.1",), "ipv4": False}, "ipv4=False"),
        ({"addresses": ("fd00::1",), "ipv6": False}, "ipv6=False"),
        ({"addresses": tuple(IPv4Address(n) for n in range(1, 1026))}, "1025 of them, at most 1024"),
        ({"ports": 9000}, "frozenset or a range"),
        ({"ports": {9000}}, "frozenset or a range"),
        ({"ports": frozenset({-1})}, "-1 in it; .* 0 to 65535"),
        ({"ports": frozenset({65536})}, "65536 in it"),
        ({"ports": frozenset({"80"})}, "'80' in it"),
        ({"ports": frozenset({True})}, "True in it"),
        ({"ports": range(65537)}, "65536 in it"),
        ({"ports": range(-5, 5)}, "-5 in it"),
        ({"ports": frozenset({1}), "all_ip": True}, "one of them"),
        ({"all_ip": 1}, "all_ip=1: True or False"),
        ({"ipv4": None}, "ipv4=None"),
        ({"ipv4": False, "ipv6": False}, "at least one"),
    ],
)
def test_bad_filters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        XdpFilter(**options)


# In a program


def packet(to: str, port: int) -> bytes:
    udp = struct.pack("!HHHH", 1, port, 8, 0)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + bytes(4) + IPv4Address(to).packed
    return bytes(12) + b"\x08\x00" + ip + udp


@pytest.fixture
def program() -> Iterator[XdpProgram]:
    """One that wants nothing yet, with a socket."""
    with XdpProgram.load(XdpFilter(), queues=1) as program, socket.socket(AF_XDP, socket.SOCK_RAW) as sock:
        sock.setsockopt(SOL_XDP, XDP_RX_RING, 64)
        program.insert(0, sock.fileno())
        yield program


def wanted(program: XdpProgram, to: str, port: int) -> bool:
    verdict, _ = library().test_run(program.fd, packet(to, port))
    assert verdict in (XDP_PASS, XDP_REDIRECT)
    return verdict == XDP_REDIRECT


A, B = "10.0.0.1", "10.0.0.2"


@pytest.mark.root
def test_a_change_replaces_all(program: XdpProgram) -> None:
    def seen() -> set[tuple[str, int]]:
        return {(to, port) for to in (A, B) for port in (1, 2) if wanted(program, to, port)}

    everything = {(to, port) for to in (A, B) for port in (1, 2)}
    assert seen() == set()
    for addresses, ports, expected in [
        ((), {1, 2}, everything),
        ((A,), {1}, {(A, 1)}),
        ((B,), {2}, {(B, 2)}),
        ((A, B), {2}, {(A, 2), (B, 2)}),
        ((), {1}, {(A, 1), (B, 1)}),
        ((A,), set(), set()),
        ((B,), {1, 2}, {(B, 1), (B, 2)}),
    ]:
        program.set_filter(XdpFilter(addresses=addresses, ports=frozenset(ports)))
        assert seen() == expected
    program.set_filter(XdpFilter())
    assert seen() == set()
    assert not list(library().keys(program.fds["addresses"], 16))


@pytest.mark.root
def test_as_many_addresses_as_fit_can_be_replaced(program: XdpProgram) -> None:
    for start in (0x0A000000, 0x0B000000, 0x0C000000):
        addresses = tuple(IPv4Address(start + n) for n in range(1, 1025))
        program.set_filter(XdpFilter(addresses=addresses, ports=frozenset({1})))
        assert wanted(program, str(addresses[0]), 1) and wanted(program, str(addresses[-1]), 1)
        assert not wanted(program, str(addresses[-1] + 1), 1)


@pytest.mark.root
@pytest.mark.parametrize("steps", range(7))
def test_a_change_cut_short_changes_nothing(program: XdpProgram, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last write the old filter is in force, whole; the next change is not disturbed by what is left."""
    program.set_filter(XdpFilter(addresses=(A,), ports=frozenset({1})))
    update, done = library().update, 0

    def failing(fd: int, key: bytes, value: bytes) -> None:
        nonlocal done
        if done == steps:
            raise OSError("cut short")
        done += 1
        update(fd, key, value)

    monkeypatch.setattr(library(), "update", failing)
    cut = False
    try:
        program.set_filter(XdpFilter(addresses=(B,), ports=frozenset({2})))
    except OSError:
        cut = True
    monkeypatch.undo()
    assert cut == (steps < 5), "A and B, ports, two times settings"
    expected = {(A, 1)} if cut else {(B, 2)}
    assert {(to, port) for to in (A, B) for port in (1, 2) if wanted(program, to, port)} == expected
    program.set_filter(XdpFilter(addresses=("10.0.0.3",), ports=frozenset({1, 2})))
    assert wanted(program, "10.0.0.3", 1) and not wanted(program, A, 1) and not wanted(program, B, 2)


@pytest.mark.root
def test_no_frame_meets_a_mixture(program: XdpProgram) -> None:
    """One filter wants A on port 1, the other B on port 2; A on 2 and B on 1 are never wanted."""
    filters = [XdpFilter(addresses=(A,), ports=frozenset({1})), XdpFilter(addresses=(B,), ports=frozenset({2}))]
    program.set_filter(filters[0])
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for filter in reversed(filters):
                program.set_filter(filter)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            assert not wanted(program, A, 2) and not wanted(program, B, 1)
    finally:
        stop.set()
        thread.join()


@pytest.mark.root
@pytest.mark.parametrize(
    ("loaded", "other", "message"),
    [
        (XdpFilter(), XdpFilter(all_ip=True), "all_ip=True: was False when the program was loaded"),
        (XdpFilter(all_ip=True), XdpFilter(ports=range(5)), "all_ip=False"),
        (XdpFilter(), XdpFilter(ipv6=False), "ipv6=False: was True"),
        (XdpFilter(ipv4=False), XdpFilter(), "ipv4=True"),
    ],
)
def test_what_is_fixed_when_loaded(loaded: XdpFilter, other: XdpFilter, message: str) -> None:
    with XdpProgram.load(loaded) as program:
        with pytest.raises(ConfigError, match=message):
            program.set_filter(other)
        program.set_filter(loaded)
