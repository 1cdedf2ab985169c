"""`XdpProgram`: load the redirect program, attach it to a device, give it sockets and a filter, hand it over.

The program lives as long as somebody holds it: this object, a pin, or another process that received its fds. It leaves
its device when the last holder of the link is gone, whichever way that went: nothing stays attached after a crash. Only
a pinned link outlives its processes, which is what a pin is for.

Who holds the fds controls the program, with or without privilege; loading one takes CAP_BPF and CAP_NET_ADMIN.
One process at a time changes the filter; `insert`, `remove` and `counters` are free for all holders.
"""

import array
import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, NoReturn

from fast_socket.core.errors import CapabilityError, ConfigError, DeviceError, Error
from fast_socket.xdp.ebpf.libbpf import LOG, library

IpAddress = IPv4Address | IPv6Address

# Values of linux/if_link.h and linux/bpf.h.
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
XDP_FLAGS_HW_MODE = 1 << 3
XDP_DROP = 1
XDP_PASS = 2
BPF_MAP_TYPE_HASH = 1
BPF_MAP_TYPE_ARRAY = 2
BPF_MAP_TYPE_PERCPU_ARRAY = 6
BPF_MAP_TYPE_XSKMAP = 17
SIOCGIFMTU = 0x8921  # linux/sockios.h

# Of redirect.bpf.c.
FUNCTION = "redirect"
MAX_ADDRESSES = 1024
PORTS = 65536
PORT_WORDS = PORTS // 64
MAX_QUEUES = 4096
CONFIG = struct.Struct("=6I")
SETTINGS = struct.Struct("=4I16s16s16s")
MANY_ADDRESSES = 2  # of `check_addresses`: 0 is any, 1 one
ADDRESS_SIZE = 16
ZERO = bytes(4)

SECTIONS = {"settings": ".data", "config": ".rodata"}
LAYOUT = {
    # name: type, key size, value size
    "xsks": (BPF_MAP_TYPE_XSKMAP, 4, 4),
    "addresses": (BPF_MAP_TYPE_HASH, ADDRESS_SIZE, 4),
    "ports": (BPF_MAP_TYPE_ARRAY, 4, PORT_WORDS * 8),
    "counters": (BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8),
    "settings": (BPF_MAP_TYPE_ARRAY, 4, SETTINGS.size),
    "config": (BPF_MAP_TYPE_ARRAY, 4, CONFIG.size),
}
HANDED_OVER = ("program", *LAYOUT, "link")
"""What makes up a program, in the order of the hand-over message. The link is there while it is attached."""
MESSAGE = b"fast_socket.xdp2"
"""The data beside the fds. A change of `LAYOUT` or of the order above takes another digit."""

REFUSED_HERE = {errno.EPERM, errno.EACCES, errno.EBUSY, errno.EEXIST, errno.ENODEV}
"""What another mode would not help against."""


class Settings(NamedTuple):
    """`settings` of redirect.bpf.c."""

    generation: int
    check_0: int
    check_1: int
    attached: int
    device: bytes
    one_address_0: bytes
    one_address_1: bytes


class XdpMode(Enum):
    """Where on its way up a frame meets the program."""

    AUTO = "auto"
    """Native, or else generic; `XdpProgram.mode` says which."""
    NATIVE = "native"
    """In the driver, before the kernel allocates anything for the frame. The fast one."""
    GENERIC = "generic"
    """In the network stack, for every device; saves no more than the rest of the stack."""
    OFFLOAD = "offload"
    """On the card. No card takes a program that redirects to sockets, as far as is known."""


