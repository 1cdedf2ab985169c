"""What a backend, a kernel or a device can do. Probing has three answers, because "could not tell" is not "no"."""

from dataclasses import dataclass
from enum import Enum

from fast_socket.core.metadata import Metadata, TxOffload


class Support(Enum):
    """The answer of a probe. Only YES is true."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "could not tell"

    def __bool__(self) -> bool:
        return self is Support.YES


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpCapabilities:
    """What a `UdpSocket` can do, as built and on this machine."""

    batch_calls: bool
    """One system call or doorbell moves a whole batch."""
    gso: Support
    """Segmentation offload is in force for this socket; it can turn to NO when a route refuses it."""
    gro: Support
    """Coalesced receive is in force for this socket; NO where it was not asked for."""
    max_gso_segments: int
    """Segments of one large send, 1 where there is no GSO."""
    max_payload: int
    """Bytes of the largest single datagram that a frame of this socket's transmit layout holds."""
    recv_metadata: Metadata
    send_metadata: Metadata
    zero_copy: Support = Support.NO
    explicit_completions: bool = False
    """Sent frames come home only by `drain_tx_completions()`; False: they are home when `send` returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a raw device can do."""

    native_xdp: Support = Support.UNKNOWN
    zero_copy: Support = Support.UNKNOWN
    multi_buffer: Support = Support.UNKNOWN
    rx_timestamp: Support = Support.UNKNOWN
    tx_offloads: TxOffload = TxOffload.NONE
    queues: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpStats:
    """Counters of one `UdpSocket` since it was made. A datagram of a coalesced buffer counts as one datagram."""

    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    truncated: int = 0
    """Received datagrams longer than their frame: the rest of them is lost."""
    kernel_drops: int | None = 0
    """What the kernel dropped because the receive buffer was full (SO_MEMINFO, Linux 4.12): datagrams, or with GRO
    whole coalesced buffers, each counted as one. None: it would not say, as on a socket that is closed."""
    gso_sends: int = 0
    """Large sends that the kernel or device segmented."""
    gso_fallbacks: int = 0
    """Times that a large send was refused and done again in software."""
    stale_errors: int = 0
    """Errors of earlier datagrams (ICMP) that surfaced on a later call and were retried."""
    would_block: int = 0
    """Sends that stopped because the send buffer was full."""
    frame_shortages: int = 0
    """Receives that could not offer every slot because frames were not returned to the pool."""
    held: int = 0
    """Sends that stopped because a neighbour was not resolved yet (AF_XDP)."""
    handed_over: int = 0
    """Datagrams that the `fallback` socket sent instead (AF_XDP). Not in `sent`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDeviceStats:
    """Counters of one raw device queue since it was opened."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    rx_dropped: int = 0
    rx_ring_full: int = 0
    rx_fill_ring_empty: int = 0
    rx_invalid_descriptors: int = 0
    tx_invalid_descriptors: int = 0
    tx_ring_empty: int = 0
    fragments_dropped: int = 0
    bad_packets: int = 0
    """Shorter than their headers say, or headers that contradict each other."""
    filtered: int = 0
    """Packets for another protocol, family, address or port."""
    completions: int = 0
    kicks: int = 0
    """System calls that had the device look at its TX ring."""
    filled: int = 0
    """Frames that the device may receive into, or has received into, at this moment."""
    outstanding: int = 0
    """Frames sent and not completed at this moment."""
