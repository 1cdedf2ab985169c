cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fast_socket.core.frames cimport FramePool, Slots
from fast_socket.core.memory cimport Column, Region


cdef class Batch:
    cdef readonly FramePool pool
    cdef readonly uint32_t capacity
    cdef readonly object metadata
    cdef unsigned int mask          # its value, for the socket to compare
    cdef Slots slots
    cdef uint32_t head              # the first slot that counts: transmit slots before it are sent
    cdef uint32_t tail
    cdef Region block
    cdef list packets
    cdef dict columns

    cdef int claim(self) except -1
    cdef int require_idle(self) except -1
    cdef object packet_at(self, uint32_t slot)
    cdef object column(self, str name, void *base, bytes dtype, Py_ssize_t itemsize, Py_ssize_t stride,
                       Py_ssize_t width, bint readonly)
    cdef object optional_column(self, str name, void *base, bytes dtype, Py_ssize_t itemsize, Py_ssize_t stride,
                                Py_ssize_t width, bint readonly, str needed)


cdef class RecvBatch(Batch):
    cdef uint64_t datagram_total
    cdef bint refilled              # replace() gave slots other frames
    cdef uint64_t failed            # packets that handlers failed on

    cdef int vacate(self) except -1
    cdef uint32_t replace(self) except 0


cdef class TxBatch(Batch):
    cdef void rewind(self) noexcept
    cdef void clear_slots(self, uint32_t first, uint32_t count) noexcept
    cdef uint32_t take_frames(self, uint32_t count) noexcept
    cdef int require_room(self) except -1
    cdef int require_source(self, RecvBatch source, bint reply) except -1
    cdef void await_handler(self, uint32_t count) noexcept
    cdef void move_in(self, Slots *src, uint32_t slot, bint reply) noexcept nogil
    cdef void accept(self, uint32_t count) noexcept
    cdef uint32_t take_whole(self, RecvBatch source, uint32_t to, bint reply, bint local, bint sizes,
                             bint ports) noexcept


@cython.final
cdef class Datagrams:
    cdef RecvBatch batch
    cdef uint64_t epoch
    cdef uint32_t vacant
    cdef size_t count
    cdef bytes block
    cdef uint64_t *native_offsets
    cdef uint32_t *native_lengths
    cdef uint32_t *native_slots
    cdef readonly object slots
    cdef readonly object offsets
    cdef readonly object lengths

    cdef int require_current(self) except -1
    cdef size_t checked(self, object index) except? 0xFFFFFFFFFFFFFFFF
