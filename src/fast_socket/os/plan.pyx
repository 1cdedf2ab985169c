"""From pending slots to messages: what one sendmmsg is to say. Memory to memory; the socket makes the calls.

A message is a packet; or a run of neighbouring packets of one length to one peer, coalesced into a large send that the
kernel segments (UDP GSO); or a part of a packet that is longer than its segment size: as much of it as one large send
may carry, or one segment where there is no GSO. `Planned` remembers, for each message, what of the batch it stands for.

A run is described with as few vectors as there are gaps between its payloads in memory. The flags of the loop are
constants at each of its calls, one call for each combination, chosen once per batch by `plan`.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fast_socket.core.addresses cimport PORT_OFFSET, RECORD_V4, RECORD_V6
from fast_socket.core.frames cimport Geometry, Slots, chunk_end
from fast_socket.os.batch cimport OsTxBatch, Planned
from fast_socket.os.linux cimport iovec, mmsghdr
from fast_socket.os.messages cimport ECN_DEFAULT, TX_CONTROL_SIZE, TxControl, append_segment_size, write_control

cdef extern from *:
    """
    /* The loop is written once and must compile to one for each set of flags. Left to itself the compiler shares a copy
       that tests the flags for every packet; Cython has no other way to say that it may not. */
    #if defined(__GNUC__)
    #undef CYTHON_INLINE
    #define CYTHON_INLINE __inline__ __attribute__((always_inline))
    #endif
    """

cdef enum:
    # 65,535 less the IPv6 and UDP headers: what a large send may carry in either family, in all.
    MAX_LARGE_SEND = 65_487


cdef inline bint equal_records(const uint8_t *a, const uint8_t *b, bint v6) noexcept nogil:
    """Whether two address records name one peer. Of an IPv4 record eight bytes count, the rest is padding."""
    cdef uint64_t x[4]
    cdef uint64_t y[4]
    memcpy(x, a, 8)
    memcpy(y, b, 8)
    if x[0] != y[0]:
        return False
    if not v6:
        return True
    memcpy(&x[1], a + 8, 20)
    memcpy(&y[1], b + 8, 20)
    return x[1] == y[1] and x[2] == y[2] and <uint32_t> x[3] == <uint32_t> y[3]


cdef bint same_record(const uint8_t *a, const uint8_t *b, bint v6) noexcept nogil:
    return equal_records(a, b, v6)


cdef inline uint8_t *record_of(const Slots *slots, uint32_t slot) noexcept nogil:
    return slots.addresses + <size_t> slot * slots.address_stride


cdef bint same_control(const Slots *slots, uint32_t a, uint32_t b) noexcept nogil:
    """Whether two slots ask for the same control messages, so that one message can carry both."""
    cdef uint32_t i
    if slots.ecn != NULL and slots.ecn[a] != slots.ecn[b]:
        return False
    if slots.ttl != NULL and slots.ttl[a] != slots.ttl[b]:
        return False
    if slots.times != NULL and slots.times[a] != slots.times[b]:
        return False
    if slots.local_hosts != NULL:
        if slots.interfaces[a] != slots.interfaces[b]:
            return False
        for i in range(slots.host_size):
            if slots.local_hosts[a * slots.host_size + i] != slots.local_hosts[b * slots.host_size + i]:
                return False
    return True


cdef size_t write_slot_control(const Rules *rules, const Slots *slots, uint32_t slot, const uint8_t *record,
                               uint8_t *buffer) noexcept nogil:
    """The control messages that a slot's columns ask for; returns the bytes used."""
    cdef TxControl wanted
    wanted.source_host, wanted.interface, wanted.departure_time = NULL, 0, 0
    wanted.ecn, wanted.ttl = ECN_DEFAULT, 0
    wanted.tos, wanted.traffic_class = rules.tos, rules.traffic_class
    if slots.local_hosts != NULL:
        wanted.source_host = slots.local_hosts + <size_t> slot * slots.host_size
        wanted.interface = slots.interfaces[slot]
    if slots.ecn != NULL:
        wanted.ecn = slots.ecn[slot]
    if slots.ttl != NULL:
        wanted.ttl = slots.ttl[slot]
    if slots.times != NULL:
        wanted.departure_time = slots.times[slot]
    return write_control(buffer, &wanted, record, slots.v6)


