"""`Interface`: the facts of a network device at one moment, from netlink, ethtool and sysfs, without privilege.

What a driver or an older kernel does not tell is None, empty or `Support.UNKNOWN`, never a guess: channels and
statistics need a driver that has them, XDP features need Linux 6.3. Needs pyroute2, and a /sys of the same network
namespace (which `ip netns exec` mounts, and the lab).
"""

import contextlib
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from fast_socket.core.affinity import QueueAffinity, device_queue_affinity
from fast_socket.core.capabilities import Capabilities, Support
from fast_socket.core.errors import ConfigError, DeviceError
from fast_socket.core.ids import IfIndex, NumaNode
from fast_socket.core.metadata import TxOffload
from fast_socket.xdp import netlink

_SIOCETHTOOL = 0x8946  # <linux/sockios.h>
_ETHTOOL_GDRVINFO = 0x03  # <linux/ethtool.h>
# struct ethtool_drvinfo: cmd, driver, version, fw_version, bus_info, erom_version, reserved2, 5 counts
_DRVINFO = struct.Struct("I32s32s32s32s32s12x5I")
_IFREQ_DATA = struct.Struct("16sP16x")  # struct ifreq with ifr_data, <linux/if.h>, padded to its whole size

_IFF_UP = 0x1  # <linux/if.h>

# <linux/netdev.h>: enum netdev_xdp_act, netdev_xdp_rx_metadata, netdev_xsk_flags
_ACT_BASIC, _ACT_XSK_ZEROCOPY, _ACT_RX_SG = 1, 8, 32
_RX_TIMESTAMP = 1
_XSK_OFFLOADS = {1: TxOffload.TIMESTAMP, 2: TxOffload.UDP_CHECKSUM, 4: TxOffload.LAUNCH_TIME}

# XDP_ATTACHED_* in <linux/if_link.h>, by pyroute2's words for them
_XDP_MODES = {"xdp": "native", "xdpgeneric": "generic", "xdpoffload": "offload", "xdpmulti": "multi"}


class Channels(NamedTuple):
    """`ethtool -l`: queues in use, and the most that the driver takes. A combined one receives and transmits."""

    combined: int
    rx: int
    tx: int
    max_combined: int
    max_rx: int
    max_tx: int


class Vlan(NamedTuple):
    """What an 802.1Q device stands for."""

    parent: IfIndex
    id: int


class AttachedProgram(NamedTuple):
    """An XDP program on a device."""

    mode: str
    """native, generic, offload or multi."""
    id: int
    """0 where the kernel does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network device at one moment: `Interface.read(...)` again for another."""

    index: IfIndex
    name: str
    mac: bytes
    """Six bytes, or none where the device is not Ethernet."""
    driver: str
    """Empty where it has none that ethtool knows, as with the loopback device."""
    bus_info: str
    mtu: int
    up: bool
    """Switched on by the administrator."""
    carrier: bool
    """There is a link."""
    rx_queues: int
    tx_queues: int
    channels: Channels | None
    """None where the driver does not tell."""
    queues: tuple[QueueAffinity, ...]
    """For each receive queue the CPUs of its interrupt."""
    numa_node: NumaNode
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    vlan: Vlan | None
    program: AttachedProgram | None
    """The XDP program that is attached, whoever did it."""
    capabilities: Capabilities
    """What the driver declares (Linux 6.3), else `Support.UNKNOWN`."""
    offloads: Mapping[str, bool] = field(hash=False)
    """The kernel's features by name (`ethtool -k`), and whether each is on; empty where the driver does not tell."""
    statistics: Mapping[str, int] = field(hash=False)
    """The counters that every device has: struct rtnl_link_stats64."""
    driver_statistics: Mapping[str, int] = field(hash=False)
    """The driver's own: `ethtool -S`."""

    @classmethod
    def read(cls, interface: int | str) -> Self:
        """The device of a name or index, in the namespace of the calling thread.

        `ConfigError` lists the devices there are if there is no such one; `DeviceError` if it goes while it is read.
        """
        messages, addresses = netlink.dump_links()
        for message in messages:
            if interface in (message["index"], message.get("ifname")):
                break
        else:
            there = ", ".join(message.get("ifname") for message in messages) or "none"
            raise ConfigError(f"no interface {interface!r} here; there are {there}")
        name, index = str(message.get("ifname")), IfIndex(message["index"])
        sysfs = Path("/sys/class/net") / name / "queues"
        driver, bus_info = _driver(name)
        try:
            affinity = device_queue_affinity(name)
        except ConfigError:
            affinity = ()
        rx_queues = len(list(sysfs.glob("rx-*"))) or int(message.get("num_rx_queues") or 1)
        vlan = netlink.vlan_of(message)
        channels, offloads, driver_statistics = _ethtool_facts(name)
        return cls(
            index=index,
            name=name,
            mac=netlink.mac_of(message),
            driver=driver,
            bus_info=bus_info,
            mtu=int(message.get("mtu") or 0),
            up=bool(message["flags"] & _IFF_UP),
            carrier=bool(message.get("carrier")),
            rx_queues=rx_queues,
            tx_queues=len(list(sysfs.glob("tx-*"))) or int(message.get("num_tx_queues") or 1),
            channels=channels,
            queues=affinity,
            numa_node=affinity[0].numa_node if affinity else NumaNode(-1),
            addresses=tuple(record.address for record in addresses if record.interface == index),
            vlan=Vlan(*vlan) if vlan else None,
            program=_program(message),
            capabilities=_capabilities(index, rx_queues),
            offloads=MappingProxyType(offloads),
            statistics=MappingProxyType(_counters(message.get("stats64") or message.get("stats") or {})),
            driver_statistics=MappingProxyType(driver_statistics),
        )


