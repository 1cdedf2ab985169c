"""A router that follows the kernel: what changes is answered within its time, what does not matter is not read."""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

import fast_socket as fs
from fast_socket import DeviceError, Unresolved
from fast_socket.lab import Lab, why_unavailable
from fast_socket.xdp import monitor
from fast_socket.xdp.monitor import RouteMonitor

UNAVAILABLE = why_unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))]

SECONDS = 5.0
FIRST, SECOND = "02:00:00:00:00:71", "02:00:00:00:00:72"


class Place:
    """A host with one device and two gateways that are never asked for."""

    def __init__(self, lab: Lab) -> None:
        self.host = lab.host("near")
        self.link = lab.link(self.host, lab.host("far"))
        self.end = self.link.a
        self.gateways = [str(self.end.ipv4.__class__(int(self.end.ipv4) + step)) for step in (40, 41)]
        for gateway, mac in zip(self.gateways, (FIRST, SECOND), strict=True):
            self.end.add_neighbor(gateway, mac)

    def routes(self, *requests: tuple[str, dict[str, Any]]) -> None:
        def change() -> None:
            from pyroute2 import IPRoute

            with IPRoute() as kernel:
                for command, values in requests:
                    kernel.route(command, **values)

        self.host.run(change)

    def via(self, gateway: int, network: str = "198.51.100.0/24") -> None:
        self.routes(("replace", {"dst": network, "gateway": self.gateways[gateway]}))

    def monitor(self, **options: Any) -> RouteMonitor:
        made: RouteMonitor = self.host.run(RouteMonitor, self.end.name, **options)
        return made


@pytest.fixture
def place() -> Iterator[Place]:
    with Lab() as lab:
        yield Place(lab)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.002)


DESTINATION = ip_address("198.51.100.9")


def mac_of(router: RouteMonitor) -> str | None:
    egress = router.resolve(DESTINATION)
    return None if isinstance(egress, Unresolved) else egress.destination_mac.hex(":")


def test_routes_that_come_change_and_go(place: Place) -> None:
    with place.monitor() as it:
        assert it.resolve(DESTINATION) is Unresolved.NO_ROUTE
        before = it.generation
        place.via(0)
        eventually(lambda: mac_of(it) == FIRST)
        assert it.generation > before
        before = it.generation
        place.via(1)
        eventually(lambda: mac_of(it) == SECOND)
        assert it.generation > before
        place.routes(("del", {"dst": "198.51.100.0/24"}))
        eventually(lambda: it.resolve(DESTINATION) is Unresolved.NO_ROUTE)


def test_neighbours_addresses_and_links(place: Place) -> None:
    place.via(0)
    with place.monitor() as it:
        assert mac_of(it) == FIRST
        place.end.add_neighbor(place.gateways[0], SECOND)
        eventually(lambda: mac_of(it) == SECOND)
        mtu = it.resolve(DESTINATION).mtu  # type: ignore[union-attr]
        place.end.set_mtu(mtu - 100)
        eventually(lambda: getattr(it.resolve(DESTINATION), "mtu", 0) == mtu - 100)
        place.end.set_up(False)
        eventually(lambda: it.resolve(DESTINATION) is Unresolved.NO_ROUTE)


def test_what_makes_no_answer_stale_is_not_read(place: Place) -> None:
    place.via(0)
    with place.monitor() as it:
        assert mac_of(it) == FIRST
        generation, readings, messages = it.generation, it.readings, it.messages
        for last in range(100, 120):
            place.end.add_neighbor(str(place.end.ipv4.__class__(int(place.end.ipv4) + last)), FIRST)
        eventually(lambda: it.messages >= messages + 20)
        time.sleep(0.1)
        assert (it.generation, it.readings) == (generation, readings)


def test_a_burst_is_read_once_or_a_few_times(place: Place) -> None:
    with place.monitor(quiet=0.05, at_most=1.0) as it:
        place.routes(*(
            ("add", {"dst": f"10.{number >> 8}.{number & 255}.0/24", "gateway": place.gateways[number % 2]})
            for number in range(600)
        ))  # fmt: skip
        eventually(lambda: it.resolve(ip_address("10.2.87.1")))
        assert it.resolve(ip_address("10.0.1.1")).destination_mac.hex(":") == SECOND  # type: ignore[union-attr]
        eventually(lambda: it.messages >= 600)
        assert it.readings <= 30  # of 600 messages


def test_what_the_kernel_could_not_tell_is_read_all_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_RECEIVE_BUFFER", 2304)
    with place.monitor() as it:
        requests = [
            ("add", {"dst": f"10.{number >> 8}.{number & 255}.0/24", "gateway": place.gateways[0]})
            for number in range(2000)
        ]
        place.routes(*requests)
        place.via(1)
        eventually(lambda: mac_of(it) == SECOND)
        assert it.overruns > 0
        eventually(lambda: it.resolve(ip_address("10.7.207.1")))


