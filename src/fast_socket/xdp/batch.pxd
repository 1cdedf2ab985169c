cimport cython
from libc.stdint cimport uint32_t

from fast_socket.core.batch cimport RecvBatch, TxBatch
from fast_socket.core.memory cimport Region


@cython.final
cdef class XdpUdpRecvBatch(RecvBatch):
    pass


@cython.final
cdef class XdpUdpTxBatch(TxBatch):
    pass


@cython.final
cdef class XdpIpRecvBatch(RecvBatch):
    cdef uint32_t interface
    cdef uint32_t queue_id
    cdef Region queue_block
    cdef uint32_t *queues           # of each slot, for a batch that several queues fill; else NULL

    cdef int remember_queues(self) except -1
    cdef void note_queue(self, uint32_t first, uint32_t last, uint32_t queue) noexcept


@cython.final
cdef class XdpIpTxBatch(TxBatch):
    cdef Region egress_block
    cdef uint32_t *egress           # of each slot: 1 + the number of an egress, 0 to go by its destination
