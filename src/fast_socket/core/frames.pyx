"""The frame pool: one region of memory cut into receive and transmit frames.

The same shape serves every backend: for OS sockets the region is plain memory, for AF_XDP it is the UMEM, for DPDK a
mempool. Frame ids below `rx_frames` are receive frames, the others transmit frames; each kind has its own layout and
its own free stack, and a frame returns to the stack it came from, wherever it travelled in between.

Invariants
    - A frame is in exactly one place: on its free stack, in one slot of one batch, in one owned packet, or with the
      kernel. Whoever moves it clears the place it came from in the same step.
    - The stacks, the slots and the packets change only while the GIL is held. Native loops that run without it work on
      a batch marked busy, which every other entry point refuses.
    - Frames are popped in ascending order and pushed back in descending order, so that a batch that is filled and sent
      over and over gets neighbouring frames: equal-sized payloads that fill their frames are then contiguous in
      memory, and a coalesced send needs one vector for all of them.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from fast_socket.core.memory cimport Region
from fast_socket.core.section cimport hold

from fast_socket.core.errors import ConfigError
from fast_socket.core.layout import BufferLayout

# Frame ids and the arithmetic on them stay well inside 32 bits, and NO_FRAME stays no frame.
cdef enum:
    MAX_FRAMES = 1 << 24


@cython.final
@cython.no_gc_clear
cdef class FramePool:
    """Frames for receiving and for transmitting, in one region of memory.

    Sockets make their own pool unless they are given one; sockets that share a pool can forward to each other without
    a copy. `huge_pages` asks for transparent huge pages, `memory.huge_pages` says whether the kernel agreed;
    `numa_node` for memory of that node. `memory.placement()` says what came of it. Thread rules: any thread may use it.
    Raises `ConfigError` for counts out of range and for a node that is not there.
    """

    def __cinit__(self, *, rx_frames, tx_frames, rx_layout, tx_layout, bint huge_pages=False,
                  numa_node=None):
        cdef uint32_t i
        cdef Geometry *g = &self.geometry
        for name, value in (("rx_frames", rx_frames), ("tx_frames", tx_frames)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_FRAMES:
                raise ConfigError(f"FramePool.{name} is {value!r}: give an int from 0 to {MAX_FRAMES}")
        for name, value in (("rx_layout", rx_layout), ("tx_layout", tx_layout)):
            if type(value) is not BufferLayout:        # a subclass could answer otherwise every time it is asked
                raise ConfigError(f"FramePool.{name} is {value!r}: give a BufferLayout")
        self.rx_frames, self.tx_frames = rx_frames, tx_frames
        self.rx_layout, self.tx_layout = rx_layout, tx_layout
        g.rx_frames, g.rx_chunk, g.tx_chunk = self.rx_frames, rx_layout.chunk_size, tx_layout.chunk_size
        g.rx_payload, g.tx_payload = rx_layout.payload_offset, tx_layout.payload_offset
        g.rx_reserved, g.tx_reserved = rx_layout.l2_headroom, tx_layout.l2_headroom
        if not (g.rx_reserved <= g.rx_payload < g.rx_chunk <= 1 << 30
                and g.tx_reserved <= g.tx_payload < g.tx_chunk <= 1 << 30):
            raise ConfigError("the layouts were changed after they were made: make new ones")
        # The transmit part starts at a multiple of its own chunk size, so that aligned chunks stay aligned.
        g.tx_start = (<uint64_t> g.rx_frames * g.rx_chunk + g.tx_chunk - 1) // g.tx_chunk * g.tx_chunk
        self.memory = Region(g.tx_start + <uint64_t> self.tx_frames * g.tx_chunk, huge_pages=huge_pages,
                             numa_node=numa_node)
        self.base = self.memory.base
        self.stacks = Region((<size_t> self.rx_frames + self.tx_frames) * sizeof(uint32_t))
        self.rx_stack = <uint32_t *> self.stacks.base
        self.tx_stack = self.rx_stack + self.rx_frames
        for i in range(self.rx_frames + self.tx_frames):
            put_frame(self, self.rx_frames + self.tx_frames - 1 - i)

    @property
    def rx_available(self):
        """Receive frames on the free stack."""
        hold(<void *> self)
        return self.rx_free

    @property
    def tx_available(self):
        """Transmit frames on the free stack."""
        hold(<void *> self)
        return self.tx_free

    @property
    def rx_with_device(self):
        """Receive frames that a device has: in AF_XDP's rings. 0 for backends that copy."""
        hold(<void *> self)
        return 0 if self.registration is None else self.registration.with_device(0, self.rx_frames)

    @property
    def tx_with_device(self):
        """Transmit frames that a device has: sent, and not yet given back."""
        hold(<void *> self)
        return (0 if self.registration is None
                else self.registration.with_device(self.rx_frames, self.rx_frames + self.tx_frames))

    def __repr__(self):
        hold(<void *> self)
        return (f"<FramePool rx {self.rx_free}/{self.rx_frames} x {self.geometry.rx_chunk} B, "
                f"tx {self.tx_free}/{self.tx_frames} x {self.geometry.tx_chunk} B>")
