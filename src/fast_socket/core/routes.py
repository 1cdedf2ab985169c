"""The traits that answer "out of which queue, to which MAC, from which address": what the kernel does for OS sockets,
and a router for those that write their own headers."""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, Protocol, TypeVar

from fast_socket.core.ids import IfIndex, RouteId

IpAddress = IPv4Address | IPv6Address

Egress_co = TypeVar("Egress_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets to a destination go next."""

    id: RouteId
    interface: IfIndex
    """The device that the route names, and where its next hop is looked for: with a VLAN that is the VLAN device."""
    next_hop: IpAddress
    """The gateway, or the destination itself on a connected network: whose MAC is needed. 255.255.255.255 for every
    IPv4 broadcast address."""
    mtu: int
    source: IpAddress | None = None
    """The preferred source address."""
    vlan: int | None = None
    """The 802.1Q tag to write when the packet leaves through the VLAN device's parent."""


class Unresolved(Enum):
    """Why a destination has no egress now. False, where an egress is true."""

    NO_ROUTE = "no route leads to the destination: add one, or give the device an address in its network"
    """No entry of the tables matches."""
    BLACKHOLE = "a blackhole route drops packets to the destination"
    """The best match is of type blackhole: the kernel would drop in silence."""
    UNREACHABLE = "an unreachable route refuses packets to the destination"
    """The best match is of type unreachable: the kernel would answer EHOSTUNREACH."""
    PROHIBIT = "a prohibit route forbids packets to the destination"
    """The best match is of type prohibit: the kernel would answer EACCES."""
    LOCAL = "the destination is this host itself: such packets never reach a device, use an OS socket"
    """An address of this host, or the unspecified one."""
    OTHER_INTERFACE = "the route leaves through another interface or a tunnel: open the socket there, or add a route"
    """There is a route, but not through this interface or one of its VLANs."""
    NEIGHBOR = "the next hop's MAC address is not known yet: it has been asked for, try again soon"
    """The only answer that mends itself. It stays where the next hop does not answer."""

    @property
    def text(self) -> str:
        """What it means and what to do, for a message."""
        return self.value

    def __bool__(self) -> Literal[False]:
        return False


class RouteTable(Protocol):
    """Longest-prefix match. Immutable in one generation; look-ups never block and may run on the packet path."""

    @property
    def generation(self) -> int:
        """Grows whenever a look-up may answer differently; prepared endpoints compare it."""
        ...

    def lookup(self, destination: IpAddress) -> Route | None:
        """None: no packet to it leaves this host; there is no route, it refuses, or the destination is local."""
        ...


class NeighborTable(Protocol):
    """Link-layer addresses of next hops."""

    @property
    def generation(self) -> int:
        """Grows whenever an answer may have changed."""
        ...

    def lookup(self, interface: IfIndex, address: IpAddress) -> bytes | None:
        """Six bytes, or None where the neighbour is not resolved (yet)."""
        ...

    def request(self, interface: IfIndex, address: IpAddress) -> None:
        """Have the neighbour resolved, without waiting for it."""
        ...


class EgressResolver(Protocol[Egress_co]):
    """From a destination to the backend's own ready-made egress: route, neighbour and source address in one."""

    @property
    def generation(self) -> int:
        """Grows whenever an earlier egress may be stale."""
        ...

    def resolve(self, destination: IpAddress) -> Egress_co | Unresolved:
        """An egress, good for this generation; or why there is none, which is of the moment and not to be kept.

        NEIGHBOR means that the next hop has been asked for."""
        ...
