"""Policy rules over records, beside a slow reference; what the kernel does is in test_rules_live.py."""

import os
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_socket import ConfigError, IfIndex, Unresolved
from fast_socket.xdp.router import XdpQueueLocalRouter
from fast_socket.xdp.routes import RouteSnapshot
from fast_socket.xdp.rules import PLAIN_RULES
from fast_socket.xdp.tables import (
    TABLE_LOCAL,
    TABLE_MAIN,
    LinkRecord,
    NextHop,
    RouteKind,
    RouteRecord,
    RuleAction,
    RuleRecord,
)

LINKS = tuple(LinkRecord(IfIndex(number), f"eth{number}", bytes(6)) for number in (1, 2, 3))
DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}
FAR = {4: ip_address("198.51.100.1"), 6: ip_address("2001:db8::1")}


def default_by(device: int, table: int, version: int = 4, **values: Any) -> RouteRecord:
    return RouteRecord(ip_network(DEFAULTS[version]), (NextHop(IfIndex(device)),), table=table, **values)


def device_of(rules: Any, destination: Any = FAR[4], routes: Any = (), **asked: Any) -> Any:
    """By which device a packet leaves: 1 by the table main, 2 by table 2, 3 by table 3."""
    tables = (default_by(1, TABLE_MAIN), default_by(2, 2), default_by(3, 3),
              default_by(1, TABLE_MAIN, 6), default_by(2, 2, 6), default_by(3, 3, 6))  # fmt: skip
    snap = RouteSnapshot(routes=(*tables, *routes), links=LINKS, rules=(*PLAIN_RULES, *rules))
    found = snap.lookup(destination, **asked)
    return found and found.interface


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_rule_may_ask_for(version: int) -> None:
    far, source = FAR[version], ip_address({4: "192.0.2.7", 6: "2001:db8:7::7"}[version])
    network = ip_network({4: "192.0.2.0/24", 6: "2001:db8:7::/48"}[version])
    other = ip_network({4: "203.0.113.0/24", 6: "2001:db8:9::/48"}[version])

    def rule(priority: int = 100, table: int = 2, **values: Any) -> RuleRecord:
        return RuleRecord(version, priority, table, **values)

    def leaves(*rules: RuleRecord, **asked: Any) -> Any:
        return device_of(rules, far, **asked)

    assert leaves() == 1
    assert leaves(rule()) == 2
    assert leaves(rule(100, 3), rule(99, 2)) == 2
    assert leaves(RuleRecord(10 - version, 100, 2)) == 1  # of the other family
    assert leaves(rule(source=network), source=source) == 2
    assert leaves(rule(source=other), source=source) == 1
    assert leaves(rule(source=network)) == 1  # nothing is known of the source
    assert leaves(rule(source=network, invert=True)) == 2
    assert leaves(rule(source=network, invert=True), source=source) == 1
    # An unknown source is 0.0.0.0 to IPv4, and unknown to IPv6.
    zero = ip_network({4: "0.0.0.0/1", 6: "::/1"}[version])
    for unknown in (None, zero.network_address):
        assert leaves(rule(source=zero), source=unknown) == {4: 2, 6: 1}[version]
        assert leaves(rule(source=zero, invert=True), source=unknown) == {4: 1, 6: 2}[version]
    assert leaves(rule(destination=other)) == 1
    assert leaves(rule(destination=ip_network(far))) == 2
    assert leaves(rule(mark=1, mask=0xFF), mark=0x101) == 2
    assert leaves(rule(mark=1, mask=0xFFFF), mark=0x101) == 1
    assert leaves(rule(iif="lo")) == 2
    assert leaves(rule(iif="eth2")) == 1
    assert leaves(rule(uids=(os.geteuid(), os.geteuid()))) == 2
    assert leaves(rule(uids=(os.geteuid() + 1, 0xFFFFFFFF))) == 1
    assert leaves(rule(table=77)) == 1  # a table that is not there
    assert leaves(rule(suppress=0)) == 1  # a default route does not count
    assert leaves(rule(99, action=RuleAction.NOP), rule()) == 2
    assert leaves(rule(99, action=RuleAction.GOTO, goto=32_766), rule()) == 1
    assert leaves(rule(99, action=RuleAction.GOTO, goto=101), rule(), rule(101, 3)) == 3
    assert leaves(rule(99, action=RuleAction.GOTO, goto=500), rule()) == 2  # no rule is there to go on with


