"""All that this package asks of pyroute2, which has no type information: the one place where `Any` is at home.

Every function acts on the network namespace of the calling thread and opens its own netlink socket, in well under a
millisecond. pyroute2 is imported on first use; without it a `CapabilityError` names the extra to install. Kernel errors
come back as `DeviceError` (the device is gone), `CapabilityError` (this kernel or user cannot) or `Error`.

pyroute2 runs an event loop inside each call, which Python refuses where one is running already: from a coroutine the
call is made on a thread of its own, which inherits the namespace.
"""

import contextlib
import dataclasses
import errno
import functools
import importlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, ParamSpec, TypeVar

from fast_socket.core.errors import CapabilityError, DeviceError, Error
from fast_socket.core.ids import IfIndex
from fast_socket.core.routes import IpAddress
from fast_socket.xdp.egress import MAC_LEN
from fast_socket.xdp.rules import PLAIN_RULES
from fast_socket.xdp.tables import (
    NUD_VALID,
    AddressRecord,
    LinkRecord,
    NeighborRecord,
    NextHop,
    RouteKind,
    RouteRecord,
    RuleAction,
    RuleRecord,
)

log = logging.getLogger("fast_socket.xdp")

P = ParamSpec("P")
T = TypeVar("T")

_IFF_NOARP = 0x80  # <linux/if.h>
_ARPHRD_ETHER = 1  # <linux/if_arp.h>
_ETH_P_8021Q = 0x8100  # <linux/if_ether.h>
_IFA_F_SECONDARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40  # <linux/if_addr.h>
_IFA_F_OPTIMISTIC = 0x04  # <linux/if_addr.h>: usable while it is still checked
_RTNH_F_DEAD, _RTNH_F_LINKDOWN = 0x01, 0x10  # <linux/rtnetlink.h>
_RTM_F_CLONED = 0x200  # <linux/rtnetlink.h>
_NTF_USE = 0x01  # <linux/neighbour.h>
_NUD_NONE = 0x00  # <linux/neighbour.h>

_FIB_RULE_INVERT = 0x02  # <linux/fib_rules.h>
_NLA_HEADER = 4  # struct nlattr, <linux/netlink.h>
_NO_MASK = 0xFFFFFFFF
# What a rule may ask for that is not known when a destination is resolved.
_NOT_KNOWN = {"FRA_L3MDEV", "FRA_IP_PROTO", "FRA_SPORT_RANGE", "FRA_DPORT_RANGE"}
# What is 0 in a packet of this host, as far as can be known here.
_ZERO = {"FRA_TUN_ID", "FRA_DSCP", "FRA_FLOWLABEL"}
# <linux/fib_rules.h>; pyroute2 0.9 has no names for them.
_UNNAMED = {25: "FRA_DSCP", 26: "FRA_FLOWLABEL", 27: "FRA_FLOWLABEL_MASK", 30: "FRA_DSCP_MASK"}

# <linux/netdev.h>, since Linux 6.3; the family is generated from Documentation/netlink/specs/netdev.yaml.
_NETDEV_FAMILY = "netdev"
_NETDEV_CMD_DEV_GET = 1


class Tables(NamedTuple):
    """One reading of what `RouteSnapshot` needs."""

    routes: tuple[RouteRecord, ...]
    links: tuple[LinkRecord, ...]
    addresses: tuple[AddressRecord, ...]
    neighbors: tuple[NeighborRecord, ...]
    rules: tuple[RuleRecord, ...] = PLAIN_RULES


class XdpFeatures(NamedTuple):
    """What a driver declares, as the bit masks of <linux/netdev.h>."""

    xdp: int
    """enum netdev_xdp_act"""
    rx_metadata: int
    """enum netdev_xdp_rx_metadata"""
    xsk: int
    """enum netdev_xsk_flags"""


