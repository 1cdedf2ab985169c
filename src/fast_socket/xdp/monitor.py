"""`RouteMonitor`: a router that follows the kernel's tables by itself.

A thread listens to rtnetlink for links, addresses, routes, rules and neighbours. When something has changed that an
answer may rest on, it waits until the burst is over, but not for long, reads the tables anew and exchanges the snapshot
whole. Sockets see another generation with their next send, and resolve anew what they send to.

Reading everything anew costs more than applying each message, and cannot be wrong: a message that the kernel could not
deliver (ENOBUFS) is one more reason to read, and nothing else.
"""

import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from fast_socket.core.errors import ConfigError, DeviceError
from fast_socket.core.ids import IfIndex
from fast_socket.core.routes import IpAddress
from fast_socket.xdp.router import XdpQueueLocalRouter
from fast_socket.xdp.routes import RouteSnapshot
from fast_socket.xdp.tables import NUD_VALID

log = logging.getLogger("fast_socket.xdp")

# RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, <linux/rtnetlink.h>
_GROUPS = (1, 3, 5, 7, 8, 9, 11, 19)
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr, <linux/netlink.h>
_NEIGHBOR = struct.Struct("=B3xiHBB")  # struct ndmsg, <linux/neighbour.h>
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29
_NDA_DST, _NDA_LLADDR = 1, 2
_RECEIVE_BUFFER = 1 << 20


class RouteMonitor(XdpQueueLocalRouter):
    """An `XdpQueueLocalRouter` that refreshes itself. Thread-safe: one serves any number of sockets on its device.

    A change is published `quiet` seconds after the last message of a burst, and at the latest `at_most` seconds after
    the first, plus the milliseconds that reading takes: so long a packet may still leave by the old way. Where the
    device goes, sends raise `DeviceError`. Close it after the sockets that were given it.
    """

    def __init__(
        self,
        interface: IfIndex | int | str,
        *,
        source: IpAddress | None = None,
        mark: int = 0,
        quiet: float = 0.005,
        at_most: float = 0.05,
    ) -> None:
        """As `XdpQueueLocalRouter`; it follows the network namespace of the calling thread."""
        for name, seconds in (("quiet", quiet), ("at_most", at_most)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 60:
                raise ConfigError(f"{name} is {seconds!r}: give seconds from 0 to 60")
        self._quiet, self._at_most = quiet, at_most
        self._messages = self._overruns = self._readings = 0
        self._thread: threading.Thread | None = None
        self._closing = threading.Lock()
        # Before the first reading, so that no change falls between.
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._netlink.setblocking(False)
            self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._netlink.bind((0, sum(1 << group - 1 for group in _GROUPS)))
            super().__init__(interface, source=source, mark=mark)
        except BaseException:
            self._netlink.close()
            raise
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._follow, name="fast_socket routes", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def messages(self) -> int:
        """Messages heard of the kernel."""
        return self._messages

    @property
    def overruns(self) -> int:
        """How often the kernel had more to say than the socket could hold (ENOBUFS)."""
        return self._overruns

    @property
    def readings(self) -> int:
        """How often the tables were read anew."""
        return self._readings

    def close(self) -> None:
        """End the thread. What it knows it goes on answering; again is nothing."""
        with self._closing:
            thread, self._thread = self._thread, None
        if thread is not None:
            os.eventfd_write(self._stop, 1)
            if thread is not threading.current_thread():  # a handler of its log may close it
                thread.join()
        super().close()

    def _follow(self) -> None:
        try:
            self._listen()
        finally:
            self._netlink.close()
            os.close(self._stop)

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._netlink, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while not self._stopped(poll.poll()):
            if not self._hear():
                continue
            latest = time.monotonic() + self._at_most
            while (left := latest - time.monotonic()) > 0:
                ready = poll.poll(max(min(self._quiet, left), 0.0) * 1000)
                if self._stopped(ready):
                    return
                if not ready:
                    break
                self._hear()
            self._read()

    def _stopped(self, ready: list[tuple[int, int]]) -> bool:
        return any(fd == self._stop for fd, _ in ready)

    def _hear(self) -> bool:
        """Take what is there; whether an answer may rest on something that changed."""
        matters = False
        while True:
            try:
                data, (sender, _) = self._netlink.recvfrom(1 << 16)
            except BlockingIOError:
                return matters
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overruns += 1
                matters = True
                continue
            if sender:
                continue  # not the kernel, which is 0: netlink(7)
            for kind, body in _messages(data):
                self._messages += 1
                matters = matters or kind not in (_RTM_NEWNEIGH, _RTM_DELNEIGH) or self._known(kind, body)

    def _known(self, kind: int, body: bytes) -> bool:
        """Whether a neighbour's message says other than the snapshot: that one which was given out has another address,
        or none. One that is new makes no answer stale."""
        if len(body) < _NEIGHBOR.size:
            return False
        _, interface, state, _, _ = _NEIGHBOR.unpack_from(body)
        attributes = dict(_attributes(body[_NEIGHBOR.size :]))
        destination = attributes.get(_NDA_DST, b"")
        if len(destination) not in (4, 16):  # of a bridge
            return False
        record = self.snapshot.neighbors.get((IfIndex(interface), ip_address(destination)))
        if record is None:
            return False
        return kind == _RTM_DELNEIGH or not state & NUD_VALID or attributes.get(_NDA_LLADDR) != record.mac

    def _read(self) -> None:
        self._readings += 1
        try:
            self.refresh()
        except DeviceError as error:
            if self.interface in self.snapshot.links:
                log.warning("%s: what is sent through it fails from now on", error)
                with self._lock:
                    self._exchange(RouteSnapshot(generation=self.generation + 1))
        except OSError as error:
            log.warning("cannot read the kernel's tables, trying again with the next change: %s", error)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message in a datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]  # without NLA_F_NESTED and _NET_BYTEORDER
        at += (length + 3) & ~3
