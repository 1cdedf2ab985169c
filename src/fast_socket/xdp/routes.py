"""A snapshot of the kernel's routes, neighbours, links and addresses, that resolves a destination to its egress.

Look-ups are by longest prefix, then least metric, over the tables `local` and `main` as one; policy rules are not looked
at. The snapshot is immutable: a new one is read when something may have changed. Field values: include/uapi/linux/
rtnetlink.h, neighbour.h and if_link.h.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

from fast_socket.core.ids import IfIndex
from fast_socket.core.routes import IpAddress
from fast_socket.xdp.egress import MOST_MTU, Egress, Unresolved
from fast_socket.xdp.netlink import Netlink

IpNetwork = IPv4Network | IPv6Network

RT_TABLES = (254, 255)  # main, local
RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = 1, 2, 3, 4, 5
REFUSALS = {6: Unresolved.BLACKHOLE, 7: Unresolved.UNREACHABLE, 8: Unresolved.PROHIBIT}
RTNH_F_DEAD = 1
NUD_RESOLVED = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT
IFF_UP = 1
IFA_F_TENTATIVE = 0x40
BROADCAST_MAC = b"\xff" * 6


@dataclass(frozen=True, slots=True)
class Hop:
    """One way of a route."""

    interface: int
    gateway: IpAddress | None = None
    weight: int = 1
    dead: bool = False


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """One route; several hops are a multipath route, of which the usable one of most weight is taken."""

    network: IpNetwork
    kind: int = RTN_UNICAST
    hops: tuple[Hop, ...] = ()
    metric: int = 0
    source: IpAddress | None = None
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class NeighborRecord:
    """A resolved neighbour."""

    interface: int
    address: IpAddress
    mac: bytes


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """A device; `parent` and `vlan` where it is an 802.1Q device on another."""

    interface: int
    name: str
    mac: bytes
    mtu: int
    up: bool = True
    parent: int | None = None
    vlan: int | None = None


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """An address of this host, with its network."""

    interface: int
    address: IpAddress
    network: IpNetwork


class RouteSnapshot:
    """Routes, neighbours, links and addresses as they were at one moment. Immutable; equal by content; any thread."""

    def __init__(
        self,
        routes: Iterable[RouteRecord] = (),
        neighbors: Iterable[NeighborRecord] = (),
        links: Iterable[LinkRecord] = (),
        addresses: Iterable[AddressRecord] = (),
    ) -> None:
        self.routes = frozenset(routes)
        self.neighbors = {(n.interface, n.address): n.mac for n in neighbors}
        self.links = {link.interface: link for link in links}
        self.addresses = tuple(addresses)
        # By family: longest prefixes first, each with its networks by their first address.
        self._tables: dict[int, list[tuple[int, dict[int, list[RouteRecord]]]]] = {4: [], 6: []}
        lengths: dict[tuple[int, int], dict[int, list[RouteRecord]]] = {}
        for route in self.routes:
            table = lengths.setdefault((route.network.version, route.network.prefixlen), {})
            table.setdefault(int(route.network.network_address), []).append(route)
        for (version, length), table in sorted(lengths.items(), key=lambda item: -item[0][1]):
            for found in table.values():
                found.sort(key=lambda route: (route.metric, repr(route)))
            self._tables[version].append((length, table))

    def _content(self) -> tuple[Any, ...]:
        return self.routes, self.neighbors, self.links, self.addresses

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RouteSnapshot) and self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def read(cls, netlink: Netlink) -> "RouteSnapshot":
        """All of it from the kernel, one dump each."""
        links = {link.interface: link for link in map(_link, netlink.dump("links")) if link}
        addresses = [_address(*message) for message in netlink.dump("addresses") if not message[0]["flags"] & IFA_F_TENTATIVE]
        neighbors = [found for message in netlink.dump("neighbors") if (found := parse_neighbor(*message))]
        routes = [
            found
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in netlink.dump("routes", family=family)
            if (found := _route(*message))
        ]
        return cls(routes, neighbors, links.values(), addresses)

    def with_neighbor(self, neighbor: NeighborRecord) -> "RouteSnapshot":
        """The same with one more, or another, neighbour."""
        known = [NeighborRecord(i, address, mac) for (i, address), mac in self.neighbors.items()]
        return RouteSnapshot(self.routes, [*known, neighbor], self.links.values(), self.addresses)

    def lookup(self, destination: IpAddress) -> RouteRecord | None:
        """The most specific route, of those the one with the least metric; None where there is none."""
        bits = 32 if destination.version == 4 else 128
        number = int(destination)
        for length, table in self._tables[destination.version]:
            found = table.get(number >> (bits - length) << (bits - length))
            if found:
                return found[0]
        return None

    def resolve(self, destination: IpAddress, interface: int) -> Egress | Unresolved | tuple[int, IpAddress]:
        """The egress through `interface`, why there is none, or which neighbour (interface, address) is missing."""
        route = self.lookup(destination)
        multicast, limited = destination.is_multicast, destination == IPv4Address("255.255.255.255")
        if route is None:
            if not (multicast or limited):
                return Unresolved.NO_ROUTE
            route = RouteRecord(ip_network(destination), RTN_MULTICAST, (Hop(interface),))
        if route.kind in REFUSALS:
            return REFUSALS[route.kind]
        if route.kind in (RTN_LOCAL, RTN_ANYCAST):
            return Unresolved.LOCAL
        hop = self._usable(route)
        if hop is None:
            return Unresolved.NO_ROUTE
        link = self.links[hop.interface]
        vlan = None
        if hop.interface != interface:
            if link.parent != interface:
                return Unresolved.OTHER_INTERFACE
            vlan = link.vlan
        next_hop = hop.gateway or destination
        mac: bytes | None
        if multicast:
            mac = multicast_mac(destination)
        elif route.kind == RTN_BROADCAST or limited:
            mac = BROADCAST_MAC
        else:
            mac = self.neighbors.get((hop.interface, next_hop))
            if mac is None:
                return hop.interface, next_hop
        mtu = min(route.mtu or MOST_MTU, link.mtu, MOST_MTU)
        source = route.source or self._source(destination, hop.interface, next_hop)
        return Egress(IfIndex(interface), link.mac, mac, mtu, vlan, source)

    def _usable(self, route: RouteRecord) -> Hop | None:
        alive = [
            hop for hop in route.hops
            if not hop.dead and hop.interface in self.links and self.links[hop.interface].up
        ]  # fmt: skip
        return max(alive, key=lambda hop: hop.weight, default=None)

    def _source(self, destination: IpAddress, interface: int, next_hop: IpAddress) -> IpAddress | None:
        """An address in the next hop's network, else the first that reaches beyond the link, else the first."""
        here = [a for a in self.addresses if a.interface == interface and a.address.version == destination.version]
        for wanted in (
            lambda a: next_hop.version == a.address.version and next_hop in a.network,
            lambda a: not a.address.is_link_local,
            lambda a: True,
        ):
            for found in here:
                if wanted(found):
                    return found.address
        return None


