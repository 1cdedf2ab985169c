"""Policy rules against the kernel's own decision: the same rules, sources and marks, RTM_GETROUTE as the judge."""

import time
from ipaddress import ip_address
from itertools import product
from typing import Any

import pytest

import fast_socket as fs
from fast_socket import Unresolved
from fast_socket.lab import Lab, why_unavailable
from fast_socket.xdp.routes import RouteSnapshot
from tests.xdp.test_routes_live import change, judge, wait_until

UNAVAILABLE = why_unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]

# Of a rule: net/ipv4/fib_rules.c, net/ipv6/fib6_rules.c. Of a route: net/ipv4/fib_semantics.c.
REFUSALS = {
    Unresolved.BLACKHOLE: (22,),
    Unresolved.UNREACHABLE: (101, 113),
    Unresolved.PROHIBIT: (13,),
    Unresolved.NO_ROUTE: (101,),
}
ADDRESS = {4: ("10.77.{}.1", "10.77.{}.2"), 6: ("fd77:0:0:{}::1", "fd77:0:0:{}::2")}
FAR = {4: "198.51.100.9", 6: "2001:db8:100::9"}
LOW = {4: "0.0.0.0/1", 6: "::/1"}
NEAR = {4: "198.51.100.0/24", 6: "2001:db8:100::/48"}

#: Rules as pyroute2 writes them; `table` 10 leads left, 20 right, main left.
RULES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "priority": [{"table": 10, "priority": 50}, {"table": 20, "priority": 40}],
    "from": [{"src": "own", "table": 20, "priority": 50}],
    "from what may be unknown": [{"src": "low", "table": 20, "priority": 50}],
    "from what is known": [{"src": "low", "table": 20, "priority": 50, "flags": 2}],
    "from all but": [{"src": "own", "table": 20, "priority": 50, "flags": 2}],
    "to": [{"dst": "near", "table": 20, "priority": 50}],
    "not to": [{"dst": "near", "table": 20, "priority": 50, "flags": 2}],
    "mark": [{"fwmark": 7, "fwmask": 0xF, "table": 20, "priority": 50}],
    "mark without a mask": [{"fwmark": 7, "table": 20, "priority": 50}],
    "of this host": [{"iifname": "lo", "table": 20, "priority": 50}],
    "of another device": [{"iifname": "lab0", "table": 20, "priority": 50}],
    "an empty table": [{"table": 99, "priority": 50}],
    "throw": [{"table": 30, "priority": 50}, {"table": 20, "priority": 60}],
    "refused by a route": [{"table": 40, "priority": 50}],
    "suppressed": [{"table": 254, "suppress_prefixlen": 0, "priority": 50}, {"table": 20, "priority": 60}],
    "suppressed for this host": [{"table": 50, "suppress_prefixlen": 0, "priority": 50},
                                 {"table": 20, "priority": 60}],
    "not suppressed": [{"table": 60, "suppress_prefixlen": 0, "priority": 50}, {"table": 20, "priority": 60}],
    "goto": [{"action": "goto", "goto": 70, "priority": 50}, {"table": 10, "priority": 60},
             {"table": 20, "priority": 70}],
    "goto nowhere": [{"action": "goto", "goto": 75, "priority": 50}, {"table": 20, "priority": 60}],
    "goto what is left out": [{"action": "goto", "goto": 70, "priority": 50}, {"table": 10, "priority": 60},
                              {"suppress_ifgroup": 7, "dst": "near", "src": "low", "table": 99, "priority": 70},
                              {"table": 20, "priority": 80}],
    "a type of service": [{"tos": 16, "table": 20, "priority": 50}],
    "any other type of service": [{"tos": 16, "table": 20, "priority": 50, "flags": 2}],
    "a tunnel": [{"tun_id": 5, "table": 20, "priority": 50}],
    "no tunnel": [{"tun_id": 5, "src": "own", "table": 20, "priority": 50, "flags": 2}],
    "nop": [{"action": "nop", "priority": 50}, {"table": 20, "priority": 60}],
    "blackhole": [{"action": "blackhole", "dst": "near", "priority": 50}],
    "unreachable": [{"action": "unreachable", "dst": "near", "priority": 50}],
    "prohibit": [{"action": "prohibit", "dst": "near", "priority": 50}],
    "my user": [{"uid_range": "0:0", "table": 20, "priority": 50}],
    "another user": [{"uid_range": "1:9", "table": 20, "priority": 50}],
}  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Any:
    with Lab() as made:
        yield made


@pytest.fixture(params=RULES)
def ruled(lab: Lab, request: pytest.FixtureRequest) -> Any:
    """A host between two others, with tables for either side and one set of rules, in both families."""
    name = f"h{len(lab.hosts)}"
    host = lab.host(name)
    lab.link(host, lab.host(f"{name}-left"))
    lab.link(host, lab.host(f"{name}-right"))
    numbers = [end.ipv4.packed[2] for end in host.interfaces]
    requests: list[Any] = []
    for version, family in ((4, 2), (6, 10)):
        left, right = (ADDRESS[version][1].format(f"{n:x}" if version == 6 else n) for n in numbers)
        everywhere = {"dst": "0.0.0.0/0" if version == 4 else "::/0", "family": family}
        for table, gateway in ((254, left), (10, left), (20, right)):
            requests.append(("route", {**everywhere, "gateway": gateway, "table": table}))
        requests.append(("route", {"dst": NEAR[version], "family": family, "type": "throw", "table": 30}))
        requests.append(("route", {"dst": NEAR[version], "family": family, "type": "unreachable", "table": 40}))
        requests.append(("route", {**everywhere, "type": "local", "oif": 1, "table": 50, "scope": 254}))
        requests.append(("route", {**everywhere, "type": "unreachable", "table": 60}))
        own = ADDRESS[version][0].format(f"{numbers[1]:x}" if version == 6 else numbers[1])
        for rule in RULES[request.param]:
            said = {**rule, "family": family}
            for key, value in (("src", LOW[version] if rule.get("src") == "low" else own), ("dst", NEAR[version])):
                if key in said:
                    said[key], _, length = value.partition("/")
                    said[f"{key}_len"] = int(length or (32 if version == 4 else 128))
            requests.append(("rule", said))
    host.run(change, *requests)
    return host


