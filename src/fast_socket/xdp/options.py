"""The options of AF_XDP sockets: checked as a whole, once."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Literal, TypedDict

from fast_socket.core.addresses import Address, parse_address
from fast_socket.core.errors import CapabilityError, ConfigError
from fast_socket.core.frames import FramePool
from fast_socket.core.layout import BufferLayout
from fast_socket.core.metadata import Metadata
from fast_socket.core.polling import BusyPollDriver, WaitDriver
from fast_socket.core.routes import IpAddress
from fast_socket.core.traits import UdpSocket

#: Before each received packet the kernel leaves this free (XDP_PACKET_HEADROOM, include/uapi/linux/bpf.h).
XDP_HEADROOM = 256
#: What this backend needs in front of a payload, for Ethernet, tags, IPv6 and UDP; two cache lines, so that the headers
#: of a small packet lie in one and its payload in the next.
L2_HEADROOM = 128
#: Ethernet with two tags: what a frame has over its IP datagram.
LINK_OVERHEAD = 22
LEAST_CHUNK, MOST_CHUNK = 2048, 4096
LEAST_TX_BUDGET = 32  # TX_BATCH_SIZE, net/xdp/xsk.c
LIMITED_BROADCAST = IPv4Address("255.255.255.255")


class XdpOptions(TypedDict, total=False):
    """Keyword options of `XdpUdpSocket.open` and `XdpIpPacketSocket.open`. All are optional.

    Beside them stands ``driver=WaitDriver`` (the default) or ``driver=BusyPollDriver``: it decides the socket's type.
    """

    metadata: Metadata
    """The metadata columns wanted. Default none; what is not asked for costs nothing."""
    pool: FramePool | None
    """Frames shared with other sockets: one UMEM for all (XDP_SHARED_UMEM); its layouts must be `umem_layouts`.
    Excludes the next six. Default: a pool of its own."""
    rx_layout: BufferLayout | None
    tx_layout: BufferLayout | None
    rx_frames: int
    """Default 4096. FILL takes as many as it has entries; those in batches and packets are missing there meanwhile."""
    tx_frames: int
    """Default 4096."""
    huge_pages: bool
    """Ask for transparent huge pages for the UMEM. Default False."""
    numa_node: int | Literal["device"] | None
    """Take the UMEM's memory from this NUMA node, or from the device's own. Default None: where the thread runs that
    opens the socket. What came of this and of `huge_pages`, ``pool.memory.placement()`` says; less is logged."""
    min_batch: int
    """With max_wait: hold a wake-up back while receives return fewer packets than this. Default 1."""
    max_wait: float
    """Seconds that a wake-up is held back, at most. Default 0: not at all."""
    rx_ring: int
    """Entries, a power of two. Default 2048."""
    tx_ring: int
    """Default 2048."""
    fill_ring: int
    """Default: enough for all receive frames of the socket's own pool, for half of those of a given one; at the most
    4096. It bounds the frames that wait for packets."""
    completion_ring: int
    """Default 4096. No more frames are on their way at once."""
    mode: Literal["auto", "copy", "zero_copy"]
    """How packets get into the UMEM. "auto" tries zero-copy and says which is in force (`zero_copy`); a mode asked for
    by name that the driver refuses is a `CapabilityError`. Default "auto"."""
    attach: Literal["auto", "native", "generic", "offload"]
    """Where the XDP program runs. Default "auto": native, else generic."""
    program: Any
    """An `XdpProgram` to use, which stays the caller's. Default: one of its own, attached by open and detached by
    close."""
    router: Any
    """Any `XdpUdpRouter`. Default: an `XdpQueueLocalRouter` over the kernel's tables."""
    unresolved: Literal["hold", "raise"]
    """What `send` does with a packet whose neighbour is not resolved yet: keep it in the batch and return, or raise
    `SendError`. Default "hold"."""
    ttl: int
    """TTL and hop limit. Default 64."""
    tos: int
    """The DSCP/ECN byte. Default 0."""
    dont_fragment: bool
    """Set DF on IPv4; without it each datagram gets an identification (RFC 6864). Default True."""
    udp_checksum: bool
    """Write UDP checksums over IPv4; over IPv6 they always are. Default True."""
    need_wakeup: bool
    """XDP_USE_NEED_WAKEUP: system calls only when the driver sleeps. Default True."""
    multi_buffer: bool
    """XDP_USE_SG (Linux 6.6): packets larger than a chunk arrive in several slots, see the column `continued`. Default
    False."""
    tx_budget: int | None
    """XDP_MAX_TX_SKB_BUDGET (Linux 6.18): descriptors that copy mode sends in one system call; 32 without."""
    busy_poll: int | None
    """SO_BUSY_POLL: microseconds."""
    prefer_busy_poll: bool
    """SO_PREFER_BUSY_POLL (Linux 5.11, CAP_NET_ADMIN). Default False."""
    busy_poll_budget: int | None
    """SO_BUSY_POLL_BUDGET (Linux 5.11): packets per spin."""


