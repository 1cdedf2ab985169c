"""The routing decision over records: no kernel is asked."""

import ipaddress
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_socket import ConfigError, DeviceError, IfIndex, Unresolved
from fast_socket.xdp.egress import Egress
from fast_socket.xdp.routes import NO_TABLE, RouteSnapshot
from fast_socket.xdp.tables import (
    SCOPE_LINK,
    TABLE_LOCAL,
    AddressRecord,
    LinkRecord,
    NeighborRecord,
    NextHop,
    RouteKind,
    RouteRecord,
)

LO, ETH0, ETH1, TAGGED = (IfIndex(number) for number in (1, 2, 3, 4))
MAC0, MAC1, MAC_TAGGED, PEER = (bytes.fromhex(f"0200000000{last}") for last in ("10", "11", "05", "99"))
LINKS = (
    LinkRecord(LO, "lo", b"", mtu=65_536),
    LinkRecord(ETH0, "eth0", MAC0, mtu=9000),
    LinkRecord(ETH1, "eth1", MAC1),
    LinkRecord(TAGGED, "eth0.5", MAC_TAGGED, parent=ETH0, vlan=5),
)


def route(network, hop=ETH0, via=None, **values):
    gateway = None if via is None else ip_address(via)
    values.setdefault("hops", (NextHop(hop, gateway),))
    return RouteRecord(ip_network(network), **values)


def refusal(network, kind, **values):
    return route(network, hops=(), kind=kind, **values)


def neighbors(*addresses, interface=ETH0, mac=PEER):
    return [NeighborRecord(interface, ip_address(address), mac) for address in addresses]


def addresses(*texts, interface=ETH0, **values):
    return [AddressRecord(interface, ip_interface(text), **values) for text in texts]


def snapshot(*routes, links=LINKS, neighbors=(), addresses=()):
    return RouteSnapshot(routes=routes, links=links, neighbors=neighbors, addresses=addresses)


def resolve(snap, destination, interface=ETH0):
    return snap.resolve(ip_address(destination), interface)


def network_strategy(version):
    bits = 32 if version == 4 else 128
    address = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address

    # Few distinct numbers and lengths, so that prefixes nest and repeat, and destinations meet them.
    number = st.builds(lambda high, low: (high << (bits - 2)) | low, st.integers(0, 2), st.integers(0, 3))
    lengths = st.sampled_from((0, 1, 2, 17, bits - 2, bits - 1, bits))

    def network(value, length):
        return ip_network((address(value), length), strict=False)

    return st.builds(network, number, lengths), number.map(address)


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data())
def test_the_longest_prefix_and_then_the_least_metric_win(version, data):
    networks, destinations = network_strategy(version)
    rows = data.draw(st.lists(st.tuples(networks, st.integers(0, 2)), max_size=12))
    records = [route(net, via=None, metric=metric) for net, metric in rows]
    snap = snapshot(*records)
    for destination in data.draw(st.lists(destinations, min_size=1, max_size=5)):
        matching = [number for number, (net, _) in enumerate(rows) if destination in net]
        # min() keeps the first of equals, as the kernel's order does.
        best = min(matching, key=lambda number: (-rows[number][0].prefixlen, rows[number][1]), default=None)
        found = snap.lookup(destination)
        assert (None if found is None else found.id) == best


def test_a_gateway_is_who_must_be_known():
    snap = snapshot(route("0.0.0.0/0", via="192.0.2.1"), neighbors=neighbors("192.0.2.1"))
    egress = resolve(snap, "198.51.100.7")
    assert egress == Egress(ETH0, MAC0, PEER, 9000)
    assert snap.lookup(ip_address("198.51.100.7")).next_hop == ip_address("192.0.2.1")


def test_a_connected_network_needs_the_destination_itself():
    snap = snapshot(route("192.0.2.0/24"), neighbors=neighbors("192.0.2.9"))
    assert resolve(snap, "192.0.2.9").destination_mac == PEER
    assert resolve(snap, "192.0.2.8") is Unresolved.NEIGHBOR