def test_the_kernel_decides_the_same(ruled: Any, request: pytest.FixtureRequest) -> None:
    snap = ruled.run(RouteSnapshot.read)
    # pyroute2 drops what it does not know, and a rule without it would be judged the same by both.
    given = [rule for rule in RULES[request.node.callspec.params["ruled"]] if "suppress_prefixlen" in rule]
    assert [rule.suppress for rule in snap.rules if rule.suppress >= 0] == [0] * 2 * len(given)
    for version, elsewhere in ((4, "203.0.113.9"), (6, "2001:db8:200::9")):
        sources = [None, *(end.ipv4 if version == 4 else end.ipv6 for end in ruled.interfaces)]
        for to, source, mark in product(map(ip_address, (FAR[version], elsewhere)), sources, (0, 7, 0x17)):
            theirs = ruled.run(judge, to, mark=mark, **({} if source is None else {"src": str(source)}))
            ours = snap.lookup(to, source=source, mark=mark)
            if ours is None:
                why = {snap.route(to, end.index, source=source, mark=mark) for end in ruled.interfaces}
                assert len(why) == 1
                assert theirs in REFUSALS[why.pop()], (to, source, mark)
            else:
                assert (ours.interface, ours.next_hop) == theirs[1:3], (to, source, mark)


@pytest.mark.parametrize("rule", [{"src": "203.0.113.0", "src_len": 24}, {"ip_proto": 132}], ids=["plain", "left out"])
def test_local_and_main_come_apart_with_the_first_rule(lab: Lab, rule: dict[str, Any]) -> None:
    """Of IPv4: a longer prefix of main wins over local before, not after. A rule that is not honoured is one too."""
    host = lab.host(f"apart{len(lab.hosts)}")
    lab.link(host, lab.host(f"{host.name}-peer"))
    gateway = str(host.interface.ipv4)[:-1] + "2"
    there = ip_address("10.50.1.1")
    host.run(
        change,
        ("route", {"dst": "10.50.0.0/16", "type": "local", "table": 255, "oif": 1, "scope": 254}),
        ("route", {"dst": "10.50.1.0/24", "gateway": gateway}),
    )
    before = host.run(RouteSnapshot.read)
    assert before.route(there, host.interface.index).interface == host.run(judge, there)[1] == host.interface.index
    host.run(change, ("rule", {**rule, "table": 99, "priority": 5, "family": 2}))
    after = host.run(RouteSnapshot.read)
    assert after.route(there, host.interface.index) is Unresolved.LOCAL
    assert host.run(judge, there)[0] == 2  # RTN_LOCAL


def test_a_socket_goes_by_the_rules_for_its_own_address(lab: Lab) -> None:
    """Two providers, a table for each, chosen by the source address: what multi-homed hosts are set up like."""
    host, left, right = lab.host("homed"), lab.host("provider-a"), lab.host("provider-b")
    lab.link(host, left)
    lab.link(host, right)
    ends = host.interfaces
    for number, end in enumerate(ends):
        host.run(
            change,
            ("route", {"dst": "0.0.0.0/0", "gateway": str(end.ipv4)[:-1] + "2", "table": 10 + number}),
            ("rule", {"src": str(end.ipv4), "src_len": 32, "table": 10 + number, "priority": 50 + number, "family": 2}),
        )
    for end, provider in zip(ends, (left, right), strict=True):
        sock = host.run(fs.XdpUdpSocket.open, end.name, local=(str(end.ipv4), 7000))
        provider.run(change, ("addr", {"index": 1, "address": "198.51.100.9", "prefixlen": 32}))
        listener = provider.run(fs.OsUdpSocket.bind, "198.51.100.9:9000")
        with sock, listener:
            tx = sock.tx_batch(1)
            tx.append(b"hello", ("198.51.100.9", 9000))
            until = time.monotonic() + 5
            while not sock.send(tx) and time.monotonic() < until:
                time.sleep(0.01)
            rx = listener.recv_batch(1)
            assert listener.driver.wait(2)
            assert listener.recv(rx) == 1


def test_a_monitor_follows_rules(lab: Lab) -> None:
    host = lab.host("watched")
    lab.link(host, lab.host("watched-peer"))
    index = host.interface.index
    monitor = host.run(fs.RouteMonitor, host.interface.name)
    with monitor:
        before = monitor.generation
        to = ip_address(str(host.interface.ipv4)[:-1] + "2")
        assert monitor.snapshot.route(to, index)
        host.run(change, ("rule", {"dst": str(to), "dst_len": 32, "action": "prohibit", "priority": 9, "family": 2}))
        wait_until(lambda: monitor.generation != before)
        assert monitor.resolve(to) is Unresolved.PROHIBIT
