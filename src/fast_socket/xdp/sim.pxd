cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fast_socket.core.memory cimport Region
from fast_socket.xdp.queue cimport Queue
from fast_socket.xdp.ring cimport Ring


@cython.final
cdef class Wire:
    cdef void **queues              # the open SimulatedQueues, borrowed: each leaves before it goes
    cdef uint32_t open_queues
    cdef uint32_t places
    cdef readonly list devices
    cdef uint64_t random
    cdef public double drop
    cdef public double duplicate
    cdef public bint paused
    cdef public bint hold_completions
    cdef public int64_t clock_ns
    cdef readonly uint64_t generation

    cdef int plug_in(self, SimulatedQueue queue) except -1
    cdef void unplug(self, SimulatedQueue queue) noexcept
    cdef double chance(self) noexcept
    cdef void carry(self, SimulatedQueue source, const uint8_t *frame, uint32_t length) noexcept


@cython.final
cdef class SimulatedQueue(Queue):
    cdef Wire wire
    cdef readonly SimulatedDevice device
    cdef readonly uint32_t queue_id
    cdef Region block
    cdef uint32_t headroom
    cdef bint timestamps
    cdef bint multi_buffer
    cdef bint signalled
    cdef bytes pieces               # of a packet whose end is still to come
    cdef uint64_t *late             # completions that are held back
    cdef uint32_t late_count
    cdef uint64_t statistics[6]

    cdef uint32_t lay_out(self, Ring *ring, uint32_t entries, uint32_t entry_size, uint32_t at) noexcept
    cdef void complete(self, uint64_t address) noexcept
    cdef void give_back(self) noexcept
    cdef void transmit(self) noexcept
    cdef void deliver(self, const uint8_t *frame, uint32_t length) noexcept
    cdef void signal(self) noexcept


cdef class SimulatedDevice:
    cdef readonly Wire wire
    cdef readonly str name
    cdef readonly bytes mac
    cdef readonly tuple addresses
    cdef readonly object ifindex
    cdef readonly uint32_t mtu
    cdef readonly uint32_t queue_count


@cython.final
cdef class SimulatedRouter:
    cdef readonly SimulatedDevice device
