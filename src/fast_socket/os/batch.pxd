cimport cython
from libc.stdint cimport uint8_t, uint32_t

from fast_socket.core.batch cimport RecvBatch, TxBatch
from fast_socket.core.memory cimport Region
from fast_socket.os.linux cimport iovec, mmsghdr

cdef enum:
    MAX_MESSAGES = 1024         # UIO_MAXIOV: sendmmsg and recvmmsg take no more at once (net/socket.c)


cdef struct Planned:
    # What one message of a send stands for.
    uint32_t slots              # slots that it finishes; 0: it is a part of one
    uint32_t bytes
    uint32_t datagrams
    uint32_t segment_size       # 0: no GSO


@cython.final
cdef class OsRecvBatch(RecvBatch):
    cdef Region vectors_block
    cdef mmsghdr *messages
    cdef iovec *vectors
    cdef uint8_t *controls      # NULL where no metadata is wanted

    cdef void aim(self, uint32_t count) noexcept


@cython.final
cdef class OsTxBatch(TxBatch):
    cdef Region vectors_block
    cdef mmsghdr *messages
    cdef iovec *vectors
    cdef Planned *planned
    cdef uint8_t *controls
