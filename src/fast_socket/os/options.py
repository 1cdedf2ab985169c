"""The options of an OS UDP socket: checked as a whole, then applied to a standard `socket.socket`, once.

Python's socket module lacks many constants of Linux; they are defined here and nowhere else, each with its source.
"""

import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from ipaddress import ip_address
from typing import Any, Literal, TypedDict

from fast_socket.core.addresses import Address, parse_address
from fast_socket.core.errors import CapabilityError, ConfigError, Error
from fast_socket.core.frames import FramePool
from fast_socket.core.layout import MAX_DATAGRAM, BufferLayout
from fast_socket.core.metadata import Metadata, PathMtu
from fast_socket.core.polling import BusyPollDriver, WaitDriver

log = logging.getLogger("fast_socket.os")

# include/uapi/linux/in.h
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_RECVTTL = 12
IP_RECVTOS = 13
IP_MTU = 14
IP_PKTINFO = 8
MCAST_JOIN_GROUP = 42
MCAST_LEAVE_GROUP = 45
MCAST_JOIN_SOURCE_GROUP = 46
MCAST_LEAVE_SOURCE_GROUP = 47
PATH_MTU_VALUES = {
    PathMtu.DONT: 0,
    PathMtu.WANT: 1,
    PathMtu.DO: 2,
    PathMtu.PROBE: 3,
    PathMtu.INTERFACE: 4,
    PathMtu.OMIT: 5,
}
# include/uapi/linux/in6.h
IPV6_MTU_DISCOVER = 23
IPV6_MTU = 24
IPV6_RECVERR = 25
# include/uapi/asm-generic/socket.h
SO_INCOMING_CPU = 49
SO_TIMESTAMPNS = 35
SO_TIMESTAMPING = 37
SO_BUSY_POLL = 46
SO_MEMINFO = 55
SO_TXTIME = 61
SO_PREFER_BUSY_POLL = 69
SO_BUSY_POLL_BUDGET = 70
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
# include/uapi/linux/udp.h
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
# include/uapi/linux/net_tstamp.h
SOF_TIMESTAMPING_RX_HARDWARE = 1 << 2
SOF_TIMESTAMPING_RX_SOFTWARE = 1 << 3
SOF_TIMESTAMPING_SOFTWARE = 1 << 4
SOF_TIMESTAMPING_RAW_HARDWARE = 1 << 6
# include/uapi/linux/sock_diag.h: the index of the drop counter among SO_MEMINFO's u32s
SK_MEMINFO_DROPS = 8
SK_MEMINFO_VARS = 9
# include/uapi/linux/time.h
PACING_CLOCKS = {"monotonic": 1, "tai": 11}

#: A receive frame holds any datagram of an Ethernet without jumbo frames, and more.
DEFAULT_PAYLOAD = 2048