MODE_FLAGS = {
    XdpMode.NATIVE: XDP_FLAGS_DRV_MODE,
    XdpMode.GENERIC: XDP_FLAGS_SKB_MODE,
    XdpMode.OFFLOAD: XDP_FLAGS_HW_MODE,
}
MODE_NOTES = [None, *MODE_FLAGS]
"""The number in `settings.attached` is an index here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XdpFilter:
    """Which frames to redirect. As it stands, none: name `ports`, or ask for `all_ip`."""

    addresses: tuple[str | IpAddress, ...] = ()
    """Destination addresses. Empty: any. Kept as address objects, IPv4-mapped ones as IPv4."""
    ports: frozenset[int] | range | None = None
    """UDP destination ports."""
    all_ip: bool = False
    """Every IP packet but fragments and neighbour discovery. The kernel gets no TCP, no ping and no DHCP any more."""
    ipv4: bool = True
    ipv6: bool = True

    def __post_init__(self) -> None:
        for name in ("all_ip", "ipv4", "ipv6"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name}={value!r}: True or False")
        if not (self.ipv4 or self.ipv6):
            raise ConfigError("ipv4=False, ipv6=False: at least one must be True")
        if not isinstance(self.addresses, tuple):
            raise ConfigError(f"addresses={self.addresses!r}: a tuple of IP addresses, () for any")
        if len(self.addresses) > MAX_ADDRESSES:
            raise ConfigError(f"addresses: {len(self.addresses)} of them, at most {MAX_ADDRESSES} fit")
        object.__setattr__(self, "addresses", tuple(self._address(address) for address in self.addresses))
        if self.ports is None:
            return
        if self.all_ip:
            raise ConfigError("ports with all_ip=True: one of them; all_ip has all ports")
        if not isinstance(self.ports, frozenset | range):
            raise ConfigError(f"ports={self.ports!r}: a frozenset or a range of ports, or None")
        ends = (self.ports[0], self.ports[-1]) if isinstance(self.ports, range) and self.ports else self.ports
        for port in ends:
            if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < PORTS:
                raise ConfigError(f"ports: {port!r} in it; ports are integers from 0 to {PORTS - 1}")

    def _address(self, given: str | IpAddress) -> IpAddress:
        try:
            # ip_address() would take integers and bytes as well.
            address = ip_address(given) if isinstance(given, str) else given
            if not isinstance(address, IPv4Address | IPv6Address):
                raise ValueError("not an address")
        except ValueError as error:
            raise ConfigError(f"addresses: {given!r} is not an IPv4 or IPv6 address without a prefix length") from error
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                raise ConfigError(f"addresses: {given!r} has a scope; give the address alone")
            address = address.ipv4_mapped or address
        if address.is_unspecified:
            raise ConfigError(f"addresses: {given!r} is no destination; for any address give none")
        if not (self.ipv4 if address.version == 4 else self.ipv6):
            raise ConfigError(f"addresses: {given!r} with ipv{address.version}=False")
        return address

    def keys(self) -> set[bytes]:
        """The addresses as the program looks them up."""
        return {
            address.packed if isinstance(address, IPv6Address) else bytes(10) + b"\xff\xff" + address.packed
            for address in map(self._address, self.addresses)
        }

    def bitmap(self) -> bytes:
        """The ports as the program looks them up."""
        words = array.array("Q", bytes(PORT_WORDS * 8))
        for port in self.ports or ():
            words[port >> 6] |= 1 << (port & 63)
        return words.tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class XdpCounters:
    """Frames since the program was loaded; each frame is in one of them."""

    redirected: int = 0
    """Handed to a socket; one without a free frame in its fill ring drops it, and counts that itself."""
    not_ip: int = 0
    """ARP, other ethertypes, a third VLAN tag, any tag with vlan=False."""
    fragment: int = 0
    other_address: int = 0
    other_port: int = 0
    other_protocol: int = 0
    """A protocol or an IP version that the filter does not want; neighbour discovery."""
    malformed: int = 0
    """Lengths or version do not hold together, or the frame ends in its headers."""
    no_socket: int = 0
    """Wanted, but the queue has no socket: passed or dropped, as `miss` says."""


COUNTERS = [field.name for field in fields(XdpCounters)]


class XdpProgram:
    """A loaded redirect program. Made by `load`, `reuse` or `receive_fds`; close it, or use it in a ``with``.

    Needs Linux 5.18 and libbpf.so.1; loading and attaching need CAP_BPF and CAP_NET_ADMIN.
    """

    def __init__(self, fds: Mapping[str, int]) -> None:
        """Takes over the fds. Not for callers: use the class methods."""
        self._fds = dict(fds)
        self._lock = threading.RLock()
        self._library = library()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    # Making one

    @classmethod
    def load(
        cls,
        filter: XdpFilter,
        *,
        queues: int = 64,
        miss: Literal["pass", "drop"] = "pass",
        vlan: bool = True,
        timestamps: bool = False,
        device: str | None = None,
    ) -> "XdpProgram":
        """A new program, not attached yet.

        `queues`: receive queues that can get a socket. `miss`: what becomes of a wanted frame whose queue has none.
        `vlan`: look behind up to two VLAN tags. `timestamps`: eight bytes in front of each redirected frame hold the
        device's receive time in nanoseconds, or 0; such a program is made for one `device` and runs in native mode
        only (Linux 6.3).
        """
        if not isinstance(filter, XdpFilter):
            raise ConfigError(f"filter={filter!r}: an XdpFilter")
        if isinstance(queues, bool) or not isinstance(queues, int) or not 1 <= queues <= MAX_QUEUES:
            raise ConfigError(f"queues={queues!r}: from 1 to {MAX_QUEUES}")
        if miss not in ("pass", "drop"):
            raise ConfigError(f"miss={miss!r}: 'pass' or 'drop'")
        for name, value in (("vlan", vlan), ("timestamps", timestamps)):
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: True or False")
        if timestamps != (device is not None):
            raise ConfigError(f"timestamps={timestamps} with device={device!r}: the two go together")
        ifindex = None if device is None else _ifindex(device)
        action = XDP_DROP if miss == "drop" else XDP_PASS
        config = CONFIG.pack(filter.all_ip, filter.ipv4, filter.ipv6, vlan, action, ifindex or 0)
        path = Path(__file__).with_name("redirect_timestamps.bpf.o" if timestamps else "redirect.bpf.o")
        fds: dict[str, int] = {}
        try:
            with library().open(path) as loaded:
                loaded.set_value(".rodata", config)
                loaded.set_max_entries("xsks", queues)
                if ifindex is not None:
                    loaded.bind(FUNCTION, ifindex)
                loaded.load()
                fds["program"] = os.dup(loaded.program(FUNCTION))
                for name in LAYOUT:
                    fds[name] = os.dup(loaded.map(SECTIONS.get(name, name)))
        except OSError as error:
            for fd in fds.values():
                os.close(fd)
            _refused(error)
            if timestamps:
                raise CapabilityError(
                    f"XDP program with timestamps of {device!r}: needs Linux 6.3 and a driver that offers them; "
                    f"go without timestamps, or with those of sockets: {error.strerror}",
                    error.errno,
                ) from error
            raise CapabilityError(f"the kernel does not take the XDP program: {error.strerror}", error.errno) from error
        program = cls(fds)
        try:
            program.set_filter(filter)
        except BaseException:
            program.close()
            raise
        return program

    @classmethod
    def reuse(cls, directory_or_fds: str | os.PathLike[str] | Mapping[str, int]) -> "XdpProgram":
        """A program that another process pinned to a directory, or the fds (`fds`) of one; those stay the caller's."""
        fds: dict[str, int] = {}
        try:
            if isinstance(directory_or_fds, Mapping):
                for name, fd in directory_or_fds.items():
                    if isinstance(fd, bool) or not isinstance(fd, int) or not 0 <= fd < 1 << 31:
                        raise ConfigError(f"fds: {name}={fd!r}: give the fd of a BPF map or program")
                    fds[name] = os.dup(fd)
            elif not isinstance(directory_or_fds, str | os.PathLike):
                raise ConfigError(f"reuse({directory_or_fds!r}): give the directory of a pinned program, or its fds")
            else:
                directory = Path(directory_or_fds)
                for name in HANDED_OVER:
                    try:
                        fds[name] = library().pinned(directory / name)
                    except FileNotFoundError:
                        if name != "link":
                            raise
        except OSError as error:
            for fd in fds.values():
                os.close(fd)
            _refused(error)
            raise ConfigError(f"no XDP program to reuse in {directory_or_fds!r}", error.errno) from error
        return cls(fds)

    @classmethod
    def receive_fds(cls, sock: socket.socket) -> "XdpProgram":
        """What `send_fds` sent over a Unix socket."""
        data, fds, flags, _ = socket.recv_fds(sock, len(MESSAGE) + 1, len(HANDED_OVER), socket.MSG_CMSG_CLOEXEC)
        expected = (MESSAGE + bytes([len(HANDED_OVER)]), MESSAGE + bytes([len(HANDED_OVER) - 1]))
        if data not in expected or flags & socket.MSG_CTRUNC or len(fds) != data[-1]:
            for fd in fds:
                os.close(fd)
            raise DeviceError(f"not the hand-over of an XDP program: {data!r} with {len(fds)} fds")
        return cls(dict(zip(HANDED_OVER, fds, strict=False)))

    def _check(self) -> None:
        """That these are the fds of such a program; the kernel would take other maps without a word."""
        if unknown := self._fds.keys() - set(HANDED_OVER):
            raise ConfigError(f"fds: {sorted(unknown)} unknown; accepted: {', '.join(HANDED_OVER)}")
        if missing := [name for name in HANDED_OVER[:-1] if name not in self._fds]:
            raise ConfigError(f"fds: {', '.join(missing)} missing")
        for name, expected in LAYOUT.items():
            try:
                info = self._library.map_info(self._fds[name])
            except OSError as error:
                _refused(error)
                raise ConfigError(f"fds: {name}={self._fds[name]} is not a BPF map", error.errno) from error
            if (info.type, info.key_size, info.value_size) != expected:
                raise ConfigError(f"fds: {name}={self._fds[name]} is a map, but not one of this XDP program")
        self.queues: int = self._library.map_info(self._fds["xsks"]).max_entries

    # State

    @property
    def fd(self) -> int:
        """Of the program."""
        return self._fd("program")

    @property
    def fds(self) -> dict[str, int]:
        """All that makes up the program, for `reuse`. They stay this object's."""
        self._fd("program")
        return dict(self._fds)

    @property
    def timestamps(self) -> bool:
        """Whether each redirected frame has its receive time in front."""
        with self._lock:
            return bool(CONFIG.unpack(self._library.lookup(self._fd("config"), ZERO, CONFIG.size))[5])

    @property
    def device(self) -> str | None:
        """What it is attached to, under the name from then."""
        with self._lock:
            return os.fsdecode(self._settings().device.rstrip(b"\0")) if "link" in self._fds else None

    @property
    def mode(self) -> XdpMode | None:
        """How it is attached: never AUTO."""
        with self._lock:
            return MODE_NOTES[self._settings().attached] if "link" in self._fds else None

    def _fd(self, name: str) -> int:
        try:
            return self._fds[name]
        except KeyError:
            raise ConfigError("the XDP program is closed") from None

    def _settings(self) -> Settings:
        return Settings._make(SETTINGS.unpack(self._library.lookup(self._fd("settings"), ZERO, SETTINGS.size)))

    def counters(self) -> XdpCounters:
        """Summed over all CPUs."""
        size = 8 * self._library.possible_cpus()
        with self._lock:  # so that nobody closes the fd, and its number is not another's
            fd = self._fd("counters")
            found = [self._library.lookup(fd, at.to_bytes(4, sys.byteorder), size) for at in range(len(COUNTERS))]
        return XdpCounters(**{name: sum(array.array("Q", each)) for name, each in zip(COUNTERS, found, strict=True)})

    # Filter and sockets

    def set_filter(self, filter: XdpFilter) -> None:
        """Other addresses and ports, while frames arrive. A frame meets the old filter or the new one, no mixture."""
        if not isinstance(filter, XdpFilter):
            raise ConfigError(f"filter={filter!r}: an XdpFilter")
        with self._lock:
            all_ip, ipv4, ipv6, *_ = CONFIG.unpack(self._library.lookup(self._fd("config"), ZERO, CONFIG.size))
        for name, fixed in (("all_ip", all_ip), ("ipv4", ipv4), ("ipv6", ipv6)):
            if getattr(filter, name) != bool(fixed):
                raise ConfigError(f"{name}={not fixed}: was {bool(fixed)} when the program was loaded, and stays so")
        with self._lock:
            self._write(filter)

    def _write(self, filter: XdpFilter) -> None:
        update, addresses = self._library.update, self._fd("addresses")
        settings = self._settings()
        old = settings.generation
        new = 1 - old
        wanted = filter.keys()
        present = {
            key: int.from_bytes(self._library.lookup(addresses, key, 4), sys.byteorder)
            for key in list(self._library.keys(addresses, ADDRESS_SIZE))
        }
        # An earlier change that was cut short may have left bits of the generation that comes.
        for key in present.keys() | wanted:
            value = present.get(key, 0) & (1 << old) | (key in wanted) << new
            if value:
                update(addresses, key, value.to_bytes(4, sys.byteorder))
            else:
                self._library.delete(addresses, key)
        update(self._fd("ports"), new.to_bytes(4, sys.byteorder), filter.bitmap())
        check = min(len(wanted), MANY_ADDRESSES)
        one = next(iter(wanted), bytes(ADDRESS_SIZE))
        if new:
            settings = settings._replace(check_1=check, one_address_1=one)
        else:
            settings = settings._replace(check_0=check, one_address_0=one)
        self._note(settings)
        self._note(settings._replace(generation=new))
        for key in present.keys() - wanted:
            if present[key] & (1 << old):
                self._library.delete(addresses, key)

    def _note(self, settings: Settings) -> None:
        self._library.update(self._fd("settings"), ZERO, SETTINGS.pack(*settings))

    def insert(self, queue: int, fd: int) -> None:
        """Gives the frames of a receive queue to an AF_XDP socket, instead of the one before.

        Bind it to that queue first: what is redirected to a socket that cannot receive is lost. It may be another
        process's socket, received with SCM_RIGHTS. Closed, it leaves the queue by itself.
        """
        self._check_queue(queue)
        if isinstance(fd, bool) or not isinstance(fd, int) or not -1 <= fd < 1 << 31:
            raise ConfigError(f"fd={fd!r}: the fd of an AF_XDP socket")
        try:
            with self._lock:
                self._library.update(
                    self._fd("xsks"), queue.to_bytes(4, sys.byteorder), fd.to_bytes(4, sys.byteorder, signed=True)
                )
        except OSError as error:
            _refused(error)
            raise ConfigError(f"fd={fd}: the fd of an AF_XDP socket", error.errno) from error

    def remove(self, queue: int) -> None:
        """Takes the socket off a queue. Nothing happens where there is none."""
        self._check_queue(queue)
        with self._lock, contextlib.suppress(FileNotFoundError):
            self._library.delete(self._fd("xsks"), queue.to_bytes(4, sys.byteorder))

    def _check_queue(self, queue: int) -> None:
        if isinstance(queue, bool) or not isinstance(queue, int) or not 0 <= queue < self.queues:
            raise ConfigError(f"queue={queue!r}: from 0 to {self.queues - 1}; `queues` of load() makes room for more")

    # Device

    def attach(self, device: str, mode: XdpMode = XdpMode.AUTO) -> None:
        """Frames that `device` receives meet the program from now on. On some cards the link goes down for a moment."""
        if not isinstance(mode, XdpMode):
            raise ConfigError(f"mode={mode!r}: one of {', '.join(map(str, XdpMode))}")
        with self._lock:
            if "link" in self._fds:
                raise ConfigError(f"the XDP program is attached to {self.device} already; detach it first")
            ifindex, program = _ifindex(device), self.fd
            made_for = CONFIG.unpack(self._library.lookup(self._fd("config"), ZERO, CONFIG.size))[5]
            if made_for not in (0, ifindex):
                raise ConfigError(f"device={device!r}: the program has timestamps and was loaded for another device")
            if made_for and mode not in (XdpMode.AUTO, XdpMode.NATIVE):
                raise ConfigError(f"mode={mode}: a program with timestamps runs in native mode only")
            modes = [XdpMode.NATIVE, XdpMode.GENERIC] if mode is XdpMode.AUTO else [mode]
            if made_for:
                modes = [XdpMode.NATIVE]
            reasons: dict[XdpMode, OSError] = {}
            for tried in modes:
                try:
                    link = self._library.link(program, ifindex, MODE_FLAGS[tried])
                except OSError as error:
                    reasons[tried] = error
                    if error.errno in REFUSED_HERE:
                        break
                else:
                    self._fds["link"] = link
                    for other, reason in reasons.items():
                        what = f"{device} does not take XDP in {other.value} mode ({reason.strerror})"
                        LOG.info("%s: attached in %s mode", what, tried.value)
                    number = MODE_NOTES.index(tried)
                    self._note(self._settings()._replace(attached=number, device=os.fsencode(device)))
                    return
            _not_attached(device, reasons)

    def detach(self) -> None:
        """Takes the program off its device, for all who hold it. Nothing happens where it is not attached."""
        with self._lock:
            link = self._fds.pop("link", None)
            if link is None:
                return
            try:
                self._library.detach(link)
            except OSError as error:
                # The device is gone, or another holder was first.
                if error.errno not in (errno.ENOLINK, errno.ENODEV, errno.EINVAL):
                    raise
            finally:
                os.close(link)

    def close(self) -> None:
        """Lets go. It stays attached while another process or a pin holds it; `detach` ends it for all."""
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])

    def __enter__(self) -> "XdpProgram":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fds", None):
            self.close()

    # Handing over

    def pin(self, directory: str | os.PathLike[str]) -> None:
        """Keeps the program, and its place on the device, beyond this process: until the directory is removed.

        The directory is in a BPF file system, and is made where it is missing.
        """
        path = Path(directory)
        pinned: list[Path] = []
        with self._lock:
            fds = [(name, self._fd(name)) for name in HANDED_OVER if name in self._fds or name != "link"]
            made = not path.exists()
            try:
                path.mkdir(mode=0o700, exist_ok=True)
                for name, fd in fds:
                    self._library.pin(fd, path / name)
                    pinned.append(path / name)
            except OSError as error:
                for done in pinned:
                    done.unlink()
                if made and path.exists():
                    path.rmdir()
                if error.errno == errno.EEXIST:
                    raise ConfigError(f"{path} holds a pinned program: reuse it, or remove the directory") from error
                raise ConfigError(
                    f"cannot pin to {path}: with CAP_BPF, to a directory of a BPF file system "
                    "(`mount -t bpf bpf /sys/fs/bpf`)",
                    error.errno,
                ) from error

    def send_fds(self, sock: socket.socket) -> None:
        """Shares the program, with all control of it, over a Unix socket with a process that calls `receive_fds`."""
        with self._lock:
            fds = [self._fd(name) for name in HANDED_OVER if name in self._fds or name != "link"]
            socket.send_fds(sock, [MESSAGE + bytes([len(fds)])], fds)


