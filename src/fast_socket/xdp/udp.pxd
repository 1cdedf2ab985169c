cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fast_socket.core.frames cimport Slots
from fast_socket.xdp.batch cimport XdpUdpRecvBatch, XdpUdpTxBatch
from fast_socket.xdp.header_table cimport HeaderTable
from fast_socket.xdp.headers cimport Header, Parsed
from fast_socket.xdp.queue cimport Queue
from fast_socket.xdp.socket cimport Outcome, XdpSocket


@cython.final
cdef class XdpUdpEndpoint:
    cdef readonly object spec
    cdef Header header
    cdef HeaderTable table          # whose socket prepared it
    cdef object generation          # of the router when the header was written; None: not yet
    cdef uint32_t segment_size
    cdef int64_t payload_len        # -1: any


@cython.final
cdef class XdpUdpSocket(XdpSocket):
    cdef bint v4                    # which families it takes
    cdef bint v6
    cdef bint checksums
    cdef bint plain                 # no column of the batch touches the headers
    cdef bint timestamps
    cdef bint any_host
    cdef uint8_t local_host[16]
    cdef uint32_t local_v4          # the same as words, to compare in one step
    cdef uint64_t local_v6[2]
    cdef uint8_t ports[8192]        # a bit per port, by the port in network byte order
    cdef uint16_t only_port         # the same where there is one, in network byte order
    cdef bint identify              # datagrams may be fragmented on their way, so that each needs an identification
    cdef uint32_t scope             # for link-local sources
    cdef uint16_t identification
    cdef uint64_t handed_over

    cdef int adopt(self, object options) except -1
    cdef object send_batch(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t limit)
    cdef int resolve_endpoint(self, XdpUdpEndpoint endpoint) except -1
    cdef int settle(self, XdpUdpTxBatch batch, uint32_t total) except -1
    cdef uint32_t find_way(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t slot, uint32_t limit,
                           uint32_t before) except? 0xFFFFFFFF
    cdef uint32_t hand_over(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t first, uint32_t limit,
                            uint32_t before) except? 0xFFFFFFFF
    cdef object whole_packet(self, const Slots *slots, uint32_t slot, uint32_t limit, uint32_t *pieces)
    cdef void write_columns(self, Slots *slots, uint32_t slot, const uint8_t *frame, const Parsed *parsed,
                            bint whole) noexcept nogil
    cdef bint foreign(self, const Slots *slots, uint32_t slot) noexcept nogil
    cdef inline bint in_pieces(self, const Slots *slots, uint32_t slot) noexcept nogil
    cdef void transmit(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t first,
                       uint32_t limit, Outcome *outcome) noexcept nogil
    cdef uint32_t segment(self, Queue queue, XdpUdpTxBatch batch, const Header *header, uint32_t slot, uint32_t size,
                          uint16_t port, uint32_t at, uint32_t most, Outcome *outcome) noexcept nogil
    cdef uint32_t send_pieces(self, Queue queue, XdpUdpTxBatch batch, const Header *header, uint32_t slot,
                              uint16_t port, uint32_t at, uint32_t most, Outcome *outcome) noexcept nogil
    cdef void rewrite(self, const Slots *slots, uint32_t slot, uint8_t *payload, const Header *header) noexcept nogil
    cdef void sum_again(self, uint8_t *payload, uint32_t length, const Header *header,
                        uint64_t payload_sum) noexcept nogil
