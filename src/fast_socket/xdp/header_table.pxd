cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fast_socket.xdp.headers cimport Header


cdef struct Key:
    # The 16 bytes of a destination, IPv4 as IPv4-mapped.
    uint64_t high
    uint64_t low


@cython.final
cdef class HeaderTable:
    cdef Header *headers
    cdef Key *keys
    cdef uint32_t *index            # forgotten + 1 + the place in headers; an entry up to `forgotten` is free
    cdef uint32_t forgotten
    cdef uint32_t mask
    cdef uint32_t count
    cdef object router
    cdef object generation          # None: everything is to be resolved anew
    cdef object router_generation
    cdef int interface
    cdef bytes source_v4            # what datagrams leave from; None: what the route prefers
    cdef bytes source_v6
    cdef Header pattern_v4          # everything but addresses: what is the socket's own
    cdef Header pattern_v6
    cdef bint link_only

    cdef bint is_current(self) except -1
    cdef void forget(self) noexcept
    cdef int insert(self, Key key) except -1
    cdef int resolve(self, object destination, Header *header, object source) except -1


cdef inline Key key_of(const uint8_t *host, const bint v6) noexcept nogil:
    cdef Key key
    cdef uint8_t mapped[8]
    if v6:
        memcpy(&key, host, 16)
        return key
    mapped[0] = mapped[1] = 0
    mapped[2] = mapped[3] = 0xFF
    memcpy(mapped + 4, host, 4)
    key.high = 0
    memcpy(&key.low, mapped, 8)
    return key


cdef inline uint32_t place_of(HeaderTable table, Key key) noexcept nogil:
    # Odd constants of good avalanche: the golden ratio's, and one of MurmurHash3's finaliser.
    cdef uint64_t mixed = (key.low ^ (key.high * <uint64_t> 0x9E3779B97F4A7C15)) * <uint64_t> 0xFF51AFD7ED558CCD
    return <uint32_t> (mixed >> 32) & table.mask


cdef inline Header *find(HeaderTable table, Key key) noexcept nogil:
    """The header for a destination, NULL where it was not resolved yet."""
    cdef uint32_t at = place_of(table, key), found
    while True:
        found = table.index[at]
        if found <= table.forgotten:
            return NULL
        found -= table.forgotten
        if table.keys[found - 1].low == key.low and table.keys[found - 1].high == key.high:
            return &table.headers[found - 1]
        at = (at + 1) & table.mask
