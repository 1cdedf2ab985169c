"""The answer of a router: out to which link-layer address, from which address, how large; or why not."""

from dataclasses import dataclass
from enum import Enum

from fast_socket.core.errors import ConfigError
from fast_socket.core.ids import IfIndex
from fast_socket.core.routes import IpAddress

#: The least MTU that IPv4 works over (RFC 791), and the largest datagram.
LEAST_MTU, MOST_MTU = 68, 65_535


@dataclass(frozen=True, slots=True)
class Egress:
    """How packets to one destination leave. Raises `ConfigError` for a bad field."""

    interface: IfIndex
    source_mac: bytes
    destination_mac: bytes
    mtu: int
    """Bytes of the largest IP datagram."""
    vlan: int | None = None
    """The 802.1Q tag control information to write; None for an untagged frame."""
    source: IpAddress | None = None
    """The address to send from, where the socket is bound to none."""

    def __post_init__(self) -> None:
        for name in ("source_mac", "destination_mac"):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != 6:
                raise ConfigError(f"Egress.{name} is {value!r}: give six bytes")
        if not isinstance(self.mtu, int) or not LEAST_MTU <= self.mtu <= MOST_MTU:
            raise ConfigError(f"Egress.mtu is {self.mtu!r}: give an int from {LEAST_MTU} to {MOST_MTU}")
        if self.vlan is not None and (not isinstance(self.vlan, int) or not 0 <= self.vlan <= 65_535):
            raise ConfigError(f"Egress.vlan is {self.vlan!r}: give a 16-bit tag, or None")


class Unresolved(Enum):
    """Why there is no egress."""

    NO_ROUTE = "there is no route to it"
    BLACKHOLE = "its route is a blackhole"
    UNREACHABLE = "its route says unreachable"
    PROHIBIT = "its route says prohibited"
    NEIGHBOR = "its next hop's link-layer address is not known yet; it has been asked for"
    OTHER_INTERFACE = "its route leaves through another interface than this socket's"
    LOCAL = "it is an address of this host"

    @property
    def text(self) -> str:
        """For a message."""
        return str(self.value)
