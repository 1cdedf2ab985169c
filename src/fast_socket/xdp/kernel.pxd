cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fast_socket.xdp.queue cimport Queue
from fast_socket.xdp.ring cimport Ring


cdef struct RingOffset:
    # struct xdp_ring_offset
    uint64_t producer
    uint64_t consumer
    uint64_t descriptors
    uint64_t flags


cdef struct Mapping:
    void *base
    size_t size


@cython.final
cdef class KernelQueue(Queue):
    cdef Mapping mappings[4]
    cdef bint need_wakeup
    cdef bint copy                  # the kernel copies: it sends when it is told to, 32 packets at a time
    cdef bint polls                 # busy polling: receiving is driven by our calls
    cdef tuple last_statistics
    cdef readonly uint32_t queue_id

    cdef tuple read_statistics(self)
    cdef int map_ring(self, Ring *ring, int which, uint32_t entries, size_t entry_size, const RingOffset *offset,
                      uint64_t pages) except -1
    cdef int set_option(self, int level, int name, uint32_t value, str what, str needs) except -1
    cdef int set_up(self, object options) except -1
    cdef int attempt(self, uint32_t interface, uint16_t flags) noexcept nogil
    cdef int bind_to(self, object device, object options) except -1