def _ifindex(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except (OSError, TypeError, ValueError) as error:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise ConfigError(f"device={device!r}: no such interface; there are {there}") from error


def _mtu(device: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFMTU, struct.pack("16si12x", os.fsencode(device), 0))
    mtu: int = struct.unpack_from("16si", answer)[1]
    return mtu


def _refused(error: OSError) -> None:
    """Privilege reads the same wherever it is missing."""
    if isinstance(error, Error):
        raise error
    if error.errno == errno.EPERM:
        raise CapabilityError(
            "XDP programs need CAP_BPF and CAP_NET_ADMIN: run as root or grant them", error.errno
        ) from error


def _not_attached(device: str, reasons: dict[XdpMode, OSError]) -> NoReturn:
    mode, error = list(reasons.items())[-1]
    _refused(error)
    if error.errno in (errno.EBUSY, errno.EEXIST):
        raise DeviceError(
            f"another XDP program is attached to {device}: detach it (`ip link set dev {device} xdp off`) "
            "or hand it over with XdpProgram.reuse; sockets on several queues of a device share one program=",
            error.errno,
        ) from error
    if error.errno == errno.ENODEV:
        raise DeviceError(f"{device} is gone", error.errno) from error
    if mode is XdpMode.OFFLOAD:
        raise CapabilityError(f"{device} does not take this XDP program into its hardware", error.errno) from error
    if mode is XdpMode.NATIVE:
        raise CapabilityError(
            f"the driver of {device} refuses XDP in native mode: it has none, or not with the MTU of {_mtu(device)}, "
            "these queues or these offloads; change that or attach in generic mode",
            error.errno,
        ) from error
    native = reasons.get(XdpMode.NATIVE)
    also = f" (nor natively: {native.strerror})" if native else ""
    raise DeviceError(f"cannot attach an XDP program to {device} in {mode.value} mode{also}", error.errno) from error