cdef inline uint32_t extend_run(const Rules *rules, OsTxBatch batch, const Prepared *endpoint, const Geometry *geometry,
                                uint8_t *base, uint32_t slot, uint32_t length, mmsghdr *message, uint32_t *bytes,
                                const bint to_endpoint, const bint control) noexcept nogil:
    """Add to a message the packets behind `slot` that can go with it as one large send: of the same length (the last
    may be shorter), to the same peer, with the same control messages. Returns the packets in it, the first included.
    """
    cdef const Slots *slots = &batch.slots
    cdef iovec *vector = message.msg_hdr.msg_iov
    cdef uint8_t *peer = record_of(slots, slot)
    cdef uint8_t *start
    cdef uint8_t *end = <uint8_t *> vector.iov_base + length
    cdef uint64_t offset
    cdef uint32_t next_length, total = length, run = 1, at, most = min(rules.gso_segments, batch.tail - slot)
    while run < most:
        at = slot + run
        next_length = slots.lengths[at]
        offset = slots.offsets[at]
        if next_length - 1 >= length or total + next_length > MAX_LARGE_SEND:      # also where it is empty
            break
        if offset + next_length > chunk_end(geometry, slots.frames[at]):
            break
        if to_endpoint:
            if next_length != length and (endpoint.payload_len >= 0):
                break
        elif (slots.segment_sizes[at] and slots.segment_sizes[at] < next_length
                or not equal_records(peer, record_of(slots, at), slots.v6)):
            break
        if control and not same_control(slots, slot, at):
            break
        start = base + offset
        if start != end:
            vector.iov_len = <size_t> (end - <uint8_t *> vector.iov_base)
            vector += 1
            vector.iov_base = start
        end = start + next_length
        total += next_length
        run += 1
        if next_length < length:
            break
    vector.iov_len = <size_t> (end - <uint8_t *> vector.iov_base)
    message.msg_hdr.msg_iovlen = (vector - message.msg_hdr.msg_iov) + 1
    bytes[0] = total
    return run


