"""What can be known of a received packet, or asked for a sent one, besides its bytes and its peer."""

from dataclasses import dataclass
from enum import Enum, Flag, IntEnum, auto

from fast_socket.core.ids import IfIndex, QueueId


class Ecn(IntEnum):
    """The two ECN bits of the IP header (RFC 3168, section 5)."""

    NOT_ECT = 0
    ECT1 = 1
    ECT0 = 2
    CE = 3


class Metadata(Flag):
    """The metadata that a socket delivers on receive and accepts per slot on transmit, chosen at construction.

    What is not chosen costs nothing: the socket option stays off, the column does not exist, the loop has no branch
    for it. Each member names its receive column and its transmit column.
    """

    NONE = 0
    ECN = auto()
    """`ecn`: uint8, an `Ecn`; on transmit 255 leaves the socket's own."""
    LOCAL = auto()
    """Receive `local_addresses` + `interfaces`: where the datagram arrived. Transmit `source_addresses` +
    `interfaces`: where it leaves from; all zero leaves the choice to the kernel."""
    TTL = auto()
    """`ttl`: uint8, the hop limit on arrival; on transmit 0 leaves the socket's own."""
    TIMESTAMP = auto()
    """`timestamps`: int64 ns since the Unix epoch, taken by the kernel on receive; 0 where it gave none."""
    HARDWARE_TIMESTAMP = auto()
    """As TIMESTAMP, by the NIC's own clock where it has one that stamps received packets (switching that on, by
    SIOCSHWTSTAMP, is the administrator's), by the kernel's where it has not."""
    TXTIME = auto()
    """Transmit `departure_times`: int64 ns on the clock chosen at construction; 0 is "now"."""
    CHECKSUM = auto()
    """`checksum`: uint8, a `ChecksumStatus`. OS sockets deliver verified datagrams only and do not offer it."""
    VLAN = auto()
    """`vlan`: uint16, the outer 802.1Q tag control information; 0 for untagged. AF_XDP only."""


class ChecksumStatus(IntEnum):
    """What is known of a packet's transport checksum."""

    UNKNOWN = 0
    """Nobody looked."""
    VERIFIED = 1
    """The NIC or the kernel verified it."""
    PARTIAL = 2
    """Not yet computed: the sender left it to an offload (usual for packets redirected from a veth)."""
    BAD = 3
    """Verified, and wrong."""
    ABSENT = 4
    """UDP over IPv4 without a checksum (RFC 768)."""


class TxOffload(Flag):
    """Work that a backend can leave to the device."""

    NONE = 0
    UDP_CHECKSUM = auto()
    IP_CHECKSUM = auto()
    UDP_SEGMENTATION = auto()
    TIMESTAMP = auto()
    LAUNCH_TIME = auto()


class PathMtu(Enum):
    """Don't-fragment and path-MTU policy, IP_MTU_DISCOVER in ip(7): what the kernel does with a datagram too large."""

    DONT = "dont"
    """Never set DF; fragment as needed."""
    WANT = "want"
    """Fragment to the known path MTU (the kernel's default)."""
    DO = "do"
    """Set DF; a larger datagram is EMSGSIZE."""
    PROBE = "probe"
    """Set DF, ignore the learned path MTU: for protocols that probe it themselves (RFC 8899)."""
    INTERFACE = "interface"
    """No DF, ignore the learned path MTU, never send more than the interface's MTU."""
    OMIT = "omit"
    """As INTERFACE, but fragment when larger."""


@dataclass(frozen=True, slots=True)
class UdpRecvMeta:
    """One received datagram's metadata as an object. `None` where the socket was not built to deliver it."""

    source: tuple[str, int]
    local: str | None = None
    interface: IfIndex | None = None
    ecn: Ecn | None = None
    ttl: int | None = None
    timestamp_ns: int | None = None
    gro_stride: int | None = None
    """Every datagram in the buffer has this many bytes, but for a shorter last one. None: the socket has no GRO."""
    local_port: int | None = None
    """The port that it was sent to, on a socket that has several."""
    vlan: int | None = None
    """The outer 802.1Q tag control information, 0 for untagged."""
    checksum: ChecksumStatus | None = None


@dataclass(frozen=True, slots=True)
class IpPacketRecvMeta:
    """One received IP packet's metadata as an object. `None` where the socket was not built to deliver it."""

    interface: IfIndex
    queue: QueueId
    vlan: int | None = None
    checksum: ChecksumStatus | None = None
    timestamp_ns: int | None = None
    segments: int = 1
