from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from fast_socket.core.frames cimport Slots
from fast_socket.os.linux cimport msghdr

cdef enum:
    # CMSG_SPACE of everything that can be asked for at once, rounded up; messages.pyx checks it at import.
    RX_CONTROL_SIZE = 256
    TX_CONTROL_SIZE = 192
    ECN_DEFAULT = 255


cdef struct TxControl:
    # What a transmit control message is to say. Zero means "not said", but for ecn, where it is ECN_DEFAULT.
    const uint8_t *source_host      # NULL, or 4 or 16 bytes; all zero says nothing
    uint32_t interface
    int64_t departure_time
    uint8_t ecn
    uint8_t ttl
    uint8_t tos                     # the socket's own, whose upper six bits an ECN message keeps: for IPv4 peers
    uint8_t traffic_class           # and for IPv6 ones


cdef void read_control(msghdr *message, Slots *slots, uint32_t slot) noexcept nogil
cdef size_t write_control(uint8_t *buffer, const TxControl *control, const uint8_t *record, bint v6) noexcept nogil
cdef size_t append_segment_size(uint8_t *buffer, size_t used, uint16_t segment_size) noexcept nogil