def test_a_device_that_goes(place: Place) -> None:
    place.via(0)
    with place.monitor() as it:
        assert mac_of(it) == FIRST
        generation = it.generation
        place.link.remove()
        eventually(lambda: it.generation > generation)
        with pytest.raises(DeviceError, match="not there"):
            it.resolve(DESTINATION)
        with pytest.raises(DeviceError, match="gone"):
            it.refresh()


def test_messages_that_are_not_the_kernels(place: Place) -> None:
    """Short ones would have ended the thread."""
    place.via(0)
    with place.monitor(quiet=0.001) as it:
        port = it._netlink.getsockname()[0]

        def send() -> None:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as other:
                other.bind((0, 0))
                for message in (struct.pack("=IHHII", 20, 28, 0, 0, 0) + b"abcd", bytes(16)):
                    other.sendto(message, (port, 0))

        place.host.run(send)
        place.via(1)
        eventually(lambda: mac_of(it) == SECOND)


def test_closed_from_everywhere_at_once(place: Place) -> None:
    for _ in range(20):
        it = place.monitor()
        threads = [threading.Thread(target=it.close) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_closed_by_whoever_reads_its_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    class Closes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            it.close()

    handler = Closes()
    it = place.monitor()
    logging.getLogger("fast_socket.xdp").addHandler(handler)
    try:
        place.link.remove()
        eventually(lambda: it.interface not in it.snapshot.links)
        eventually(lambda: not any(thread.name == "fast_socket routes" for thread in threading.enumerate()))
    finally:
        logging.getLogger("fast_socket.xdp").removeHandler(handler)


def test_a_namespace_that_goes() -> None:
    """Its name is gone, and the devices; the monitor keeps what is left of it, and says so of the device."""
    with Lab() as lab:
        place = Place(lab)
        place.via(0)
        it = place.monitor()
        assert mac_of(it) == FIRST
    with it:
        eventually(lambda: it.interface not in it.snapshot.links)
        with pytest.raises(DeviceError, match="not there"):
            it.resolve(DESTINATION)
        assert it.readings >= 1


def test_close_ends_the_thread_and_answers_stay(place: Place) -> None:
    place.via(0)
    before = threading.active_count()
    it = place.monitor()
    assert mac_of(it) == FIRST
    it.close()
    it.close()
    eventually(lambda: threading.active_count() <= before)
    place.via(1)
    time.sleep(0.1)
    assert mac_of(it) == FIRST


@pytest.mark.parametrize("options", [{"quiet": -1}, {"quiet": "x"}, {"at_most": 61}, {"at_most": True}])
def test_times_that_cannot_be(place: Place, options: Any) -> None:
    with pytest.raises(fs.ConfigError, match=next(iter(options))):
        place.monitor(**options)


def test_a_socket_follows_while_it_sends(place: Place) -> None:
    """Thousands of changes from another thread; no packet goes to a stale gateway after the time that is promised."""
    place.via(0)
    at_most = 0.02
    far = place.link.b.host.run(fs.XdpIpPacketSocket.open, place.link.b.name, rx_frames=4096)
    with place.monitor(quiet=0.002, at_most=at_most) as router, far:
        near = place.host.run(fs.XdpUdpSocket.open, place.end.name, local=(str(place.end.ipv4), 5000), router=router)
        with near:
            over = threading.Event()
            changes = 0

            def churn() -> None:
                nonlocal changes
                from pyroute2 import IPRoute

                with IPRoute() as kernel:
                    while not over.is_set():
                        kernel.route("replace", dst="198.51.100.0/24", gateway=place.gateways[changes % 2])
                        changes += 1

            thread = threading.Thread(target=place.host.run, args=(churn,))
            thread.start()
            peer = near.prepare_udp_endpoint(fs.UdpEndpointSpec(remote=(str(DESTINATION), 9)))
            tx, sent = near.tx_batch(16), 0
            until = time.monotonic() + 1.0
            try:
                while time.monotonic() < until:
                    for _ in range(16):
                        tx.append(b"wherever", (str(DESTINATION), 9))
                    sent += near.send(tx) + 0 * len(tx)
                    tx.discard()
                    tx.append(b"wherever")
                    sent += near.send_to(peer, tx)
                    tx.discard()
            finally:
                over.set()
                thread.join()
            assert changes > 100
            assert sent > 100
            place.via(1)
            eventually(lambda: mac_of(router) == SECOND)
            rx = far.recv_batch(256)
            while far.recv(rx):
                pass
            tx.append(b"last", (str(DESTINATION), 9))
            assert near.send(tx) == 1
            tx.append(b"last")
            assert near.send_to(peer, tx) == 1
            frames = []
            deadline = time.monotonic() + SECONDS
            while len(frames) < 2 and time.monotonic() < deadline:
                if far.driver.wait(0.1) and far.recv(rx):
                    # The link header is still in front of an IP packet.
                    frames += [bytes(memoryview(far.pool.memory)[at - 14 : at - 8]) for at in rx.offsets.tolist()]
            assert [mac.hex(":") for mac in frames] == [SECOND, SECOND]
            near.drain_tx_completions()
            assert near.pool.tx_available + near.pool.tx_with_device == near.pool.tx_frames
