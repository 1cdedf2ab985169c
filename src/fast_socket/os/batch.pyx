"""The batches of OS sockets: the core's columns, and beside them the vectors that the batch calls read.

The kernel writes a datagram into its frame and its peer into the address column; nothing is copied after it.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fast_socket.core.addresses cimport RECORD_V4, RECORD_V6
from fast_socket.core.batch cimport RecvBatch, TxBatch
from fast_socket.core.frames cimport FramePool, packet_start, chunk_end
from fast_socket.core.memory cimport Region
from fast_socket.os.linux cimport iovec, mmsghdr
from fast_socket.os.messages cimport RX_CONTROL_SIZE, TX_CONTROL_SIZE

from fast_socket.core.metadata import Metadata


@cython.final
@cython.no_gc
cdef class OsRecvBatch(RecvBatch):
    """Receive storage of an `OsUdpSocket`: made by `recv_batch(capacity)`."""

    def __cinit__(self, FramePool pool not None, capacity, *, bint v6, metadata=Metadata.NONE,
                  bint segment_sizes=False):
        cdef size_t i, n = self.capacity
        cdef bint control = segment_sizes or bool(metadata)
        self.vectors_block = Region(n * (sizeof(mmsghdr) + sizeof(iovec) + (RX_CONTROL_SIZE if control else 0)))
        self.messages = <mmsghdr *> self.vectors_block.base
        self.vectors = <iovec *> (self.messages + n)
        self.controls = <uint8_t *> (self.vectors + n) if control else NULL
        for i in range(n):
            self.messages[i].msg_hdr.msg_name = self.slots.addresses + i * self.slots.address_stride
            self.messages[i].msg_hdr.msg_namelen = RECORD_V6 if v6 else RECORD_V4
            self.messages[i].msg_hdr.msg_iov = &self.vectors[i]
            self.messages[i].msg_hdr.msg_iovlen = 1
            if control:
                self.messages[i].msg_hdr.msg_control = self.controls + i * RX_CONTROL_SIZE
                self.messages[i].msg_hdr.msg_controllen = RX_CONTROL_SIZE

    cdef void aim(self, uint32_t count) noexcept:
        """Point the first `count` vectors at their slots' frames, after some were replaced."""
        cdef uint32_t i
        cdef uint64_t start
        for i in range(count):
            start = packet_start(&self.pool.geometry, self.slots.frames[i])
            self.vectors[i].iov_base = self.pool.base + start
            self.vectors[i].iov_len = chunk_end(&self.pool.geometry, self.slots.frames[i]) - start


@cython.final
@cython.no_gc
cdef class OsTxBatch(TxBatch):
    """Transmit storage of an `OsUdpSocket`: made by `tx_batch(capacity)`."""

    def __cinit__(self, FramePool pool not None, capacity, *, bint v6, metadata=Metadata.NONE,
                  bint segment_sizes=True):
        # A packet in a run needs a vector, and so does every part of a packet that is split: one a message.
        cdef size_t messages = MAX_MESSAGES, vectors = MAX_MESSAGES + <size_t> self.capacity
        self.vectors_block = Region(messages * (sizeof(mmsghdr) + sizeof(Planned) + TX_CONTROL_SIZE)
                                    + vectors * sizeof(iovec))
        self.messages = <mmsghdr *> self.vectors_block.base
        self.vectors = <iovec *> (self.messages + messages)
        self.planned = <Planned *> (self.vectors + vectors)
        self.controls = <uint8_t *> (self.planned + messages)
