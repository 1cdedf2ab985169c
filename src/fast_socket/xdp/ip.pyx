"""Complete IPv4 and IPv6 datagrams through an AF_XDP queue, from the IP header on.

Received packets start at their IP header and end where its length field says; the link's headers are still in front of
them, as headroom, and padding behind is cut off. Fragments, other ethertypes and packets that contradict themselves are
dropped and counted. What is sent gets a link header in front: of the way to its destination, or of an egress that was
resolved before, one for the batch or one for each packet. Nothing else of the packet is touched: checksums are the
caller's.

Tunnels prepend an outer header in a packet's headroom, or trim one off its front, and send the frame on: no copy.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from fast_socket.core.addresses cimport htons
from fast_socket.core.batch cimport RecvBatch, TxBatch
from fast_socket.core.frames cimport Geometry, Slots, chunk_end, put_frame
from fast_socket.core.section cimport hold
from fast_socket.xdp.batch cimport XdpIpRecvBatch, XdpIpTxBatch
from fast_socket.xdp.header_table cimport HeaderTable, find, key_of
from fast_socket.xdp.headers cimport (
    ACCEPTED, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, MOST_HEADER, PROTOCOL_UDP, Header, Parsed, Verdict,
    be16, parse_ip, parse_udp, store16, udp_checksum_status,
)
from fast_socket.xdp.queue cimport HOME, Queue, frame_at
from fast_socket.xdp.ring cimport CONTINUED, Desc, available, desc_at, extent, outside, store_release
from fast_socket.xdp.socket cimport (
    BAD_EGRESS, BAD_PACKET, DONE, OUTSIDE_FRAME, RING_FULL, TOO_LARGE, TOO_MANY_PIECES, UNKNOWN_DESTINATION, KEY,
    Outcome, XdpSocket, add_pieces,
)

import errno
from enum import Enum
from ipaddress import ip_address
from types import GenericAlias

from fast_socket.core.errors import ConfigError, SendError
from fast_socket.xdp.header_table import UnresolvedError
from fast_socket.xdp.options import CheckedOptions

cdef extern from *:
    """
    /* As in os/plan.pyx: one loop, compiled for each set of constant flags, never shared between them. */
    #if defined(__GNUC__)
    #undef CYTHON_INLINE
    #define CYTHON_INLINE __inline__ __attribute__((always_inline))
    #endif
    """

cdef enum:
    LINK_COPY = 32                  # a link header is at most 22 bytes; copied in whole words
    MOST_EGRESSES = 1 << 16

cdef uint32_t NO_LIMIT = 0xFFFFFFFF


class IpFamilies(Enum):
    """What an `XdpIpPacketSocket` takes and sends."""

    V4Only = "v4"
    V6Only = "v6"
    Mixed = "mixed"


@cython.final
@cython.no_gc_clear
cdef class XdpEgress:
    """The way to one destination, resolved: made by `XdpIpPacketSocket.resolve`, and for that socket only. `id` goes
    into the batch's column `egresses`. It follows the router: when its generation changes, it is resolved again."""

    def __cinit__(self, key=None):
        if key is not KEY:
            raise TypeError("egresses are made by XdpIpPacketSocket.resolve(destination)")

    def __repr__(self):
        return f"<XdpEgress to {self.destination}>"


