"""The device side of an AF_XDP socket: identity, affinity, capabilities, counters, MTU."""

from typing import Any

from fast_socket.core.affinity import QueueAffinity
from fast_socket.core.capabilities import Capabilities, RawDeviceStats
from fast_socket.core.ids import IfIndex, NumaNode, QueueId
from fast_socket.xdp.ebpf import XdpCounters


class XdpRawDevice:
    """Made by ``sock.raw_device``. Satisfies `RawDevice`; the counters are those of the socket's queue."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._device = sock.device

    def __repr__(self) -> str:
        return f"<XdpRawDevice {self.name} queue {self.queue}>"

    @property
    def ifindex(self) -> IfIndex:
        return IfIndex(self._device.ifindex)

    @property
    def name(self) -> str:
        return str(self._device.name)

    @property
    def mac(self) -> bytes:
        """Six bytes."""
        return bytes(self._device.mac)

    @property
    def driver_name(self) -> str:
        """The kernel driver; "simulated" for a simulated device."""
        return str(self._device.driver_name)

    @property
    def numa_node(self) -> NumaNode:
        return NumaNode(self._device.numa_node)

    @property
    def mtu(self) -> int:
        """As of the latest refresh."""
        return int(self._device.mtu)

    @property
    def queue(self) -> QueueId:
        """The queue that the socket is on."""
        return QueueId(self._sock.queue_id)

    @property
    def queues(self) -> tuple[QueueAffinity, ...]:
        """All of the device, each with the CPUs of its interrupt."""
        return tuple(self._device.queues)

    def capabilities(self) -> Capabilities:
        """What the driver declares."""
        found: Capabilities = self._device.capabilities()
        return found

    def stats(self) -> RawDeviceStats:
        """Ours and the kernel's (XDP_STATISTICS) of this queue, since it was opened."""
        counters: RawDeviceStats = self._sock.queue_stats()
        return counters

    def program_counters(self) -> XdpCounters | None:
        """Of the XDP program that feeds the queue, over all its queues; None on a simulated device."""
        program = self._sock.program
        return None if program is None else program.counters()

    def refresh_mtu(self) -> int:
        """Read the MTU again, after an administrative change; what is sent from now on keeps to it. Returns it. Raises
        `DeviceError` where the device is gone."""
        mtu = int(self._device.refresh_mtu())
        self._sock.forget_routes()
        return mtu
