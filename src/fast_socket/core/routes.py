"""The traits that answer "out of which queue, to which MAC, from which address": what the kernel does for OS sockets,
and a router for those that write their own headers."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, TypeVar

from fast_socket.core.ids import IfIndex, RouteId

IpAddress = IPv4Address | IPv6Address

Egress_co = TypeVar("Egress_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets to a destination go next."""

    id: RouteId
    interface: IfIndex
    next_hop: IpAddress
    """The gateway, or the destination itself on a connected network: whose MAC is needed."""
    mtu: int
    source: IpAddress | None = None
    """The preferred source address."""
    vlan: int | None = None


class RouteTable(Protocol):
    """Longest-prefix match. Immutable in one generation; look-ups never block and may run on the packet path."""

    @property
    def generation(self) -> int:
        """Grows whenever a look-up may answer differently; prepared endpoints compare it."""
        ...

    def lookup(self, destination: IpAddress) -> Route | None:
        """None: there is no route, or it is a blackhole."""
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
        """Grows whenever an earlier answer may be stale."""
        ...

    def resolve(self, destination: IpAddress) -> Egress_co | None:
        """None where it cannot be resolved now; the neighbour has been asked for where that is what is missing."""
        ...
