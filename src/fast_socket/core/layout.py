"""How one frame is laid out, and the invariants that make every offset computed from it safe."""

from dataclasses import dataclass

from fast_socket.core.errors import ConfigError

#: One cache line: frames of two cores never share a written line, and vector copies start aligned.
CACHE_LINE = 64

#: Frame offsets are 64 bits wide, a length 32, and no IP datagram is larger than this (RFC 791, RFC 8200).
MAX_DATAGRAM = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferLayout:
    """The layout of a frame of a pool, in bytes, in this order::

        | l2_headroom | headroom | payload_capacity | tailroom | unused up to chunk_size |
        ^ chunk start, a multiple of chunk_size    ^ a fresh packet's first byte is after headroom

    `l2_headroom` is what the backend itself may write in front of a packet (Ethernet, VLAN, and for a UDP socket the
    IP and UDP headers); `headroom` is what the caller may prepend; `tailroom` what the caller may append beyond the
    payload. `segments` is the number of frames that one packet may span (AF_XDP multi-buffer, DPDK chained mbufs).

    Invariants, checked here and relied on everywhere:

    - every size is >= 0, `payload_capacity` and `segments` >= 1;
    - `alignment` is a power of two, and `chunk_size` is a multiple of it;
    - `l2_headroom + headroom + payload_capacity + tailroom <= chunk_size`.

    `chunk_size=0` (the default) chooses the smallest one that fits. Raises `ConfigError`.
    """

    payload_capacity: int = 2048
    headroom: int = 0
    tailroom: int = 0
    l2_headroom: int = 0
    alignment: int = CACHE_LINE
    chunk_size: int = 0
    segments: int = 1

    def __post_init__(self) -> None:
        for name in ("payload_capacity", "headroom", "tailroom", "l2_headroom", "alignment", "chunk_size", "segments"):
            value = getattr(self, name)
            least = 1 if name in ("payload_capacity", "alignment", "segments") else 0
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1 << 30:
                raise ConfigError(f"BufferLayout.{name} is {value!r}: give an int from {least} to {1 << 30}")
        if self.alignment & (self.alignment - 1):
            raise ConfigError(f"BufferLayout.alignment is {self.alignment}: give a power of two")
        used = self.used
        fitting = -(-used // self.alignment) * self.alignment
        if self.chunk_size == 0:
            object.__setattr__(self, "chunk_size", fitting)
        if self.chunk_size % self.alignment:
            raise ConfigError(
                f"BufferLayout.chunk_size is {self.chunk_size}: give a multiple of the alignment {self.alignment}"
            )
        if used > self.chunk_size:
            raise ConfigError(
                f"BufferLayout.chunk_size is {self.chunk_size}, but l2_headroom {self.l2_headroom} + headroom "
                f"{self.headroom} + payload_capacity {self.payload_capacity} + tailroom {self.tailroom} = {used}: "
                f"give at least {fitting}, or 0 to have it chosen"
            )

    @property
    def used(self) -> int:
        """Bytes of the chunk that the parts need."""
        return self.l2_headroom + self.headroom + self.payload_capacity + self.tailroom

    @property
    def payload_offset(self) -> int:
        """Where in its chunk a fresh packet starts."""
        return self.l2_headroom + self.headroom

    @property
    def packet_capacity(self) -> int:
        """The largest packet, over all its segments."""
        return self.payload_capacity * self.segments
