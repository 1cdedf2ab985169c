cimport cython
from libc.stdint cimport uint8_t, uint32_t

from fast_socket.core.frames cimport Slots
from fast_socket.xdp.header_table cimport HeaderTable
from fast_socket.xdp.batch cimport XdpIpTxBatch
from fast_socket.xdp.headers cimport Header, Parsed
from fast_socket.xdp.socket cimport XdpSocket


@cython.final
cdef class XdpEgress:
    cdef readonly object destination
    cdef readonly uint32_t id
    cdef HeaderTable table


@cython.final
cdef class XdpIpPacketSocket(XdpSocket):
    cdef readonly object families
    cdef bint v4
    cdef bint v6
    cdef bint plain
    cdef Header *egresses           # by id - 1
    cdef uint32_t egress_count
    cdef list egress_objects
    cdef object egress_generation

    cdef object send_batch(self, XdpIpTxBatch batch, XdpEgress egress, uint32_t limit)
    cdef int resolve_egresses(self) except -1
    cdef void write_columns(self, Slots *slots, uint32_t slot, const uint8_t *frame, const Parsed *parsed,
                            bint whole) noexcept nogil
