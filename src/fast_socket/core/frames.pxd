cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fast_socket.core.memory cimport Region

cdef enum:
    NO_FRAME = 0xFFFFFFFF


cdef struct Slots:
    # The columns of a batch, and what guards them; a packet that is still in its batch works through this.
    # frames[i] is NO_FRAME once the slot's frame has gone elsewhere. A column that was not asked for is NULL.
    uint32_t *frames
    uint64_t *offsets           # from the pool's first byte: a UMEM address
    uint32_t *lengths
    uint8_t *addresses          # address records, address_stride apart: the peer
    uint8_t *local_hosts        # host_size bytes each
    uint32_t *interfaces
    uint8_t *ecn
    uint8_t *ttl
    int64_t *times              # receive timestamps or departure times
    uint32_t *segment_sizes     # receive: GRO stride; transmit: GSO segment size, 0 for none
    uint16_t *local_ports       # network byte order: where it was sent to, or leaves from (0: the socket's own)
    uint16_t *vlan              # outer 802.1Q tag control information, 0 for untagged
    uint8_t *checksum           # a ChecksumStatus
    uint8_t *continued          # 1: the packet goes on in the next slot
    bint v6
    bint transmit
    uint32_t address_stride
    uint32_t host_size
    uint32_t vacant             # slots whose frame was taken away since the last receive
    uint64_t epoch              # grows whenever the contents are replaced: stale handles compare it
    void *packets               # borrowed: the batch's list of permanent packet objects, one per slot or None
    uint32_t exports            # memoryviews of packets of this batch that exist now
    bint busy                   # a native call works on the batch with the GIL released


cdef struct Geometry:
    # Where frames lie and what is kept free in front of a packet, in bytes from the pool's start. Loops work on a copy.
    uint64_t tx_start
    uint32_t rx_frames
    uint32_t rx_chunk
    uint32_t tx_chunk
    uint32_t rx_payload         # from the chunk's start: where a fresh packet begins
    uint32_t tx_payload
    uint32_t rx_reserved        # from the chunk's start: before this the backend writes, and no packet may begin
    uint32_t tx_reserved


@cython.final
cdef class FramePool:
    cdef readonly Region memory
    cdef readonly object rx_layout, tx_layout
    cdef readonly uint32_t rx_frames, tx_frames
    cdef Geometry geometry
    cdef uint8_t *base
    cdef Region stacks
    cdef uint32_t *rx_stack
    cdef uint32_t *tx_stack
    cdef uint32_t rx_free, tx_free
    cdef object registration        # what a backend knows of this memory: an AF_XDP UMEM, a DPDK mempool


# Inline, because every loop over a batch uses them.

cdef inline uint64_t chunk_start(const Geometry *g, uint32_t frame) noexcept nogil:
    if frame < g.rx_frames:
        return <uint64_t> frame * g.rx_chunk
    return g.tx_start + <uint64_t> (frame - g.rx_frames) * g.tx_chunk


cdef inline uint64_t packet_start(const Geometry *g, uint32_t frame) noexcept nogil:
    """Where a fresh packet of this frame begins."""
    return chunk_start(g, frame) + (g.rx_payload if frame < g.rx_frames else g.tx_payload)


cdef inline uint64_t lowest_start(const Geometry *g, uint32_t frame) noexcept nogil:
    """How far forward a packet may be extended: what lies before belongs to the backend."""
    return chunk_start(g, frame) + (g.rx_reserved if frame < g.rx_frames else g.tx_reserved)


cdef inline uint64_t chunk_end(const Geometry *g, uint32_t frame) noexcept nogil:
    return chunk_start(g, frame) + (g.rx_chunk if frame < g.rx_frames else g.tx_chunk)


cdef inline void put_frame(FramePool pool, uint32_t frame) noexcept nogil:
    """Return a frame to its stack, GIL held. The caller has cleared the place it came from."""
    if frame < pool.geometry.rx_frames:
        pool.rx_stack[pool.rx_free] = frame
        pool.rx_free += 1
    else:
        pool.tx_stack[pool.tx_free] = frame
        pool.tx_free += 1