def test_an_ipv4_route_may_have_an_ipv6_gateway():
    snap = snapshot(route("0.0.0.0/0", via="fe80::1"), neighbors=neighbors("fe80::1"))
    assert resolve(snap, "198.51.100.7").destination_mac == PEER


def test_no_route():
    assert resolve(snapshot(route("192.0.2.0/24")), "198.51.100.7") is Unresolved.NO_ROUTE
    assert resolve(snapshot(route("192.0.2.0/24")), "2001:db8::1") is Unresolved.NO_ROUTE


@pytest.mark.parametrize("kind", [RouteKind.BLACKHOLE, RouteKind.UNREACHABLE, RouteKind.PROHIBIT])
def test_refusing_routes_are_told_apart_and_end_the_search(kind):
    snap = snapshot(route("192.0.0.0/16"), refusal("192.0.2.0/24", kind), neighbors=neighbors("192.0.2.9", "192.0.3.9"))
    assert resolve(snap, "192.0.2.9") is Unresolved[kind.name]
    assert resolve(snap, "192.0.3.9")
    assert snap.lookup(ip_address("192.0.2.9")) is None


def test_throw_ends_one_table_only():
    rows = [
        route("2001:db8::/32", table=TABLE_LOCAL),
        refusal("2001:db8:1::/48", RouteKind.THROW, table=TABLE_LOCAL),
        route("2001:db8::/32", ETH1),
    ]
    snap = snapshot(*rows)
    assert snap.lookup(ip_address("2001:db8:2::1")).interface == ETH0
    assert snap.lookup(ip_address("2001:db8:1::1")).interface == ETH1
    assert resolve(snapshot(route("10.0.0.0/8"), refusal("10.1.0.0/16", RouteKind.THROW)), "10.1.0.1") is (
        Unresolved.NO_ROUTE
    )


@pytest.mark.parametrize("destination", ["192.0.2.1", "2001:db8::1", "2001:db8::", "127.0.0.1", "0.0.0.0", "::"])
def test_packets_to_this_host_never_leave(destination):
    snap = snapshot(
        route("0.0.0.0/0"),
        route("::/0"),
        route("127.0.0.0/8", LO, kind=RouteKind.LOCAL, table=TABLE_LOCAL),
        route("192.0.2.1/32", kind=RouteKind.LOCAL, table=TABLE_LOCAL),
        route("2001:db8::1/128", kind=RouteKind.LOCAL, table=TABLE_LOCAL),
        route("2001:db8::/128", kind=RouteKind.ANYCAST, table=TABLE_LOCAL),  # of a router
        neighbors=neighbors("192.0.2.1", "2001:db8::1", "2001:db8::", "127.0.0.1", "0.0.0.0", "::"),
    )
    assert resolve(snap, destination) is Unresolved.LOCAL


def test_the_table_local_goes_first_in_ipv6_and_with_the_same_prefix_in_ipv4():
    """As `test_routes_live` sees the kernel do."""
    local = {"kind": RouteKind.LOCAL, "table": TABLE_LOCAL}
    snap = snapshot(
        route("10.0.0.0/8"),
        route("10.0.0.0/8", LO, metric=5, **local),
        route("10.1.0.0/16"),
        route("fd00::/8", LO, **local),
        route("fd00:1::/32"),
        neighbors=neighbors("10.1.0.1", "10.2.0.1"),
    )
    assert resolve(snap, "10.1.0.1")
    assert resolve(snap, "10.2.0.1") is Unresolved.LOCAL
    assert resolve(snap, "fd00:1::1") is Unresolved.LOCAL


def test_another_interface():
    snap = snapshot(route("192.0.2.0/24", ETH1), neighbors=neighbors("192.0.2.9", interface=ETH1))
    assert resolve(snap, "192.0.2.9") is Unresolved.OTHER_INTERFACE
    assert resolve(snap, "192.0.2.9", ETH1).interface == ETH1


def test_an_encapsulation_cannot_be_taken_and_hides_the_shorter_prefix():
    snap = snapshot(route("192.0.0.0/16"), route("192.0.2.0/24", IfIndex(0)), neighbors=neighbors("192.0.2.9"))
    assert resolve(snap, "192.0.2.9") is Unresolved.OTHER_INTERFACE