cdef inline uint32_t plan_messages(const Rules *rules, OsTxBatch batch, const Prepared *endpoint,
                                   const Geometry *geometry, uint8_t *base, uint32_t first, uint32_t most,
                                   Refusal *refusal, const bint to_endpoint, const bint gso,
                                   const bint control, const bint cut_by_socket) noexcept nogil:
    """Turn pending slots, from `first`, into at most `most` messages; returns how many there are. Stops before a slot
    that cannot be sent and says why.

    Lengths are the caller's to write at any time, from any thread: each is read once, checked, and only the checked
    value used. Offsets are ours: they lie inside their frames.
    """
    cdef const Slots *slots = &batch.slots
    cdef iovec *vector = batch.vectors
    cdef mmsghdr *message
    cdef Planned *planned
    cdef uint8_t *record
    cdef uint8_t *buffer
    cdef uint64_t offset
    cdef size_t used
    cdef uint32_t slot = first, messages = 0, run, length, size, total, step, within
    cdef uint16_t port
    # The peer that the socket is connected to needs no name: without one the kernel uses the route it has cached.
    cdef uint8_t *named = NULL
    cdef uint8_t *prepared = NULL
    cdef size_t prepared_size = 0
    if to_endpoint and endpoint.control_size:
        prepared, prepared_size = <uint8_t *> endpoint.control, endpoint.control_size
    if to_endpoint and not (rules.connected and equal_records(endpoint.record, rules.peer, slots.v6)):
        named = <uint8_t *> endpoint.record
    while slot < batch.tail and messages < most:
        length = slots.lengths[slot]
        offset = slots.offsets[slot]
        if offset + length > chunk_end(geometry, slots.frames[slot]):
            refusal[0] = OUTSIDE_FRAME
            break
        if to_endpoint:
            record = named
            size = endpoint.segment_size
            if endpoint.payload_len >= 0 and length != <uint64_t> endpoint.payload_len:
                refusal[0] = WRONG_LENGTH
                break
        else:
            record = record_of(slots, slot)
            size = slots.segment_sizes[slot]
            memcpy(&port, record + PORT_OFFSET, 2)
            if port == 0:
                if not rules.connected:
                    refusal[0] = NO_DESTINATION
                    break
                record = NULL
        step, within, run = length, 0, 1
        if size and size < length:
            step = size
            if gso and size <= rules.gso_limit:
                step = size * min(rules.gso_segments, max(MAX_LARGE_SEND // size, 1))
        while True:
            message = &batch.messages[messages]
            planned = &batch.planned[messages]
            total = min(step, length - within)
            vector.iov_base = base + offset + within
            vector.iov_len = total
            message.msg_hdr.msg_iov = vector
            message.msg_hdr.msg_iovlen = 1
            within += total
            planned.slots = 1 if within == length else 0
            planned.datagrams, planned.segment_size = 1, 0
            if size and size < total:
                planned.segment_size = size
                planned.datagrams = (total + size - 1) // size
            elif gso and step == length and 0 < length <= rules.gso_limit:
                run = extend_run(rules, batch, endpoint, geometry, base, slot, length, message, &total, to_endpoint,
                                 control)
                if run > 1:
                    planned.segment_size, planned.datagrams, planned.slots = length, run, run
            vector += message.msg_hdr.msg_iovlen
            planned.bytes = total
            message.msg_hdr.msg_name = record
            message.msg_hdr.msg_namelen = 0 if record == NULL else RECORD_V6 if slots.v6 else RECORD_V4
            message.msg_hdr.msg_control = prepared
            message.msg_hdr.msg_controllen = prepared_size
            if control or cut_by_socket or (gso and planned.segment_size):
                buffer = batch.controls + <size_t> messages * TX_CONTROL_SIZE
                used = 0
                if control:
                    used = write_slot_control(rules, slots, slot, record if record != NULL else <uint8_t *> rules.peer,
                                              buffer)
                elif to_endpoint and prepared_size:
                    used = prepared_size
                    memcpy(buffer, prepared, used)
                if (gso or cut_by_socket) and planned.segment_size != (rules.socket_segment if cut_by_socket else 0):
                    used = append_segment_size(buffer, used, <uint16_t> planned.segment_size)
                message.msg_hdr.msg_control = buffer if used else NULL
                message.msg_hdr.msg_controllen = used
            messages += 1
            if within >= length or messages == most:
                break
        if planned.slots == 0:
            break           # the messages ran out within a packet
        slot += run
    return messages


cdef uint32_t plan(const Rules *rules, OsTxBatch batch, const Prepared *endpoint, uint32_t first, uint32_t most,
                   bint segment, Refusal *refusal) noexcept nogil:
    """Plan at most `most` messages for the pending slots from `first`; with `endpoint`, all to that. `segment` off
    plans single datagrams."""
    cdef Geometry geometry = batch.pool.geometry        # a copy, which no store in the loop can change
    cdef uint8_t *base = batch.pool.base
    cdef bint gso = segment and rules.gso_segments > 1
    if rules.socket_segment:
        if endpoint != NULL:
            if gso:
                return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                                     True, True, False, True)
            return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                                 True, False, False, True)
        if gso:
            return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                                 False, True, True, True)
        return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal, False, False, True, True)
    if endpoint != NULL:
        if gso:
            return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                                 True, True, False, False)
        return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                             True, False, False, False)
    if rules.per_slot_control:
        if gso:
            return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                                 False, True, True, False)
        return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                             False, False, True, False)
    if gso:
        return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                             False, True, False, False)
    return plan_messages(rules, batch, endpoint, &geometry, base, first, most, refusal,
                         False, False, False, False)
