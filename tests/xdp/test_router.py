"""The default router: when it asks the kernel, how often, and when its generation grows."""

import threading
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fast_socket import CapabilityError, ConfigError, DeviceError, IfIndex, Unresolved
from fast_socket.core.routes import EgressResolver
from fast_socket.lab import Lab, why_unavailable
from fast_socket.xdp import netlink, router
from fast_socket.xdp.egress import Egress
from fast_socket.xdp.router import ASK_SECONDS, LOOK_SECONDS, XdpQueueLocalRouter, XdpUdpRouter
from fast_socket.xdp.routes import RouteSnapshot
from fast_socket.xdp.tables import NUD_STALE, LinkRecord, NeighborRecord, NextHop, RouteRecord

UNAVAILABLE = why_unavailable()
needs_lab = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

ETH0 = IfIndex(2)
MAC, PEER_MAC, OTHER_MAC = (bytes.fromhex(f"02000000000{last}") for last in "123")
PEER = ip_address("192.0.2.9")
REACHABLE = 0x02


class Kernel:
    """What the router sees of a kernel, on a clock of the test's own."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.requests: list[Any] = []
        self.reads: list[Any] = []
        self.neighbors: dict[Any, NeighborRecord] = {}
        self.tables = netlink.Tables(
            (RouteRecord(ip_network("192.0.2.0/24"), (NextHop(ETH0),)),),
            (LinkRecord(IfIndex(1), "lo", b""), LinkRecord(ETH0, "eth0", MAC)),
            (),
            (),
        )
        monkeypatch.setattr(netlink, "read_tables", self.read_tables)
        monkeypatch.setattr(netlink, "read_neighbor", self.read_neighbor)
        monkeypatch.setattr(netlink, "request_neighbor", self.request_neighbor)
        monkeypatch.setattr(router, "time", self)

    def monotonic(self):
        return self.now

    def read_tables(self):
        return self.tables._replace(neighbors=tuple(self.neighbors.values()))

    def read_neighbor(self, interface, address):
        self.reads.append(address)
        return self.neighbors.get((interface, address))

    def request_neighbor(self, interface, address):
        self.requests.append(address)

    def answer(self, mac=PEER_MAC, state=REACHABLE):
        self.neighbors[ETH0, PEER] = NeighborRecord(ETH0, PEER, mac, state)


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


def test_it_is_a_router_and_so_is_anything_with_the_two_names():
    class Fixed:
        generation = 0

        def resolve(self, destination: object) -> Egress | Unresolved:
            return Egress(ETH0, MAC, PEER_MAC, 1500)

    routers: list[XdpUdpRouter] = [Fixed()]
    resolvers: list[EgressResolver[Egress]] = [*routers]
    assert resolvers[0].resolve(PEER)


def test_a_missing_neighbour_is_asked_for_and_a_later_call_succeeds(kernel):
    it = XdpQueueLocalRouter("eth0")
    assert it.resolve(PEER) is Unresolved.NEIGHBOR
    assert kernel.requests == [PEER]
    kernel.answer()
    kernel.now += 2 * LOOK_SECONDS
    assert it.resolve(PEER) == Egress(ETH0, MAC, PEER_MAC, 1500)
    assert it.generation == 0  # nothing that was given out is stale
    reads = len(kernel.reads)
    assert it.resolve(PEER)
    assert len(kernel.reads) == reads  # known now: no netlink


def test_a_neighbour_is_asked_for_once_a_second_and_looked_at_seldom(kernel):
    it = XdpQueueLocalRouter(ETH0)
    for _ in range(5):
        assert it.resolve(PEER) is Unresolved.NEIGHBOR
    assert (len(kernel.requests), len(kernel.reads)) == (1, 1)
    kernel.now += 2 * LOOK_SECONDS
    assert it.resolve(PEER) is Unresolved.NEIGHBOR
    assert (len(kernel.requests), len(kernel.reads)) == (1, 2)
    kernel.now += ASK_SECONDS
    assert it.resolve(PEER) is Unresolved.NEIGHBOR
    assert (len(kernel.requests), len(kernel.reads)) == (2, 3)
    other = PEER + 1
    assert it.resolve(other) is Unresolved.NEIGHBOR  # each neighbour has its own second
    assert kernel.requests == [PEER, PEER, other]


def test_other_answers_ask_nobody(kernel):
    it = XdpQueueLocalRouter("eth0")
    assert it.resolve(ip_address("198.51.100.1")) is Unresolved.NO_ROUTE
    assert it.resolve(ip_address("239.1.2.3")).destination_mac[:3] == b"\x01\x00\x5e"
    assert kernel.requests == kernel.reads == []


def test_refresh_grows_the_generation_only_when_an_egress_may_be_stale(kernel):
    kernel.answer()
    it = XdpQueueLocalRouter("eth0")
    assert it.resolve(PEER).destination_mac == PEER_MAC
    assert not it.refresh() and it.generation == 0
    kernel.answer(OTHER_MAC)
    assert it.resolve(PEER).destination_mac == PEER_MAC  # until it is told to look
    assert it.refresh() and it.generation == 1
    assert it.resolve(PEER).destination_mac == OTHER_MAC
    kernel.tables = kernel.tables._replace(routes=())
    assert it.refresh() and it.generation == 2
    assert it.resolve(PEER) is Unresolved.NO_ROUTE


def test_a_neighbour_learnt_between_refreshes_counts_as_given_out(kernel):
    it = XdpQueueLocalRouter("eth0")
    it.resolve(PEER)
    kernel.answer()
    kernel.now += 2 * LOOK_SECONDS
    assert it.resolve(PEER)
    kernel.answer(OTHER_MAC)
    assert it.refresh() and it.generation == 1


def test_refresh_has_stale_neighbours_in_use_confirmed(kernel):
    kernel.answer(state=NUD_STALE)
    it = XdpQueueLocalRouter("eth0")
    it.refresh()
    assert kernel.requests == []  # nobody uses it
    it.resolve(PEER)
    it.refresh()
    assert kernel.requests == [PEER]
    kernel.answer(state=REACHABLE)
    it.refresh()
    assert kernel.requests == [PEER]


def test_without_the_privilege_known_neighbours_are_reached_and_the_log_says_it_once(kernel, monkeypatch, caplog):
    def refuse(interface, address):
        raise CapabilityError("needs CAP_NET_ADMIN")

    monkeypatch.setattr(netlink, "request_neighbor", refuse)
    it = XdpQueueLocalRouter("eth0")
    for _ in range(3):
        assert it.resolve(PEER) is Unresolved.NEIGHBOR
        kernel.now += ASK_SECONDS
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CAP_NET_ADMIN" in caplog.text
    kernel.answer()
    assert it.resolve(PEER)


def test_an_interface_that_cannot_be_used(kernel):
    with pytest.raises(ConfigError, match="no interface 'eth9' here; there are lo, eth0"):
        XdpQueueLocalRouter("eth9")
    with pytest.raises(ConfigError, match="'lo' has no Ethernet address"):
        XdpQueueLocalRouter("lo")
    it = XdpQueueLocalRouter("eth0")
    kernel.tables = kernel.tables._replace(links=kernel.tables.links[:1])
    with pytest.raises(DeviceError, match="'eth0' is gone"):
        it.refresh()


def test_a_snapshot_may_be_given(kernel):
    snap = RouteSnapshot(
        routes=kernel.tables.routes,
        links=[replace(kernel.tables.links[1], mtu=900)],
        neighbors=[NeighborRecord(ETH0, PEER, OTHER_MAC)],
    )
    it = XdpQueueLocalRouter(ETH0, snap)
    assert it.resolve(PEER) == Egress(ETH0, MAC, OTHER_MAC, 900)
    assert it.interface == ETH0 and it.snapshot is snap


def test_threads_may_resolve_while_another_refreshes(kernel):
    everybody = [PEER + n for n in range(50)]
    for address in everybody:
        kernel.neighbors[ETH0, address] = NeighborRecord(ETH0, address, PEER_MAC, NUD_STALE)
    it = XdpQueueLocalRouter("eth0")
    over = threading.Event()
    failures: list[BaseException] = []

    def resolve():
        try:
            while not over.is_set():
                for address in everybody:
                    assert it.resolve(address)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=resolve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(4):
        lo, eth0 = kernel.tables.links
        kernel.tables = kernel.tables._replace(links=(lo, replace(eth0, mtu=1000 + turn)))
        it.refresh()
    over.set()
    for thread in threads:
        thread.join()
    assert not failures and it.generation == 4


@pytest.mark.root
@needs_lab
def test_live_a_neighbour_becomes_known_and_a_changed_one_is_noticed():
    with Lab() as lab:
        here, there = lab.host("a"), lab.host("b")
        link = lab.link(here, there)

        def resolved(it):
            deadline = time.monotonic() + 5
            while not (egress := it.resolve(link.b.ipv4)):
                assert egress is Unresolved.NEIGHBOR and time.monotonic() < deadline
                time.sleep(0.002)
            return egress

        def scenario():
            it = XdpQueueLocalRouter(link.a.name)
            first = resolved(it)
            assert not it.refresh()
            link.a.add_neighbor(str(link.b.ipv4), "02:00:00:00:00:77")
            assert it.refresh() and it.generation == 1
            second = resolved(it)
            link.a.set_up(False)
            assert it.refresh() and it.generation == 2
            return first, second, it.resolve(link.b.ipv4)

        first, second, third = here.run(scenario)
        assert first.destination_mac.hex(":") == link.b.mac
        assert second == replace(first, destination_mac=bytes.fromhex("020000000077"))
        assert third is Unresolved.NO_ROUTE
