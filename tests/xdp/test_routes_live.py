"""The routing decision against the kernel's own: the same tables, the same destinations, RTM_GETROUTE as the judge."""

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from fast_socket import CapabilityError, DeviceError, IfIndex, Unresolved
from fast_socket.lab import Lab, why_unavailable
from fast_socket.xdp import netlink
from fast_socket.xdp.routes import RouteSnapshot, request_neighbor
from fast_socket.xdp.tables import NUD_STALE

UNAVAILABLE = why_unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]

SECONDS = 5.0
MAIN, LOCAL = 254, 255


def change(*requests):
    """Routes and addresses, as pyroute2 writes them, in the namespace of the calling thread."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        for what, request in requests:
            getattr(kernel, what)("add", **request)


def judge(destination, **values):
    """What the kernel says: a device index, gateway and, where it chose one, the source; or an errno."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    family = 2 if destination.version == 4 else 10
    try:
        with IPRoute() as kernel:
            (answer,) = kernel.route("get", dst=str(destination), family=family, **values)
    except NetlinkError as error:
        return error.code
    via, source = answer.get_attr("RTA_VIA"), answer.get("prefsrc")
    return (
        answer["type"],
        answer.get("oif"),
        ip_address(answer.get("gateway") or (via and via["addr"]) or str(destination)),
        source and ip_address(source),
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def crossroads(lab):
    """A host with two devices and routes of every kind."""
    middle, left, right = lab.host("middle"), lab.host("left"), lab.host("right")
    lab.link(middle, left)
    lab.link(middle, right)
    first, second = (end.index for end in middle.interfaces)
    v6 = {"family": 10}
    middle.run(
        change,
        ("addr", {"index": first, "address": "10.80.0.1", "prefixlen": 24}),
        ("addr", {"index": first, "address": "10.80.0.2", "prefixlen": 24}),  # secondary
        ("addr", {"index": first, "address": "169.254.9.1", "prefixlen": 16, "scope": 253}),
        ("addr", {"index": first, "address": "2001:db8:a::1", "prefixlen": 64, "flags": 2}),
        ("addr", {"index": first, "address": "2001:db8:b::1", "prefixlen": 64, "flags": 2}),
        ("route", {"dst": "0.0.0.0/0", "gateway": "10.77.0.2", "priority": 100}),
        ("route", {"dst": "0.0.0.0/0", "gateway": "10.77.1.2", "priority": 50}),
        ("route", {"dst": "198.51.100.0/24", "gateway": "10.80.0.9"}),
        ("route", {"dst": "198.51.100.64/26", "gateway": "10.77.0.2", "prefsrc": "10.80.0.1"}),
        ("route", {"dst": "198.51.101.0/24", "type": "blackhole"}),
        ("route", {"dst": "198.51.102.0/24", "type": "unreachable"}),
        ("route", {"dst": "198.51.103.0/24", "type": "prohibit"}),
        ("route", {"dst": "198.51.104.0/24", "via": {"family": 10, "addr": "fd77::2"}, "oif": first}),
        ("route", {"dst": "198.51.105.0/24", "gateway": "203.0.113.5", "oif": second, "flags": 4}),  # RTNH_F_ONLINK
        ("route", {"dst": "198.51.106.0/24", "gateway": "10.77.0.2", "metrics": {"mtu": 1200}}),
        ("route", {"dst": "198.51.107.0/24", "oif": second, "scope": 253}),
        ("route", {"dst": "10.50.0.0/16", "type": "local", "table": LOCAL, "oif": 1, "scope": 254}),
        ("route", {"dst": "10.50.1.0/24", "gateway": "10.77.0.2"}),
        ("route", {"dst": "::/0", "gateway": "fd77::2", **v6}),
        ("route", {"dst": "2001:db8:1::/48", "gateway": "fd77:0:0:1::2", **v6}),
        ("route", {"dst": "2001:db8:1:1::/64", "type": "blackhole", **v6}),
        ("route", {"dst": "2001:db8:1:2::/64", "type": "unreachable", **v6}),
        ("route", {"dst": "2001:db8:1:3::/64", "type": "prohibit", **v6}),
        ("route", {"dst": "2001:db8:2::/48", "gateway": "fe80::9", "oif": second, **v6}),
        ("route", {"dst": "2001:db8:3::/48", "gateway": "fd77::2", "priority": 2000, **v6}),
        ("route", {"dst": "2001:db8:3::/48", "gateway": "fd77:0:0:1::2", "priority": 1000, **v6}),
        ("route", {"dst": "fd50::/32", "type": "local", "table": LOCAL, "oif": 1, **v6}),
        ("route", {"dst": "fd50:0:1::/48", "gateway": "fd77::2", **v6}),
    )  # fmt: skip
    return middle


DESTINATIONS = [
    *("8.8.8.8", "10.77.0.1", "10.77.0.2", "10.77.0.9", "10.77.0.255", "10.77.1.9", "10.80.0.2", "10.80.0.9"),
    *("169.254.9.9", "127.0.0.5", "10.50.2.2", "10.50.1.2"),
    *("198.51.100.1", "198.51.100.65", *(f"198.51.{number}.1" for number in range(101, 108))),
    *("2606:4700::1", "fd77::1", "fd77::2", "fd77::9", "fd77:0:0:1::9", "fd50::9", "fd50:0:1::9", "fc00::9", "::1"),
    *("2001:db8:1::5", "2001:db8:1:1::5", "2001:db8:1:2::5", "2001:db8:1:3::5", "2001:db8:2::5", "2001:db8:3::5"),
    *("2001:db8:a::9", "2001:db8:b::9"),
]

REFUSALS = {  # fib_props in net/ipv4/fib_semantics.c; IPv6 uses the same numbers
    Unresolved.BLACKHOLE: 22,
    Unresolved.UNREACHABLE: 113,
    Unresolved.PROHIBIT: 13,
    Unresolved.NO_ROUTE: 101,
}


@pytest.mark.parametrize("destination", [ip_address(text) for text in DESTINATIONS], ids=str)
def test_the_kernel_decides_the_same(crossroads, destination):
    snap = crossroads.run(RouteSnapshot.read)
    theirs = crossroads.run(judge, destination)
    ours = snap.lookup(destination)
    why = [snap.route(destination, end.index) for end in crossroads.interfaces]
    if ours is None:
        assert why[0] == why[1]
        if why[0] is Unresolved.LOCAL:
            assert theirs[0] == 2  # RTN_LOCAL
        else:
            assert REFUSALS[why[0]] == theirs
        return
    kind, device, gateway, source = theirs
    assert kind == (3 if destination == ip_address("10.77.0.255") else 1)  # RTN_BROADCAST, RTN_UNICAST
    next_hop = destination if ours.next_hop == ip_address("255.255.255.255") else ours.next_hop
    assert (ours.interface, next_hop, ours.source) == (device, gateway, source)
    # One device has the route, and the other knows that it has not.
    assert sorted(map(type, why), key=str) == sorted((type(ours), Unresolved), key=str)
    assert Unresolved.OTHER_INTERFACE in why


def test_the_routes_own_mtu(crossroads):
    snap = crossroads.run(RouteSnapshot.read)
    assert [snap.lookup(ip_address(a)).mtu for a in ("198.51.106.1", "198.51.100.1")] == [1200, 1500]


def test_a_lower_mtu_for_ipv6(crossroads):
    """As a router advertisement sets it."""
    end = crossroads.interfaces[0]
    setting = Path(f"/proc/sys/net/ipv6/conf/{end.name}/mtu")
    crossroads.run(setting.write_text, "1280")
    try:
        snap = crossroads.run(RouteSnapshot.read)
    finally:
        crossroads.run(setting.write_text, "1500")
    mtus = [snap.route(destination, end.index).mtu for destination in (ip_address("fd77::9"), ip_address("10.77.0.9"))]
    assert mtus == [1280, 1500]


def test_link_local_destinations_belong_to_each_device(crossroads):
    snap = crossroads.run(RouteSnapshot.read)
    for end in crossroads.interfaces:
        route = snap.route(ip_address("fe80::1234"), end.index)
        assert (route.interface, route.source) == (
            end.index,
            crossroads.run(judge, ip_address("fe80::1234"), oif=end.index)[3],
        )


def test_multipath(lab):
    here, there = lab.host("ecmp"), lab.host("ecmp-peer")
    lab.link(here, there)
    lab.link(here, there)
    near, far = (end.index for end in here.interfaces)
    gateways = [str(end.ipv4) for end in there.interfaces]
    gateways6 = [str(end.ipv6) for end in there.interfaces]
    here.run(
        change,
        (
            "route",
            {"dst": "192.0.2.0/24", "multipath": [{"gateway": gateways[0]}, {"gateway": gateways[1], "hops": 9}]},
        ),
        (
            "route",
            {
                "dst": "2001:db8::/48",
                "family": 10,
                "multipath": [{"gateway": gateways6[0]}, {"gateway": gateways6[1], "hops": 9}],
            },
        ),
    )
    weights = [[hop.weight for hop in record.hops] for record in here.run(RouteSnapshot.read).routes]
    assert weights.count([1, 10]) == 2
    for destination, each in (("192.0.2.1", gateways), ("2001:db8::1", gateways6)):
        snap = here.run(RouteSnapshot.read)
        address = ip_address(destination)
        assert str(snap.lookup(address).next_hop) == each[1]
        assert str(snap.route(address, near).next_hop) == each[0]
        assert str(snap.route(address, far).next_hop) == each[1]
    there.interfaces[1].set_up(False)  # the carrier goes
    wait_until(lambda: here.run(Path("/sys/class/net/lab1/carrier").read_text).strip() == "0")
    snap = here.run(RouteSnapshot.read)
    assert str(snap.lookup(ip_address("192.0.2.1")).next_hop) == gateways[0]


def test_routes_go_with_the_device_and_are_no_longer_answered(lab):
    here, there = lab.host("down"), lab.host("down-peer")
    link = lab.link(here, there)
    before = here.run(RouteSnapshot.read, interface="lab0")
    link.a.set_up(False)
    after = here.run(RouteSnapshot.read, interface="lab0", after=before)
    assert after.generation == before.generation + 1
    assert before.route(link.b.ipv4, link.a.index)
    for destination in (link.b.ipv4, link.b.ipv6):
        assert after.route(destination, link.a.index) is Unresolved.NO_ROUTE


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_the_kernel_resolves_a_neighbour_when_asked(lab, version):
    here, there = lab.host(f"asks-{version}"), lab.host(f"answers-{version}")
    link = lab.link(here, there)
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = getattr(link.b, version)
    assert here.run(netlink.read_neighbor, link.a.index, address) is None
    assert here.run(RouteSnapshot.read).resolve(address, link.a.index) is Unresolved.NEIGHBOR
    here.run(request_neighbor, link.a.index, address)
    wait_until(lambda: here.run(netlink.read_neighbor, link.a.index, address))
    egress = here.run(RouteSnapshot.read).resolve(address, link.a.index)
    assert egress and egress.destination_mac.hex(":") == link.b.mac
    assert egress.source_mac.hex(":") == link.a.mac


def test_a_neighbour_that_does_not_answer_stays_unresolved(lab):
    here = lab.host("alone")
    link = lab.link(here, lab.host("silent"))
    nobody = link.a.ipv4 + 100
    here.run(request_neighbor, link.a.index, nobody)
    assert here.run(netlink.read_neighbor, link.a.index, nobody) is None
    assert here.run(RouteSnapshot.read).resolve(nobody, link.a.index) is Unresolved.NEIGHBOR


def test_a_stale_neighbour_is_confirmed_when_asked(lab):
    here, there = lab.host("stale"), lab.host("stale-peer")
    link = lab.link(here, there)

    def make_stale():
        from pyroute2 import IPRoute

        with IPRoute() as kernel:
            kernel.neigh(
                "replace", ifindex=link.a.index, dst=str(link.b.ipv4), lladdr="02:00:00:00:00:77", state=NUD_STALE
            )

    here.run(make_stale)
    snap = here.run(RouteSnapshot.read)
    assert snap.is_stale(link.a.index, link.b.ipv4)
    assert snap.resolve(link.b.ipv4, link.a.index).destination_mac.hex(":") == "02:00:00:00:00:77"
    here.run(request_neighbor, link.a.index, link.b.ipv4)
    record = here.run(netlink.read_neighbor, link.a.index, link.b.ipv4)
    assert record and not record.state & NUD_STALE  # DELAY: the kernel probes in 5 s (DELAY_FIRST_PROBE_TIME)


def test_a_device_that_is_gone(lab):
    here = lab.host("gone")
    link = lab.link(here, lab.host("gone-peer"))
    link.remove()
    with pytest.raises(DeviceError, match="gone"):
        here.run(request_neighbor, link.a.index, ip_address("10.0.0.1"))


def test_tables_can_be_read_from_a_coroutine(crossroads):
    async def read():
        return RouteSnapshot.read()

    snap = crossroads.run(lambda: asyncio.run(read()))
    assert snap.links.keys() == crossroads.run(RouteSnapshot.read).links.keys()
    assert {end.name for end in crossroads.interfaces} < {link.name for link in snap.links.values()}


def test_a_rule_that_cannot_be_honoured_is_warned_of_once(lab, caplog):
    host = lab.host("rules")
    host.run(change, ("rule", {"ip_proto": 17, "table": 100, "priority": 1000}))
    netlink._warn_of_rule.cache_clear()
    for _ in range(2):
        host.run(RouteSnapshot.read)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["IPv4 policy rule 1000 is not honoured"]
    netlink._warn_of_rule.cache_clear()
    caplog.clear()
    lab.host("no-rules").run(RouteSnapshot.read)
    assert not caplog.records


def test_asking_needs_a_privilege_and_reading_none(lab):
    import ctypes
    import os

    host = lab.host("user")
    link = lab.link(host, lab.host("user-peer"))

    def drop(net_admin=12):
        """CAP_NET_ADMIN, out of this thread's effective set: capset(2)."""
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
        sets = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, sets) == 0
        sets[0] &= ~(1 << net_admin)
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())

    def ask():
        drop()
        assert RouteSnapshot.read().route(link.b.ipv4, link.a.index)
        with contextlib.suppress(CapabilityError):
            request_neighbor(IfIndex(link.a.index), link.b.ipv4)
            return "granted"
        return "refused"

    assert host.run(ask) == "refused"
