cimport cython
from libc.stdint cimport uint32_t

from fast_socket.core.batch cimport TxBatch
from fast_socket.core.frames cimport FramePool


cdef class XdpAggregate:
    cdef readonly tuple members
    cdef readonly FramePool pool
    cdef readonly object device
    cdef readonly object driver
    cdef object program             # its own, which closing detaches
    cdef object router              # the same
    cdef object failure             # of a member, kept until there is nothing else to tell
    cdef bint by_flow
    cdef bint udp
    cdef uint32_t count             # of members
    cdef readonly bint closed
    cdef uint32_t turn              # the member that the next sweep begins with
    cdef uint32_t tx_turn

    cdef int require_open(self) except -1
    cdef uint32_t member_for(self, TxBatch batch, uint32_t slot) noexcept nogil
    cdef uint32_t end_of_run(self, TxBatch batch, uint32_t member) noexcept nogil
    cdef object send_ways(self, TxBatch batch, list ways, uint32_t lane)


@cython.final
cdef class XdpUdpAggregate(XdpAggregate):
    pass


@cython.final
cdef class XdpIpPacketAggregate(XdpAggregate):
    pass


@cython.final
cdef class XdpAggregateEndpoint:
    cdef readonly object spec
    cdef list ways                  # an endpoint for each member
    cdef uint32_t lane              # the member that its packets leave by, where they are spread by flow
    cdef XdpAggregate aggregate


@cython.final
cdef class XdpAggregateEgress:
    cdef readonly object destination
    cdef list ways                  # as above
    cdef uint32_t lane
    cdef XdpAggregate aggregate


@cython.final
cdef class XdpAggregateDriver:
    cdef tuple members
    cdef bint spin

    cdef bint wait_for(self, short events, object timeout) except -1
