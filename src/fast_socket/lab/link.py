"""Links between hosts: a veth pair, and each end of it as an `Interface`."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fast_socket.core.errors import CapabilityError, ConfigError
from fast_socket.lab import netlink
from fast_socket.lab.netlink import Address, InterfaceAddress, Network

if TYPE_CHECKING:
    from fast_socket.lab.host import Host

log = logging.getLogger("fast_socket.lab")

AddressLike = str | InterfaceAddress

_MAX_QUEUES = 4096  # rtnl_create_link, net/core/rtnetlink.c
_MAX_NAME = 15  # IFNAMSIZ less its zero byte, <linux/if.h>
_MIN_MTU, _MAX_MTU, _MIN_MTU_IPV6 = 68, 65535, 1280  # veth's range (ip -d link); IPV6_MIN_MTU, <linux/ipv6.h>
_MAX_SUBNET = 255
_RESERVED = (".", "..", "lo", "all", "default")  # the last two are directories of /proc/sys/net/ipv4/conf
_READY_SECONDS = 5.0
_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


class Interface:
    """One end of a link. Methods may be called from any thread; they raise ConfigError once the lab is closed."""

    def __init__(self, host: Host, name: str, queues: int) -> None:
        self.host = host
        """The host that it is in."""
        self.name = name
        """Device name inside the host, unique there only."""
        self.queues = queues
        """Number of transmit queues, and of receive queues."""
        self.index = host._on_keeper(netlink.index_of, name)
        """Interface index inside the host."""
        self.mac = host._on_keeper(netlink.link_state, self.index).mac
        """MAC address, "02:…"."""
        self.addresses: list[InterfaceAddress] = []
        """IP addresses given by the lab, in that order; IPv6 link-local ones are not listed."""

    def __repr__(self) -> str:
        return f"<Interface {self.host.name}:{self.name} {' '.join(map(str, self.addresses))}>"

    @property
    def ipv4(self) -> ipaddress.IPv4Address:
        """The first IPv4 address. ConfigError without one."""
        for address in self.addresses:
            if isinstance(address, ipaddress.IPv4Interface):
                return address.ip
        raise ConfigError(f"{self!r} has no IPv4 address")

    @property
    def ipv6(self) -> ipaddress.IPv6Address:
        """The first IPv6 address. ConfigError without one."""
        for address in self.addresses:
            if isinstance(address, ipaddress.IPv6Interface):
                return address.ip
        raise ConfigError(f"{self!r} has no IPv6 address")

    @property
    def mtu(self) -> int:
        """MTU in bytes, as the kernel has it now."""
        return self.host._on_keeper(netlink.link_state, self.index).mtu

    @property
    def qdisc(self) -> str:
        """Name of the root queueing discipline."""
        return self.host._on_keeper(netlink.link_state, self.index).qdisc

    @property
    def offloads(self) -> dict[str, bool]:
        """Every feature of the device by the kernel's name (`ethtool -k` with long names), and whether it is on."""
        return self.host._on_keeper(netlink.offloads, self.name)

    @property
    def threaded_napi(self) -> bool:
        """Whether receive processing runs in kernel threads of its own (Linux >= 5.12)."""
        return self.host._on_keeper(self._threaded_file.read_text).strip() not in ("", "0")

    def add_address(self, address: AddressLike) -> None:
        """Add an address with its prefix length, such as "fd00::1/64"; usable when this returns."""
        parsed = parse_interface_address(address)
        self.host._on_keeper(netlink.add_address, self.index, parsed)
        self.addresses.append(parsed)

    def add_neighbor(self, address: str, mac: str) -> None:
        """Make a permanent neighbour (no ARP or neighbour discovery), or replace the one there is."""
        self.host._on_keeper(netlink.add_neighbor, self.index, parse_address(address), parse_mac(mac))

    def set_up(self, up: bool) -> None:
        """Switch the device on or off; the other end loses or gains its carrier."""
        self.host._on_keeper(netlink.set_link, self.index, state="up" if up else "down")

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU in bytes, 68 to 65535."""
        self.host._on_keeper(netlink.set_link, self.index, mtu=check_range("mtu", mtu, _MIN_MTU, _MAX_MTU))

    def set_offloads(self, offloads: Mapping[str, bool]) -> None:
        """Switch offloads on or off, by ethtool's short names (gro, gso, tso, tx, rx, sg) or the kernel's own
        (tx-udp-segmentation, rx-gro-list, rx-udp-gro-forwarding...).

        CapabilityError if the device keeps one as it was; ConfigError if a name is unknown.
        """
        self.host._on_keeper(netlink.set_offloads, self.name, offloads)

    def set_threaded_napi(self, enabled: bool) -> None:
        """Move receive processing to kernel threads, or back to soft interrupts. CapabilityError before Linux 5.12."""

        def write() -> None:
            self._threaded_file.write_text(str(int(enabled)), encoding="ascii")

        try:
            try:
                self.host._on_keeper(write)
            except OSError:
                # veth has NAPI only with GRO on or an XDP program attached, and the switch is refused without. It is
                # remembered, though: lend it GRO for a moment, and an XDP program finds it set.
                if self.offloads["rx-gro"]:
                    raise
                self.set_offloads({"gro": True})
                try:
                    self.host._on_keeper(write)
                finally:
                    self.set_offloads({"gro": False})
        except OSError as error:
            raise CapabilityError(
                f"threaded NAPI cannot be switched on {self.name!r} (needs Linux 5.12): {error}"
            ) from error

    def set_qdisc(self, kind: str | None, **options: object) -> None:
        """Set the root queueing discipline: "fq" for SO_TXTIME, None for the kernel's default.

        Options are pyroute2's. CapabilityError if this kernel has no such discipline.
        """
        self.host._on_keeper(netlink.set_qdisc, self.index, kind, options)

    @property
    def _threaded_file(self) -> Path:
        return Path(f"/sys/class/net/{self.name}/threaded")  # Documentation/ABI/testing/sysfs-class-net


class Link(NamedTuple):
    """The two ends of a link, in the order of the hosts given to `Lab.link`."""

    a: Interface
    b: Interface

    def remove(self) -> None:
        """Unplug: remove both devices. Closing the lab does it too."""
        self.a.host._on_keeper(netlink.delete_link, self.a.index)
        for end in self:
            with contextlib.suppress(ValueError):  # removed before
                end.host.interfaces.remove(end)


class LinkOptions(NamedTuple):
    """The checked options of `Lab.link`."""

    queues: int
    mtu: int
    addresses: tuple[list[InterfaceAddress], list[InterfaceAddress]]
    macs: tuple[str, str]
    names: tuple[str, str]
    threaded_napi: bool
    offloads: Mapping[str, bool]
    qdisc: str | None
    static_neighbors: bool


def default_addresses(number: int, mtu: int) -> tuple[list[str], list[str]]:
    """Private addresses (RFC 1918, RFC 4193) for link `number`; no IPv6 where the MTU is too small for it."""
    if number > _MAX_SUBNET:
        raise ConfigError(f"a lab has default addresses for {_MAX_SUBNET + 1} links: give this one addresses=")
    ends = ([f"10.77.{number}.1/24"], [f"10.77.{number}.2/24"])
    if mtu >= _MIN_MTU_IPV6:
        ends[0].append(f"fd77:0:0:{number:x}::1/64")
        ends[1].append(f"fd77:0:0:{number:x}::2/64")
    return ends


def default_macs(number: int) -> tuple[str, str]:
    """Locally administered MAC addresses that tell link and end apart in a packet dump."""
    high, low = divmod(number, 256)
    return f"02:00:00:{high & 255:02x}:{low:02x}:01", f"02:00:00:{high & 255:02x}:{low:02x}:02"


def default_name(host: Host) -> str:
    """The first of lab0, lab1... that no link of the host has."""
    taken = {interface.name for interface in host.interfaces}
    return next(name for name in (f"lab{n}" for n in itertools.count()) if name not in taken)


def check_options(options: LinkOptions) -> None:
    """Raise ConfigError, naming the value and what is accepted, before anything is made."""
    check_range("queues", options.queues, 1, _MAX_QUEUES)
    check_range("mtu", options.mtu, _MIN_MTU, _MAX_MTU)
    every = [*options.addresses[0], *options.addresses[1]]
    if options.mtu < _MIN_MTU_IPV6 and any(address.version == 6 for address in every):
        raise ConfigError(f"mtu {options.mtu} is too small for IPv6 addresses, which need {_MIN_MTU_IPV6}")
    if len({address.ip for address in every}) != len(every):
        raise ConfigError(f"an address is there twice in {', '.join(map(str, every))}")
    for name in options.names:
        if not 1 <= len(name) <= _MAX_NAME or re.search(r"[\s/:%]", name) or name in _RESERVED:
            raise ConfigError(f"device name {name!r}: 1 to {_MAX_NAME} characters, no '/', ':', '%' or space")


def create_link(a: Host, b: Host, options: LinkOptions) -> Link:
    """Make and configure a link; wait, at most 5 s, until both ends can be used. Leaves nothing behind if it fails."""
    near, far = (
        netlink.VethEnd(name, mac, options.queues, options.mtu)
        for name, mac in zip(options.names, options.macs, strict=True)
    )
    a._on_keeper(netlink.create_veth, near, far, b._open_fds()[0])
    try:
        link = Link(Interface(a, near.name, options.queues), Interface(b, far.name, options.queues))
        for end, addresses in zip(link, options.addresses, strict=True):
            # Before it is up, so that no packet sees the device half set.
            if options.offloads:
                end.set_offloads(options.offloads)
            end.set_up(True)
            if options.qdisc is not None:
                end.set_qdisc(options.qdisc)
            if options.threaded_napi:
                end.set_threaded_napi(True)
            for address in addresses:
                end.add_address(address)
        if options.static_neighbors:
            for end, other in (link, link[::-1]):
                for peer in other.addresses:
                    end.add_neighbor(str(peer.ip), other.mac)
        _wait_ready(link)
        for end in link:
            _route_multicast(end)
            end.host.interfaces.append(end)
    except BaseException:
        a._on_keeper(lambda: netlink.delete_link(netlink.index_of(near.name)))
        raise
    log.debug("link %r - %r", link.a, link.b)
    return link


def _wait_ready(link: Link) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not all(end.host._on_keeper(netlink.link_state, end.index).ready for end in link):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{link} is not ready after {_READY_SECONDS} s")
        time.sleep(0.002)


def _route_multicast(end: Interface) -> None:
    # IPv6 has such a route on every device; IPv4 multicast would otherwise need a default route to be sent at all.
    if not end.host.interfaces and any(address.version == 4 for address in end.addresses):
        end.host._on_keeper(netlink.add_route, ipaddress.ip_network("224.0.0.0/4"), end.index, None)


def check_range(what: str, value: int, low: int, high: int) -> int:
    """Return `value`, or raise ConfigError if it is no integer from `low` to `high`."""
    if not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{what} is {value!r}; accepted are integers from {low} to {high}")
    return value


def parse_interface_address(address: AddressLike) -> InterfaceAddress:
    """An address with its prefix length."""
    try:
        return ipaddress.ip_interface(address)
    except ValueError as error:
        raise ConfigError(f'address {address!r}: expected such as "10.77.0.1/24" or "fd77::1/64"') from error


def parse_interface_addresses(
    ends: tuple[Sequence[AddressLike], Sequence[AddressLike]],
) -> tuple[list[InterfaceAddress], list[InterfaceAddress]]:
    """The addresses of both ends."""
    if isinstance(ends, str) or len(ends) != 2 or any(isinstance(end, str) for end in ends):
        raise ConfigError(f'addresses {ends!r}: expected two tuples, such as (("10.0.0.1/24",), ("10.0.0.2/24",))')
    first, second = ([parse_interface_address(address) for address in end] for end in ends)
    return first, second


def parse_address(address: str) -> Address:
    """An address alone."""
    try:
        return ipaddress.ip_address(address)
    except ValueError as error:
        raise ConfigError(f'address {address!r}: expected such as "10.77.0.1" or "fd77::1"') from error


def parse_network(network: str) -> Network:
    """A network; "default" and "default6" are all of IPv4 and of IPv6."""
    try:
        return ipaddress.ip_network({"default": "0.0.0.0/0", "default6": "::/0"}.get(network, network))
    except ValueError as error:
        raise ConfigError(
            f'destination {network!r}: expected such as "192.0.2.0/24", "fd00::/16", "default" or "default6"'
        ) from error


def parse_mac(mac: str) -> str:
    """A unicast MAC address in lower case."""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise ConfigError(f'MAC address {mac!r}: expected a unicast one such as "02:00:00:00:00:01"')
    return mac.lower()