class OsUdpOptions(TypedDict, total=False):
    """Keyword options of `OsUdpSocket.bind`, `connect` and `from_socket`. All are optional.

    Beside them stands ``driver=WaitDriver`` (the default) or ``driver=BusyPollDriver``: it decides the socket's type.
    """

    gso: bool
    """Coalesce equal-sized runs to one peer into large sends, where the kernel can. Default True (Linux 4.18)."""
    gso_size: int
    """Set this segment size, in bytes, on the socket itself (UDP_SEGMENT): large sends of such segments then go without
    a control message, every other send needs one. It cuts nothing by itself. Default 0: not set."""
    gro: bool
    """Receive coalesced datagrams as one packet with a stride. Default False: a packet is a datagram (Linux 5.0)."""
    metadata: Metadata
    """The metadata columns wanted, on receive and transmit. Default none; what is not asked for costs nothing."""
    pool: FramePool | None
    """Frames shared with other sockets; excludes the next five. Default: a pool of its own."""
    rx_layout: BufferLayout | None
    """Default 2048 bytes of payload, 65,535 with gro."""
    tx_layout: BufferLayout | None
    """Default 2048 bytes of payload."""
    rx_frames: int
    """Default 2048, 1024 with gro."""
    tx_frames: int
    """Default 2048."""
    huge_pages: bool
    """Ask for transparent huge pages for the frames: fewer TLB misses, for 2 MiB of memory at the least. Default
    False."""
    min_batch: int
    """With max_wait: hold a wake-up back while receives return fewer packets than this. Default 1."""
    max_wait: float
    """Seconds that a wake-up is held back, at most. Default 0: not at all."""
    reuse_port: bool
    """SO_REUSEPORT: several sockets share the port, the kernel spreads flows over them. Default False."""
    reuse_address: bool
    """SO_REUSEADDR. Default False."""
    incoming_cpu: int | None
    """SO_INCOMING_CPU: prefer packets handled on this CPU, among sockets that share a port (Linux 4.4)."""
    device: str | None
    """SO_BINDTODEVICE: only this interface."""
    v6only: bool | None
    """IPV6_V6ONLY; None leaves the system's default, which is dual-stack unless configured otherwise."""
    broadcast: bool
    """SO_BROADCAST: may send to broadcast addresses. Default False."""
    recv_buffer: int | None
    """Bytes of the kernel's receive buffer, as charged, overheads included; see `recv_buffer_size` for what is in
    force. None leaves the system's default."""
    send_buffer: int | None
    """As recv_buffer, for sending."""
    ttl: int | None
    """TTL and hop limit of unicast datagrams, 1..255."""
    multicast_ttl: int | None
    """TTL and hop limit of multicast datagrams, 0..255; the system's default is 1."""
    multicast_loop: bool | None
    """Whether this host's own receivers get what it sends to a group; the system's default is True."""
    multicast_interface: str | None
    """The interface that multicast leaves through."""
    tos: int | None
    """The whole DSCP/ECN byte of the IP header, 0..255."""
    path_mtu: PathMtu | None
    """Don't-fragment and path-MTU policy."""
    busy_poll: int | None
    """SO_BUSY_POLL: microseconds to spin on the device queue inside a blocking wait. Some kernels want
    CAP_NET_ADMIN to raise it."""
    prefer_busy_poll: bool
    """SO_PREFER_BUSY_POLL (Linux 5.11). Default False."""
    busy_poll_budget: int | None
    """SO_BUSY_POLL_BUDGET (Linux 5.11): packets per spin."""
    pacing_clock: Literal["monotonic", "tai"]
    """The clock of Metadata.TXTIME departure times: what the qdisc wants, "monotonic" for fq (the default), "tai" for
    etf. SO_TXTIME, Linux 4.19."""
    report_enobufs: bool
    """IP_RECVERR: have drops in this host's own queues reported as SendError (ENOBUFS) instead of not at all.
    Default False."""
    icmp_errors: Literal["count", "raise"]
    """What an ICMP error for an earlier datagram does to the next call of a connected socket: "count" makes the
    call again and counts it in stats().stale_errors, and raises only what persists on send; "raise" raises it."""
    batch_calls: bool
    """False: one system call per datagram, no GSO (and gro=True is refused), for systems without sendmmsg and
    recvmmsg. It is chosen by itself where the kernel refuses them. Default True."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOptions:
    """`OsUdpOptions` and the driver, with every default filled in and every value checked."""

    gso: bool = True
    gso_size: int = 0
    gro: bool = False
    metadata: Metadata = Metadata.NONE
    pool: FramePool | None = None
    rx_layout: BufferLayout | None = None
    tx_layout: BufferLayout | None = None
    rx_frames: int = 0
    tx_frames: int = 0
    huge_pages: bool = False
    driver: type[WaitDriver] | type[BusyPollDriver] = WaitDriver
    min_batch: int = 1
    max_wait: float = 0.0
    reuse_port: bool = False
    reuse_address: bool = False
    incoming_cpu: int | None = None
    device: str | None = None
    v6only: bool | None = None
    broadcast: bool = False
    recv_buffer: int | None = None
    send_buffer: int | None = None
    ttl: int | None = None
    multicast_ttl: int | None = None
    multicast_loop: bool | None = None
    multicast_interface: str | None = None
    tos: int | None = None
    path_mtu: PathMtu | None = None
    busy_poll: int | None = None
    prefer_busy_poll: bool = False
    busy_poll_budget: int | None = None
    pacing_clock: str = "monotonic"
    report_enobufs: bool = False
    icmp_errors: str = "count"
    batch_calls: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is not None:
                raise ConfigError(f"{field.name} is None: leave it out for the default, {field.default!r}")
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{field.name} is {value!r}: give True or False")
        for name in ("v6only", "multicast_loop"):
            if not isinstance(getattr(self, name), bool | None):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: give True, False or None")
        for name, least, most in (
            ("gso_size", 0, MAX_DATAGRAM),
            ("rx_frames", 0, 1 << 24),
            ("tx_frames", 0, 1 << 24),
            ("min_batch", 1, 1 << 20),
            ("incoming_cpu", 0, 1 << 16),
            ("recv_buffer", 1, (1 << 31) - 1),
            ("send_buffer", 1, (1 << 31) - 1),
            ("ttl", 1, 255),
            ("multicast_ttl", 0, 255),
            ("tos", 0, 255),
            ("busy_poll", 0, (1 << 31) - 1),
            ("busy_poll_budget", 1, 65_535),
        ):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most
            ):
                raise ConfigError(f"{name} is {value!r}: give an int from {least} to {most}")
        for name, kind in (
            ("metadata", Metadata),
            ("rx_layout", BufferLayout),
            ("tx_layout", BufferLayout),
            ("pool", FramePool),
            ("path_mtu", PathMtu),
            ("device", str),
            ("multicast_interface", str),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ConfigError(f"{name} is {value!r}: give a {kind.__name__}")
        for name, accepted in (
            ("driver", (WaitDriver, BusyPollDriver)),
            ("pacing_clock", tuple(PACING_CLOCKS)),
            ("icmp_errors", ("count", "raise")),
        ):
            value = getattr(self, name)
            if not isinstance(value, str | type) or value not in accepted:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: give one of {accepted}")
        if not isinstance(self.max_wait, (int, float)) or not 0 <= self.max_wait <= 1:
            raise ConfigError(f"max_wait is {self.max_wait!r}: give seconds from 0 to 1")
        unavailable = self.metadata & (Metadata.CHECKSUM | Metadata.VLAN)
        if unavailable:
            raise CapabilityError(f"OS sockets cannot deliver {unavailable}: the kernel keeps it; AF_XDP sockets can")
        if Metadata.TXTIME in self.metadata and self.metadata & (Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP):
            raise ConfigError("metadata has TXTIME and a receive timestamp: use one socket for each")
        if self.pool is not None and (
            self.rx_layout or self.tx_layout or self.rx_frames or self.tx_frames or self.huge_pages
        ):
            raise ConfigError(
                "pool is given: its frames are fixed, leave rx_layout, tx_layout, rx_frames, tx_frames, huge_pages out"
            )
        if not self.batch_calls and self.gro:
            raise ConfigError("batch_calls=False is one datagram per call: it excludes gro=True")
        if self.gso_size and not (self.gso and self.batch_calls):
            raise ConfigError(f"gso_size is {self.gso_size}: it needs gso=True and batch_calls=True, the defaults")

    @classmethod
    def check(cls, options: OsUdpOptions) -> "CheckedOptions":
        """Raises `ConfigError` for an unknown name as for a bad value."""
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}: the options are {', '.join(sorted(known))}")
        return cls(**options)

    def make_pool(self) -> FramePool:
        """The pool that was given, or one as the options say."""
        if self.pool is not None:
            return self.pool
        capacity = MAX_DATAGRAM if self.gro else DEFAULT_PAYLOAD
        return FramePool(
            rx_frames=self.rx_frames or (1024 if self.gro else 2048),
            tx_frames=self.tx_frames or 2048,
            rx_layout=self.rx_layout or BufferLayout(payload_capacity=capacity),
            tx_layout=self.tx_layout or BufferLayout(payload_capacity=DEFAULT_PAYLOAD),
            huge_pages=self.huge_pages,
        )


def open_bound(address: Address, options: CheckedOptions) -> socket.socket:
    """A socket with its options, bound. Raises `ConfigError`, `CapabilityError` or `Error`; leaves nothing open."""
    host, port = parse_address(address)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        apply(sock, options, adopted=False)
        _call(f"cannot bind {address!r}", sock.bind, _resolved(host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def open_connected(remote: Address, local: Address | None, options: CheckedOptions) -> socket.socket:
    """A socket with its options, bound to `local` if there is one, connected. Raises as `open_bound`."""
    host, port = parse_address(remote, "remote")
    if port == 0:
        raise ConfigError(f"remote is {remote!r}: nothing can be sent to port 0")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if local is not None and (":" in parse_address(local, "local")[0]) != (family == socket.AF_INET6):
        raise ConfigError(f"local is {local!r} and remote {remote!r}: give two addresses of one family")
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        apply(sock, options, adopted=False)
        if local is not None:
            _call(f"cannot bind {local!r}", sock.bind, _resolved(*parse_address(local, "local")))
        _call(f"cannot connect to {remote!r}", sock.connect, _resolved(host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def adopt(sock: socket.socket, options: CheckedOptions) -> socket.socket:
    """Check a socket that somebody else made, and apply the options. Raises `ConfigError` for anything but an open UDP
    socket."""
    if not isinstance(sock, socket.socket):
        raise ConfigError(f"from_socket({sock!r}): give a socket.socket")
    if sock.fileno() < 0:
        raise ConfigError("from_socket: the socket is closed")
    kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or kind != socket.SOCK_DGRAM or protocol != SOL_UDP:
        raise ConfigError(f"from_socket({sock!r}): give a UDP socket over IPv4 or IPv6")
    apply(sock, options, adopted=True)
    # Left on by its former owner, these would cut a datagram into several, or deliver several as one, unseen.
    for option, wanted in ((UDP_SEGMENT, False), (UDP_GRO, options.gro)):
        with contextlib.suppress(OSError):
            sock.setsockopt(SOL_UDP, option, int(wanted))
    return sock


def _resolved(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    bare, _, zone = host.partition("%")
    if not zone:
        return host, port
    scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return bare, port, 0, scope


def _call(what: str, function: Callable[[Any], None], address: tuple[Any, ...]) -> None:
    try:
        function(address)
    except OSError as error:
        hint = {
            errno.EADDRINUSE: "; another socket has this port: close it, or give both reuse_port=True",
            errno.EADDRNOTAVAIL: "; it is not an address of this host",
            errno.EACCES: "; a port below 1024 needs CAP_NET_BIND_SERVICE, a broadcast address broadcast=True",
        }.get(error.errno or 0, "")
        raise Error(what + hint, error.errno) from error


def apply(sock: socket.socket, options: CheckedOptions, *, adopted: bool) -> None:
    """Set every option that was asked for. `adopted`: the socket is bound already, so what binding fixes is refused."""
    o, v6 = options, sock.family == socket.AF_INET6
    if adopted and (o.reuse_port or o.reuse_address or o.v6only is not None):
        raise ConfigError("reuse_port, reuse_address and v6only take effect at bind: set them on the socket itself")

    def put(name: str, level: int, option: int, value: int | bytes, needs: str = "") -> None:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            kind = CapabilityError if needs else ConfigError
            raise kind(f"cannot set {name}{f', which needs {needs}' if needs else ''}", error.errno) from error

    ip, ipv6, base = socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.SOL_SOCKET

    def put_ip(name: str, option: int, option6: int, value: int, needs: str = "") -> None:
        """An IPv6 socket may carry IPv4 too, and takes that family's options beside its own."""
        put(name, ip, option, value, needs)
        if v6:
            put(name, ipv6, option6, value, needs)

    if o.v6only is not None and not v6:
        raise ConfigError(f"v6only is {o.v6only}, but the socket is IPv4: leave it out, or bind to an IPv6 address")
    if o.v6only is not None:
        put("v6only", ipv6, socket.IPV6_V6ONLY, o.v6only)
    for name, option, wanted in (
        ("reuse_port", socket.SO_REUSEPORT, o.reuse_port),
        ("reuse_address", socket.SO_REUSEADDR, o.reuse_address),
        ("broadcast", socket.SO_BROADCAST, o.broadcast),
    ):
        if wanted:
            put(name, base, option, 1)
    if o.device is not None:
        interface_index(o.device, "device")
        put("device", base, socket.SO_BINDTODEVICE, o.device.encode() + b"\0", "CAP_NET_RAW before Linux 5.7")
    if o.incoming_cpu is not None:
        put("incoming_cpu", base, SO_INCOMING_CPU, o.incoming_cpu, "Linux 4.4")
    if o.recv_buffer is not None:
        _set_buffer(sock, "recv_buffer", o.recv_buffer, SO_RCVBUFFORCE, socket.SO_RCVBUF)
    if o.send_buffer is not None:
        _set_buffer(sock, "send_buffer", o.send_buffer, SO_SNDBUFFORCE, socket.SO_SNDBUF)
    if o.ttl is not None:
        put_ip("ttl", socket.IP_TTL, socket.IPV6_UNICAST_HOPS, o.ttl)
    if o.tos is not None:
        put_ip("tos", socket.IP_TOS, socket.IPV6_TCLASS, o.tos)
    if o.multicast_ttl is not None:
        put_ip("multicast_ttl", socket.IP_MULTICAST_TTL, socket.IPV6_MULTICAST_HOPS, o.multicast_ttl)
    if o.multicast_loop is not None:
        put_ip("multicast_loop", socket.IP_MULTICAST_LOOP, socket.IPV6_MULTICAST_LOOP, o.multicast_loop)
    if o.multicast_interface is not None:
        index = interface_index(o.multicast_interface, "multicast_interface")
        put("multicast_interface", ip, socket.IP_MULTICAST_IF, struct.pack("@4s4si", b"", b"", index))
        if v6:
            put("multicast_interface", ipv6, socket.IPV6_MULTICAST_IF, index)
    if o.path_mtu is not None:
        put_ip("path_mtu", IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PATH_MTU_VALUES[o.path_mtu], "Linux 4.15")
    if o.busy_poll is not None:
        put("busy_poll", base, SO_BUSY_POLL, o.busy_poll, "CAP_NET_ADMIN to raise it")
    if o.prefer_busy_poll:
        put("prefer_busy_poll", base, SO_PREFER_BUSY_POLL, 1, "Linux 5.11 and CAP_NET_ADMIN")
    if o.busy_poll_budget is not None:
        put("busy_poll_budget", base, SO_BUSY_POLL_BUDGET, o.busy_poll_budget, "Linux 5.11 and CAP_NET_ADMIN")
    if o.report_enobufs:
        put_ip("report_enobufs", IP_RECVERR, IPV6_RECVERR, 1)
    if o.gro:
        put("gro", SOL_UDP, UDP_GRO, 1, "Linux 5.0")
    if Metadata.ECN in o.metadata:
        put_ip("metadata ECN", IP_RECVTOS, socket.IPV6_RECVTCLASS, 1)
    if Metadata.TTL in o.metadata:
        put_ip("metadata TTL", IP_RECVTTL, socket.IPV6_RECVHOPLIMIT, 1)
    if Metadata.LOCAL in o.metadata:
        # An IPv6 socket asks for both: of a directed broadcast only IPv4's message says where to answer from.
        put_ip("metadata LOCAL", IP_PKTINFO, socket.IPV6_RECVPKTINFO, 1)
    if Metadata.HARDWARE_TIMESTAMP in o.metadata:
        flags = (
            SOF_TIMESTAMPING_RX_HARDWARE
            | SOF_TIMESTAMPING_RAW_HARDWARE
            | SOF_TIMESTAMPING_RX_SOFTWARE
            | SOF_TIMESTAMPING_SOFTWARE
        )
        put("metadata HARDWARE_TIMESTAMP", base, SO_TIMESTAMPING, flags, "SO_TIMESTAMPING")
    elif Metadata.TIMESTAMP in o.metadata:
        put("metadata TIMESTAMP", base, SO_TIMESTAMPNS, 1)
    if Metadata.TXTIME in o.metadata:
        # struct sock_txtime: clockid, flags
        put(
            "metadata TXTIME",
            base,
            SO_TXTIME,
            struct.pack("@iI", PACING_CLOCKS[o.pacing_clock], 0),
            "Linux 4.19, and CAP_NET_ADMIN for the tai clock",
        )


