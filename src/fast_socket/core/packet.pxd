cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fast_socket.core.frames cimport FramePool, Slots


cdef struct PacketMeta:
    # What a packet carries along when it leaves its batch.
    uint8_t address[32]
    uint8_t local_host[16]
    uint32_t interface
    uint32_t segment_size
    int64_t time
    uint16_t vlan
    uint16_t local_port         # network byte order
    uint8_t ecn
    uint8_t ttl
    uint8_t checksum


cdef class Packet:
    # In a batch: slots points to its columns, and offset and length are a checked copy that locate() refreshes.
    # Owned: slots is NULL and frame is set. Stale: neither.
    cdef FramePool pool
    cdef Slots *slots
    cdef uint64_t epoch
    cdef uint64_t offset
    cdef uint32_t slot
    cdef uint32_t frame
    cdef uint32_t length
    cdef uint32_t exports
    cdef bint frozen
    cdef bint v6
    cdef unsigned int present       # which columns the batch had
    cdef PacketMeta meta_copy

    cdef int locate(self) except -1
    cdef void load(self) noexcept
    cdef uint8_t *record(self) noexcept
    cdef int detach(self) except -1
    cdef void forget(self) noexcept
    cdef const uint8_t *bounded(self, object start, Py_ssize_t size) except NULL


@cython.final
cdef class PacketBuffer(Packet):
    cdef int locate_unexported(self) except -1
    cdef void store(self, uint32_t before) noexcept
    cdef int _grow(self, object data, bint front) except -1
    cdef int _trim(self, object size, bint front) except -1


@cython.final
cdef class FrozenPacket(Packet):
    pass


cdef PacketBuffer packet_in_batch(FramePool pool, Slots *slots, uint32_t slot, PacketBuffer reuse)
