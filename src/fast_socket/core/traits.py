"""The traits: what every backend offers, as protocols generic over the backend's own types.

Code written against a trait keeps the concrete types of the backend it is used with::

    def pong(sock: UdpSocket[Rx, Tx, Driver, Endpoint]) -> None: ...

A backend's classes satisfy the traits structurally; they inherit from nothing, so nothing is dispatched at run time.
"""

from types import TracebackType
from typing import Protocol, Self, TypeVar

from fast_socket.core.affinity import QueueAffinity
from fast_socket.core.batch import RecvBatch, TxBatch
from fast_socket.core.capabilities import Capabilities, RawDeviceStats, UdpCapabilities, UdpStats
from fast_socket.core.endpoint import UdpEndpointSpec
from fast_socket.core.frames import FramePool
from fast_socket.core.ids import IfIndex, NumaNode

Rx = TypeVar("Rx", bound=RecvBatch)
Tx = TypeVar("Tx", bound=TxBatch)
Tx_co = TypeVar("Tx_co", bound=TxBatch, covariant=True)
Driver_co = TypeVar("Driver_co", bound="PollDriver", covariant=True)
Endpoint = TypeVar("Endpoint")
Egress_contra = TypeVar("Egress_contra", contravariant=True)


class PollDriver(Protocol):
    """How a socket waits."""

    def wait(self, timeout: float | None = None) -> bool:
        """True when a receive has something to return, False after `timeout` seconds; None waits for ever."""
        ...

    def wait_writable(self, timeout: float | None = None) -> bool:
        """True when a send has room."""
        ...


class WaitDriven(PollDriver, Protocol):
    """Waits in the kernel, on a descriptor that selectors and event loops can wait on too."""

    def fileno(self) -> int:
        """A pollable descriptor; -1 once the socket is closed."""
        ...


class BusyPoll(PollDriver, Protocol):
    """Spins: the lowest latency, for a whole CPU."""


class _PacketSocket(Protocol[Rx, Tx_co, Driver_co]):
    """What both kinds of socket share."""

    @property
    def driver(self) -> Driver_co:
        """The way to wait that was chosen at construction."""
        ...

    @property
    def pool(self) -> FramePool:
        """The frames that this socket's batches use."""
        ...

    def recv_batch(self, capacity: int) -> Rx:
        """Reusable receive storage of the backend's own type."""
        ...

    def tx_batch(self, capacity: int) -> Tx_co:
        """Reusable transmit storage of the backend's own type."""
        ...

    def recv(self, batch: Rx) -> int:
        """Replace the contents; returns the number of packets, 0 when there is nothing. Never blocks or allocates."""
        ...

    def drain_tx_completions(self) -> int:
        """Bring frames home that the device has sent; returns how many. Nothing to do where sending is done when
        `send` returns."""
        ...

    def notify_tx(self) -> None:
        """Ring the doorbell for what was queued. Nothing to do where `send` does it."""
        ...

    def close(self) -> None:
        """Release everything now. Again is nothing. Batches and packets stay readable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


class UdpSocket(_PacketSocket[Rx, Tx, Driver_co], Protocol[Rx, Tx, Driver_co, Endpoint]):
    """UDP payloads with socket-address metadata."""

    @property
    def local_address(self) -> tuple[str, int]:
        """Where the socket is bound."""
        ...

    def capabilities(self) -> UdpCapabilities:
        """What the socket can do as built, here and now."""
        ...

    def stats(self) -> UdpStats:
        """Counters since it was made."""
        ...

    def prepare_udp_endpoint(self, spec: UdpEndpointSpec) -> Endpoint:
        """Take the address work out of the loop."""
        ...

    def send(self, batch: Tx) -> int:
        """Send to each slot's destination. Accepts a prefix, returns its length, leaves the rest in the batch."""
        ...

    def send_to(self, endpoint: Endpoint, batch: Tx) -> int:
        """As `send`, every slot to one prepared endpoint."""
        ...


class IpPacketSocket(_PacketSocket[Rx, Tx, Driver_co], Protocol[Rx, Tx, Driver_co, Egress_contra]):
    """Complete IPv4 and IPv6 datagrams, starting at the IP header."""

    def send(self, batch: Tx) -> int:
        """Resolve each packet's destination and send. Accepts a prefix, as `UdpSocket.send`."""
        ...

    def send_via(self, egress: Egress_contra, batch: Tx) -> int:
        """As `send`, every packet through one resolved egress."""
        ...


class RawDevice(Protocol):
    """The device behind a socket: identity, affinity, capabilities, statistics."""

    @property
    def ifindex(self) -> IfIndex: ...

    @property
    def name(self) -> str: ...

    @property
    def mac(self) -> bytes:
        """Six bytes."""
        ...

    @property
    def driver_name(self) -> str:
        """The kernel driver."""
        ...

    @property
    def numa_node(self) -> NumaNode: ...

    @property
    def mtu(self) -> int:
        """As of the latest refresh."""
        ...

    @property
    def queues(self) -> tuple[QueueAffinity, ...]: ...

    def capabilities(self) -> Capabilities: ...

    def stats(self) -> RawDeviceStats: ...

    def refresh_mtu(self) -> int:
        """Read the MTU again, after an administrative change; returns it."""
        ...
