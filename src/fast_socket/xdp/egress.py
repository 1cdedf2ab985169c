"""What a packet needs to leave a device: the answer of a router, and all that a socket copies into its headers."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import final

from fast_socket.core.errors import ConfigError
from fast_socket.core.ids import IfIndex
from fast_socket.core.routes import IpAddress, Unresolved

__all__ = ["Egress", "Unresolved"]

MAC_LEN = 6  # ETH_ALEN, <linux/if_ether.h>
MIN_MTU, MAX_MTU = 68, 65_535  # ETH_MIN_MTU and ETH_MAX_MTU, <linux/if_ether.h>
MAX_TCI = 0xFFFF  # 802.1Q: 3 bits of priority, 1 of drop eligibility, 12 of VLAN id
VLAN_ID_MASK = 0x0FFF


@final  # so that type checkers know it true, and what is false Unresolved
@dataclass(frozen=True, slots=True)
class Egress:
    """A resolved way out of one device. `ConfigError` names a field that can never work."""

    interface: IfIndex
    """The device that the frame is handed to: the parent, where the route leads through a VLAN device."""
    source_mac: bytes
    destination_mac: bytes
    """Of the next hop, or the group's for multicast, or ff:ff:ff:ff:ff:ff for broadcast."""
    mtu: int
    """Bytes of the largest IP packet."""
    vlan: int | None = None
    """The 802.1Q tag control information to write; None: untagged."""
    source: IPv4Address | IPv6Address | None = None
    """The source address that the route prefers."""

    def __post_init__(self) -> None:
        if not _is_int(self.interface) or self.interface < 1:
            raise ConfigError(f"Egress.interface is {self.interface!r}: give an interface index from 1")
        for name, mac in (("source_mac", self.source_mac), ("destination_mac", self.destination_mac)):
            if not isinstance(mac, bytes) or len(mac) != MAC_LEN:
                raise ConfigError(f"Egress.{name} is {mac!r}: give {MAC_LEN} bytes")
        if self.source_mac[0] & 1:
            raise ConfigError(f"Egress.source_mac is {self.source_mac.hex(':')}, a group address: give a unicast one")
        if not _is_int(self.mtu) or not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ConfigError(f"Egress.mtu is {self.mtu!r}: give {MIN_MTU} to {MAX_MTU}")
        if self.vlan is not None and not (
            _is_int(self.vlan) and 0 <= self.vlan <= MAX_TCI and self.vlan & VLAN_ID_MASK != VLAN_ID_MASK
        ):
            raise ConfigError(f"Egress.vlan is {self.vlan!r}: give 16 bits whose lower 12, the VLAN id, are not 4095")
        if not isinstance(self.source, IPv4Address | IPv6Address | None):
            raise ConfigError(f"Egress.source is {self.source!r}: give an IPv4Address or IPv6Address, or None")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def group_mac(group: IpAddress) -> bytes:
    """The Ethernet address of a multicast group: RFC 1112, section 6.4, for IPv4; RFC 2464, section 7, for IPv6."""
    if group.version == 6:
        return b"\x33\x33" + group.packed[12:]
    return b"\x01\x00\x5e" + bytes([group.packed[1] & 0x7F]) + group.packed[2:]