def load(module: str = "pyroute2") -> Any:
    """pyroute2, or CapabilityError with the way to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CapabilityError(
            "fast_socket.xdp reads devices and routes through pyroute2, which cannot be imported:"
            ' pip install "fast-socket[xdp]"'
        ) from error


def _away_from_event_loops(fn: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return fn(*args, **kwargs)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(fn, *args, **kwargs).result()

    return call


@contextlib.contextmanager
def _session(doing: str) -> Iterator[Any]:
    pyroute2 = load()
    try:
        with pyroute2.IPRoute() as route:
            yield route
    except pyroute2.NetlinkError as error:
        if error.code in (errno.ENODEV, errno.ENXIO):
            raise DeviceError(f"{doing}: the device is gone", error.code) from error
        if error.code in (errno.EPERM, errno.EACCES):
            raise CapabilityError(f"{doing}: needs CAP_NET_ADMIN", error.code) from error
        raise Error(doing, error.code) from error


@_away_from_event_loops
def dump_links() -> tuple[list[Any], list[AddressRecord]]:
    """Every device, as pyroute2 gives it, and every address."""
    with _session("reading the devices") as route:
        return list(route.get_links()), [record for message in route.get_addr() if (record := _address(message))]


@_away_from_event_loops
def read_tables() -> Tables:
    """Routes of all tables, devices, addresses, neighbours that are resolved, and policy rules."""
    with _session("reading the routing tables") as route:
        links = [_link(message) for message in route.get_links()]
        addresses = [address for message in route.get_addr() if (address := _address(message))]
        routes = [
            record
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in route.get_routes(family=family)
            if message["family"] == family and (record := _route(message))
        ]
        neighbors = [known for message in route.get_neighbours() if (known := _neighbor(message))]
        rules = [rule for family in (socket.AF_INET, socket.AF_INET6) for rule in _rules(route, family)]
    return Tables(tuple(routes), tuple(links), tuple(addresses), tuple(neighbors), tuple(rules))


@_away_from_event_loops
def read_neighbor(interface: IfIndex, address: IpAddress) -> NeighborRecord | None:
    """One neighbour, None where it is not resolved (Linux 5.0)."""
    try:
        with _session(f"reading neighbour {address} on device {interface}") as route:
            (message,) = route.neigh("get", dst=str(address), ifindex=interface, family=_family(address))
            return _neighbor(message)
    except Error as error:
        if error.errno == errno.ENOENT:  # nobody has asked for it yet
            return None
        raise


@_away_from_event_loops
def request_neighbor(interface: IfIndex, address: IpAddress) -> None:
    """Have the kernel resolve a neighbour, by ARP or neighbour discovery as for a packet of its own; returns at once.

    A stale one is confirmed again; one that is being resolved, or is reachable, is left as it is. Needs CAP_NET_ADMIN.
    """
    # NTF_USE makes neigh_add() call neigh_event_send() and leave the entry's state alone (net/core/neighbour.c).
    with _session(f"resolving neighbour {address} on device {interface}") as route:
        route.neigh(
            "replace",
            dst=str(address),
            ifindex=interface,
            family=_family(address),
            state=_NUD_NONE,
            flags=_NTF_USE,
        )


@_away_from_event_loops
def xdp_features(interface: IfIndex) -> XdpFeatures | None:
    """What the driver declares; None where the kernel is older than 6.3 and cannot say."""
    generic, netlink = load("pyroute2.netlink.generic"), load("pyroute2.netlink")

    attributes = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "hex"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XDP_ZC_MAX_SEGS", "uint32"),
        ("NETDEV_A_DEV_XDP_RX_METADATA_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XSK_FEATURES", "uint64"),
    )
    Device: Any = type("Device", (netlink.genlmsg,), {"nla_map": attributes})
    request = Device()
    request["cmd"], request["version"] = _NETDEV_CMD_DEV_GET, 1
    request["attrs"] = [("NETDEV_A_DEV_IFINDEX", interface)]
    try:
        with contextlib.closing(generic.GenericNetlinkSocket()) as family:
            family.bind(_NETDEV_FAMILY, Device)
            (answer,) = family.nlm_request(request, msg_type=family.prid, msg_flags=netlink.NLM_F_REQUEST)
    except load().NetlinkError as error:
        if error.code in (errno.ENODEV, errno.ENXIO):
            raise DeviceError(f"device {interface} is gone", error.code) from error
        return None
    return XdpFeatures(
        answer.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0,
        answer.get_attr("NETDEV_A_DEV_XDP_RX_METADATA_FEATURES") or 0,
        answer.get_attr("NETDEV_A_DEV_XSK_FEATURES") or 0,
    )


def _family(address: IpAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def mac_of(message: Any) -> bytes:
    """The Ethernet address of a device or neighbour message, empty where it has none."""
    mac = bytes.fromhex((message.get("address") or "").replace(":", ""))
    return mac if len(mac) == MAC_LEN and message["ifi_type"] == _ARPHRD_ETHER else b""


def vlan_of(message: Any) -> tuple[IfIndex, int] | None:
    """Parent and id of an 802.1Q device in this namespace."""
    info = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    if message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "vlan" or message.get("link_netnsid") is not None:
        return None
    if info.get_attr("IFLA_VLAN_PROTOCOL", _ETH_P_8021Q) != _ETH_P_8021Q:
        return None
    return IfIndex(message.get("link")), int(info.get_attr("IFLA_VLAN_ID"))


def _link(message: Any) -> LinkRecord:
    parent, vlan = vlan_of(message) or (None, None)
    # Its conf.mtu is cnf.mtu6: a router advertisement sets it. Absent where IPv6 is off.
    conf6: Mapping[str, int] = message.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_CONF") or {}
    mtu = int(message.get("mtu") or 0)
    mtu6 = conf6.get("mtu")
    return LinkRecord(
        index=IfIndex(message["index"]),
        name=message.get("ifname"),
        mac=mac_of(message),
        mtu=mtu,
        mtu6=mtu6 if mtu6 and mtu6 < mtu else None,
        arp=not message["flags"] & _IFF_NOARP,
        parent=parent,
        vlan=vlan,
    )


def _address(message: Any) -> AddressRecord | None:
    if message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return None
    flags = message.get("flags") or 0
    # IFA_LOCAL is this end where the address names the other one of a point-to-point link.
    text = message.get("local") or message.get("address")
    return AddressRecord(
        interface=IfIndex(message["index"]),
        address=ipaddress.ip_interface(f"{text}/{message['prefixlen']}"),
        scope=message["scope"],
        secondary=message["family"] == socket.AF_INET and bool(flags & _IFA_F_SECONDARY),
        deprecated=bool(flags & _IFA_F_DEPRECATED),
        usable=not flags & _IFA_F_DADFAILED and bool(not flags & _IFA_F_TENTATIVE or flags & _IFA_F_OPTIMISTIC),
    )


def _route(message: Any) -> RouteRecord | None:
    """None for what a look-up by destination alone must not find."""
    if message["type"] not in iter(RouteKind):
        return None
    # For one type of service or some sources only; or a cached exception, which a dump may list as well.
    if message["tos"] or message["src_len"] or message["flags"] & _RTM_F_CLONED:
        return None
    wildcard = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    several = message.get("multipath")
    # rtnh_hops is the weight less one: rtnetlink(7)
    hops = [_hop(hop, hop["oif"], hop["hops"] + 1) for hop in several or ()] or [_hop(message, message.get("oif"), 1)]
    source = message.get("prefsrc")
    return RouteRecord(
        network=ipaddress.ip_network(f"{message.get('dst') or wildcard}/{message['dst_len']}"),
        hops=tuple(hops),
        kind=RouteKind(message["type"]),
        metric=message.get("priority") or 0,
        source=ipaddress.ip_address(source) if source else None,
        mtu=message.get_nested("RTA_METRICS", "RTAX_MTU") or None,
        table=message.get("table"),
        scope=message["scope"],
    )


def _hop(message: Any, interface: int | None, weight: int) -> NextHop:
    """From a route with a single next hop, or from an entry of RTA_MULTIPATH."""
    via = message.get_attr("RTA_VIA")
    gateway = message.get_attr("RTA_GATEWAY") or (via and via["addr"])
    return NextHop(
        interface=IfIndex(0 if message.get_attr("RTA_ENCAP") else interface or 0),
        gateway=ipaddress.ip_address(gateway) if gateway else None,
        weight=weight,
        alive=not message["flags"] & _RTNH_F_DEAD,
        carrier=not message["flags"] & _RTNH_F_LINKDOWN,
    )


def _neighbor(message: Any) -> NeighborRecord | None:
    """None unless it is resolved. Groups are left out: their addresses are computed."""
    if message["family"] not in (socket.AF_INET, socket.AF_INET6) or not message["state"] & NUD_VALID:
        return None
    mac = bytes.fromhex((message.get("lladdr") or "").replace(":", ""))
    address = message.get("dst")
    if len(mac) != MAC_LEN or not address or (parsed := ipaddress.ip_address(address)).is_multicast:
        return None
    return NeighborRecord(IfIndex(message["ifindex"]), parsed, mac, message["state"])


def _rules(route: Any, family: int) -> list[RuleRecord]:
    try:
        messages = [message for message in route.get_rules(family=family) if message["family"] == family]
    except load().NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        # A kernel without policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES).
        return [rule for rule in PLAIN_RULES if (rule.version == 4) == (family == socket.AF_INET)]
    return [_rule(message) for message in messages]


def _rule(message: Any) -> RuleRecord:
    """One that asks for what is not known does nothing, and is kept: others may go to it, and any rule at all takes
    IPv4's local and main apart."""
    version = 4 if message["family"] == socket.AF_INET else 6
    priority = message.get("priority") or 0
    invert = bool(message["flags"] & _FIB_RULE_INVERT)
    nothing = RuleRecord(version, priority, action=RuleAction.NOP)
    asked = {_name(name, value): value for name, value in message["attrs"]}
    if (
        message.get_attr("FRA_SUPPRESS_IFGROUP") not in (None, _NO_MASK)
        or asked.keys() & _NOT_KNOWN
        or "UNKNOWN" in asked
    ):
        _warn_of_rule(version, priority)
        return nothing
    wanted = {name for name in asked.keys() & _ZERO if not _is_zero(asked[name])}
    if message["tos"] or "FRA_DSCP" in wanted:
        _warn_of_rule(version, priority)  # a socket may send with another
    never = bool(message["tos"] or wanted)
    if never and not invert:
        return nothing
    # From a mark without a mask every bit counts; the kernel says so itself.
    mark = message.get_attr("FRA_FWMARK") or 0
    mask = message.get_attr("FRA_FWMASK")
    uids = message.get_attr("FRA_UID_RANGE")
    suppress = message.get_attr("FRA_SUPPRESS_PREFIXLEN")
    # fib4_rule_action() and fib6_rule_action() refuse what they do not know.
    action = RuleAction(message["action"]) if message["action"] in iter(RuleAction) else RuleAction.BLACKHOLE
    record = RuleRecord(
        version=version,
        priority=priority,
        table=message.get_attr("FRA_TABLE") or message["table"],
        action=action,
        goto=message.get_attr("FRA_GOTO") or 0,
        suppress=-1 if suppress in (None, _NO_MASK) else suppress,
    )
    if never:
        return record  # inverted: always
    return dataclasses.replace(
        record,
        source=_prefix(message.get_attr("FRA_SRC"), message["src_len"]),
        destination=_prefix(message.get_attr("FRA_DST"), message["dst_len"]),
        iif=message.get_attr("FRA_IIFNAME") or "",
        oif=message.get_attr("FRA_OIFNAME") or "",
        mark=mark,
        mask=(_NO_MASK if mark else 0) if mask is None else mask,
        uids=_range(uids) if uids else (0, _NO_MASK),
        invert=invert,
    )


def _name(name: str, value: Any) -> str:
    return _UNNAMED.get(value["header"]["type"], name) if name == "UNKNOWN" else name


def _is_zero(value: Any) -> bool:
    """Of an attribute; pyroute2 does not decode those that it has no name for."""
    if isinstance(value, int):
        return value == 0
    start, length = value.offset, value["header"]["length"]
    return not any(value.data[start + _NLA_HEADER : start + length])


def _prefix(address: str | None, length: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    return ipaddress.ip_network(f"{address}/{length}") if address and length else None


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    return int(first), int(last)


@functools.cache
def _warn_of_rule(version: int, priority: int) -> None:
    """Once for each, for tables are read again and again."""
    log.warning(
        "IPv%d policy rule %d is not honoured: it asks for ports, a protocol, DSCP, a VRF or a device group, which are "
        "not known when a destination is resolved",
        version,
        priority,
    )
