"""The kernel's routing tables as plain records: what `RouteSnapshot` is made of, read by netlink or written by hand.

Records hold what decides an answer and nothing else (no counters, no lifetimes), so that two readings compare equal
unless an answer may differ.
"""

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from fast_socket.core.ids import IfIndex
from fast_socket.core.routes import IpAddress

TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL = 253, 254, 255  # enum rt_class_t, <linux/rtnetlink.h>
TABLE_LOCAL_AND_MAIN = -1  # one trie of both: no number of the kernel's
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253  # enum rt_scope_t, <linux/rtnetlink.h>

# <linux/neighbour.h>; together the kernel's NUD_VALID (include/net/neighbour.h)
NUD_STALE = 0x04
NUD_VALID = 0x02 | NUD_STALE | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT


class RouteKind(IntEnum):
    """RTN_* in <linux/rtnetlink.h>."""

    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8
    THROW = 9
    """Stop looking in this table, go on with the next."""


class RuleAction(IntEnum):
    """FR_ACT_* in <linux/fib_rules.h>."""

    TO_TABLE = 1
    GOTO = 2
    NOP = 3
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


@dataclass(frozen=True, slots=True)
class NextHop:
    """One of the ways that a route offers."""

    interface: IfIndex
    """0 for a way that cannot be taken here, such as an encapsulation."""
    gateway: IpAddress | None = None
    """None: the destination is on the link itself. May be of the other family (RTA_VIA)."""
    weight: int = 1
    alive: bool = True
    """False: RTNH_F_DEAD, the kernel does not use it."""
    carrier: bool = True
    """False: RTNH_F_LINKDOWN."""


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """One route."""

    network: IPv4Network | IPv6Network
    hops: tuple[NextHop, ...] = ()
    kind: RouteKind = RouteKind.UNICAST
    metric: int = 0
    source: IpAddress | None = None
    mtu: int | None = None
    table: int = TABLE_MAIN
    scope: int = SCOPE_UNIVERSE


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """One policy rule. It matches what fits all that it names."""

    version: int
    """4 or 6."""
    priority: int
    table: int = 0
    action: RuleAction = RuleAction.TO_TABLE
    source: IPv4Network | IPv6Network | None = None
    destination: IPv4Network | IPv6Network | None = None
    iif: str = ""
    """Only "lo" ever matches: packets of this host."""
    oif: str = ""
    mark: int = 0
    mask: int = 0
    """The bits of the mark that are looked at."""
    uids: tuple[int, int] = (0, 0xFFFFFFFF)
    """From and to, both included."""
    goto: int = 0
    """The priority that it goes on with."""
    suppress: int = -1
    """Routes found with prefixes no longer than this do not count, unless they refuse."""
    invert: bool = False
    """It matches what does not fit."""


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """One device."""

    index: IfIndex
    name: str
    mac: bytes
    """Empty where the device has no Ethernet address."""
    mtu: int = 1500
    mtu6: int | None = None
    """The MTU for IPv6 where it differs: a router advertisement may lower it."""
    arp: bool = True
    """False: IFF_NOARP, nobody is asked for addresses."""
    parent: IfIndex | None = None
    """Of a VLAN device: where its tagged frames leave."""
    vlan: int | None = None
    """Of a VLAN device: its 802.1Q id."""


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """One address of this host."""

    interface: IfIndex
    address: IPv4Interface | IPv6Interface
    scope: int = SCOPE_UNIVERSE
    secondary: bool = False
    """IPv4: another address of the same network came first."""
    deprecated: bool = False
    """IPv6: its preferred lifetime is over."""
    usable: bool = True
    """False: IPv6 duplicate address detection has not passed."""


@dataclass(frozen=True, slots=True)
class NeighborRecord:
    """One neighbour whose Ethernet address is known."""

    interface: IfIndex
    address: IpAddress
    mac: bytes
    state: int = NUD_STALE
