"""What is fixed about a peer: prepared once, so that the loop does no address work."""

from dataclasses import dataclass

from fast_socket.core.addresses import Address, Host, parse_address
from fast_socket.core.errors import ConfigError
from fast_socket.core.layout import MAX_DATAGRAM
from fast_socket.core.metadata import Ecn


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpEndpointSpec:
    """One remote and how to send to it. Given to `prepare_udp_endpoint`; raises `ConfigError` for a bad field.

    `remote`: ("host", port) or "host:port". `source`: the local address to leave from, None for the kernel's or
    router's choice. `source_port`: for backends that write the UDP header themselves; an OS socket's port is the one
    that it is bound to. `ecn`, `ttl`: None for the socket's own. `gso_size`: packets longer than this many bytes leave
    as datagrams of this size, in hardware, kernel or native code; 0 for no segmentation. `payload_len`: every packet
    has this length, which a backend may use to prepare more of its header; None for any length.
    """

    remote: Address
    source: Host | None = None
    source_port: int | None = None
    ecn: Ecn | None = None
    ttl: int | None = None
    gso_size: int = 0
    payload_len: int | None = None

    def __post_init__(self) -> None:
        host, port = parse_address(self.remote, "UdpEndpointSpec.remote")
        if port == 0:
            raise ConfigError(f"UdpEndpointSpec.remote is {self.remote!r}: nothing can be sent to port 0")
        object.__setattr__(self, "remote", (host, port))
        if self.source is not None:
            object.__setattr__(self, "source", parse_address((self.source, 0), "UdpEndpointSpec.source")[0])
        if self.ecn is not None:
            try:
                object.__setattr__(self, "ecn", Ecn(self.ecn))
            except ValueError:
                raise ConfigError(f"UdpEndpointSpec.ecn is {self.ecn!r}: give an Ecn") from None
        for name, least, most in (
            ("source_port", 1, 65_535),
            ("ttl", 1, 255),
            ("gso_size", 0, MAX_DATAGRAM),
            ("payload_len", 0, MAX_DATAGRAM),
        ):
            value = getattr(self, name)
            if value is None and name != "gso_size":
                continue
            if not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"UdpEndpointSpec.{name} is {value!r}: give an int from {least} to {most}")