def test_the_heaviest_living_next_hop_is_taken():
    hops = [NextHop(ETH0, ip_address(f"192.0.2.{n}"), weight=weight) for n, weight in enumerate((1, 5, 9, 5))]

    def next_hop(*hops):
        return str(snapshot(route("0.0.0.0/0", hops=hops)).lookup(ip_address("198.51.100.1")).next_hop)

    assert next_hop(*hops) == "192.0.2.2"
    hops[2] = replace(hops[2], alive=False)
    assert next_hop(*hops) == "192.0.2.1"
    hops[1] = replace(hops[1], carrier=False)
    assert next_hop(*hops) == "192.0.2.3"
    assert next_hop(hops[1]) == "192.0.2.1"  # without carrier, but the only one


def test_a_route_whose_next_hops_are_dead_is_passed_over():
    dead = (NextHop(ETH0, ip_address("192.0.2.1"), alive=False),)
    snap = snapshot(route("10.1.0.0/16", hops=dead), route("10.0.0.0/8", via="192.0.2.2"))
    assert snap.lookup(ip_address("10.1.0.1")).next_hop == ip_address("192.0.2.2")


def test_of_several_next_hops_the_interface_takes_its_own():
    hops = (NextHop(ETH1, ip_address("203.0.113.1"), weight=9), NextHop(ETH0, ip_address("192.0.2.1")))
    snap = snapshot(route("0.0.0.0/0", hops=hops), neighbors=neighbors("192.0.2.1"))
    assert resolve(snap, "198.51.100.1").destination_mac == PEER
    assert snap.lookup(ip_address("198.51.100.1")).interface == ETH1


def test_equal_ipv6_routes_are_each_interfaces_own_and_ipv4_takes_the_first():
    rows = [route(net, hop) for net in ("fe80::/64", "10.0.0.0/8") for hop in (ETH1, ETH0)]
    snap = snapshot(*rows, neighbors=neighbors("fe80::9", "10.0.0.9"))
    assert resolve(snap, "fe80::9").destination_mac == PEER
    assert resolve(snap, "fe80::9%eth0").destination_mac == PEER
    assert resolve(snap, "10.0.0.9") is Unresolved.OTHER_INTERFACE


def test_a_refusal_of_equal_rank_comes_after_what_was_found():
    snap = snapshot(route("2001:db8::/32", ETH1), refusal("2001:db8::/32", RouteKind.BLACKHOLE))
    assert snap.lookup(ip_address("2001:db8::1")).interface == ETH1


def test_the_mtu_is_the_least_of_link_family_and_route():
    links = [replace(LINKS[1], mtu6=1400), LINKS[0]]
    snap = snapshot(
        route("10.0.0.0/8"),
        route("10.1.0.0/16", mtu=1200),
        route("10.2.0.0/16", mtu=60_000),
        route("fd00::/8"),
        route("11.0.0.0/8", LO),
        links=links,
    )
    mtus = [snap.lookup(ip_address(a)).mtu for a in ("10.0.0.1", "10.1.0.1", "10.2.0.1", "fd00::1", "11.0.0.1")]
    assert mtus == [9000, 1200, 9000, 1400, 65_535]


def test_a_vlan_device_over_the_interface_means_a_tag():
    snap = snapshot(
        route("192.0.2.0/24", TAGGED, source=ip_address("192.0.2.1")),
        neighbors=neighbors("192.0.2.9", interface=TAGGED),
    )
    tagged = Egress(ETH0, MAC_TAGGED, PEER, 1500, vlan=5, source=ip_address("192.0.2.1"))
    assert resolve(snap, "192.0.2.9", ETH0) == tagged
    assert resolve(snap, "192.0.2.9", TAGGED) == replace(tagged, interface=TAGGED, vlan=None)
    assert resolve(snap, "192.0.2.9", ETH1) is Unresolved.OTHER_INTERFACE