def _set_buffer(sock: socket.socket, name: str, size: int, force: int, plain: int) -> None:
    """The kernel doubles what it is given (socket(7)), and cuts it in silence without CAP_NET_ADMIN."""
    half = max(size // 2, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, half)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, half)
    got = sock.getsockopt(socket.SOL_SOCKET, plain)
    if got < size - 1:
        limit = "rmem_max" if plain == socket.SO_RCVBUF else "wmem_max"
        log.warning("%s: asked for %d bytes, the kernel gave %d: raise net.core.%s or run with CAP_NET_ADMIN",
                    name, size, got, limit)  # fmt: skip


def interface_index(name: str, what: str) -> int:
    """Raises `ConfigError` that lists the interfaces there are."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError, TypeError):
        present = ", ".join(name for _, name in socket.if_nameindex())
        raise ConfigError(f"{what} is {name!r}: there is no such interface; there are {present}") from None


def membership(sock: socket.socket, group: str, interface: str | None, source: str | None, *, join: bool) -> None:
    """Join or leave a multicast group, on one interface, for one source (SSM, RFC 4607) where it is given."""
    try:
        address = ip_address(str(group))
        origin = ip_address(str(source)) if source is not None else None
    except ValueError as error:
        raise ConfigError(f"multicast group {group!r}, source {source!r}: {error}") from None
    if not address.is_multicast:
        raise ConfigError(f"{group} is not a multicast address: give one of 224.0.0.0/4 or ff00::/8")
    if origin is not None and origin.version != address.version:
        raise ConfigError(f"group {group} and source {source} are of different families")
    if address.version == 6 and sock.family != socket.AF_INET6:
        raise ConfigError(f"group {group} is IPv6, but the socket is IPv4")
    index = interface_index(interface, "interface") if interface else 0
    # struct group_req and group_source_req (RFC 3678): the index, padded, then sockaddr_storages of 128 bytes.
    request = struct.pack("@I4x", index) + b"".join(
        (struct.pack("@HH4s", socket.AF_INET, 0, a.packed) if a.version == 4
         else struct.pack("@HHI16sI", socket.AF_INET6, 0, 0, a.packed, 0)).ljust(128, b"\0")
        for a in (address, origin)
        if a is not None
    )  # fmt: skip
    if origin is None:
        option = MCAST_JOIN_GROUP if join else MCAST_LEAVE_GROUP
    else:
        option = MCAST_JOIN_SOURCE_GROUP if join else MCAST_LEAVE_SOURCE_GROUP
    level = socket.IPPROTO_IP if address.version == 4 else socket.IPPROTO_IPV6
    try:
        sock.setsockopt(level, option, request)
    except OSError as error:
        where = f" on {interface}" if interface else ""
        origin_text = f" from {source}" if source else ""
        raise Error(f"cannot {'join' if join else 'leave'} {group}{origin_text}{where}", error.errno) from error


def kernel_drops(sock: socket.socket) -> int | None:
    """Datagrams dropped because the receive buffer was full: no cost on the packet path, unlike SO_RXQ_OVFL."""
    try:
        values = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * SK_MEMINFO_VARS)
    except OSError:
        return None
    return int(struct.unpack_from("@I", values, 4 * SK_MEMINFO_DROPS)[0])


def set_segment_size(sock: socket.socket, size: int) -> int:
    """Have the kernel cut what says nothing else at `size` bytes; returns the size in force, 0 where it refused."""
    try:
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, size)
    except OSError:
        return 0
    return size


def sending_state(sock: socket.socket) -> tuple[int, int, tuple[Any, ...] | None]:
    """The TOS byte for IPv4 peers, the traffic class for IPv6 ones, and the peer if the socket is connected."""
    try:
        peer = sock.getpeername()
    except OSError:
        peer = None
    v6 = sock.family == socket.AF_INET6
    traffic_class = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else 0
    return sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS), traffic_class, peer


def path_mtu(sock: socket.socket) -> int:
    """The kernel's present estimate for a connected socket, in bytes of the IP packet."""
    level, option = (socket.IPPROTO_IPV6, IPV6_MTU) if sock.family == socket.AF_INET6 else (socket.IPPROTO_IP, IP_MTU)
    try:
        return sock.getsockopt(level, option)
    except OSError as error:
        raise Error("the path MTU is known for connected sockets only", error.errno) from error