@cython.final
@cython.no_gc_clear
cdef class XdpIpPacketSocket(XdpSocket):
    """IP datagrams over one AF_XDP queue. Made by `open`; the keyword options are those of `XdpOptions`.

    Kernel, privilege and thread rules as `XdpUdpSocket`.
    """

    __class_getitem__ = classmethod(GenericAlias)       # XdpIpPacketSocket[WaitDriver], for annotations

    def __cinit__(self, key=None):
        self.egress_objects = []

    def __dealloc__(self):
        hold(<void *> self.pool)
        free(self.egresses)

    @staticmethod
    def open(device, queue=0, *, families=IpFamilies.Mixed, **options):
        """A socket on queue `queue` of `device`: an interface's name, or a `SimulatedDevice`.

        Without a `program` of the caller's it takes every IP packet of the queue but fragments and neighbour discovery:
        the kernel gets no TCP and no ping there any more. Raises as `XdpUdpSocket.open`.
        """
        cdef XdpIpPacketSocket self = XdpIpPacketSocket.__new__(XdpIpPacketSocket, KEY)
        if not isinstance(families, IpFamilies):
            raise ConfigError(f"families is {families!r}: give one of {', '.join(map(str, IpFamilies))}")
        checked = CheckedOptions.check_ip(device, families, options)
        self.families = families
        self.v4, self.v6 = checked.takes_v4, checked.takes_v6
        self.recv_mask, self.send_mask = checked.metadata.value, 0
        self.plain = not self.recv_mask
        self.take_queue(checked.device, queue, checked)
        try:
            self.table = HeaderTable(
                self.choose_router(), interface=checked.device.ifindex, source_v4=None,
                source_v6=None, source_port=0, tos=0, ttl=64, dont_fragment=True, link_only=True)
        except BaseException:
            self.close()
            raise
        return self

    def stats(self):
        """Counters since the socket was opened: a `RawDeviceStats`."""
        hold(<void *> self.pool)
        return self.queue_stats()

    def recv_batch(self, capacity):
        """Receive storage of `capacity` slots, with the columns that the socket was built to deliver."""
        batch = XdpIpRecvBatch(self.pool, capacity, v6=False, metadata=self.metadata,
                               multi_buffer=self.options.multi_buffer)
        (<XdpIpRecvBatch> batch).interface = self.device.ifindex
        (<XdpIpRecvBatch> batch).queue_id = self.queue_number
        return batch

    def tx_batch(self, capacity):
        """Transmit storage of `capacity` slots."""
        return XdpIpTxBatch(self.pool, capacity, v6=False, multi_buffer=self.options.multi_buffer)

    def resolve(self, destination):
        """The way to an address, ready for `send_via` and for the column `egresses`: an `XdpEgress`.

        Raises `ConfigError` for what is no address, or of another family, and `UnresolvedError` with the reason.
        """
        hold(<void *> self.pool)
        cdef XdpEgress egress = XdpEgress.__new__(XdpEgress, KEY)
        cdef Header header
        cdef Header *grown
        try:
            address = ip_address(str(destination))
        except ValueError as error:
            raise ConfigError(f"resolve({destination!r}): {error}") from None
        if not (self.v4 if address.version == 4 else self.v6):
            raise ConfigError(f"resolve({destination!r}): this socket's families are {self.families.value}")
        self.queue.enter()
        try:
            self.resolve_egresses()
            generation = self.table.generation
            self.table.resolve(address, &header, None)
            if self.table.generation is not generation:         # the routes have changed meanwhile
                self.egress_generation = None
            if self.egress_count == MOST_EGRESSES:
                raise ConfigError(f"this socket has {MOST_EGRESSES} egresses: keep those, and reuse them")
            grown = <Header *> realloc(self.egresses, (self.egress_count + 1) * sizeof(Header))
            if grown == NULL:
                raise MemoryError("cannot keep another egress")
            self.egresses = grown
            self.egresses[self.egress_count] = header
            self.egress_count += 1
            egress.destination, egress.id, egress.table = address, self.egress_count, self.table
            self.egress_objects.append(address)
        finally:
            self.queue.leave()
        return egress

    cdef int resolve_egresses(self) except -1:
        """After a change of routes, all of them anew. What has no way now keeps the one it had, with an MTU of 0: its
        packets are refused."""
        cdef uint32_t i
        cdef Header header
        self.table.is_current()
        if self.egress_generation is self.table.generation:
            return 0
        generation, self.egress_generation = self.table.generation, None       # none, until all are done
        for i, destination in enumerate(list(self.egress_objects)):
            try:
                self.table.resolve(destination, &header, None)
            except UnresolvedError as error:
                self.latest_unresolved = error
                self.egresses[i].mtu = 0
            else:
                self.egresses[i] = header
        self.egress_generation = generation
        return 0

    def recv(self, XdpIpRecvBatch batch not None):
        """Replace the batch's contents with what has arrived; returns the number of packets, 0 when there is nothing.
        Never blocks, allocates nothing. Raises as `XdpUdpSocket.recv`."""
        hold(<void *> self.pool)
        cdef uint32_t count
        self.check_batch(batch, False)
        self.begin_receive(batch)
        count = self.receive_into(batch, 0)
        self.end_receive(batch, count)
        return count

    cdef uint32_t receive_into(self, RecvBatch batch, uint32_t first) noexcept nogil:
        cdef uint32_t end
        if self.pieces:
            return receive_pieces(self, self.queue, batch, first)
        if not self.plain:
            end = receive(self, self.queue, batch, first, True, True, False)
        elif self.v4 and self.v6:
            end = receive(self, self.queue, batch, first, True, True, True)
        elif self.v4:
            end = receive(self, self.queue, batch, first, True, False, True)
        else:
            end = receive(self, self.queue, batch, first, False, True, True)
        self.queue.counters.rx_packets += end - first
        return end

    cdef void write_columns(self, Slots *slots, uint32_t slot, const uint8_t *frame,
                            const Parsed *parsed, bint whole) noexcept nogil:
        """The metadata that the socket was built to deliver. Of checksums it looks at UDP's; that of a packet in pieces
        stays unknown."""
        cdef Parsed udp
        if slots.times != NULL:
            memcpy(&slots.times[slot], frame - 8, 8)        # the program put it in front of the packet
        if slots.vlan != NULL:
            slots.vlan[slot] = parsed.vlan
        if slots.checksum != NULL:
            slots.checksum[slot] = 0
            if (whole and parsed.protocol == PROTOCOL_UDP
                    and parse_udp(frame, parsed.end, parsed.end, &udp, True, True) == ACCEPTED):
                slots.checksum[slot] = udp_checksum_status(frame, &udp)

    def send(self, XdpIpTxBatch batch not None):
        """Send pending packets, each through its egress or to its destination; returns how many the device took over.

        Prefix semantics, held packets, errors and where frames go: as `XdpUdpSocket.send`. A packet that is no datagram
        of this socket's families, whose length field does not say its length, or that is larger than the route's MTU is
        refused with `SendError`.
        """
        hold(<void *> self.pool)
        return self.send_batch(batch, None, NO_LIMIT)

    def send_via(self, XdpEgress egress not None, XdpIpTxBatch batch not None):
        """As `send`, every packet through one egress, wherever its destination is."""
        hold(<void *> self.pool)
        if egress.table is not self.table:
            raise ConfigError("this egress was resolved by another socket: resolve it with this one")
        return self.send_batch(batch, egress, NO_LIMIT)

    cdef object send_some(self, TxBatch batch, object way, uint32_t limit):
        return self.send_batch(<XdpIpTxBatch?> batch, way, limit)

    cdef object send_batch(self, XdpIpTxBatch batch, XdpEgress egress, uint32_t limit):
        cdef Outcome outcome
        cdef uint32_t total = 0, via = 0 if egress is None else egress.id
        cdef const uint8_t *ip
        cdef uint8_t host[16]
        cdef bint v6
        self.check_batch(batch, True)
        self.begin_send(batch)
        memset(&outcome, 0, sizeof(outcome))
        try:
            batch.slots.busy = True
            try:
                self.resolve_egresses()
            finally:
                batch.slots.busy = False
            try:
                while True:
                    if via:
                        build(self, self.queue, batch, batch.head + total, min(limit, batch.tail), via, &outcome, True)
                    else:
                        build(self, self.queue, batch, batch.head + total, min(limit, batch.tail), 0, &outcome, False)
                    total += outcome.accepted
                    self.queue.publish_tx()
                    if outcome.stop != UNKNOWN_DESTINATION:
                        break
                    ip = self.pool.base + batch.slots.offsets[batch.head + total]
                    v6 = ip[0] >> 4 == 6
                    memcpy(host, ip + (24 if v6 else 16), 16 if v6 else 4)
                    if not self.ask_router(batch, host, v6):
                        break
            except UnresolvedError as error:
                self.latest_unresolved = error
                batch.accept(total)
                self.ring_doorbell()
                raise SendError(f"cannot send packet {total} to {error.destination}: {error.reason.text}",
                                errno.EHOSTUNREACH, accepted=total) from error
            except BaseException:
                batch.accept(total)         # what the device has is gone from the batch, whatever the router did
                self.ring_doorbell()
                raise
            return self.end_send(batch, &outcome, total)
        finally:
            self.queue.leave()


