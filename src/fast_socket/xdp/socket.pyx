"""What the two AF_XDP sockets share: opening a queue, waiting, closing, and what stands around their loops.

The parts that differ, reading and writing headers, are loops of the final classes, chosen when the socket is made.
"""

cimport cython
from libc.errno cimport EADDRNOTAVAIL, EAFNOSUPPORT, EDESTADDRREQ, EINVAL, EMSGSIZE, ENOBUFS, EPROTOTYPE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fast_socket.core.batch cimport Batch, RecvBatch, TxBatch
from fast_socket.core.frames cimport Geometry, NO_FRAME, Slots, chunk_end, put_frame
from fast_socket.core.section cimport hold
from fast_socket.xdp.header_table cimport key_of
from fast_socket.xdp.headers cimport (
    FRAGMENT, MALFORMED, NOT_IP, OTHER_ADDRESS, OTHER_PORT, OTHER_PROTOCOL,
)
from fast_socket.xdp.queue cimport HOME, Queue, frame_at
from fast_socket.xdp.ring cimport CONTINUED, Desc, available, desc_at, load_acquire, outside, store_release

from fast_socket.core.capabilities import RawDeviceStats
from fast_socket.core.errors import ConfigError, Error, SendError
from fast_socket.core.routes import Unresolved
from fast_socket.xdp.header_table import UnresolvedError
from fast_socket.xdp.raw_device import XdpRawDevice

cdef enum:
    MOST_PIECES = 18                # MAX_SKB_FRAGS and the linear part: more is refused by copy mode

REFUSALS = {
    OUTSIDE_FRAME: (EINVAL, "its length leaves its frame, or its segments do not belong together"),
    NO_DESTINATION: (EDESTADDRREQ, "it has no destination: set one with append(data, to), or use send_to"),
    WRONG_LENGTH: (EINVAL, "the endpoint was prepared for packets of payload_len bytes only"),
    TOO_MANY_PIECES: (EMSGSIZE, "it has more pieces than the rings ever take at once: ask for a larger tx_ring and "
                                "completion_ring"),
    BAD_FAMILY: (EAFNOSUPPORT, "its destination is of a family that this socket has no address of"),
    NOT_CUT: (EINVAL, "a packet in pieces is not cut into segments: leave its segment size 0"),
    BAD_SOURCE: (EINVAL, "its source address is of the other family than its destination"),
    BAD_PACKET: (EPROTOTYPE, "it is not an IP datagram of this socket's families whose length field says its length"),
    BAD_EGRESS: (EADDRNOTAVAIL, "its egress is none that this socket has resolved"),
}


cdef uint32_t add_pieces(const Slots *slots, const Geometry *geometry, uint32_t slot, uint32_t tail,
                         uint32_t *whole) noexcept nogil:
    """The pieces of the packet that begins in `slot`, 0 where they do not fit together; `whole` becomes its length."""
    cdef uint32_t at = slot
    whole[0] = 0
    while at < tail and at - slot < MOST_PIECES:
        if slots.offsets[at] + slots.lengths[at] > chunk_end(geometry, slots.frames[at]) or slots.lengths[at] == 0:
            return 0
        whole[0] += slots.lengths[at]
        at += 1
        if not slots.continued[at - 1]:
            return at - slot
    return 0


cdef uint32_t packets_in(const Slots *slots, uint32_t count) noexcept nogil:
    """Packets in the first slots of a batch: each ends in a slot that is not continued."""
    cdef uint32_t slot, packets = count
    if slots.continued != NULL:
        for slot in range(count):
            packets -= slots.continued[slot] != 0
    return packets


cdef object KEY = object()