def interfaces() -> list[Interface]:
    """Every device of this namespace, by index. One that goes meanwhile is left out."""
    found: list[Interface] = []
    for message in sorted(netlink.dump_links()[0], key=lambda each: int(each["index"])):
        with contextlib.suppress(ConfigError, DeviceError):
            found.append(Interface.read(int(message["index"])))
    return found


def _program(message: Any) -> AttachedProgram | None:
    mode = message.get_nested("IFLA_XDP", "IFLA_XDP_ATTACHED")
    if not mode:
        return None
    return AttachedProgram(_XDP_MODES.get(mode, str(mode)), message.get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID") or 0)


def _counters(statistics: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in statistics.items() if isinstance(value, int)}


def _capabilities(index: IfIndex, queues: int) -> Capabilities:
    features = netlink.xdp_features(index)
    if features is None:
        return Capabilities(queues=queues)

    def declared(mask: int, bit: int) -> Support:
        return Support.YES if mask & bit else Support.NO

    offloads = TxOffload.NONE
    for bit, offload in _XSK_OFFLOADS.items():
        if features.xsk & bit:
            offloads |= offload
    return Capabilities(
        native_xdp=declared(features.xdp, _ACT_BASIC),
        zero_copy=declared(features.xdp, _ACT_XSK_ZEROCOPY),
        multi_buffer=declared(features.xdp, _ACT_RX_SG),
        rx_timestamp=declared(features.rx_metadata, _RX_TIMESTAMP),
        tx_offloads=offloads,
        queues=queues,
    )


def _driver(name: str) -> tuple[str, str]:
    """Driver and bus address; empty where there is none."""
    import ctypes

    answer = ctypes.create_string_buffer(_DRVINFO.pack(_ETHTOOL_GDRVINFO, *[b""] * 5, *[0] * 5), _DRVINFO.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, _IFREQ_DATA.pack(name.encode(), ctypes.addressof(answer)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise DeviceError(f"interface {name!r} is gone", error.errno) from error
            return "", ""
    _, driver, _, _, bus_info, *_ = _DRVINFO.unpack(answer.raw)
    return _text(driver), _text(bus_info)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="replace")


def _ethtool_facts(name: str) -> tuple[Channels | None, dict[str, bool], dict[str, int]]:
    """Channels, features and counters; empty what the driver does not have."""
    ioctl = netlink.load("pyroute2.ethtool.ioctl")
    channels: Channels | None = None
    offloads: dict[str, bool] = {}
    statistics: dict[str, int] = {}
    with contextlib.closing(ioctl.IoctlEthtool(name)) as ethtool:
        with _maybe(name):
            have = ethtool.get_channels()
            channels = Channels(
                have.combined_count, have.rx_count, have.tx_count, have.max_combined, have.max_rx, have.max_tx
            )
        with _maybe(name):
            offloads = {feature: bool(on) for feature, on, *_ in ethtool.get_features() if feature}
        with _maybe(name):
            statistics = dict(ethtool.get_statistics())
    return channels, offloads, statistics


@contextlib.contextmanager
def _maybe(name: str) -> Iterator[None]:
    """What the driver does not support stays as it was."""
    ioctl = netlink.load("pyroute2.ethtool.ioctl")
    try:
        yield
    except ioctl.NoSuchDevice as error:
        raise DeviceError(f"interface {name!r} is gone", errno.ENODEV) from error
    except (OSError, ioctl.NotSupportedError):
        pass
