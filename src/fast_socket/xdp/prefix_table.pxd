cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct Node
cdef struct Prefix


@cython.final
cdef class PrefixTable:
    cdef uint32_t *direct
    cdef Node *nodes
    cdef uint32_t *leaves
    cdef uint32_t node_count, node_room
    cdef uint32_t leaf_count, leaf_room
    cdef uint32_t prefixes
    cdef uint32_t width             # bits of an address
    cdef uint32_t first_bits        # those of the direct look-up

    cdef int build(self, object rows, object lengths, object answers) except -1
    cdef bint fill_direct(self, const Prefix *prefixes, uint32_t count) noexcept nogil
    cdef uint32_t take_nodes(self, uint32_t count) noexcept nogil
    cdef uint32_t take_leaves(self, uint32_t count) noexcept nogil
    cdef bint fill_node(self, uint32_t number, const Prefix *prefixes, uint32_t count, uint32_t depth,
                        uint32_t inherited) noexcept nogil
    cdef uint32_t find_native(self, uint64_t high, uint64_t low) noexcept nogil
    cdef void find_many(self, const uint8_t *addresses, Py_ssize_t step, uint32_t *found,
                        size_t count) noexcept nogil
