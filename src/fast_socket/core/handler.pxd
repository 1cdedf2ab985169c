"""Compiled handlers: what a function is called with for each datagram of a receive batch, and what its verdicts say.
`RecvBatch.run` documents both; `fast_socket.numba` declares the same for numba."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fast_socket.core.frames cimport Geometry, Slots, chunk_end


cdef struct HandlerPacket:
    uint32_t length             # of the datagram; the handler may change it
    uint32_t room               # the most that it may be: up to the frame's end
    uint32_t index              # of its packet, in the batch's columns
    uint32_t source_length      # bytes of the sender's address record


cdef enum:
    SOCKADDR_V4 = 16            # sizeof(struct sockaddr_in): netinet/in.h
    SOCKADDR_V6 = 28            # sizeof(struct sockaddr_in6)

cdef enum:
    DROP = 0
    KEEP = 1
    REFLECT = 2
    FORWARD = 3


ctypedef int (*Handler)(HandlerPacket *packet, uint8_t *data, uint8_t *source, void *user) noexcept nogil


cdef inline int ask(Handler handler, void *user, uint8_t *base, const Geometry *geometry, Slots *slots, uint32_t slot,
                    uint32_t head) noexcept nogil:
    """The verdict for one packet: below 0 where the handler failed, or gave it a length that it has no room for. The
    largest of those for the datagrams of a coalesced one, which keep their lengths."""
    cdef HandlerPacket packet
    cdef uint8_t *data = base + slots.offsets[slot]
    cdef uint8_t *source = slots.addresses + <uint64_t> slot * slots.address_stride
    cdef uint32_t length = slots.lengths[slot], done = 0, size
    cdef uint32_t stride = slots.segment_sizes[slot] if slots.segment_sizes != NULL else length
    cdef int verdict, most = DROP
    cdef uint16_t family
    packet.index = slot - head
    packet.source_length = SOCKADDR_V6 if slots.v6 else SOCKADDR_V4
    memcpy(&family, source, 2)
    if stride == 0 or stride >= length:
        packet.length = length
        packet.room = <uint32_t> (chunk_end(geometry, slots.frames[slot]) - slots.offsets[slot])
        size = packet.room
        verdict = handler(&packet, data, source, user)
        memcpy(source, &family, 2)  # what reads the record goes by it
        if packet.length > size:
            return -1
        if packet.length != length:
            slots.lengths[slot] = packet.length
            if slots.segment_sizes != NULL:
                slots.segment_sizes[slot] = packet.length
        return verdict
    while done < length:
        size = min(stride, length - done)
        packet.length = packet.room = size
        verdict = handler(&packet, data + done, source, user)
        memcpy(source, &family, 2)
        if verdict < 0 or packet.length != size:
            return -1
        if verdict > FORWARD:
            verdict = KEEP
        most = max(most, verdict)
        done += size
    return most
