# The four rings of AF_XDP, from our side: single producer, single consumer, indices that run freely in 32 bits.
#
# Invariants
#     - We produce into FILL and TX and consume from COMPLETION and RX; the kernel (or the simulated one) does the rest.
#     - `ours` is published by store_release only after the entries it covers were written, or read.
#     - The other side's index is never believed: more entries than a ring has are none.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    uint32_t load_acquire(const uint32_t *index)
    void store_release(uint32_t *index, uint32_t value)
    uint32_t load_relaxed(const uint32_t *index)
    void full_fence()
    void prefetch(const void *address)

cdef enum:
    NEED_WAKEUP = 1             # XDP_RING_NEED_WAKEUP, include/uapi/linux/if_xdp.h
    CONTINUED = 1               # XDP_PKT_CONTD: the packet goes on in the next descriptor


cdef struct Desc:
    # struct xdp_desc
    uint64_t address
    uint32_t length
    uint32_t options


cdef struct Ring:
    uint32_t *producer
    uint32_t *consumer
    uint32_t *flags
    void *entries               # Desc for RX and TX, uint64_t addresses for FILL and COMPLETION
    uint32_t size               # a power of two
    uint32_t ours               # our index, perhaps ahead of what is published
    uint32_t theirs             # the other side's, as last seen


cdef inline uint32_t room(Ring *ring, uint32_t wanted) noexcept nogil:
    """Entries that we may produce, `wanted` or fewer."""
    cdef uint32_t used = ring.ours - ring.theirs
    if ring.size - used < wanted or used > ring.size:
        ring.theirs = load_acquire(ring.consumer)
        used = ring.ours - ring.theirs
        if used > ring.size:
            return 0
    return min(wanted, ring.size - used)


cdef inline uint32_t available(Ring *ring, uint32_t wanted) noexcept nogil:
    """Entries that we may consume, `wanted` or fewer."""
    cdef uint32_t count = ring.theirs - ring.ours
    if count < wanted:
        ring.theirs = load_acquire(ring.producer)
        count = ring.theirs - ring.ours
    if count > ring.size:
        return 0
    return min(wanted, count)


cdef inline uint64_t *address_at(const Ring *ring, uint32_t index) noexcept nogil:
    return <uint64_t *> ring.entries + (index & (ring.size - 1))


cdef inline Desc *desc_at(const Ring *ring, uint32_t index) noexcept nogil:
    return <Desc *> ring.entries + (index & (ring.size - 1))


cdef inline uint64_t extent(const Desc *desc) noexcept nogil:
    """Length and options of a descriptor as one number: with any option it is larger than every chunk."""
    return <uint64_t> desc.options << 32 | desc.length


cdef inline bint outside(uint64_t address, uint64_t length, uint32_t chunk, uint32_t least) noexcept nogil:
    """Whether a packet leaves its chunk, or begins before its byte `least`."""
    return <uint64_t> (<uint32_t> (address & (chunk - 1)) - least) + length > chunk - least


cdef inline bint wants_wakeup(const Ring *ring) noexcept nogil:
    full_fence()
    return load_relaxed(ring.flags) & NEED_WAKEUP