def test_the_device_that_is_wanted() -> None:
    rules = (*PLAIN_RULES, RuleRecord(4, 100, 2, oif="eth2"))
    snap = RouteSnapshot(routes=(default_by(1, TABLE_MAIN), default_by(2, 2)), links=LINKS, rules=rules)
    assert snap.route(FAR[4], IfIndex(2)).interface == 2  # type: ignore[union-attr]
    assert snap.route(FAR[4], IfIndex(1)).interface == 1  # type: ignore[union-attr]
    assert snap.route(FAR[4], IfIndex(3)) is Unresolved.OTHER_INTERFACE


@pytest.mark.parametrize("name", ["BLACKHOLE", "UNREACHABLE", "PROHIBIT"])
def test_rules_that_refuse(name: str) -> None:
    rules = (*PLAIN_RULES, RuleRecord(4, 100, action=RuleAction[name], destination=ip_network("198.51.100.0/24")))
    snap = RouteSnapshot(routes=[default_by(1, TABLE_MAIN)], links=LINKS, rules=rules)
    assert snap.route(FAR[4], IfIndex(1)) is Unresolved[name]
    assert snap.resolve(ip_address("192.0.2.1"), IfIndex(1)) is Unresolved.NEIGHBOR


def test_throw_goes_on_with_the_next_rule() -> None:
    throw = RouteRecord(ip_network("198.51.100.0/24"), kind=RouteKind.THROW, table=2)
    assert device_of([RuleRecord(4, 100, 2), RuleRecord(4, 101, 3)], routes=[throw]) == 3


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", [RouteKind.LOCAL, RouteKind.ANYCAST, RouteKind.BLACKHOLE, RouteKind.PROHIBIT])
def test_no_rule_suppresses_a_route_that_refuses(version: int, kind: RouteKind) -> None:
    """One to this host is found, and suppressed; those that refuse are none to fib_rules_lookup()."""
    routes = (RouteRecord(ip_network(DEFAULTS[version]), kind=kind, table=2), default_by(3, 3, version))
    rules = (RuleRecord(version, 100, 2, suppress=0), RuleRecord(version, 101, 3))
    snap = RouteSnapshot(routes=routes, links=LINKS, rules=rules)
    found = snap.route(FAR[version], IfIndex(3))
    (number,) = snap.route_ids(np.frombuffer(FAR[version].packed, np.uint8)[None]).tolist()
    if kind in (RouteKind.LOCAL, RouteKind.ANYCAST):
        assert found and found.id == number == 1
    else:
        assert (found, number) == (Unresolved[kind.name], 0)


def test_local_and_main_of_ipv4_are_one_only_while_there_are_no_rules() -> None:
    """fib_trie_unmerge(): the longer prefix of main wins before, the shorter one of local after."""
    routes = [
        RouteRecord(ip_network("10.50.0.0/16"), (NextHop(IfIndex(1)),), kind=RouteKind.LOCAL, table=TABLE_LOCAL),
        RouteRecord(ip_network("10.50.1.0/24"), (NextHop(IfIndex(2)),)),
    ]
    there = ip_address("10.50.1.1")
    rule = RuleRecord(4, 100, 99, source=ip_network("203.0.113.0/24"))
    plain = RouteSnapshot(routes=routes, links=LINKS)
    assert plain.route(there, IfIndex(2)).interface == 2  # type: ignore[union-attr]
    assert plain.route_ids(np.frombuffer(there.packed, np.uint8).reshape(1, 4)).tolist() == [1]
    ruled = RouteSnapshot(routes=routes, links=LINKS, rules=(*PLAIN_RULES, rule))
    assert ruled.route(there, IfIndex(2)) is Unresolved.LOCAL
    assert ruled.route_ids(np.frombuffer(there.packed, np.uint8).reshape(1, 4)).tolist() == [0]


def test_without_any_rule_nothing_is_reached() -> None:
    snap = RouteSnapshot(routes=[default_by(1, TABLE_MAIN)], links=LINKS, rules=())
    assert snap.route(FAR[4], IfIndex(1)) is Unresolved.NO_ROUTE


def test_a_router_asks_with_its_source_and_mark() -> None:
    rules = (
        *PLAIN_RULES,
        RuleRecord(4, 100, 2, source=ip_network("192.0.2.0/24")),
        RuleRecord(4, 101, 2, mark=5, mask=7),
    )
    links = [LinkRecord(IfIndex(number), f"eth{number}", bytes(5) + b"\1") for number in (1, 2)]
    snap = RouteSnapshot(routes=(default_by(1, TABLE_MAIN), default_by(2, 2)), links=links, rules=rules)
    for options, interface in (({}, 1), ({"source": ip_address("192.0.2.1")}, 2), ({"mark": 5}, 2)):
        for asked in (1, 2):
            router = XdpQueueLocalRouter(IfIndex(asked), snap, **options)
            found = router.snapshot.route(FAR[4], IfIndex(asked), **options)
            assert bool(found) is (asked == interface), (options, asked)
            router.close()