@pytest.mark.parametrize(
    ("group", "mac"),
    [
        ("224.0.0.1", "01005e000001"),
        ("239.255.1.2", "01005e7f0102"),  # the ninth bit from the left of the group is lost: RFC 1112
        ("232.128.1.2", "01005e000102"),
        ("ff02::1:ff12:3456", "3333ff123456"),
        ("255.255.255.255", "ffffffffffff"),
    ],
)
def test_groups_need_neither_route_nor_neighbour(group, mac):
    snap = snapshot(
        refusal("0.0.0.0/0", RouteKind.BLACKHOLE), route("ff00::/8", ETH1), addresses=addresses("10.0.0.1/8")
    )
    egress = resolve(snap, group)
    assert (egress.destination_mac, egress.interface, egress.mtu) == (bytes.fromhex(mac), ETH0, 9000)
    assert snap.route(ip_address(group), ETH0).id == NO_TABLE
    assert egress.source == (ip_address("10.0.0.1") if egress.source else None)
    assert (egress.source is None) == (":" in group)


def test_a_subnets_broadcast_address():
    snap = snapshot(route("192.0.2.0/24"), route("192.0.2.255/32", kind=RouteKind.BROADCAST, table=TABLE_LOCAL))
    assert resolve(snap, "192.0.2.255").destination_mac == b"\xff" * 6
    assert resolve(snap, "192.0.2.255", ETH1) is Unresolved.OTHER_INTERFACE


def test_a_device_without_arp_names_itself():
    snap = snapshot(route("192.0.2.0/24"), links=[replace(LINKS[1], arp=False)])
    assert resolve(snap, "192.0.2.9").destination_mac == MAC0


def source(destination, *records, via=None, **values):
    network = "0.0.0.0/0" if "." in destination else "::/0"
    found = snapshot(route(network, via=via, **values), addresses=records).lookup(ip_address(destination))
    return found.source and str(found.source)


def test_source_of_the_route_goes_first():
    have = addresses("10.0.0.1/8")
    assert source("198.51.100.1", *have, source=ip_address("10.0.0.77")) == "10.0.0.77"


def test_ipv4_source_is_in_the_gateways_network():
    have = addresses("10.0.0.1/8", "192.0.2.1/24")
    assert source("198.51.100.1", *have, via="192.0.2.254") == "192.0.2.1"
    assert source("198.51.100.1", *have, via="203.0.113.1") == "10.0.0.1"
    assert source("198.51.100.1", *have) == "10.0.0.1"


def test_ipv4_source_is_primary_and_of_the_scope():
    link_local = addresses("169.254.1.1/16", scope=SCOPE_LINK)
    second = addresses("10.0.0.2/8", secondary=True)
    assert source("198.51.100.1", *link_local, *second, *addresses("10.0.0.1/8")) == "10.0.0.1"
    assert source("198.51.100.1", *link_local, scope=SCOPE_LINK) == "169.254.1.1"
    assert source("198.51.100.1", *link_local) is None


def test_source_of_a_device_without_addresses_is_anothers():
    for destination, have in (("198.51.100.1", "10.0.0.1/8"), ("2001:db8::1", "2001:db8:1::1/64")):
        assert source(destination, *addresses(have, interface=ETH1)) == have.partition("/")[0]
    assert source("198.51.100.1") is None


def test_addresses_of_one_link_are_no_source_on_another():
    elsewhere = addresses("169.254.1.1/16", interface=ETH1, scope=SCOPE_LINK)
    assert source("198.51.100.1", *elsewhere, scope=SCOPE_LINK) is None
    elsewhere = addresses("fe80::1/64", interface=ETH1)
    for destination in ("fe80::9", "ff02::1"):
        assert source(destination, *elsewhere, *addresses("2001:db8::1/64")) == "2001:db8::1"


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("fe80::9", "fe80::1"),
        ("ff02::1", "fe80::1"),
        ("2001:db8:1::9", "2001:db8:1::1"),  # rule 8: the longest common prefix
        ("2001:db8:2::9", "2001:db8:2::1"),
        ("fd00:9::9", "fd00::1"),  # unique local with unique local
        ("ff0e::1", "2001:db8:2::1"),
    ],
)
def test_ipv6_source_follows_rfc_6724(destination, expected):
    have = addresses("fe80::1/64", "fd00::1/64", "2001:db8:1::1/64", "2001:db8:2::1/64")
    if destination.startswith("ff"):
        del have[2]
        have[1] = replace(have[1], deprecated=True)
    assert source(destination, *have) == expected


