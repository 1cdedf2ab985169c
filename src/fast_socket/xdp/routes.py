"""`RouteSnapshot`: the kernel's routing decision, taken in user space from one reading of its tables.

Honoured: policy rules and the tables that they lead to; longest prefix, then metric; next hops of multipath routes;
gateways of the other family; blackhole, unreachable, prohibit and throw; each route's MTU and preferred source; VLAN
devices over the wanted interface; multicast and broadcast; the choice of a source address.

Not honoured: rules that ask for ports, a protocol, a VRF or a device group, or for another DSCP than 0; routes for one
type of service or source; flow hashing (the heaviest next hop is taken); learned path MTUs; encapsulations (they are
another interface); 802.1ad; VLAN egress priority maps; router preference (RFC 4191).

A resolved destination is kept by whoever asked, so that look-ups are off the packet path; `route_ids` looks a column of
addresses up in native code. Reading needs pyroute2 and no privilege; a snapshot may also be made of records.
"""

import copy
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Self

from fast_socket.core.errors import ConfigError, DeviceError
from fast_socket.core.ids import IfIndex, RouteId
from fast_socket.core.routes import IpAddress, Route, Unresolved
from fast_socket.xdp import netlink
from fast_socket.xdp.egress import MAX_MTU, Egress, group_mac
from fast_socket.xdp.prefix_table import PrefixTable
from fast_socket.xdp.rules import PLAIN_RULES, Asked, RuleWalk
from fast_socket.xdp.tables import (
    NUD_STALE,
    SCOPE_LINK,
    TABLE_LOCAL,
    TABLE_LOCAL_AND_MAIN,
    TABLE_MAIN,
    AddressRecord,
    LinkRecord,
    NeighborRecord,
    NextHop,
    RouteKind,
    RouteRecord,
    RuleRecord,
)

LIMITED_BROADCAST = IPv4Address("255.255.255.255")
BROADCAST_MAC = b"\xff" * 6

#: The id of a `Route` that no table holds: to a group, or to the limited broadcast address.
NO_TABLE = RouteId(-1)

_REFUSED = {
    RouteKind.BLACKHOLE: Unresolved.BLACKHOLE,
    RouteKind.UNREACHABLE: Unresolved.UNREACHABLE,
    RouteKind.PROHIBIT: Unresolved.PROHIBIT,
    RouteKind.LOCAL: Unresolved.LOCAL,
    RouteKind.ANYCAST: Unresolved.LOCAL,
}
_HERE = (RouteKind.LOCAL, RouteKind.ANYCAST)
_ENDLESS = 1 << 62  # longer than any prefix that a rule may want

_GLOBAL_SCOPE = 14  # RFC 4007, as multicast addresses write it (RFC 4291, section 2.7)

request_neighbor = netlink.request_neighbor

_Numbered = tuple[RouteId, RouteRecord]


class _Table:
    """The routes of one family: a native table finds the longest prefix, and each prefix knows the next shorter one."""

    def __init__(self, records: Iterable[_Numbered], *, v6: bool) -> None:
        by_prefix: dict[tuple[int, int], list[_Numbered]] = {}
        for number, record in records:
            network = record.network
            by_prefix.setdefault((int(network.network_address), network.prefixlen), []).append((number, record))
        for same in by_prefix.values():
            # Where IPv4's local and main are one: local goes before main. sort() keeps the kernel's order of equals.
            same.sort(key=lambda numbered: (-numbered[1].table, numbered[1].metric))
        ordered = sorted(by_prefix)  # what lies in a prefix comes right behind it
        self._routes = [by_prefix[prefix] for prefix in ordered]
        self._shorter: list[int | None] = []
        around: list[int] = []
        width, size = (128, 16) if v6 else (32, 4)
        for at, (address, _) in enumerate(ordered):
            while around:
                start, length = ordered[around[-1]]
                if address >> (width - length) == start >> (width - length):
                    break
                around.pop()
            self._shorter.append(around[-1] if around else None)
            around.append(at)
        self._match = PrefixTable(
            b"".join(address.to_bytes(size, "big") for address, _ in ordered),
            [length for _, length in ordered],
            range(len(ordered)),
            v6=v6,
        )

    def matching(self, destination: IpAddress) -> Iterator[_Numbered]:
        """Routes to a destination, those of longer prefixes first."""
        at = self._match.find(destination.packed)
        while at is not None:
            yield from self._routes[at]
            at = self._shorter[at]

    def best(self, addresses: Any) -> tuple[Any, Any]:
        """For each address the id of the first of `matching`, -1 where there is none or it says to look further, and
        the length of its prefix: beyond all where it refuses, for then no rule suppresses it."""
        import numpy

        firsts = [
            (
                -1 if record.kind is RouteKind.THROW else number,
                _ENDLESS if record.kind in _REFUSED and record.kind not in _HERE else record.network.prefixlen,
            )
            for (number, record), *_ in self._routes
        ]
        known = numpy.array([*firsts, (-1, 0)], numpy.int64)
        found = known[numpy.minimum(self._match.lookup(addresses), len(firsts))]
        return found[:, 0], found[:, 1]


