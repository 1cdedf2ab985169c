"""Routers: what a socket asks for its way out, once per destination and generation, off the packet path.

Any object with `generation` and `resolve` is a router. `XdpQueueLocalRouter` is the default: it takes the kernel's own
tables, keeps to one device, and has the kernel resolve neighbours. Without CAP_NET_ADMIN it cannot ask: it says so once
in the log, and neighbours that the kernel knows already are all there are.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from typing import ParamSpec, Protocol, TypeVar

from fast_socket.core.errors import CapabilityError, ConfigError, DeviceError
from fast_socket.core.ids import IfIndex
from fast_socket.core.routes import EgressResolver, IpAddress, Route, Unresolved
from fast_socket.xdp import netlink
from fast_socket.xdp.egress import Egress
from fast_socket.xdp.routes import RouteSnapshot

log = logging.getLogger("fast_socket.xdp")

#: Seconds between two requests for one neighbour: RETRANS_TIMER of RFC 4861, section 10, at which the kernel repeats.
ASK_SECONDS = 1.0
#: Seconds between two looks at one neighbour that has not answered: a flood to it costs a netlink call no more often.
LOOK_SECONDS = 0.005

P = ParamSpec("P")
T = TypeVar("T")

_Neighbor = tuple[IfIndex, IpAddress]


class XdpUdpRouter(EgressResolver[Egress], Protocol):
    """What an `XdpUdpSocket` asks. It may be called from several threads."""


class XdpQueueLocalRouter:
    """The kernel's routes, as far as they leave through one device or its VLANs. Thread-safe.

    It answers from a snapshot; `refresh()` reads the kernel's tables again. It asks from a thread of its own, which
    stays in the network namespace of the thread that made it: any thread may call it, from any namespace or event loop.
    """

    def __init__(
        self,
        interface: IfIndex | int | str,
        snapshot: RouteSnapshot | None = None,
        *,
        source: IpAddress | None = None,
        mark: int = 0,
    ) -> None:
        """`source` and `mark` (fwmark, 32 bits) are what policy rules are asked with: the address that a socket sends
        from, and SO_MARK of a kernel's one. `ConfigError` if there is no such device, or it is not Ethernet."""
        if source is not None and not isinstance(source, IPv4Address | IPv6Address):
            raise ConfigError(f"source is {source!r}: give an IPv4Address or IPv6Address")
        if isinstance(mark, bool) or not isinstance(mark, int) or not 0 <= mark < 1 << 32:
            raise ConfigError(f"mark is {mark!r}: give an int of 32 bits")
        self._source, self._mark = source, mark
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="fast_socket router")
        self._process = os.getpid()
        try:
            self._snapshot = snapshot or self._there(RouteSnapshot.read, interface=interface)
            if snapshot is not None:
                self._there(int)  # the thread begins here, in this namespace
            link = self._snapshot.link(interface)
        except BaseException:
            self.close()
            raise
        if not link.mac:
            self.close()
            raise ConfigError(f"interface {link.name!r} has no Ethernet address: give an Ethernet device")
        self._interface, self._name = link.index, link.name
        self.generation = self._snapshot.generation
        """Grows when `refresh` finds that an earlier egress may be stale. An attribute: every send reads it."""
        self._lock = threading.Lock()  # resolve() reads one reference without it
        self._asked: dict[_Neighbor, float] = {}
        self._looked: dict[_Neighbor, float] = {}
        self._used: set[_Neighbor] = set()
        self._may_ask = True

    def _there(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if os.getpid() != self._process:
            raise DeviceError("this router is the parent process's: open sockets after a fork")
        try:
            asked = self._keeper.submit(call, *args, **kwargs)
        except RuntimeError as error:  # no more work after shutdown
            raise DeviceError("this router is closed") from error
        return asked.result()

    def close(self) -> None:
        """End its thread. What it knows it goes on answering; again is nothing."""
        self._keeper.shutdown(wait=False)

    @property
    def interface(self) -> IfIndex:
        """The device that all packets leave through."""
        return self._interface

    @property
    def snapshot(self) -> RouteSnapshot:
        """What it answers from now."""
        return self._snapshot

    def resolve(self, destination: IpAddress) -> Egress | Unresolved:
        """The egress to a destination, or why there is none now.

        Where only the neighbour is missing the kernel is asked to resolve it, at most once a second, and a later call
        succeeds without a refresh. Netlink is used then and only then.
        """
        snapshot = self._snapshot
        route = snapshot.route(destination, self._interface, source=self._source, mark=self._mark)
        if isinstance(route, Unresolved):
            return route
        mac = snapshot.neighbor(route.interface, route.next_hop) or self._ask(route)
        if mac is None:
            return Unresolved.NEIGHBOR
        if (neighbor := (route.interface, route.next_hop)) not in self._used:
            with self._lock:
                self._used.add(neighbor)
        return snapshot.egress(route, mac, self._interface)

    def _exchange(self, snapshot: RouteSnapshot) -> None:
        """Answer from another snapshot. The generation last: who sees it finds what belongs to it."""
        self._snapshot = snapshot
        self.generation = snapshot.generation

    def _ask(self, route: Route) -> bytes | None:
        neighbor = route.interface, route.next_hop
        with self._lock:
            now = time.monotonic()
            if now - self._looked.get(neighbor, -math.inf) < LOOK_SECONDS:
                return self._snapshot.neighbor(*neighbor)  # another thread may have found it
            self._looked[neighbor] = now
            if record := self._there(netlink.read_neighbor, *neighbor):
                self._snapshot = self._snapshot.with_neighbor(record)
                return record.mac
            if now - self._asked.get(neighbor, -math.inf) >= ASK_SECONDS:
                self._asked[neighbor] = now
                self._request(neighbor)
            return None

    def _request(self, neighbor: _Neighbor) -> None:
        if not self._may_ask:
            return
        try:
            self._there(netlink.request_neighbor, *neighbor)
        except CapabilityError as error:
            self._may_ask = False
            log.warning("neighbours cannot be resolved, only those that the kernel knows are reached: %s", error)

    def refresh(self) -> bool:
        """Read the kernel's tables again, in milliseconds; True if the generation has grown. `DeviceError` if the
        device is gone.

        Neighbours in use that the kernel has not heard of for a while are confirmed by it: it does not see the packets
        of AF_XDP sockets, and would keep the address of a machine that is gone or was exchanged.
        """
        with self._lock:
            before = self._snapshot
            try:
                self._exchange(self._there(RouteSnapshot.read, interface=self._interface, after=before))
            except ConfigError as error:
                raise DeviceError(f"interface {self._name!r} is gone: {error}") from error
            now = time.monotonic()
            self._asked = {key: at for key, at in self._asked.items() if now - at < ASK_SECONDS}
            self._looked = {key: at for key, at in self._looked.items() if now - at < LOOK_SECONDS}
            self._used &= self._snapshot.neighbors.keys()
            for neighbor in self._used:
                if self._snapshot.is_stale(*neighbor):
                    self._request(neighbor)
            return self._snapshot.generation != before.generation