def test_ipv6_source_is_usable_and_not_deprecated_if_possible():
    old = addresses("2001:db8::1/64", deprecated=True)
    tentative = addresses("2001:db8::2/64", usable=False)
    assert source("2001:db8::9", *old, *tentative, *addresses("2001:db9::1/64")) == "2001:db9::1"
    assert source("2001:db8::9", *old, *tentative) == "2001:db8::1"
    assert source("2001:db8::9", *tentative) is None


def test_an_interface_that_is_not_there():
    with pytest.raises(DeviceError, match="interface 9"):
        resolve(snapshot(), "192.0.2.1", IfIndex(9))
    with pytest.raises(ConfigError, match=r"'eth9'.*lo, eth0, eth1, eth0\.5"):
        snapshot().link("eth9")
    assert snapshot().link("eth1") == snapshot().link(3) == LINKS[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interface": IfIndex(0)}, "interface is 0"),
        ({"source_mac": b"\0" * 5}, "source_mac"),
        ({"source_mac": b"\1" + b"\0" * 5}, "unicast"),
        ({"destination_mac": "02:00:00:00:00:01"}, "6 bytes"),
        ({"mtu": 67}, "68 to 65535"),
        ({"mtu": 65_536}, "68 to 65535"),
        ({"vlan": 0x10000}, "16 bits"),
        ({"vlan": -1}, "16 bits"),
        ({"vlan": 0x0FFF}, "4095"),
    ],
)
def test_an_egress_that_cannot_work(values, message):
    good = {"interface": ETH0, "source_mac": MAC0, "destination_mac": PEER, "mtu": 1500, "vlan": 0xE005}
    assert Egress(**good)
    with pytest.raises(ConfigError, match=message):
        Egress(**good | values)


def test_unresolved_is_false_and_says_what_to_do():
    assert not any(Unresolved)
    assert all(len(answer.text) > 20 for answer in Unresolved)


def test_a_generation_grows_only_when_an_egress_may_be_stale(monkeypatch):
    from fast_socket.xdp import netlink

    tables = netlink.Tables((route("10.0.0.0/8"),), LINKS, (), tuple(neighbors("10.0.0.1")))
    monkeypatch.setattr(netlink, "read_tables", lambda: tables)
    first = RouteSnapshot.read()

    def generation(**changed):
        nonlocal tables
        before, tables = tables, tables._replace(**changed)
        try:
            return RouteSnapshot.read(after=first).generation - first.generation
        finally:
            tables = before

    assert generation() == 0
    assert generation(neighbors=tuple(neighbors("10.0.0.1", "10.0.0.2"))) == 0
    assert generation(neighbors=(replace(tables.neighbors[0], state=0x02),)) == 0
    assert generation(neighbors=tuple(neighbors("10.0.0.1", mac=MAC1))) == 1
    assert generation(neighbors=()) == 1
    assert generation(routes=()) == 1
    assert generation(links=LINKS[:2]) == 1
    assert generation(addresses=tuple(addresses("10.0.0.3/8"))) == 1


def test_a_snapshot_of_one_interface_keeps_its_neighbours_and_its_vlans(monkeypatch):
    from fast_socket.xdp import netlink

    have = [record for index in (ETH0, ETH1, TAGGED) for record in neighbors("10.0.0.1", interface=index)]
    monkeypatch.setattr(netlink, "read_tables", lambda: netlink.Tables((), LINKS, (), tuple(have)))
    snap = RouteSnapshot.read(interface="eth0")
    assert {interface for interface, _ in snap.neighbors} == {ETH0, TAGGED}
    with pytest.raises(ConfigError, match="eth9"):
        RouteSnapshot.read(interface="eth9")