def multicast_mac(group: IpAddress) -> bytes:
    """RFC 1112, section 6.4; RFC 2464, section 7."""
    packed = group.packed
    return b"\x33\x33" + packed[12:] if len(packed) == 16 else bytes((1, 0, 0x5E, packed[1] & 0x7F)) + packed[2:]


def _mac(text: str | None) -> bytes:
    """Six bytes; zeros where a device has none, as tunnels."""
    raw = bytes.fromhex(text.replace(":", "")) if text else b""
    return raw if len(raw) == 6 else bytes(6)


def _link(message: tuple[dict[str, Any], dict[str, Any]]) -> LinkRecord:
    fields, attributes = message
    info = attributes.get("IFLA_LINKINFO")
    info = dict(info["attrs"]) if info else {}
    vlan = None
    if info.get("IFLA_INFO_KIND") == "vlan":
        vlan = dict(info["IFLA_INFO_DATA"]["attrs"])["IFLA_VLAN_ID"]
    return LinkRecord(
        interface=fields["index"],
        name=attributes["IFLA_IFNAME"],
        mac=_mac(attributes.get("IFLA_ADDRESS")),
        mtu=attributes["IFLA_MTU"],
        up=bool(fields["flags"] & IFF_UP),
        parent=attributes.get("IFLA_LINK") if vlan is not None else None,
        vlan=vlan,
    )


def _address(fields: dict[str, Any], attributes: dict[str, Any]) -> AddressRecord:
    # IFA_LOCAL is this host's end of a point-to-point link, IFA_ADDRESS the other.
    text = attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]
    found = ip_interface(f"{text}/{fields['prefixlen']}")
    return AddressRecord(fields["index"], found.ip, found.network)


def parse_neighbor(fields: dict[str, Any], attributes: dict[str, Any]) -> NeighborRecord | None:
    if not fields["state"] & NUD_RESOLVED or "NDA_LLADDR" not in attributes or "NDA_DST" not in attributes:
        return None
    return NeighborRecord(fields["ifindex"], ip_address(attributes["NDA_DST"]), _mac(attributes["NDA_LLADDR"]))


def _route(fields: dict[str, Any], attributes: dict[str, Any]) -> RouteRecord | None:
    v6 = fields["family"] == socket.AF_INET6
    if attributes.get("RTA_TABLE", fields["table"]) not in RT_TABLES or fields["family"] not in (
        socket.AF_INET, socket.AF_INET6,
    ):  # fmt: skip
        return None
    base = attributes.get("RTA_DST") or ("::" if v6 else "0.0.0.0")
    metrics = dict(attributes["RTA_METRICS"]["attrs"]) if "RTA_METRICS" in attributes else {}
    source = attributes.get("RTA_PREFSRC")
    hops: tuple[Hop, ...] = ()
    if "RTA_MULTIPATH" in attributes:
        hops = tuple(
            Hop(hop["oif"], _gateway(dict(hop["attrs"])), hop["hops"] + 1, bool(hop["flags"] & RTNH_F_DEAD))
            for hop in attributes["RTA_MULTIPATH"]
        )
    elif "RTA_OIF" in attributes:
        hops = (Hop(attributes["RTA_OIF"], _gateway(attributes), 1, bool(fields["flags"] & RTNH_F_DEAD)),)
    return RouteRecord(
        network=ip_network(f"{base}/{fields['dst_len']}"),
        kind=fields["type"],
        hops=hops,
        metric=attributes.get("RTA_PRIORITY", 0),
        source=ip_address(source) if source else None,
        mtu=metrics.get("RTAX_MTU"),
    )


def _gateway(attributes: dict[str, Any]) -> IpAddress | None:
    if "RTA_GATEWAY" in attributes:
        return ip_address(attributes["RTA_GATEWAY"])
    via = attributes.get("RTA_VIA")  # of the other family: struct rtvia
    return ip_address(via["addr"]) if via else None