@pytest.mark.parametrize("options", [{"source": "192.0.2.1"}, {"mark": -1}, {"mark": 1 << 32}, {"mark": True}])
def test_what_a_router_cannot_ask_with(options: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        XdpQueueLocalRouter("lo", RouteSnapshot(), **options)


# ---- the walk beside a reference that looks at everything ----

SMALL = st.integers(0, 15)
networks = st.builds(
    lambda high, length: ip_network((0x0A000000 | high << 20, length), strict=False), SMALL, st.integers(8, 12)
)
actions = st.sampled_from([RuleAction.TO_TABLE] * 4 + list(RuleAction))
rule_records = st.builds(
    RuleRecord,
    version=st.just(4),
    priority=st.integers(0, 6),
    table=st.integers(1, 3),
    action=actions,
    source=st.none() | networks,
    destination=st.none() | networks,
    mark=st.integers(0, 3),
    mask=st.integers(0, 3),
    goto=st.integers(0, 7),
    suppress=st.integers(-1, 10),
    invert=st.booleans(),
)
kinds = st.sampled_from([RouteKind.UNICAST] * 3 + [RouteKind.THROW, RouteKind.BLACKHOLE, RouteKind.LOCAL])
route_records = st.builds(
    lambda network, table, kind: RouteRecord(network, (NextHop(IfIndex(1)),), kind=kind, table=table),
    networks, st.integers(1, 3), kinds,
)  # fmt: skip


def reference(rules: list[RuleRecord], routes: list[RouteRecord], destination: Any, source: Any, mark: int) -> Any:
    """The id of the route, or why there is none."""
    order = sorted(range(len(rules)), key=lambda at: (rules[at].priority, at))
    at = 0
    while at < len(order):
        rule = rules[order[at]]
        fits = (
            (rule.source is None or (source is not None and source in rule.source))
            and (rule.destination is None or destination in rule.destination)
            and (mark & rule.mask) == (rule.mark & rule.mask)
        )
        at += 1
        if fits == rule.invert or rule.action is RuleAction.NOP:
            continue
        if rule.action is RuleAction.GOTO:
            targets = [place for place, number in enumerate(order) if rules[number].priority == rule.goto]
            if targets and rule.goto > rule.priority:
                at = targets[0]
            continue
        if rule.action is not RuleAction.TO_TABLE:
            return Unresolved[rule.action.name]
        fitting = [n for n, r in enumerate(routes) if r.table == rule.table and destination in r.network]
        if not fitting:
            continue
        best = max(fitting, key=lambda n: (routes[n].network.prefixlen, -n))
        if routes[best].kind is RouteKind.THROW:
            continue
        if routes[best].kind is RouteKind.BLACKHOLE:
            return Unresolved.BLACKHOLE
        if routes[best].network.prefixlen <= rule.suppress:
            continue
        return Unresolved.LOCAL if routes[best].kind is RouteKind.LOCAL else best
    return Unresolved.NO_ROUTE


@given(
    st.lists(rule_records, max_size=6), st.lists(route_records, max_size=8), SMALL, st.none() | SMALL, st.integers(0, 3)
)
def test_the_walk_is_that_of_the_reference(
    rules: list[RuleRecord], routes: list[RouteRecord], to: int, of: int | None, mark: int
) -> None:
    destination = ip_address(0x0A000000 | to << 20 | 5)
    source = None if of is None else ip_address(0x0A000000 | of << 20 | 9)
    links = [LinkRecord(IfIndex(1), "eth1", bytes(6))]
    snap = RouteSnapshot(routes=routes, links=links, rules=rules)
    expected = reference(rules, routes, destination, source, mark)
    found = snap.route(destination, IfIndex(1), source=source, mark=mark)
    assert (found if isinstance(found, Unresolved) else found.id) == expected
    column = np.frombuffer(destination.packed, np.uint8).reshape(1, 4)
    alone = reference(rules, routes, destination, None, 0)
    (number,) = snap.route_ids(column).tolist()
    if isinstance(alone, Unresolved):
        # A route that refuses has an id too: whether it does is not looked at.
        assert number == -1 or routes[number].kind.name == alone.name
    else:
        assert number == alone
