cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fast_socket.core.frames cimport FramePool
from fast_socket.core.polling cimport Descriptor, Driver
from fast_socket.os.batch cimport OsRecvBatch, OsTxBatch
from fast_socket.os.linux cimport mmsghdr
from fast_socket.os.plan cimport Prepared, Refusal, Rules


cdef struct Counters:
    uint64_t received
    uint64_t received_bytes
    uint64_t sent
    uint64_t sent_bytes
    uint64_t truncated
    uint64_t gso_sends
    uint64_t gso_fallbacks
    uint64_t stale_errors
    uint64_t would_block
    uint64_t frame_shortages


cdef struct Outcome:
    int64_t wanted_length           # the endpoint's, for a message
    # What a transmit came to: slots sent, and why it stopped before the end, if it did.
    uint32_t accepted
    int error
    Refusal refusal


@cython.final
cdef class OsUdpEndpoint:
    cdef Prepared prepared
    cdef bint v6
    cdef readonly object spec


@cython.final
cdef class OsUdpSocket:
    cdef Descriptor descriptor
    cdef Driver _driver
    cdef readonly FramePool pool
    cdef readonly object metadata
    cdef bint v6
    cdef bint gro
    cdef unsigned int recv_mask     # Metadata that receives deliver
    cdef unsigned int send_mask     # Metadata that the columns of a transmit batch may ask for
    cdef int pending_error          # came with packets: the next receive raises it
    cdef bint batch_calls
    cdef bint raise_icmp
    cdef bint error_queue           # IP_RECVERR is on: ICMP errors queue up and must be read
    cdef bint gso_logged
    cdef object gso_support
    cdef Rules rules
    cdef Counters counters

    cdef int open(self, object sock, object options) except -1
    cdef int receive(self, OsRecvBatch batch, uint32_t usable, int *error, Counters *counters) noexcept nogil
    cdef uint32_t drain_errors(self) noexcept nogil
    cdef Outcome transmit(self, OsTxBatch batch, const Prepared *endpoint, Counters *counters) noexcept nogil
    cdef int hand_over(self, mmsghdr *messages, uint32_t count) noexcept nogil
    cdef void segments_refused(self, uint32_t size, int error) noexcept nogil
    cdef Outcome start_send(self, OsTxBatch batch, const Prepared *endpoint) except *
    cdef object finish_send(self, OsTxBatch batch, Outcome outcome, OsUdpEndpoint endpoint)
