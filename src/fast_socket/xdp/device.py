"""A real interface behind an AF_XDP socket: opening a queue, attaching the program, and the facts of `RawDevice`."""

import logging
import os
from typing import Any

from fast_socket.core.affinity import QueueAffinity
from fast_socket.core.capabilities import Capabilities
from fast_socket.core.errors import CapabilityError, ConfigError, DeviceError, Error
from fast_socket.core.frames import FramePool
from fast_socket.core.ids import IfIndex, NumaNode
from fast_socket.core.routes import IpAddress
from fast_socket.xdp.ebpf import XdpFilter, XdpMode, XdpProgram
from fast_socket.xdp.interface import Interface
from fast_socket.xdp.kernel import open_kernel_queue
from fast_socket.xdp.options import CheckedOptions
from fast_socket.xdp.queue import Queue
from fast_socket.xdp.router import XdpQueueLocalRouter

log = logging.getLogger("fast_socket.xdp")


class Attachment:
    """A queue's place in a program; closing gives it up, and the program too where the socket loaded it."""

    def __init__(self, program: XdpProgram, queue: int, *, own: bool) -> None:
        self.program, self._queue, self._own = program, queue, own
        self._process = os.getpid()

    def close(self) -> None:
        """Again is nothing. In a child that was forked later nothing is detached: the queue is the parent's."""
        if os.getpid() != self._process:
            if self._own:
                self.program.close()
        elif self._own:
            self.program.detach()
            self.program.close()
        else:
            try:
                self.program.remove(self._queue)
            except Error as error:  # closed before its sockets: nothing is redirected any more
                log.debug("the program was closed first: %s", error)


class XdpDevice:
    """An interface of the calling thread's network namespace. A socket's `raw_device` adds its counters. Raises
    `ConfigError` where there
    is none of this name."""

    def __init__(self, name: str) -> None:
        self._interface = Interface.read(name)

    def __repr__(self) -> str:
        return f"<XdpDevice {self.name}>"

    @property
    def interface(self) -> Interface:
        """All that was read of it."""
        return self._interface

    @property
    def ifindex(self) -> IfIndex:
        return self._interface.index

    @property
    def name(self) -> str:
        return self._interface.name

    @property
    def mac(self) -> bytes:
        """Six bytes."""
        return self._interface.mac

    @property
    def driver_name(self) -> str:
        """The kernel driver."""
        return self._interface.driver

    @property
    def numa_node(self) -> NumaNode:
        return self._interface.numa_node

    @property
    def mtu(self) -> int:
        """As of the latest refresh."""
        return self._interface.mtu

    @property
    def queues(self) -> tuple[QueueAffinity, ...]:
        return self._interface.queues

    @property
    def queue_count(self) -> int:
        """Queues that can be opened: copy mode sends nothing, in silence, from one that has no transmit side."""
        return min(self._interface.rx_queues, self._interface.tx_queues)

    def capabilities(self) -> Capabilities:
        """What the driver declares (Linux 6.3), else `Support.UNKNOWN`."""
        return self._interface.capabilities

    def refresh_mtu(self) -> int:
        """Read the interface again, after an administrative change; returns the MTU. Raises `DeviceError` where it is
        gone."""
        try:
            self._interface = Interface.read(self.name)
        except ConfigError as error:
            raise DeviceError(f"{self.name} is gone") from error
        return self.mtu

    def make_router(self, source: IpAddress | None = None) -> XdpQueueLocalRouter:
        """The default router, for a socket that sends from `source`."""
        return XdpQueueLocalRouter(self.ifindex, source=source)

    def open_queue(self, pool: FramePool, queue: int, options: CheckedOptions) -> Queue:
        """An AF_XDP socket on a queue; see `fast_socket.xdp.kernel`."""
        if not self._interface.up:
            raise DeviceError(f"{self.name} is down: bring it up (ip link set {self.name} up)")
        opened: Queue = open_kernel_queue(pool, self, queue, options)
        self._check_placement(pool, options)
        if not opened.zero_copy:
            log.info("queue %d of %s runs in copy mode", queue, self.name)
        return opened

    def _check_placement(self, pool: FramePool, options: CheckedOptions) -> None:
        """The kernel took every page of the UMEM into use when it was registered: now is known where they are."""
        if not options.huge_pages and options.numa_node is None:
            return
        size, placement = pool.memory.size, pool.memory.placement()
        if options.huge_pages and placement.huge < size:
            log.warning(
                "huge_pages: %d of %d bytes of the UMEM are in huge pages (memory is short or in pieces, or "
                "/sys/kernel/mm/transparent_hugepage/enabled says never)", placement.huge, size,
            )  # fmt: skip
        node = int(self.numa_node) if options.numa_node == "device" else options.numa_node
        if isinstance(node, int) and node >= 0 and placement.nodes.get(node, 0) < size:
            log.warning("numa_node=%d: that node had not memory enough, the UMEM lies on %s (node: bytes)",
                        node, dict(placement.nodes))  # fmt: skip

    def attach(self, opened: Queue, queue: int, options: CheckedOptions) -> Attachment:
        """Have packets redirected to an open queue: by the caller's program, or by one of the socket's own."""
        if options.program is not None:
            if not isinstance(options.program, XdpProgram):
                raise ConfigError(f"program is {options.program!r}: give an XdpProgram")
            if options.wants_timestamps and not options.program.timestamps:
                raise ConfigError("metadata asks for timestamps, but the program was loaded without timestamps=True")
            options.program.insert(queue, opened.fileno())
            return Attachment(options.program, queue, own=False)
        timestamps = options.wants_timestamps
        if timestamps and options.attach not in ("auto", "native"):
            raise CapabilityError("receive timestamps need the native mode: use attach='native'")
        program = XdpProgram.load(
            filter_of(options), queues=queue + 1, timestamps=timestamps, device=self.name if timestamps else None
        )
        try:
            program.insert(queue, opened.fileno())
            program.attach(self.name, XdpMode(options.attach))
        except BaseException:
            program.close()
            raise
        return Attachment(program, queue, own=True)


def filter_of(options: CheckedOptions) -> XdpFilter:
    """What a socket's own program redirects."""
    families: dict[str, Any] = {"ipv4": options.takes_v4, "ipv6": options.takes_v6}
    if options.ports is None:
        return XdpFilter(all_ip=True, **families)
    addresses = () if options.any_host else (options.host,)
    return XdpFilter(addresses=addresses, ports=options.ports, **families)
