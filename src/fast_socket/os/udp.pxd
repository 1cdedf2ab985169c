cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fast_socket.core.frames cimport FramePool
from fast_socket.core.polling cimport Descriptor, Driver
from fast_socket.os.batch cimport OsRecvBatch, OsTxBatch
from fast_socket.os.linux cimport mmsghdr
from fast_socket.os.messages cimport TX_CONTROL_SIZE


cdef enum Refusal:
    # Why a slot cannot be sent as it stands.
    ACCEPTABLE = 0
    OUTSIDE_FRAME
    NO_DESTINATION
    WRONG_LENGTH


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
    # What a transmit came to: slots sent, and why it stopped before the end, if it did.
    uint32_t accepted
    int error
    Refusal refusal


@cython.final
cdef class OsUdpEndpoint:
    cdef uint8_t record[32]
    cdef uint8_t control[TX_CONTROL_SIZE]
    cdef size_t control_size
    cdef uint32_t segment_size
    cdef int64_t payload_len        # -1: any
    cdef bint v6
    cdef readonly object spec


@cython.final
cdef class OsUdpSocket:
    cdef Descriptor descriptor
    cdef Driver _driver
    cdef readonly FramePool pool
    cdef readonly object metadata
    cdef object options
    cdef object socket              # the standard library's view of the same descriptor, for options; never closed
    cdef bint v6
    cdef bint connected
    cdef bint gro
    cdef unsigned int recv_mask     # Metadata that receives deliver
    cdef unsigned int send_mask     # Metadata that the columns of a transmit batch may ask for
    cdef int pending_error          # came with packets: the next receive raises it
    cdef bint batch_calls
    cdef bint raise_icmp
    cdef bint gso_logged
    cdef object gso_support
    cdef uint8_t tos
    cdef uint32_t gso_segments      # per message; 1: no GSO
    cdef uint32_t gso_limit         # the largest segment size that was not refused
    cdef uint8_t peer[32]           # the connected peer's address record
    cdef Counters counters

    cdef int open(self, object sock, object options) except -1
    cdef int receive(self, OsRecvBatch batch, uint32_t usable, int *error) noexcept nogil
    cdef Outcome transmit(self, OsTxBatch batch, OsUdpEndpoint endpoint) noexcept nogil
    cdef uint32_t plan(self, OsTxBatch batch, OsUdpEndpoint endpoint, uint32_t first, uint32_t most, bint segment,
                       Refusal *refusal) noexcept nogil
    cdef int hand_over(self, mmsghdr *messages, uint32_t count) noexcept nogil
    cdef void segments_refused(self, uint32_t size, int error) noexcept nogil
    cdef Outcome start_send(self, OsTxBatch batch, OsUdpEndpoint endpoint) except *
    cdef object finish_send(self, OsTxBatch batch, Outcome outcome)