cdef inline uint32_t receive(XdpIpPacketSocket self, Queue queue, RecvBatch batch, uint32_t out, const bint v4,
                             const bint v6, const bint plain) noexcept nogil:
    cdef Slots *slots = &batch.slots
    cdef uint32_t *places = queue.umem.places
    cdef uint8_t *base = queue.pool.base
    cdef Desc *desc
    cdef Parsed parsed
    cdef Verdict verdict
    cdef uint64_t address, total_bytes = 0
    cdef uint32_t capacity = batch.capacity, filled = queue.filled, chunk = queue.umem.chunk_size
    cdef uint32_t least = queue.pool.geometry.rx_reserved
    cdef uint32_t i, count, frame, length
    while out < capacity:
        count = available(&queue.rx, capacity - out)
        if count == 0:
            break
        for i in range(count):
            desc = desc_at(&queue.rx, queue.rx.ours + i)
            address, length = desc.address, desc.length
            frame = frame_at(queue.umem, address)
            if frame == queue.umem.frames or places[frame] != filled:
                queue.counters.bad_descriptors += 1
                continue
            places[frame] = HOME
            if outside(address, extent(desc), chunk, least):
                queue.counters.bad_descriptors += 1
                put_frame(queue.pool, frame)
                continue
            verdict = parse_ip(base + address, length, length, &parsed, v4 and (plain or self.v4),
                               v6 and (plain or self.v6))
            if verdict != ACCEPTED:
                self.verdicts[<int> verdict] += 1
                put_frame(queue.pool, frame)
                continue
            slots.frames[out] = frame
            slots.offsets[out] = address + parsed.ip
            slots.lengths[out] = parsed.end - parsed.ip
            total_bytes += parsed.end - parsed.ip
            if not plain:
                self.write_columns(slots, out, base + address, &parsed, True)
            out += 1
        queue.rx.ours += count
        store_release(queue.rx.consumer, queue.rx.ours)
    queue.counters.rx_bytes += total_bytes
    return out