class XdpUdpOptions(XdpOptions, total=False):
    """Those of `XdpUdpSocket.open`: beside `XdpOptions`, what only UDP has."""

    ports: Iterable[int] | None
    """Receive on all of these, instead of on the local address's port only."""
    v6only: bool
    """With "[::]": do not take IPv4. Default False."""
    fallback: UdpSocket[Any, Any, Any, Any] | None
    """Another socket, say an `OsUdpSocket`, that sends what no way leads to from this device: to this host, through
    another device, without a route. It stays the caller's, and serves one thread at a time unless it takes several.
    Payload and segment size go along; other metadata do not, and the source is the fallback's. Default None: such
    packets raise `SendError`."""


#: For every socket kind: the columns that AF_XDP can fill.
UDP_METADATA = (
    Metadata.ECN | Metadata.LOCAL | Metadata.TTL | Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP | Metadata.VLAN
    | Metadata.CHECKSUM
)  # fmt: skip
IP_METADATA = Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP | Metadata.VLAN | Metadata.CHECKSUM


def umem_layouts(
    rx_layout: BufferLayout | None = None, tx_layout: BufferLayout | None = None, *, mtu: int = 1500
) -> tuple[BufferLayout, BufferLayout]:
    """The two layouts as a UMEM needs them: room for the headers in front, and one power-of-two chunk size for both.

    What is given counts as the least that is wanted; without, a frame holds what a link with this `mtu` delivers.
    Raises `ConfigError` where no chunk is large enough: chunks end at a page, 4096 bytes.
    """
    rx = rx_layout or BufferLayout(payload_capacity=1)
    tx = tx_layout or BufferLayout(payload_capacity=1)
    l2 = max(rx.l2_headroom, tx.l2_headroom, L2_HEADROOM)
    # A received frame starts behind the kernel's headroom and the caller's; its payload behind its headers.
    received = (
        max(XDP_HEADROOM, l2) + rx.headroom + max(LINK_OVERHEAD + (0 if rx_layout else mtu), 64 + rx.payload_capacity)
    )
    needed = max(received + rx.tailroom, l2 + tx.headroom + tx.payload_capacity + tx.tailroom,
                 0 if tx_layout else l2 + mtu)  # fmt: skip
    chunk = LEAST_CHUNK
    while chunk < needed:
        chunk *= 2
    if chunk > MOST_CHUNK:
        raise ConfigError(
            f"a frame needs {needed} bytes (XDP headroom {XDP_HEADROOM}, headroom, headers, payload, MTU {mtu}), but a "
            f"chunk of a UMEM has {MOST_CHUNK} at the most: ask for less, or for multi_buffer=True"
        )
    return (
        dataclasses.replace(rx, l2_headroom=l2, chunk_size=chunk,
                            payload_capacity=chunk - l2 - rx.headroom - rx.tailroom),
        dataclasses.replace(tx, l2_headroom=l2, chunk_size=chunk,
                            payload_capacity=chunk - l2 - tx.headroom - tx.tailroom),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CheckedOptions:
    """The options, the driver and the local address, with every default filled in and every value checked."""

    device: Any
    metadata: Metadata = Metadata.NONE
    pool: FramePool | None = None
    rx_layout: BufferLayout | None = None
    tx_layout: BufferLayout | None = None
    rx_frames: int = 0
    tx_frames: int = 0
    huge_pages: bool = False
    numa_node: int | str | None = None
    driver: type[WaitDriver] | type[BusyPollDriver] = WaitDriver
    min_batch: int = 1
    max_wait: float = 0.0
    rx_ring: int = 2048
    tx_ring: int = 2048
    fill_ring: int = 0
    completion_ring: int = 4096
    mode: str = "auto"
    attach: str = "auto"
    program: Any = None
    router: Any = None
    unresolved: str = "hold"
    ttl: int = 64
    tos: int = 0
    dont_fragment: bool = True
    udp_checksum: bool = True
    need_wakeup: bool = True
    multi_buffer: bool = False
    tx_budget: int | None = None
    busy_poll: int | None = None
    prefer_busy_poll: bool = False
    busy_poll_budget: int | None = None
    # UDP
    host: str = ""
    port: int = 0
    ports: Any = None
    v6only: bool = False
    fallback: Any = None
    # IP packets
    takes_v4: bool = True
    takes_v6: bool = True
    # What follows from them
    any_host: bool = True
    v6: bool = False
    several_ports: bool = False
    source_v4: bytes | None = None
    source_v6: bytes | None = None

    @classmethod
    def check_udp(cls, device: Any, local: Address, options: XdpUdpOptions) -> "CheckedOptions":
        """For `XdpUdpSocket.open`. Raises `ConfigError` for an unknown name as for a bad value."""
        cls._check_names(options, XdpUdpOptions)
        host, port = parse_address(local, "local")
        if port == 0:
            raise ConfigError(f"local is {local!r}: port 0 receives nothing here, no kernel chooses one: give a port")
        host = host.partition("%")[0]
        address = ip_address(host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
            host = str(address)
        given: dict[str, Any] = dict(options)
        ports = given.pop("ports", None)
        if ports is None:
            ports = (port,)
        try:
            ports = frozenset(ports)
        except TypeError:
            raise ConfigError(f"ports is {ports!r}: give port numbers, say range(9000, 9010)") from None
        for number in ports:
            if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 65_535:
                raise ConfigError(f"ports has {number!r}: give ints from 1 to 65535")
        if not ports:
            raise ConfigError("ports is empty: give at least one")
        v6only = given.get("v6only", False)
        v6 = address.version == 6
        dual = v6 and address.is_unspecified and not v6only
        # What goes to a group or to all arrives here, but nothing can leave from such an address.
        shared = address.is_unspecified or address.is_multicast or address == LIMITED_BROADCAST
        return cls(
            device=as_device(device),
            **given,
            host=host,
            port=port,
            ports=ports,
            takes_v4=not v6 or dual,
            takes_v6=v6,
            any_host=address.is_unspecified,
            v6=v6,
            several_ports=len(ports) > 1 or port not in ports,
            source_v4=address.packed if isinstance(address, IPv4Address) and not shared else None,
            source_v6=address.packed if isinstance(address, IPv6Address) and not shared else None,
        )

    @classmethod
    def check_ip(cls, device: Any, families: Any, options: XdpOptions) -> "CheckedOptions":
        """For `XdpIpPacketSocket.open`."""
        cls._check_names(options, XdpOptions)
        return cls(
            device=as_device(device), **options, takes_v4=families.value != "v6", takes_v6=families.value != "v4"
        )  # fmt: skip

    @staticmethod
    def _check_names(options: Any, accepted: Any) -> None:
        known = {"driver", *accepted.__annotations__}
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}: the options are {', '.join(sorted(known))}")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{field.name} is {value!r}: give True or False")
        for name, least, most in (
            ("rx_frames", 0, 1 << 20),
            ("tx_frames", 0, 1 << 20),
            ("min_batch", 1, 1 << 20),
            ("ttl", 1, 255),
            ("tos", 0, 255),
            ("rx_ring", 2, 1 << 16),
            ("tx_ring", 2, 1 << 16),
            ("fill_ring", 0, 1 << 16),
            ("completion_ring", 2, 1 << 16),
            ("tx_budget", LEAST_TX_BUDGET, self.tx_ring),
            ("busy_poll", 0, (1 << 31) - 1),
            ("busy_poll_budget", 1, 65_535),
        ):
            value = getattr(self, name)
            if value is None and name in ("tx_budget", "busy_poll", "busy_poll_budget"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{name} is {value!r}: give an int from {least} to {most}")
            if name.endswith("_ring") and (value & (value - 1) or value == 1):
                raise ConfigError(f"{name} is {value}: give a power of two")
        for name, kind in (
            ("metadata", Metadata),
            ("rx_layout", BufferLayout),
            ("tx_layout", BufferLayout),
            ("pool", FramePool),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) and (value is not None or name == "metadata"):
                raise ConfigError(f"{name} is {value!r}: give a {kind.__name__}")
        choices: Sequence[tuple[str, tuple[Any, ...]]] = (
            ("driver", (WaitDriver, BusyPollDriver)),
            ("mode", ("auto", "copy", "zero_copy")),
            ("attach", ("auto", "native", "generic", "offload")),
            ("unresolved", ("hold", "raise")),
        )
        for name, accepted in choices:
            value = getattr(self, name)
            if not isinstance(value, str | type) or value not in accepted:
                raise ConfigError(f"{name} is {value!r}: give one of {accepted}")
        if isinstance(self.numa_node, str) and self.numa_node != "device":
            raise ConfigError(f"numa_node is {self.numa_node!r}: give a node's number, 'device' or None")
        if isinstance(self.max_wait, bool) or not isinstance(self.max_wait, int | float) or not 0 <= self.max_wait <= 1:
            raise ConfigError(f"max_wait is {self.max_wait!r}: give seconds from 0 to 1")
        if self.router is not None and not (
            hasattr(self.router, "generation") and callable(getattr(self.router, "resolve", None))
        ):
            raise ConfigError(
                f"router is {self.router!r}: give an XdpUdpRouter, with generation and resolve(destination)"
            )
        if self.fallback is not None and not all(
            callable(getattr(self.fallback, name, None)) for name in ("tx_batch", "send")
        ):
            raise ConfigError(f"fallback is {self.fallback!r}: give a UDP socket, say an OsUdpSocket")
        unavailable = self.metadata & Metadata.TXTIME
        if unavailable:
            raise CapabilityError(f"AF_XDP sockets do not offer {unavailable}: OS sockets do")
        if self.pool is not None and (
            self.rx_layout or self.tx_layout or self.rx_frames or self.tx_frames or self.huge_pages
            or self.numa_node is not None
        ):  # fmt: skip
            raise ConfigError(
                "pool is given: its frames are fixed, leave rx_layout, tx_layout, rx_frames, tx_frames, huge_pages and "
                "numa_node out"
            )

    @property
    def source(self) -> IpAddress | None:
        """What packets leave from, where that is fixed."""
        packed = self.source_v4 or self.source_v6
        return ip_address(packed) if packed else None

    def fill_entries(self, pool: FramePool) -> int:
        """The size of the FILL ring on this pool."""
        if self.fill_ring:
            return self.fill_ring
        if self.pool is not None:
            return min(1 << max(pool.rx_frames // 2, 2).bit_length() - 1, 4096)
        return min(1 << max(pool.rx_frames - 1, 1).bit_length(), 4096)

    @property
    def wants_timestamps(self) -> bool:
        """Whether the program is to put a timestamp in front of each packet."""
        return bool(self.metadata & (Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP))

    @staticmethod
    def rx_headroom(pool: FramePool) -> int:
        """What the UMEM leaves free before each received frame, beside the kernel's own headroom."""
        layout = pool.rx_layout
        return int(layout.headroom) + max(int(layout.l2_headroom) - XDP_HEADROOM, 0)

    def make_pool(self, device: Any) -> FramePool:
        """The pool that was given, or one whose frames hold what the device delivers."""
        if self.pool is not None:
            return self.pool
        mtu = device.mtu
        if self.multi_buffer:
            mtu = min(mtu, MOST_CHUNK - XDP_HEADROOM - LINK_OVERHEAD - L2_HEADROOM)
        node = self.numa_node
        if isinstance(node, str):  # "device"; -1: it has none, all are as near
            node = None if device.numa_node < 0 else int(device.numa_node)
        rx_layout, tx_layout = umem_layouts(self.rx_layout, self.tx_layout, mtu=mtu)
        return FramePool(
            rx_frames=self.rx_frames or 4096,
            tx_frames=self.tx_frames or 4096,
            rx_layout=rx_layout,
            tx_layout=tx_layout,
            huge_pages=self.huge_pages,
            numa_node=node,
        )


def as_device(device: Any) -> Any:
    """An interface's name becomes an `XdpDevice`; a device of any kind stays what it is."""
    if isinstance(device, str):
        from fast_socket.xdp.device import XdpDevice

        return XdpDevice(device)
    if not hasattr(device, "open_queue"):
        raise ConfigError(f"device is {device!r}: give an interface's name, or a SimulatedDevice")
    return device
