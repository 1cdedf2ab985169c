cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fast_socket.core.frames cimport FramePool
from fast_socket.core.memory cimport Region
from fast_socket.core.polling cimport Descriptor
from fast_socket.xdp.ring cimport Ring


cdef enum:
    HOME = 0                # of a frame's place: the pool's stack, a batch, a packet; anywhere but with the device


@cython.final
cdef class Umem:
    cdef Region places_block
    cdef uint32_t *places           # of each frame: HOME, or the mark of the queue that has it and how
    cdef readonly uint32_t frames
    cdef uint32_t shift
    cdef readonly uint32_t chunk_size
    cdef uint32_t queues            # opened on this memory so far
    cdef int registered_fd          # of the socket that registered it with the kernel, -1 for none


cdef struct QueueCounters:
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t completed
    uint64_t bad_descriptors        # what the device handed back and must not
    uint64_t kicks
    uint64_t ring_full              # sends that stopped because the TX ring or the completions had no room


cdef class Queue(Descriptor):
    cdef readonly Umem umem
    cdef readonly FramePool pool
    cdef Ring fill
    cdef Ring completion
    cdef Ring rx
    cdef Ring tx
    cdef uint32_t outstanding       # frames sent and not yet completed
    cdef uint32_t filled            # the mark of frames in FILL, or in RX on their way back
    cdef uint32_t sent              # the mark of frames in TX, or on their way to COMPLETION
    cdef int pending_error          # what a system call said of the device; the next call reports it
    cdef bint bad_reported
    cdef public bint zero_copy
    cdef QueueCounters counters

    cdef int join(self, FramePool pool) except -1
    cdef int report(self) except -1
    cdef bint broken(self) noexcept nogil
    cdef void refill(self) noexcept nogil
    cdef uint32_t drain(self) noexcept nogil
    cdef uint32_t sendable(self, uint32_t wanted) noexcept nogil
    cdef uint32_t most_pieces(self) noexcept nogil
    cdef void publish_tx(self) noexcept nogil
    cdef uint32_t filled_now(self) noexcept
    cdef bint has_room(self) noexcept nogil
    cdef int kick(self) noexcept nogil
    cdef void wake_rx(self) noexcept nogil
    cdef void recover(self) noexcept


cdef inline uint32_t frame_at(Umem umem, uint64_t address) noexcept nogil:
    """The frame that an address lies in; `umem.frames`, which is none, where it lies in none."""
    cdef uint64_t frame = address >> umem.shift
    return <uint32_t> frame if frame < umem.frames else umem.frames
