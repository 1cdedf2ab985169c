cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fast_socket.core.batch cimport Batch, RecvBatch, TxBatch
from fast_socket.core.frames cimport FramePool, Geometry, Slots
from fast_socket.core.polling cimport Driver
from fast_socket.xdp.header_table cimport HeaderTable
from fast_socket.xdp.headers cimport VERDICTS
from fast_socket.xdp.queue cimport Queue


cdef enum Stop:
    # Why a send went no further than it did.
    DONE = 0
    RING_FULL
    NO_FRAMES                   # for the segments of a large packet
    UNKNOWN_DESTINATION         # not resolved in this generation: the router is to be asked
    # From here on: the slot is refused.
    REFUSED
    OUTSIDE_FRAME
    NO_DESTINATION
    WRONG_LENGTH
    TOO_LARGE
    TOO_MANY_PIECES
    BAD_SOURCE
    BAD_FAMILY
    NOT_CUT
    BAD_PACKET
    BAD_EGRESS


cdef struct Outcome:
    uint32_t accepted
    Stop stop
    uint32_t limit              # of TOO_LARGE: what would have gone


cdef uint32_t add_pieces(const Slots *slots, const Geometry *geometry, uint32_t slot, uint32_t tail,
                         uint32_t *whole) noexcept nogil


cdef uint32_t packets_in(const Slots *slots, uint32_t count) noexcept nogil


cdef object KEY                 # whoever has it may make sockets, endpoints and egresses


cdef class XdpSocket:
    cdef readonly Queue queue
    cdef readonly FramePool pool
    cdef readonly object device
    cdef readonly object metadata
    cdef object options
    cdef object attachment          # what closing detaches
    cdef Driver _driver
    cdef HeaderTable table
    cdef bint quiet                 # an aggregate rings the doorbell, for several sends at once
    cdef bint hold
    cdef bint owns_router
    cdef bint records_v6            # address records are IPv6 ones, IPv4 mapped into them
    cdef bint several_ports
    cdef bint pieces                # packets may span frames
    cdef uint32_t queue_number
    cdef unsigned int recv_mask
    cdef unsigned int send_mask
    cdef uint64_t verdicts[VERDICTS]
    cdef uint64_t held
    cdef uint64_t datagrams_sent
    cdef uint64_t sent_bytes
    cdef uint64_t would_block
    cdef uint64_t frame_shortages
    cdef object latest_unresolved

    cdef int take_queue(self, object device, object queue, object options) except -1
    cdef uint32_t take_pieces(self, Queue queue, Slots *slots, uint32_t out, uint32_t capacity,
                              uint32_t *whole) noexcept nogil
    cdef void put_pieces(self, Queue queue, Slots *slots, uint32_t first, uint32_t count) noexcept nogil
    cdef uint32_t trim_pieces(self, Queue queue, Slots *slots, uint32_t first, uint32_t count, uint32_t start,
                              uint32_t end) noexcept nogil
    cdef void give(self, Queue queue, Slots *slots, uint32_t slot, uint32_t pieces, uint32_t at) noexcept nogil
    cdef uint32_t receive_into(self, RecvBatch batch, uint32_t first) noexcept nogil
    cdef object send_some(self, TxBatch batch, object way, uint32_t limit)
    cdef object choose_router(self)
    cdef int ring_doorbell(self) except -1
    cdef int check_batch(self, Batch batch, bint transmit) except -1
    cdef uint32_t begin_receive(self, RecvBatch batch) except? 0xFFFFFFFF
    cdef int end_receive(self, RecvBatch batch, uint32_t count) except -1
    cdef int begin_send(self, TxBatch batch) except -1
    cdef object end_send(self, TxBatch batch, Outcome *outcome, uint32_t total)
    cdef bint ask_router(self, TxBatch batch, const uint8_t *host, bint v6) except -1