@cython.no_gc
cdef class XdpSocket:
    """Not made directly: see `XdpUdpSocket` and `XdpIpPacketSocket`."""

    def __cinit__(self, key=None):
        if key is not KEY:
            raise TypeError(f"make an {type(self).__name__} with open()")

    cdef int take_queue(self, object device, object queue, object options) except -1:
        """Take a queue of a device. On an error nothing stays attached."""
        memset(self.verdicts, 0, sizeof(self.verdicts))
        self.device, self.options = device, options
        self.metadata = options.metadata
        self.hold = options.unresolved == "hold"
        self.pool = options.make_pool(device)
        self.records_v6, self.several_ports, self.pieces = options.v6, options.several_ports, options.multi_buffer
        self.queue = device.open_queue(self.pool, queue, options)
        self.queue_number = queue
        try:
            self._driver = options.driver(self.queue, min_batch=options.min_batch, max_wait=options.max_wait)
            self.attachment = device.attach(self.queue, queue, options)
        except BaseException:
            self.queue.close()
            raise
        return 0

    cdef uint32_t receive_into(self, RecvBatch batch, uint32_t first) noexcept nogil:
        """Fill the slots of a batch from `first` on with what RX has; returns where that ended. GIL held."""
        return first

    cdef object send_some(self, TxBatch batch, object way, uint32_t limit):
        """`send` of the slots before `limit`, by an endpoint or egress where one is given."""

    cdef object choose_router(self):
        """The caller's, or the device's own kind, which is then closed with the socket."""
        if self.options.router is not None:
            return self.options.router
        router = self.device.make_router(self.options.source)
        self.owns_router = hasattr(router, "close")
        return router

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        hold(<void *> self.pool)
        return f"<{type(self).__name__} {'closed' if self.queue.closed else self.device}>"

    def close(self):
        """Detach, unmap and close; frames that the device had go home. Whoever waits on the driver is woken with
        `Error`. Batches and packets stay readable. Again is nothing."""
        hold(<void *> self.pool)
        attachment, self.attachment = self.attachment, None
        try:
            if attachment is not None:
                attachment.close()
        finally:
            self.queue.close()
            if self.owns_router and self.table is not None:
                self.table.router.close()

    @property
    def closed(self):
        return self.queue.closed

    def fileno(self):
        """The descriptor, -1 once closed."""
        return self.queue.fileno()

    @property
    def driver(self):
        """How to wait: a `WaitDriver` or a `BusyPollDriver`, as chosen."""
        return self._driver

    @property
    def raw_device(self):
        """The device side: an `XdpRawDevice`."""
        return XdpRawDevice(self)

    @property
    def queue_id(self):
        """The device queue."""
        return self.queue_number

    def forget_routes(self):
        """Have every destination resolved anew, by a router that has read its tables anew if it can."""
        hold(<void *> self.pool)
        refresh = getattr(self.table.router, "refresh", None)
        if refresh is not None:
            refresh()
        self.table.generation = None

    @property
    def router(self):
        """What resolves destinations for this socket."""
        hold(<void *> self.pool)
        return self.table.router

    @property
    def program(self):
        """The `XdpProgram` that feeds this queue; None for a simulated device."""
        hold(<void *> self.pool)
        return getattr(self.attachment, "program", None)

    @property
    def unresolved(self):
        """The latest `UnresolvedError` of a send, None where there was none."""
        hold(<void *> self.pool)
        return self.latest_unresolved

    @property
    def zero_copy(self):
        """Whether the kernel confirmed zero-copy mode (XDP_OPTIONS)."""
        return self.queue.zero_copy

    def drain_tx_completions(self):
        """Bring frames home that the device has sent; returns how many. Raises `Error` when closed, `DeviceError`."""
        hold(<void *> self.pool)
        cdef uint32_t count
        self.queue.enter()
        try:
            count = self.queue.drain()
            self.queue.refill()
            self.queue.report()
        finally:
            self.queue.leave()
        return count

    def notify_tx(self):
        """Have the device look at what still waits in the TX ring, as `send` does by itself. Raises as
        `drain_tx_completions`."""
        hold(<void *> self.pool)
        self.queue.enter()
        try:
            self.ring_doorbell()
            self.queue.report()
        finally:
            self.queue.leave()

    cdef int ring_doorbell(self) except -1:
        cdef int error
        if self.quiet:
            return 0
        if load_acquire(self.queue.tx.consumer) == self.queue.tx.ours:
            return 0                    # nothing waits
        with nogil:
            error = self.queue.kick()
        if error:
            self.queue.pending_error = error
        return 0

    def queue_stats(self):
        """Counters of the queue since it was opened: a `RawDeviceStats`. After `close`, the last that are known."""
        hold(<void *> self.pool)
        cdef Queue queue = self.queue
        device = queue.device_statistics()
        return RawDeviceStats(
            rx_packets=queue.counters.rx_packets, rx_bytes=queue.counters.rx_bytes,
            tx_packets=queue.counters.tx_packets, tx_bytes=queue.counters.tx_bytes,
            rx_dropped=device[0], rx_invalid_descriptors=device[1] + queue.counters.bad_descriptors,
            tx_invalid_descriptors=device[2], rx_ring_full=device[3], rx_fill_ring_empty=device[4],
            tx_ring_empty=device[5], fragments_dropped=self.verdicts[<int> FRAGMENT],
            bad_packets=self.verdicts[<int> MALFORMED],
            filtered=(self.verdicts[<int> NOT_IP] + self.verdicts[<int> OTHER_PROTOCOL]
                      + self.verdicts[<int> OTHER_ADDRESS] + self.verdicts[<int> OTHER_PORT]),
            completions=queue.counters.completed, kicks=queue.counters.kicks, outstanding=queue.outstanding,
            filled=queue.filled_now(),
        )

    # Packets in pieces (XDP_USE_SG): a slot for each, with `continued` set in all but the last.

    cdef uint32_t take_pieces(self, Queue queue, Slots *slots, uint32_t out, uint32_t capacity,
                              uint32_t *whole) noexcept nogil:
        """Move the frames of one packet from RX into slots from `out`, offsets and lengths those of the raw frames;
        returns how many there were, 0 where there is no packet, or no room for it. One that could never fit, or has a
        descriptor of a frame that the device does not have, is dropped. GIL held."""
        cdef uint32_t count, chunk = queue.umem.chunk_size, least = queue.pool.geometry.rx_reserved, i, frame
        cdef uint64_t address
        cdef Desc *desc
        cdef bint bad
        while True:
            count, whole[0], bad = 0, 0, False
            while True:
                if available(&queue.rx, count + 1) <= count:
                    if count < queue.rx.size:
                        return 0
                    queue.counters.bad_descriptors += 1         # a packet without an end fills the ring
                    bad = True
                    break
                desc = desc_at(&queue.rx, queue.rx.ours + count)
                whole[0] += desc.length
                count += 1
                if not desc.options & CONTINUED:
                    break
            if out and out + count > capacity:
                return 0
            for i in range(count):
                desc = desc_at(&queue.rx, queue.rx.ours + i)
                address = desc.address
                frame = frame_at(queue.umem, address)
                if frame == queue.umem.frames or queue.umem.places[frame] != queue.filled:
                    queue.counters.bad_descriptors += 1
                    frame, bad = NO_FRAME, True
                else:
                    queue.umem.places[frame] = HOME
                    if outside(address, desc.length, chunk, least):
                        queue.counters.bad_descriptors += 1
                        bad = True
                if out + i < capacity:
                    slots.frames[out + i] = frame
                    slots.offsets[out + i], slots.lengths[out + i] = address, desc.length
                    slots.continued[out + i] = i + 1 < count
                elif frame != NO_FRAME:
                    put_frame(queue.pool, frame)
            queue.rx.ours += count
            store_release(queue.rx.consumer, queue.rx.ours)
            if bad or count > capacity:
                if not bad:
                    self.verdicts[<int> MALFORMED] += 1
                self.put_pieces(queue, slots, out, min(count, capacity - out))
                continue
            return count

    cdef void put_pieces(self, Queue queue, Slots *slots, uint32_t first, uint32_t count) noexcept nogil:
        """Send the frames of a packet home. GIL held."""
        cdef uint32_t i
        for i in range(first, first + count):
            if slots.frames[i] != NO_FRAME:
                put_frame(queue.pool, slots.frames[i])
                slots.frames[i] = NO_FRAME

    cdef uint32_t trim_pieces(self, Queue queue, Slots *slots, uint32_t first, uint32_t count, uint32_t start,
                              uint32_t end) noexcept nogil:
        """Leave of a packet its bytes from `start` to before `end`, which lie in its first piece and in its last ones;
        returns the pieces that are left. GIL held."""
        cdef uint32_t i, left = end - start, last = first + count
        slots.offsets[first] += start
        slots.lengths[first] -= start
        for i in range(first, last):
            if left == 0 and i > first:
                self.put_pieces(queue, slots, i, last - i)
                last = i
                break
            slots.lengths[i] = min(slots.lengths[i], left)
            left -= slots.lengths[i]
        slots.continued[last - 1] = 0
        return last - first

    cdef void give(self, Queue queue, Slots *slots, uint32_t slot, uint32_t pieces, uint32_t at) noexcept nogil:
        """Mark a packet's frames as sent; the descriptor of the first is written, those of further pieces follow."""
        cdef Desc *desc
        cdef uint32_t i
        for i in range(pieces):
            if i:
                desc = desc_at(&queue.tx, queue.tx.ours + at + i)
                desc.address = slots.offsets[slot + i]
                # Read again, so checked again.
                desc.length = <uint32_t> min(<uint64_t> slots.lengths[slot + i],
                                             chunk_end(&queue.pool.geometry, slots.frames[slot + i]) - desc.address)
                desc.options = CONTINUED if i + 1 < pieces else 0
            queue.umem.places[slots.frames[slot + i]] = queue.sent
            slots.frames[slot + i] = NO_FRAME

    cdef int check_batch(self, Batch batch, bint transmit) except -1:
        if (batch.pool is not self.pool or batch.slots.v6 != self.records_v6
                or batch.mask != (self.send_mask if transmit else self.recv_mask)
                or (batch.slots.segment_sizes != NULL) != (transmit and not self.table.link_only)
                or (batch.slots.local_ports != NULL) != self.several_ports
                or (batch.slots.continued != NULL) != self.pieces):
            raise ConfigError(f"this {'transmit' if transmit else 'receive'} batch belongs to another socket: use one "
                              f"made by this socket's {'tx' if transmit else 'recv'}_batch")
        return 0

    cdef uint32_t begin_receive(self, RecvBatch batch) except? 0xFFFFFFFF:
        """Empty the batch; returns the slots that may be filled."""
        self.queue.enter()
        try:
            batch.vacate()
        except BaseException:
            self.queue.leave()
            raise
        return batch.capacity

    cdef int end_receive(self, RecvBatch batch, uint32_t count) except -1:
        cdef Queue queue = self.queue
        batch.tail = count
        batch.datagram_total = packets_in(&batch.slots, count)
        self._driver.last_batch = count
        queue.refill()
        if load_acquire(queue.fill.consumer) == queue.fill.ours:
            self.frame_shortages += 1       # nothing to receive into: the frames are all with the caller
            if count == 0 and available(&queue.rx, 1) == 0:
                queue.leave()
                raise Error(f"all {self.pool.rx_frames} receive frames are taken: release packets, or ask for more "
                            f"with rx_frames", ENOBUFS)
        queue.wake_rx()
        queue.leave()
        if count == 0 and (queue.pending_error or queue.counters.bad_descriptors or queue.broken()):
            queue.report()
        return 0

    cdef int begin_send(self, TxBatch batch) except -1:
        self.queue.enter()
        try:
            self.queue.report()
            self.table.is_current()     # a router is anybody's code: only then look at the batch
            batch.claim()
        except BaseException:
            self.queue.leave()
            raise
        self.queue.drain()
        return 0

    cdef bint ask_router(self, TxBatch batch, const uint8_t *host, bint v6) except -1:
        """Have a destination resolved; False where the packet is to be held."""
        batch.slots.busy = True         # a router is anybody's code
        try:
            self.table.insert(key_of(host, v6))
        except UnresolvedError as error:
            self.latest_unresolved = error
            if self.hold and error.reason is Unresolved.NEIGHBOR:
                self.held += 1
                return False
            raise
        finally:
            batch.slots.busy = False
        return True

    cdef object end_send(self, TxBatch batch, Outcome *outcome, uint32_t total):
        """Take what was accepted out of the batch, ring the doorbell, say what stopped the rest."""
        batch.accept(total)
        if outcome.stop == RING_FULL or outcome.stop == NO_FRAMES:
            self.would_block += 1
        self.ring_doorbell()
        self.queue.drain()
        if outcome.stop < REFUSED:
            return total
        length = batch.slots.lengths[batch.head]
        if outcome.stop == TOO_LARGE:
            error, why = EMSGSIZE, f"the way to its destination takes {outcome.limit} bytes at the most"
        else:
            error, why = REFUSALS[outcome.stop]
        raise SendError(f"cannot send packet {total} of {length} bytes: {why}", error, accepted=total)
