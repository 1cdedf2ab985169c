"""Routers: what an AF_XDP socket asks for the way to a destination, once per destination and generation.

`XdpUdpRouter` is the protocol; any object with its two members will do. `XdpQueueLocalRouter` is the default: the
kernel's own tables, as far as they lead out of the socket's device.
"""

import socket
import threading
import time
from typing import Protocol

from fast_socket.core.errors import Error
from fast_socket.core.routes import IpAddress
from fast_socket.xdp.egress import Egress, Unresolved
from fast_socket.xdp.netlink import Netlink
from fast_socket.xdp.routes import NeighborRecord, RouteSnapshot, parse_neighbor

#: A neighbour is asked for this often at most, in seconds: the kernel itself repeats an ARP request after one
#: (RETRANS_TIMER, include/net/neighbour.h).
ASK_INTERVAL = 1.0


class XdpUdpRouter(Protocol):
    """The way to a destination."""

    @property
    def generation(self) -> int:
        """Changes whenever an earlier answer may be stale: sockets then ask again. Read once per send."""
        ...

    def resolve(self, destination: IpAddress) -> Egress | Unresolved:
        """Called by the thread that sends, off the fast path; the answer is kept while the generation lasts, a refusal
        is not."""
        ...


class XdpQueueLocalRouter:
    """The kernel's routes and neighbours, in the network namespace of the thread that made it.

    It reads them once, and again when `refresh` is called. A neighbour that is not there is asked for through the kernel
    (at most once a second) and looked up again at the next resolve: until it answers, that is `Unresolved.NEIGHBOR`. It
    never sends a packet itself. Thread-safe.
    """

    def __init__(self, interface: int, *, netlink: Netlink | None = None) -> None:
        self.interface = interface
        self._netlink = netlink or Netlink()
        self._lock = threading.Lock()
        self._asked: dict[tuple[int, IpAddress], float] = {}
        self._generation = 1
        self._snapshot = RouteSnapshot.read(self._netlink)

    @property
    def generation(self) -> int:
        """Grows with every `refresh` that found a change."""
        return self._generation

    @property
    def snapshot(self) -> RouteSnapshot:
        """What it answers from."""
        return self._snapshot

    def refresh(self) -> bool:
        """Read everything again; returns whether anything was different."""
        with self._lock:
            fresh = RouteSnapshot.read(self._netlink)
            changed = fresh != self._snapshot
            if changed:
                self._snapshot = fresh
                self._generation += 1
            return changed

    def resolve(self, destination: IpAddress) -> Egress | Unresolved:
        """As `XdpUdpRouter.resolve`."""
        with self._lock:
            found = self._snapshot.resolve(destination, self.interface)
            if isinstance(found, tuple):
                neighbor = self._neighbor(*found)
                if neighbor is None:
                    return Unresolved.NEIGHBOR
                self._snapshot = self._snapshot.with_neighbor(neighbor)
                found = self._snapshot.resolve(destination, self.interface)
            return found if isinstance(found, Egress | Unresolved) else Unresolved.NEIGHBOR

    def _neighbor(self, interface: int, address: IpAddress) -> NeighborRecord | None:
        """The kernel's entry as it is now; where there is none, it is asked for."""
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        for fields, attributes in self._netlink.dump("neighbors", family):
            if fields["ifindex"] == interface and attributes.get("NDA_DST") == str(address):
                known = parse_neighbor(fields, attributes)
                if known is not None:
                    return known
        now = time.monotonic()
        if now - self._asked.get((interface, address), -ASK_INTERVAL) >= ASK_INTERVAL:
            if len(self._asked) > 4096:  # destinations are a peer's to choose
                self._asked.clear()
            self._asked[interface, address] = now
            try:
                self._netlink.request_neighbor(interface, family, str(address))
            except Error:  # say, the table is full: asked again later
                pass
        return None

    def close(self) -> None:
        """Close the netlink socket. Again is nothing."""
        self._netlink.close()
