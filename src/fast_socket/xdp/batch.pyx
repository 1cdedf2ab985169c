"""The batches of AF_XDP sockets: the core's columns. Their frames come with what the RX ring brings, so an empty
receive batch holds none."""

cimport cython
from cpython.number cimport PyNumber_AsSsize_t
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from libc.string cimport memset

from fast_socket.core.batch cimport RecvBatch, TxBatch
from fast_socket.core.memory cimport Region
from fast_socket.core.section cimport hold

from fast_socket.core.errors import ConfigError
from fast_socket.core.metadata import ChecksumStatus, IpPacketRecvMeta


@cython.final
@cython.no_gc
cdef class XdpUdpRecvBatch(RecvBatch):
    """Receive storage of an `XdpUdpSocket`: made by `recv_batch(capacity)`."""


@cython.final
@cython.no_gc
cdef class XdpUdpTxBatch(TxBatch):
    """Transmit storage of an `XdpUdpSocket`: made by `tx_batch(capacity)`."""


@cython.final
@cython.no_gc
cdef class XdpIpRecvBatch(RecvBatch):
    """Receive storage of an `XdpIpPacketSocket`: made by `recv_batch(capacity)`. A packet starts at its IP header; the
    address columns stay empty, ``gather`` reads the fields that a program wants."""

    cdef int remember_queues(self) except -1:
        self.queue_block = Region(4 * <size_t> self.capacity)
        self.queues = <uint32_t *> self.queue_block.base
        return 0

    cdef void note_queue(self, uint32_t first, uint32_t last, uint32_t queue) noexcept:
        cdef uint32_t slot
        if self.queues != NULL:
            for slot in range(first, last):
                self.queues[slot] = queue

    def meta(self, index):
        """What is known of packet `index`: an `IpPacketRecvMeta`."""
        hold(<void *> self.pool)
        cdef Py_ssize_t at = PyNumber_AsSsize_t(index, IndexError), count = self.tail - self.head
        cdef uint32_t slot, pieces = 1
        if at < 0:
            at += count
        if not 0 <= at < count:
            raise IndexError(f"batch index {index} with {count} packets here")
        self.require_idle()
        slot = self.head + <uint32_t> at
        if self.slots.continued != NULL:
            while slot + pieces < self.tail and self.slots.continued[slot + pieces - 1]:
                pieces += 1
        return IpPacketRecvMeta(
            interface=self.interface, queue=self.queue_id if self.queues == NULL else self.queues[slot],
            vlan=self.slots.vlan[slot] if self.slots.vlan != NULL else None,
            checksum=ChecksumStatus(self.slots.checksum[slot]) if self.slots.checksum != NULL else None,
            timestamp_ns=self.slots.times[slot] if self.slots.times != NULL else None,
            segments=pieces,
        )


@cython.final
@cython.no_gc
cdef class XdpIpTxBatch(TxBatch):
    """Transmit storage of an `XdpIpPacketSocket`: made by `tx_batch(capacity)`."""

    def __cinit__(self, *args, **options):
        self.egress_block = Region(4 * <size_t> self.capacity)
        self.egress = <uint32_t *> self.egress_block.base

    cdef void clear_slots(self, uint32_t first, uint32_t count) noexcept:
        TxBatch.clear_slots(self, first, count)
        memset(self.egress + first, 0, 4 * <size_t> count)

    cdef int require_source(self, RecvBatch source, bint reply) except -1:
        if reply:
            raise ConfigError("IP packets go where their headers say: swap the addresses, then take_from(reply=False), "
                              "or forward= of run")
        return TxBatch.require_source(self, source, False)

    def take_from(self, RecvBatch source not None, *, bint reply=False):
        """As `TxBatch.take_from`, to each packet's own destination: an IP packet has no sender to go back to."""
        hold(<void *> self.pool)
        return TxBatch.take_from(self, source, reply=reply)

    @property
    def egresses(self):
        """uint32[n], writable: the `id` of the `XdpEgress` that each packet leaves through; 0 has its destination
        resolved."""
        hold(<void *> self.pool)
        whole = self.columns.get("egresses")
        if whole is None:
            import numpy
            whole = numpy.frombuffer(self.egress_block, numpy.uint32, self.capacity)
            self.columns["egresses"] = whole
        return whole[self.head:self.tail]
