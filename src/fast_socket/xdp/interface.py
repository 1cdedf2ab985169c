"""What there is to know of a network interface before a queue of it is opened: a snapshot, read from netlink and sysfs."""

import socket
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any

from fast_socket.core.affinity import QueueAffinity, device_queue_affinity
from fast_socket.core.errors import ConfigError, DeviceError
from fast_socket.core.ids import IfIndex, NumaNode
from fast_socket.xdp import ethtool
from fast_socket.xdp.ethtool import Channels
from fast_socket.xdp.netlink import Netlink

IFF_UP, IFF_LOWER_UP = 1, 1 << 16  # include/uapi/linux/if.h
XDP_MODES = {1: "native", 2: "generic", 3: "offload", 4: "several"}  # XDP_ATTACHED_*, include/uapi/linux/if_link.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface as it was at one moment. Made by `read`."""

    ifindex: IfIndex
    name: str
    mac: bytes
    driver: str
    """The kernel driver; "" where it does not say."""
    mtu: int
    up: bool
    carrier: bool
    rx_queues: int
    tx_queues: int
    channels: Channels | None
    """None where the driver has no such setting."""
    queues: tuple[QueueAffinity, ...]
    """For each receive queue the CPUs of its interrupt; one in turn where it has none of its own."""
    numa_node: NumaNode
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    xdp: tuple[str, int] | None
    """Mode and program id of what is attached; None for nothing."""

    @classmethod
    def read(cls, name: str) -> "Interface":
        """By name, in the calling thread's network namespace. Raises `ConfigError` that lists the interfaces there are,
        `CapabilityError` where pyroute2 is missing."""
        index = index_of(name)
        with Netlink() as netlink:
            messages = [m for m in netlink.dump("links") if m[0]["index"] == index]
            if not messages:
                raise DeviceError(f"{name} is gone")
            fields, attributes = messages[0]
            addresses = tuple(
                ip_interface(f"{found.get('IFA_LOCAL') or found['IFA_ADDRESS']}/{message['prefixlen']}")
                for message, found in netlink.dump("addresses")
                if message["index"] == index
            )
        queues = device_queue_affinity(name)
        xdp = dict(attributes["IFLA_XDP"]["attrs"]) if "IFLA_XDP" in attributes else {}
        attached = XDP_MODES.get(xdp.get("IFLA_XDP_ATTACHED") or 0)
        sysfs = Path("/sys/class/net") / name
        return cls(
            ifindex=IfIndex(index),
            name=name,
            mac=bytes.fromhex(attributes.get("IFLA_ADDRESS", "00:" * 5 + "00").replace(":", "")),
            driver=_driver(name, sysfs, attributes),
            mtu=attributes["IFLA_MTU"],
            up=bool(fields["flags"] & IFF_UP),
            carrier=bool(fields["flags"] & IFF_LOWER_UP),
            rx_queues=_count(sysfs, "rx-*", attributes.get("IFLA_NUM_RX_QUEUES", 1)),
            tx_queues=_count(sysfs, "tx-*", attributes.get("IFLA_NUM_TX_QUEUES", 1)),
            channels=ethtool.channels(name),
            queues=queues,
            numa_node=queues[0].numa_node if queues else NumaNode(-1),
            addresses=addresses,
            xdp=(attached, xdp.get("IFLA_XDP_PROG_ID") or 0) if attached else None,
        )


def index_of(name: str) -> int:
    """Raises `ConfigError` that lists the interfaces there are."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, TypeError, ValueError):
        present = ", ".join(name for _, name in socket.if_nameindex())
        raise ConfigError(f"device is {name!r}: there is no such interface; there are {present}") from None


def statistics(name: str) -> dict[str, int]:
    """The kernel's counters of an interface (rtnl_link_stats64), and the driver's own (ethtool -S)."""
    index = index_of(name)
    with Netlink() as netlink:
        found = next((a for m, a in netlink.dump("links") if m["index"] == index), {})
    counters = {key: value for key, value in dict(found.get("IFLA_STATS64", {})).items() if isinstance(value, int)}
    return counters | ethtool.statistics(name)


def _count(sysfs: Path, pattern: str, otherwise: int) -> int:
    return len(list((sysfs / "queues").glob(pattern))) or otherwise


def _driver(name: str, sysfs: Path, attributes: dict[str, Any]) -> str:
    """Of hardware its module, of virtual devices their kind."""
    link = sysfs / "device" / "driver"
    if link.exists():
        return link.resolve().name
    info = attributes.get("IFLA_LINKINFO")
    return str(dict(info["attrs"]).get("IFLA_INFO_KIND", "")) if info else ""