cdef uint32_t receive_pieces(XdpIpPacketSocket self, Queue queue, RecvBatch batch, uint32_t first) noexcept nogil:
    """As `receive`, for packets that may span frames: each piece has a slot, all but the last are `continued`."""
    cdef Slots *slots = &batch.slots
    cdef Parsed parsed
    cdef Verdict verdict
    cdef uint32_t out = first, pieces, whole, i
    while True:
        pieces = self.take_pieces(queue, slots, out, batch.capacity, &whole)
        if pieces == 0:
            break
        verdict = parse_ip(queue.pool.base + slots.offsets[out], slots.lengths[out], whole, &parsed, self.v4, self.v6)
        if verdict != ACCEPTED:
            self.verdicts[<int> verdict] += 1
            self.put_pieces(queue, slots, out, pieces)
            continue
        for i in range(out, out + pieces):
            self.write_columns(slots, i, queue.pool.base + slots.offsets[out], &parsed,
                               parsed.end <= slots.lengths[out])
        pieces = self.trim_pieces(queue, slots, out, pieces, parsed.ip, parsed.end)
        queue.counters.rx_packets += 1
        queue.counters.rx_bytes += parsed.end - parsed.ip
        out += pieces
    return out


cdef inline void build(XdpIpPacketSocket self, Queue queue, XdpIpTxBatch batch, uint32_t first, uint32_t tail,
                       uint32_t via, Outcome *outcome, const bint to_egress) noexcept nogil:
    """Hand pending slots from `first` to before `tail` to the TX ring. Lengths are hostile: read once, checked, and
    only the copy used."""
    cdef Slots *slots = &batch.slots
    cdef Geometry geometry = queue.pool.geometry
    cdef const Header *header = NULL
    cdef uint8_t *ip
    cdef Desc *desc
    cdef uint64_t offset, bytes_sent = 0
    cdef uint32_t slot = first, frame, length, total, whole, number, pieces, sent = 0
    cdef uint32_t most = queue.sendable(queue.tx.size)
    cdef bint v6
    outcome.stop = DONE
    while slot < tail:
        frame = slots.frames[slot]
        length = whole = slots.lengths[slot]
        offset = slots.offsets[slot]
        pieces = 1
        if offset + length > chunk_end(&geometry, frame):
            outcome.stop = OUTSIDE_FRAME
            break
        if slots.continued != NULL and slots.continued[slot]:
            pieces = add_pieces(slots, &geometry, slot, tail, &whole)
            if pieces == 0:
                outcome.stop = OUTSIDE_FRAME
                break
        if sent + pieces > most:
            outcome.stop = TOO_MANY_PIECES if pieces > queue.most_pieces() else RING_FULL
            break
        ip = queue.pool.base + offset
        v6 = length > 0 and ip[0] >> 4 == 6
        if length < (IPV6 if v6 else IPV4) or not (self.v6 if v6 else self.v4 and ip[0] >> 4 == 4):
            outcome.stop = BAD_PACKET
            break
        total = IPV6 + be16(ip + 4) if v6 else be16(ip + 2)
        if total != whole or (not v6 and (ip[0] & 15) < 5):
            outcome.stop = BAD_PACKET
            break
        number = via if to_egress else batch.egress[slot]
        if number > self.egress_count:
            outcome.stop = BAD_EGRESS
            break
        if number:
            header = &self.egresses[number - 1]
        else:
            header = find(self.table, key_of(ip + (24 if v6 else 16), v6))
            if header == NULL:
                outcome.stop = UNKNOWN_DESTINATION
                break
        if whole > header.mtu:
            outcome.stop, outcome.limit = TOO_LARGE, header.mtu
            break
        memcpy(ip - LINK_COPY, header.bytes + MOST_HEADER - LINK_COPY, LINK_COPY)
        store16(ip - 2, htons(ETHERTYPE_IPV6 if v6 else ETHERTYPE_IPV4))
        desc = desc_at(&queue.tx, queue.tx.ours + sent)
        desc.address, desc.length = offset - header.size, header.size + length
        desc.options = CONTINUED if pieces > 1 else 0
        self.give(queue, slots, slot, pieces, sent)
        sent += pieces
        slot += pieces
        bytes_sent += whole
        queue.counters.tx_packets += 1
    queue.tx.ours += sent
    queue.outstanding += sent
    queue.counters.tx_bytes += bytes_sent
    outcome.accepted = slot - first
