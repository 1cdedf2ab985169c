from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t

from fast_socket.os.batch cimport OsTxBatch
from fast_socket.os.messages cimport TX_CONTROL_SIZE


cdef enum Refusal:
    # Why a slot cannot be sent as it stands.
    ACCEPTABLE = 0
    OUTSIDE_FRAME
    NO_DESTINATION
    WRONG_LENGTH


cdef struct Rules:
    # What a socket allows.
    uint32_t gso_segments       # datagrams of one large send; 1: there is no GSO
    uint32_t gso_limit          # the largest segment that was not refused
    uint32_t socket_segment     # what the socket cuts at unless a message says otherwise; 0: it does not cut
    bint per_slot_control       # the batch's columns may ask for control messages
    bint connected
    uint8_t tos                 # the socket's own, for IPv4 peers
    uint8_t traffic_class       # and for IPv6 ones
    uint8_t peer[32]            # the connected peer's address record


cdef struct Prepared:
    # A peer and all that is to be said of the datagrams to it.
    uint8_t record[32]
    uint8_t control[TX_CONTROL_SIZE]
    size_t control_size
    uint32_t segment_size
    int64_t payload_len         # -1: any


cdef uint32_t plan(const Rules *rules, OsTxBatch batch, const Prepared *endpoint, uint32_t first, uint32_t most,
                   bint segment, Refusal *refusal) noexcept nogil
cdef bint same_record(const uint8_t *a, const uint8_t *b, bint v6) noexcept nogil