class RouteSnapshot:
    """Routes, neighbours, devices and addresses at one moment. Immutable, so that any thread may use it."""

    def __init__(
        self,
        *,
        routes: Iterable[RouteRecord] = (),
        links: Iterable[LinkRecord] = (),
        addresses: Iterable[AddressRecord] = (),
        neighbors: Iterable[NeighborRecord] = (),
        rules: Iterable[RuleRecord] = PLAIN_RULES,
        generation: int = 0,
    ) -> None:
        self.routes = tuple(routes)
        self.links = {link.index: link for link in links}
        self.addresses = tuple(addresses)
        self.neighbors = {(record.interface, record.address): record for record in neighbors}
        self._generation = generation
        self.rules = tuple(rules)
        self._rules = {version: RuleWalk(self.rules, version) for version in (4, 6)}
        by_table: dict[tuple[int, int], list[_Numbered]] = {}
        for number, record in enumerate(self.routes):
            version, table = record.network.version, record.table
            if TABLE_LOCAL_AND_MAIN in self._rules[version].tables and table in (TABLE_LOCAL, TABLE_MAIN):
                table = TABLE_LOCAL_AND_MAIN
            by_table.setdefault((version, table), []).append((RouteId(number), record))
        # At once, all that a rule may lead to: a snapshot is made off the packet path.
        self._tables = {
            (version, table): _Table(by_table[version, table], v6=version == 6)
            for version, walk in self._rules.items()
            for table in walk.tables
            if (version, table) in by_table
        }

    @classmethod
    def read(cls, *, interface: IfIndex | int | str | None = None, after: "RouteSnapshot | None" = None) -> Self:
        """What the kernel has now, in the namespace of the calling thread.

        With `interface`, a `ConfigError` if there is none of that name or index, and only its neighbours and those of
        its VLANs are kept. The generation is that of `after`, and one more where an egress that `after` gave may be
        stale.
        """
        tables = netlink.read_tables()
        made = cls(
            routes=tables.routes,
            links=tables.links,
            addresses=tables.addresses,
            neighbors=tables.neighbors,
            rules=tables.rules,
        )
        if interface is not None:
            through = made._through(made.link(interface).index)
            made.neighbors = {key: record for key, record in made.neighbors.items() if key[0] in through}
        if after is not None:
            made._generation = after._generation + (not made._keeps(after))
        return made

    def _keeps(self, before: "RouteSnapshot") -> bool:
        """No egress of `before` is stale. A neighbour that is new makes none stale: there was no egress yet."""
        return (
            self.routes == before.routes
            and self.rules == before.rules
            and self.links == before.links
            and self.addresses == before.addresses
            and all(
                key in self.neighbors and self.neighbors[key].mac == record.mac
                for key, record in before.neighbors.items()
            )
        )

    def with_neighbor(self, record: NeighborRecord) -> Self:
        """The same, knowing one neighbour more."""
        made = copy.copy(self)
        made.neighbors = {**self.neighbors, (record.interface, record.address): record}
        return made

    @property
    def generation(self) -> int:
        """Constant for one snapshot; see `read`."""
        return self._generation

    def link(self, interface: IfIndex | int | str) -> LinkRecord:
        """A device by index or name. ConfigError, with the names there are, if there is none."""
        for link in self.links.values():
            if interface in (link.index, link.name):
                return link
        there = ", ".join(link.name for link in self.links.values()) or "none"
        raise ConfigError(f"no interface {interface!r} here; there are {there}")

    def lookup(self, destination: IpAddress, *, source: IpAddress | None = None, mark: int = 0) -> Route | None:
        """The kernel's route to a destination, whatever interface it leaves through. None: there is none, it refuses,
        or the destination is this host. `source` and `mark` are what policy rules may ask for."""
        found = self._find(_plain(destination), frozenset(), Asked(source, mark))
        return None if isinstance(found, Unresolved) else found

    def route_ids(self, addresses: Any) -> Any:
        """For a column of addresses, uint8[n, 4] or uint8[n, 16] in network byte order, the ids of the routes with the
        longest prefixes: int64[n], places in `routes`, -1 where nothing matches or a policy rule refuses. Without
        source and mark; whether a route refuses or its next hops are dead is not looked at. Raises `ConfigError`."""
        import numpy

        columns = numpy.asarray(addresses)
        if columns.ndim != 2 or columns.shape[1] not in (4, 16) or columns.dtype != numpy.uint8:
            raise ConfigError(f"route_ids({addresses!r}): give uint8[n, 4] or uint8[n, 16]")
        version = 4 if columns.shape[1] == 4 else 6
        ids = numpy.full(len(columns), -1, numpy.int64)
        for step, looking in self._rules[version].steps_of(columns):
            if (version, step.table) in self._tables:
                found, lengths = self._tables[version, step.table].best(columns)
                numpy.logical_and(looking, (found >= 0) & (lengths >= step.least), out=looking)
                ids[looking] = found[looking]
            else:
                looking[:] = False
        return ids

    def route(
        self, destination: IpAddress, interface: IfIndex, *, source: IpAddress | None = None, mark: int = 0
    ) -> Route | Unresolved:
        """The route to a destination that leaves through one interface or one of its VLANs. `source` and `mark` are
        what policy rules may ask for.

        A multicast group or 255.255.255.255 is reached through the interface itself: no table is asked, as for a
        socket whose interface was chosen with IP_MULTICAST_IF.
        """
        if interface not in self.links:
            raise DeviceError(f"interface {interface} is not there (any more): read a new snapshot")
        destination = _plain(destination)
        if destination.is_unspecified:
            return Unresolved.LOCAL
        link = self.links[interface]
        if destination.is_multicast or destination == LIMITED_BROADCAST:
            chosen = self._source(link.index, destination, scope=SCOPE_LINK)
            return Route(NO_TABLE, interface, destination, _mtu(link, destination), chosen)
        through = self._through(interface)
        found = self._find(destination, through, Asked(source, mark, link.name))
        if isinstance(found, Unresolved) or found.interface in through:
            return found
        return Unresolved.OTHER_INTERFACE

    def neighbor(self, interface: IfIndex, address: IpAddress) -> bytes | None:
        """The Ethernet address of a next hop on a device: computed for groups and broadcast, looked up for others; None
        while it is not known."""
        if address.is_multicast:
            return group_mac(address)
        if address == LIMITED_BROADCAST:
            return BROADCAST_MAC
        link = self.links.get(interface)
        if link and link.mac and not link.arp:
            return link.mac  # arp_constructor() in net/ipv4/arp.c: frames of such a device name nobody else
        record = self.neighbors.get((interface, address))
        return record.mac if record else None

    def resolve(
        self, destination: IpAddress, interface: IfIndex, *, source: IpAddress | None = None, mark: int = 0
    ) -> Egress | Unresolved:
        """Route, neighbour and source address in one. Asks nobody: NEIGHBOR is what this snapshot does not know."""
        route = self.route(destination, interface, source=source, mark=mark)
        if isinstance(route, Unresolved):
            return route
        mac = self.neighbor(route.interface, route.next_hop)
        return Unresolved.NEIGHBOR if mac is None else self.egress(route, mac, interface)

    def egress(self, route: Route, mac: bytes, interface: IfIndex) -> Egress:
        """The egress of a route through `interface`, to the neighbour that has `mac`."""
        return Egress(
            interface=interface,
            source_mac=self.links[route.interface].mac,
            destination_mac=mac,
            mtu=route.mtu,
            vlan=None if route.interface == interface else route.vlan,
            source=route.source,
        )

    def is_stale(self, interface: IfIndex, address: IpAddress) -> bool:
        """The kernel has not heard of this neighbour for a while, and asks only when a packet of its own needs it."""
        record = self.neighbors.get((interface, address))
        return record is not None and bool(record.state & NUD_STALE)

    def _through(self, interface: IfIndex) -> frozenset[IfIndex]:
        """The interface and its VLAN devices: all that a frame handed to it can stand for."""
        return frozenset((interface, *(link.index for link in self.links.values() if link.parent == interface)))

    def _find(self, destination: IpAddress, through: frozenset[IfIndex], asked: Asked) -> Route | Unresolved:
        """The best match in the first table that has one. Among next hops of one rank one of `through` is preferred."""
        for step in self._rules[destination.version].steps(destination, asked):
            if isinstance(step, Unresolved):
                return step
            table = self._tables.get((destination.version, step.table))
            found = None if table is None else self._search(table, destination, through, step.least)
            if found is not None:
                return found
        return Unresolved.NO_ROUTE

    def _search(
        self, table: _Table, destination: IpAddress, through: frozenset[IfIndex], least: int
    ) -> Route | Unresolved | None:
        """None: look into the next table."""
        best: Route | None = None
        rank: object = None
        for number, record in table.matching(destination):
            if best is not None and (record.network, record.metric) != rank:
                break
            if record.kind is RouteKind.THROW:
                break
            suppressed = record.network.prefixlen < least
            if record.kind in _REFUSED:
                # fib_rules_lookup() asks about suppressing where a route was found, which those that refuse are not.
                return None if suppressed and record.kind in _HERE else best or _REFUSED[record.kind]
            hop = self._choose(record.hops, through)
            if hop is None:
                continue  # as the kernel does: the next route, if need be with a shorter prefix
            if suppressed:
                break
            if best is None or hop.interface in through:
                best = self._route(number, record, hop, destination)
            # IPv6 has equals, such as fe80::/64 of each device; of IPv4's the kernel uses the first.
            if hop.interface in through or destination.version == 4:
                return best
            rank = (record.network, record.metric)
        return best

    def _choose(self, hops: Iterable[NextHop], through: frozenset[IfIndex]) -> NextHop | None:
        """Of those alive: with carrier before without, through the wanted interface before others, then the heaviest,
        then the first."""
        alive = (hop for hop in hops if hop.alive)
        return max(alive, key=lambda hop: (hop.carrier, hop.interface in through, hop.weight), default=None)

    def _route(self, number: RouteId, record: RouteRecord, hop: NextHop, destination: IpAddress) -> Route:
        # A hop of index 0 cannot be taken, and is no device's.
        link = self.links.get(hop.interface, LinkRecord(hop.interface, "", b"", MAX_MTU))
        next_hop = LIMITED_BROADCAST if record.kind is RouteKind.BROADCAST else hop.gateway or destination
        source = record.source or self._source(link.index, destination, gateway=hop.gateway, scope=record.scope)
        mtu = min(_mtu(link, destination), record.mtu or MAX_MTU)
        return Route(number, hop.interface, next_hop, mtu, source, link.vlan)

    def _source(
        self, interface: IfIndex, destination: IpAddress, *, gateway: IpAddress | None = None, scope: int
    ) -> IpAddress | None:
        if isinstance(destination, IPv6Address):
            return self._source6(interface, destination)
        return self._source4(interface, gateway, scope)

    def _source4(self, interface: IfIndex, gateway: IpAddress | None, scope: int) -> IpAddress | None:
        """inet_select_addr() in net/ipv4/devinet.c: of the device's primary addresses the first in the gateway's
        network, else the first; else one of another device."""
        fit = [a for a in self.addresses if a.address.version == 4 and not a.secondary and a.scope <= scope]
        own = [a for a in fit if a.interface == interface]
        near = [a for a in own if gateway is not None and gateway in a.address.network]
        other = [a for a in fit if a.scope != SCOPE_LINK]
        return next((a.address.ip for a in (*near, *own, *other)), None)

    def _source6(self, interface: IfIndex, destination: IPv6Address) -> IpAddress | None:
        """RFC 6724, section 5, rules 2, 3, 5 and 8. The last does the work of rule 6 for unique local addresses: they
        share seven bits with each other and none with global ones."""
        wanted = _scope6(destination)
        confined = destination.is_multicast or destination.is_link_local

        def merit(record: AddressRecord) -> tuple[object, ...]:
            address = record.address.ip
            scope = _scope6(address)
            return (
                (True, -scope) if scope >= wanted else (False, scope),
                not record.deprecated,
                record.interface == interface,
                min(record.address.network.prefixlen, 128 - (int(address) ^ int(destination)).bit_length()),
            )

        fit = [a for a in self.addresses if a.address.version == 6 and a.usable]
        if confined:
            fit = [a for a in fit if a.interface == interface]
        return max(fit, key=merit).address.ip if fit else None


def _plain(destination: IpAddress) -> IpAddress:
    """Without a zone, which tables do not hold: the interface is given beside it."""
    if isinstance(destination, IPv6Address) and destination.scope_id:
        return IPv6Address(int(destination))
    return destination


def _mtu(link: LinkRecord, destination: IpAddress) -> int:
    mtu = link.mtu6 if destination.version == 6 and link.mtu6 else link.mtu
    return min(mtu, MAX_MTU)  # the loopback device has 65,536


def _scope6(address: IpAddress) -> int:
    if address.is_multicast:
        return address.packed[1] & 0x0F
    return 2 if address.is_link_local or address.is_loopback else _GLOBAL_SCOPE
