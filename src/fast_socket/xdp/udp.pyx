"""UDP through an AF_XDP queue: payloads in, payloads out, the headers read and written here.

Receiving. One pass over each frame: Ethernet, tags, IP, UDP, the filter on local address and ports, and the columns.
What is not for this socket goes home and is counted by reason: the XDP program redirects what it was asked for, but a
program may serve several sockets, and bytes from the wire prove nothing. Nothing is verified that was not asked for: a
packet redirected from a veth has a checksum that nobody has computed yet. `Metadata.CHECKSUM` says which is which.

Sending. A header is prepared once per destination, or once per endpoint, and copied in front of the payload: length,
checksums and port are what is left to do for a packet. Large packets with a segment size are cut into datagrams here.
No fragments: a datagram larger than the route's MTU is refused.

The loops exist once and are compiled for each choice that is made at construction: IPv4 only or both families, with or
without metadata, with or without UDP checksums over IPv4. They run under the GIL, because they move frames between the
pool and the rings; the system call that has the kernel look does not.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fast_socket.core.addresses cimport (
    AF_INET, AF_INET6, HOST_V4_OFFSET, HOST_V6_OFFSET, PORT_OFFSET, SCOPE_OFFSET, STRIDE_V4, STRIDE_V6, htons,
    read_record, write_host,
)
from fast_socket.core.batch cimport RecvBatch, TxBatch
from fast_socket.core.frames cimport Geometry, NO_FRAME, Slots, chunk_end, packet_start, put_frame
from fast_socket.core.section cimport hold
from fast_socket.xdp.batch cimport XdpUdpRecvBatch, XdpUdpTxBatch
from fast_socket.xdp.header_table cimport HeaderTable, Key, find, key_of
from fast_socket.xdp.headers cimport (
    ACCEPTED, ETHERNET, IPV4, IPV6, MOST_HEADER, OTHER_ADDRESS, OTHER_PORT, PROTOCOL_UDP, UDP, Header, Parsed, Verdict,
    add_words, finish_sums, fold, load16, parse_udp, plain_udp_v4, pseudo_sum, store16, udp_checksum_status, write_v4,
    write_v6,
)
from fast_socket.xdp.queue cimport HOME, Queue
from fast_socket.xdp.ring cimport (
    CONTINUED, Desc, Ring, available, desc_at, extent, outside, prefetch, store_release,
)
from fast_socket.xdp.socket cimport (
    BAD_FAMILY, BAD_SOURCE, DONE, KEY, NO_DESTINATION, NO_FRAMES, NOT_CUT, OUTSIDE_FRAME, RING_FULL, TOO_LARGE,
    TOO_MANY_PIECES, UNKNOWN_DESTINATION, WRONG_LENGTH, Outcome, XdpSocket, add_pieces,
)

from types import GenericAlias

from fast_socket.core.capabilities import Support, UdpCapabilities, UdpStats
from fast_socket.core.endpoint import UdpEndpointSpec
from fast_socket.core.errors import ConfigError, Error, SendError
from fast_socket.core.metadata import Metadata
from fast_socket.core.routes import Unresolved
from fast_socket.xdp.header_table import UnresolvedError
from fast_socket.xdp.options import CheckedOptions
from fast_socket.xdp.socket import REFUSALS

import errno
from ipaddress import ip_address

cdef extern from *:
    """
    /* As in os/plan.pyx: one loop, compiled for each set of constant flags, never shared between them. */
    #if defined(__GNUC__)
    #define FAST_SOCKET_ALWAYS_INLINE __attribute__((always_inline))
    #undef CYTHON_INLINE
    #define CYTHON_INLINE __inline__ __attribute__((always_inline))
    #endif
    """

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t value)

cdef enum:
    ECN_DEFAULT = 255
    PREFETCH_AHEAD = 4
    FALLBACK_BATCH = 64

cdef uint32_t NO_LIMIT = 0xFFFFFFFF

cdef enum:
    # What finding a way may come to, beside a number of slots.
    HELD = 0xFFFFFFF0
    KNOWN = 0xFFFFFFF1


class FallbackRefused(Exception):
    """What the fallback refused, and how many slots it took before. Never leaves a send."""

    def __init__(self, taken, error):
        super().__init__(taken, error)
        self.taken, self.error = taken, error


RECV_METADATA = (Metadata.ECN | Metadata.LOCAL | Metadata.TTL | Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP
                 | Metadata.VLAN | Metadata.CHECKSUM)
SEND_METADATA = Metadata.ECN | Metadata.LOCAL | Metadata.TTL


@cython.final
@cython.no_gc_clear
cdef class XdpUdpEndpoint:
    """A peer with its whole header ready: made by `XdpUdpSocket.prepare_udp_endpoint`, and for that socket only. It is
    resolved when it is first sent to, and again when the router's generation changes."""

    def __cinit__(self, key=None):
        if key is not KEY:
            raise TypeError("endpoints are made by XdpUdpSocket.prepare_udp_endpoint(UdpEndpointSpec(remote=...))")

    def __repr__(self):
        return f"<XdpUdpEndpoint {self.spec}>"


@cython.final
@cython.no_gc_clear
cdef class XdpUdpSocket(XdpSocket):
    """UDP over one AF_XDP queue. Made by `open`; the keyword options are those of `XdpUdpOptions`.

    Linux 5.18 or later, libbpf and CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF (or a program that somebody else attached).
    On a `SimulatedDevice` it needs nothing. Thread rules: any thread may call anything at any time. One batch serves
    one call at a time. `close` during a call of another thread takes effect at once for new calls, and for the mappings
    when that call returns.
    """

    __class_getitem__ = classmethod(GenericAlias)       # XdpUdpSocket[WaitDriver], for annotations

    @staticmethod
    def open(device, queue=0, *, local, **options):
        """A socket on queue `queue` of `device`: an interface's name, or a `SimulatedDevice`.

        `local` is ("host", port), "host:port" or "[v6]:port": datagrams to that address and port are received, and what
        is sent leaves from it. "0.0.0.0" and "[::]" take any address of the family, "[::]" IPv4 too unless
        ``v6only=True``; what is sent then leaves from the address that the route prefers. With `ports` the socket
        receives on all of those, and `local`'s port is the one that it sends from.

        Raises `ConfigError`, `CapabilityError` (what is missing, and how to get it), `DeviceError`, or `Error` with the
        kernel's errno (EBUSY where the queue is taken).
        """
        cdef XdpUdpSocket self = XdpUdpSocket.__new__(XdpUdpSocket, KEY)
        checked = CheckedOptions.check_udp(device, local, options)
        self.adopt(checked)
        self.take_queue(checked.device, queue, checked)
        self.scope = checked.device.ifindex
        try:
            self.table = HeaderTable(
                self.choose_router(), interface=checked.device.ifindex,
                source_v4=checked.source_v4, source_v6=checked.source_v6, source_port=checked.port, tos=checked.tos,
                ttl=checked.ttl, dont_fragment=checked.dont_fragment, link_only=False)
        except BaseException:
            self.close()
            raise
        return self

    cdef int adopt(self, object options) except -1:
        """What is fixed at construction picks the loops."""
        cdef uint16_t port
        self.v4, self.v6, self.records_v6 = options.takes_v4, options.takes_v6, options.v6
        self.recv_mask = (options.metadata & RECV_METADATA).value
        self.send_mask = (options.metadata & SEND_METADATA).value
        self.checksums, self.identify = options.udp_checksum, not options.dont_fragment
        self.timestamps = bool(options.metadata & (Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP))
        self.plain = not (self.recv_mask or options.several_ports or options.multi_buffer)
        self.any_host = options.any_host
        memset(self.local_host, 0, 16)
        if not self.any_host:
            write_host(self.local_host, options.source_v6 is not None, options.host, "local")
        memcpy(&self.local_v4, self.local_host, 4)
        memcpy(self.local_v6, self.local_host, 16)
        memset(self.ports, 0, sizeof(self.ports))
        for number in options.ports:
            port = htons(number)
            self.ports[port >> 3] |= 1 << (port & 7)
            self.only_port = port           # read where there is but one
        return 0

    @property
    def local_address(self):
        """(host, port) that the socket receives at."""
        hold(<void *> self.pool)
        self.queue.enter()
        self.queue.leave()
        return self.options.host, self.options.port

    @property
    def ports(self):
        """The ports that it receives at."""
        return self.options.ports

    def capabilities(self):
        """What this socket can do, as built and as found: a `UdpCapabilities`."""
        geometry = self.pool.geometry
        return UdpCapabilities(
            batch_calls=True, gso=Support.NO, gro=Support.NO, max_gso_segments=1,
            max_payload=min(geometry.tx_chunk - geometry.tx_payload,
                            self.device.mtu - UDP - (IPV6 if self.v6 and not self.v4 else IPV4)),
            recv_metadata=self.metadata & RECV_METADATA, send_metadata=self.metadata & SEND_METADATA,
            zero_copy=Support.YES if self.queue.zero_copy else Support.NO, explicit_completions=True,
        )

    def stats(self):
        """Counters since the socket was opened: a `UdpStats`. `kernel_drops` are packets that were redirected here and
        found no frame (XDP_STATISTICS counts those twice), no frame large enough, or no room in the RX ring."""
        hold(<void *> self.pool)
        cdef Queue queue = self.queue
        device = queue.device_statistics()
        return UdpStats(
            received=queue.counters.rx_packets, received_bytes=queue.counters.rx_bytes, sent=self.datagrams_sent,
            sent_bytes=self.sent_bytes, kernel_drops=device[0] + device[3],
            would_block=self.would_block, frame_shortages=self.frame_shortages, held=self.held,
            handed_over=self.handed_over,
        )

    def recv_batch(self, capacity):
        """Receive storage of `capacity` slots, with the columns that the socket was built to deliver."""
        return XdpUdpRecvBatch(self.pool, capacity, v6=self.records_v6, metadata=self.metadata & RECV_METADATA,
                               local_ports=self.options.several_ports, multi_buffer=self.options.multi_buffer)

    def tx_batch(self, capacity):
        """Transmit storage of `capacity` slots."""
        return XdpUdpTxBatch(self.pool, capacity, v6=self.records_v6, metadata=self.metadata & SEND_METADATA,
                             segment_sizes=True, local_ports=self.options.several_ports,
                             multi_buffer=self.options.multi_buffer)

    def prepare_udp_endpoint(self, spec):
        """Take the address work out of the loop: a `XdpUdpEndpoint` for `send_to`. Raises `ConfigError`."""
        hold(<void *> self.pool)
        cdef XdpUdpEndpoint endpoint = XdpUdpEndpoint.__new__(XdpUdpEndpoint, KEY)
        self.queue.enter()
        self.queue.leave()
        if not isinstance(spec, UdpEndpointSpec):
            raise ConfigError(f"prepare_udp_endpoint({spec!r}): give a UdpEndpointSpec")
        destination = ip_address(spec.remote[0].partition("%")[0])
        if not (self.v4 if destination.version == 4 else self.v6):
            raise ConfigError(f"UdpEndpointSpec.remote is {spec.remote[0]}, but the socket has no "
                              f"IPv{destination.version}: open it with a local address of that family, or [::]")
        if spec.source is not None and ip_address(spec.source).version != destination.version:
            raise ConfigError(f"UdpEndpointSpec.source is {spec.source} and remote {spec.remote[0]}: give two of one "
                              f"family")
        endpoint.spec, endpoint.table = spec, self.table
        endpoint.segment_size = spec.gso_size
        endpoint.payload_len = -1 if spec.payload_len is None else spec.payload_len
        return endpoint

    cdef int resolve_endpoint(self, XdpUdpEndpoint endpoint) except -1:
        """Write an endpoint's header anew."""
        cdef Header header
        cdef uint8_t *ip
        spec, generation = endpoint.spec, self.table.generation
        destination = ip_address(spec.remote[0].partition("%")[0])
        source = None if spec.source is None else ip_address(spec.source).packed
        self.table.resolve(destination, &header, source)
        ip = header.bytes + MOST_HEADER - UDP - (IPV6 if header.v6 else IPV4)
        if spec.ecn is not None:
            if header.v6:
                ip[1] = (ip[1] & 0xCF) | <uint8_t> (int(spec.ecn) << 4)
            else:
                ip[1] = (ip[1] & 0xFC) | <uint8_t> int(spec.ecn)
        if spec.ttl is not None:
            ip[7 if header.v6 else 8] = spec.ttl
        if spec.source_port is not None:
            store16(header.bytes + MOST_HEADER - UDP, htons(spec.source_port))
        store16(header.bytes + MOST_HEADER - UDP + 2, htons(spec.remote[1]))
        finish_sums(&header)
        endpoint.header, endpoint.generation = header, generation       # at once: others may be sending to it
        return 0

    def recv(self, XdpUdpRecvBatch batch not None):
        """Replace the batch's contents with what has arrived; returns the number of packets, 0 when there is nothing.

        Never blocks, allocates nothing. Raises `Error` when the socket is closed, `BufferError` while packets of the
        batch are viewed, `ConfigError` for a batch of another socket, `DeviceError` when the device handed back what it
        must not, or is gone.
        """
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
        if self.plain and not self.records_v6:
            end = receive(self, self.queue, batch, first, True, False, True)
        elif self.plain:
            end = receive(self, self.queue, batch, first, True, True, True)
        elif not self.records_v6:
            end = receive(self, self.queue, batch, first, True, False, False)
        else:
            end = receive(self, self.queue, batch, first, True, True, False)
        self.queue.counters.rx_packets += end - first
        return end

    cdef void write_columns(self, Slots *slots, uint32_t slot, const uint8_t *frame, const Parsed *parsed,
                            bint whole) noexcept nogil:
        """The metadata that the socket was built to deliver. The checksum of a packet in pieces stays unknown."""
        cdef const uint8_t *ip = frame + parsed.ip
        cdef uint8_t *host
        if slots.local_hosts != NULL:
            host = slots.local_hosts + <uint64_t> slot * slots.host_size
            if not slots.v6:
                memcpy(host, ip + 16, 4)
            elif parsed.v6:
                memcpy(host, ip + 24, 16)
            else:
                memset(host, 0, 10)
                memset(host + 10, 0xFF, 2)
                memcpy(host + 12, ip + 16, 4)
            slots.interfaces[slot] = self.scope
        if slots.ecn != NULL:
            slots.ecn[slot] = (ip[1] >> 4) & 3 if parsed.v6 else ip[1] & 3
        if slots.ttl != NULL:
            slots.ttl[slot] = ip[7] if parsed.v6 else ip[8]
        if slots.times != NULL:
            memcpy(&slots.times[slot], frame - 8, 8)        # the program put it in front of the packet
        if slots.local_ports != NULL:
            memcpy(&slots.local_ports[slot], frame + parsed.transport + 2, 2)
        if slots.vlan != NULL:
            slots.vlan[slot] = parsed.vlan
        if slots.checksum != NULL:
            slots.checksum[slot] = udp_checksum_status(frame, parsed) if whole else 0

    def send(self, XdpUdpTxBatch batch not None):
        """Send pending packets to their destinations, from the first on; returns how many the device took over.

        Those are gone from the batch; their frames come home when the device has sent them (each send looks, and
        `drain_tx_completions`). Fewer than were pending: the rings are full, or a neighbour is not resolved yet
        (``unresolved="hold"``, see `unresolved`); the rest stays, call again. A packet that is refused raises
        `SendError` with `accepted`, and is then the first pending one; with a `fallback` that socket has what no way
        leads to from here. Raises `Error` when closed, `BufferError` while
        packets are viewed, `ConfigError` for a batch of another socket, `DeviceError`.
        """
        hold(<void *> self.pool)
        return self.send_batch(batch, None, NO_LIMIT)

    def send_to(self, XdpUdpEndpoint endpoint not None, XdpUdpTxBatch batch not None):
        """As `send`, every packet to one prepared endpoint: its address, metadata and segment size hold, those in the
        batch do not count."""
        hold(<void *> self.pool)
        if endpoint.table is not self.table:
            raise ConfigError("this endpoint was prepared by another socket: prepare one with this socket")
        return self.send_batch(batch, endpoint, NO_LIMIT)

    cdef object send_some(self, TxBatch batch, object way, uint32_t limit):
        return self.send_batch(<XdpUdpTxBatch?> batch, way, limit)

    cdef object send_batch(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t limit):
        cdef Outcome outcome
        cdef uint32_t total = 0, slot, given = KNOWN
        self.check_batch(batch, True)
        self.begin_send(batch)
        memset(&outcome, 0, sizeof(outcome))
        try:
            try:
                if endpoint is not None and endpoint.generation is not self.table.generation:
                    given = self.find_way(batch, endpoint, batch.head, min(limit, batch.tail), 0)
                    total = 0 if given >= HELD else given
                    outcome.stop = RING_FULL if given == 0 and batch.head < batch.tail else DONE
                while endpoint is None or given == KNOWN:
                    self.transmit(batch, endpoint, batch.head + total, min(limit, batch.tail), &outcome)
                    total += outcome.accepted
                    self.queue.publish_tx()
                    if outcome.stop != UNKNOWN_DESTINATION:
                        break
                    slot = batch.head + total
                    if self.foreign(&batch.slots, slot):
                        outcome.stop, outcome.accepted = BAD_FAMILY, 0
                        break
                    given = self.find_way(batch, None, slot, min(limit, batch.tail), total)
                    if given == HELD:
                        break
                    total += 0 if given == KNOWN else given
                    if given == 0:
                        outcome.stop = RING_FULL        # the fallback is: counted alike
                        break
            except UnresolvedError as error:
                self.settle(batch, total)
                raise SendError(f"cannot send packet {total} to {error.destination}: {error.reason.text}",
                                errno.EHOSTUNREACH, accepted=total) from error
            except FallbackRefused as refusal:
                total += refusal.taken
                self.settle(batch, total)
                raise SendError(f"the fallback cannot send packet {total}: {refusal.error}",
                                refusal.error.errno or errno.EINVAL, accepted=total) from refusal.error
            except BaseException:
                self.settle(batch, total)       # whatever the router did
                raise
            return self.end_send(batch, &outcome, total)
        finally:
            self.queue.leave()

    cdef int settle(self, XdpUdpTxBatch batch, uint32_t total) except -1:
        """What the device has is gone from the batch, which is anybody's again."""
        batch.slots.busy = False
        batch.accept(total)
        self.ring_doorbell()
        return 0

    cdef uint32_t find_way(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t slot, uint32_t limit,
                           uint32_t before) except? 0xFFFFFFFF:
        """Have a destination resolved: KNOWN; HELD where its neighbour is awaited; or how many slots the fallback took.
        A router is anybody's code: the batch is busy meanwhile, and where this raises stays so until `settle`."""
        cdef const uint8_t *record = batch.slots.addresses + <uint64_t> slot * batch.slots.address_stride
        cdef uint32_t given = KNOWN
        batch.slots.busy = True
        try:
            if endpoint is not None:
                self.resolve_endpoint(endpoint)
            else:
                self.table.insert(key_of(record + (HOST_V6_OFFSET if self.records_v6 else HOST_V4_OFFSET),
                                         self.records_v6))
        except UnresolvedError as error:
            self.latest_unresolved = error
            if self.hold and error.reason is Unresolved.NEIGHBOR:
                self.held += 1
                given = HELD
            elif self.options.fallback is None or error.reason is Unresolved.NEIGHBOR:
                raise
            else:
                given = self.hand_over(batch, endpoint, slot, limit, before)
        batch.slots.busy = False
        return given

    cdef uint32_t hand_over(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t first, uint32_t limit,
                            uint32_t before) except? 0xFFFFFFFF:
        """Give the fallback socket the packets from `first` on that go to one destination; returns how many slots it
        took, 0 where it is full. The batch is busy. Raises `FallbackRefused`, and `SendError` for a bad slot."""
        cdef Slots *slots = &batch.slots
        cdef uint32_t slot = first, taken = 0, pieces, size
        cdef uint32_t stride = slots.address_stride
        cdef const uint8_t *record = slots.addresses + <uint64_t> first * stride
        if first >= limit:
            return 0
        fallback = self.options.fallback
        to = endpoint.spec.remote if endpoint is not None else read_record(record)
        datagrams, ends, refused = [], [], None         # behind each the slot, and how far into it
        while slot < limit and len(ends) < FALLBACK_BATCH:
            if endpoint is None and memcmp(record, slots.addresses + <uint64_t> slot * stride, stride):
                break
            data = self.whole_packet(slots, slot, limit, &pieces)
            if data is None or to[1] == 0:
                if ends:
                    break
                number, why = REFUSALS[OUTSIDE_FRAME if to[1] else NO_DESTINATION]
                raise SendError(f"cannot send packet {before}: {why}", number, accepted=before)
            size = (endpoint.segment_size if endpoint is not None else slots.segment_sizes[slot]) or len(data) or 1
            for at in range(0, len(data) or 1, size):
                datagrams.append(data[at:at + size])
                ends.append((slot + pieces, 0) if at + size >= len(data) else (slot, at + size))
            slot += pieces
        out = fallback.tx_batch(len(datagrams))
        for data in datagrams:
            try:
                out.append(data, to)
            except Error as error:              # no more frames: the rest with the next call; or it never fits there
                if error.errno != errno.ENOBUFS and not len(out):
                    refused = error
                break
        try:
            count = fallback.send(out) if refused is None else 0
        except SendError as error:
            count, refused = error.accepted, error
        out.discard()
        if type(count) is not int or not 0 <= count <= len(ends):
            raise ConfigError(f"the fallback's send() returned {count!r}: it must return how many packets it took")
        if count:
            slot, at = ends[count - 1]
            taken = slot - first
            if at:                              # of a packet that was cut, some are left
                slots.offsets[slot] += <uint64_t> at
                slots.lengths[slot] -= <uint32_t> at
            self.handed_over += count
        if refused is not None:
            raise FallbackRefused(taken, refused)
        return taken

    cdef object whole_packet(self, const Slots *slots, uint32_t slot, uint32_t limit, uint32_t *pieces):
        """A packet's bytes, and how many slots it has; None where it leaves its frames. Read once, checked, copied."""
        cdef uint32_t i, length, whole
        pieces[0] = add_pieces(slots, &self.pool.geometry, slot, limit, &whole) if self.in_pieces(slots, slot) else 1
        parts = []
        for i in range(slot, slot + pieces[0]):
            length = slots.lengths[i]
            if slots.offsets[i] + length > chunk_end(&self.pool.geometry, slots.frames[i]):
                return None
            parts.append((<const char *> self.pool.base + slots.offsets[i])[:length])
        return b"".join(parts) if parts else None

    cdef bint foreign(self, const Slots *slots, uint32_t slot) noexcept nogil:
        """Whether a slot's destination is of a family that the socket has not."""
        cdef const uint8_t *host = slots.addresses + <uint64_t> slot * slots.address_stride + HOST_V6_OFFSET
        cdef uint64_t high
        cdef uint32_t mark
        if not slots.v6:
            return not self.v4
        memcpy(&high, host, 8)
        memcpy(&mark, host + 8, 4)
        return not (self.v4 if high == 0 and mark == htonl(0xFFFF) else self.v6)

    cdef void transmit(self, XdpUdpTxBatch batch, XdpUdpEndpoint endpoint, uint32_t first, uint32_t limit,
                       Outcome *outcome) noexcept nogil:
        """Hand pending slots from `first` to before `limit` to the TX ring, by the loop for this socket."""
        cdef bint to_all = endpoint is not None
        cdef const Header *header = &endpoint.header if to_all else NULL
        cdef uint32_t size = endpoint.segment_size if to_all else 0
        cdef int64_t length = endpoint.payload_len if to_all else -1
        cdef bint plain = to_all or not (self.send_mask or batch.slots.local_ports != NULL)
        if self.identify or self.pieces:
            plain = False
        if to_all and plain:
            if self.records_v6:
                build(self, self.queue, batch, header, size, length, first, limit, outcome,
                      True, True, True, self.checksums)
            elif self.checksums:
                build(self, self.queue, batch, header, size, length, first, limit, outcome,
                      True, False, True, True)
            else:
                build(self, self.queue, batch, header, size, length, first, limit, outcome,
                      True, False, True, False)
        elif to_all:
            build(self, self.queue, batch, header, size, length, first, limit, outcome,
                  True, True, False, self.checksums)
        elif not plain:
            build(self, self.queue, batch, header, size, length, first, limit, outcome,
                  False, True, False, self.checksums)
        elif self.records_v6:
            build(self, self.queue, batch, header, size, length, first, limit, outcome,
                  False, True, True, self.checksums)
        elif self.checksums:
            build(self, self.queue, batch, header, size, length, first, limit, outcome,
                  False, False, True, True)
        else:
            build(self, self.queue, batch, header, size, length, first, limit, outcome,
                  False, False, True, False)

    cdef uint32_t segment(self, Queue queue, XdpUdpTxBatch batch, const Header *header, uint32_t slot, uint32_t size,
                          uint16_t port, uint32_t at, uint32_t most, Outcome *outcome) noexcept nogil:
        """Cut one large packet into datagrams of `size` bytes; returns how many descriptors it took. All but the last
        are copied into frames of their own; the last leaves from where it lies. Where rings or frames run out, the slot
        keeps the rest."""
        cdef Slots *slots = &batch.slots
        cdef Geometry geometry = queue.pool.geometry
        cdef uint8_t *base = queue.pool.base
        cdef uint8_t *payload
        cdef Desc *desc
        cdef uint64_t start
        cdef uint32_t frame, left = slots.lengths[slot], length, used = 0
        outcome.stop = DONE
        if slots.offsets[slot] + left > chunk_end(&geometry, slots.frames[slot]):       # read again: check again
            outcome.stop = OUTSIDE_FRAME
            return 0
        if packet_start(&geometry, geometry.rx_frames) + size > chunk_end(&geometry, geometry.rx_frames):
            outcome.stop = OUTSIDE_FRAME
            return 0
        while left:
            if used == most:
                outcome.stop = RING_FULL
                break
            length = min(size, left)
            if left > size:
                if queue.pool.tx_free == 0:
                    outcome.stop = NO_FRAMES
                    break
                queue.pool.tx_free -= 1
                frame = queue.pool.tx_stack[queue.pool.tx_free]
                start = packet_start(&geometry, frame)
                payload = base + start
                memcpy(payload, base + slots.offsets[slot], length)
            else:
                frame = slots.frames[slot]
                slots.frames[slot] = NO_FRAME
                start = slots.offsets[slot]
                payload = base + start
            if header.v6:
                write_v6(payload, length, header, port)
            else:
                write_v4(payload, length, header, port, self.checksums)
            if self.identify or (port and (self.send_mask or slots.local_ports != NULL)):
                self.rewrite(slots if port else NULL, slot, payload, header)
                self.sum_again(payload, length, header, add_words(payload, length, 0))
            desc = desc_at(&queue.tx, queue.tx.ours + at + used)
            desc.address, desc.length, desc.options = start - header.size, header.size + length, 0
            queue.umem.places[frame] = queue.sent
            left -= length
            slots.offsets[slot] += length
            used += 1
            self.datagrams_sent += 1
            self.sent_bytes += length
            queue.counters.tx_bytes += length
        slots.lengths[slot] = left
        return used

    cdef uint32_t send_pieces(self, Queue queue, XdpUdpTxBatch batch, const Header *header, uint32_t slot,
                              uint16_t port, uint32_t at, uint32_t most, Outcome *outcome) noexcept nogil:
        """One datagram from several slots, its headers in front of the first; returns how many slots."""
        cdef Slots *slots = &batch.slots
        cdef Geometry geometry = queue.pool.geometry
        cdef uint8_t *payload = queue.pool.base + slots.offsets[slot]
        cdef Desc *desc
        cdef uint64_t total = 0
        cdef uint32_t whole, i, length, done = 0, first = slots.lengths[slot]
        cdef uint32_t pieces = add_pieces(slots, &geometry, slot, batch.tail, &whole)
        cdef uint16_t part
        outcome.stop = DONE
        if pieces == 0 or slots.offsets[slot] + first > chunk_end(&geometry, slots.frames[slot]):
            outcome.stop = OUTSIDE_FRAME
            return 0
        if pieces > most:
            outcome.stop = TOO_MANY_PIECES if pieces > queue.most_pieces() else RING_FULL
            return 0
        if (IPV6 if header.v6 else IPV4) + UDP + whole > header.mtu:
            outcome.stop, outcome.limit = TOO_LARGE, header.mtu - (IPV6 if header.v6 else IPV4) - UDP
            return 0
        for i in range(slot, slot + pieces):
            length = slots.lengths[i]
            if slots.offsets[i] + length > chunk_end(&geometry, slots.frames[i]):      # read again: check again
                outcome.stop = OUTSIDE_FRAME
                return 0
            part = fold(add_words(queue.pool.base + slots.offsets[i], length, 0))
            total += <uint16_t> (part << 8 | part >> 8) if done & 1 else part   # RFC 1071: a byte off is a swap
            done += length
        if header.v6:
            write_v6(payload, 0, header, port)
            store16(payload - UDP - IPV6 + 4, htons(<uint16_t> (UDP + whole)))
        else:
            write_v4(payload, 0, header, port, False)
            store16(payload - UDP - IPV4 + 2, htons(<uint16_t> (IPV4 + UDP + whole)))
        store16(payload - UDP + 4, htons(<uint16_t> (UDP + whole)))
        self.rewrite(slots if port else NULL, slot, payload, header)
        self.sum_again(payload, whole, header, total)
        desc = desc_at(&queue.tx, queue.tx.ours + at)
        desc.address, desc.length = slots.offsets[slot] - header.size, header.size + first
        desc.options = CONTINUED if pieces > 1 else 0
        self.give(queue, slots, slot, pieces, at)
        self.datagrams_sent += 1
        self.sent_bytes += whole
        queue.counters.tx_bytes += whole
        return pieces

    cdef inline bint in_pieces(self, const Slots *slots, uint32_t slot) noexcept nogil:
        return slots.continued != NULL and slots.continued[slot]

    cdef void rewrite(self, const Slots *slots, uint32_t slot, uint8_t *payload, const Header *header) noexcept nogil:
        """Put what a slot's columns ask for into a header that is written. NULL: no columns."""
        cdef uint8_t *udp = payload - UDP
        cdef uint8_t *ip = udp - (IPV6 if header.v6 else IPV4)
        cdef const uint8_t *host
        cdef uint32_t i, size = 16 if header.v6 else 4
        cdef bint given = False
        if slots != NULL and slots.local_hosts != NULL:
            host = slots.local_hosts + <uint64_t> slot * slots.host_size + (12 if slots.v6 and not header.v6 else 0)
            for i in range(size):
                given = given or host[i] != 0
            if given:
                memcpy(ip + (8 if header.v6 else 12), host, size)
        if slots != NULL and slots.ecn != NULL and slots.ecn[slot] != ECN_DEFAULT:
            if header.v6:
                ip[1] = (ip[1] & 0xCF) | (slots.ecn[slot] & 3) << 4
            else:
                ip[1] = (ip[1] & 0xFC) | (slots.ecn[slot] & 3)
        if slots != NULL and slots.ttl != NULL and slots.ttl[slot]:
            ip[7 if header.v6 else 8] = slots.ttl[slot]
        if slots != NULL and slots.local_ports != NULL and slots.local_ports[slot]:
            store16(udp, slots.local_ports[slot])
        if self.identify and not header.v6:
            self.identification += 1
            store16(ip + 4, htons(self.identification))

    cdef void sum_again(self, uint8_t *payload, uint32_t length, const Header *header,
                        uint64_t payload_sum) noexcept nogil:
        """Both checksums, from the headers as they are."""
        cdef uint8_t *udp = payload - UDP
        cdef uint8_t *ip = udp - (IPV6 if header.v6 else IPV4)
        if not header.v6:
            store16(ip + 10, 0)
            store16(ip + 10, ~fold(add_words(ip, IPV4, 0)))
        if header.v6 or self.checksums:
            # Without payload here: its sum is given, its length is in the UDP header.
            payload_sum += pseudo_sum(ip, header.v6, PROTOCOL_UDP) + load16(udp) + load16(udp + 2)
            payload_sum += 2 * <uint64_t> load16(udp + 4)
            store16(udp + 6, ~fold(payload_sum))
            if load16(udp + 6) == 0:
                store16(udp + 6, 0xFFFF)
        else:
            store16(udp + 6, 0)


cdef inline void write_peer(XdpUdpSocket self, Slots *slots, uint32_t slot, const uint8_t *data, const Parsed *parsed,
                            const bint v6) noexcept nogil:
    """The sender's address record. `v6` is the records' family: IPv4 senders are mapped."""
    cdef uint8_t *record
    cdef uint16_t family = AF_INET6 if v6 else AF_INET
    if not v6:
        record = slots.addresses + <uint64_t> slot * STRIDE_V4
        memcpy(record, &family, 2)
        memcpy(record + PORT_OFFSET, data + parsed.transport, 2)
        memcpy(record + HOST_V4_OFFSET, data + parsed.ip + 12, 4)
        return
    record = slots.addresses + <uint64_t> slot * STRIDE_V6
    memcpy(record, &family, 2)
    memcpy(record + PORT_OFFSET, data + parsed.transport, 2)
    memset(record + SCOPE_OFFSET, 0, 4)
    if parsed.v6:
        memcpy(record + HOST_V6_OFFSET, data + parsed.ip + 8, 16)
        if data[parsed.ip + 8] == 0xFE and data[parsed.ip + 9] & 0xC0 == 0x80:         # link-local: fe80::/10
            memcpy(record + SCOPE_OFFSET, &self.scope, 4)
    else:
        memset(record + HOST_V6_OFFSET, 0, 10)
        memset(record + HOST_V6_OFFSET + 10, 0xFF, 2)
        memcpy(record + HOST_V6_OFFSET + 12, data + parsed.ip + 12, 4)


cdef inline Verdict admit(XdpUdpSocket self, const uint8_t *data, const Parsed *parsed, const bint v6) noexcept nogil:
    """The filter on local ports and address. A socket with an address has one family."""
    cdef uint16_t port
    cdef uint32_t host
    cdef uint64_t halves[2]
    memcpy(&port, data + parsed.transport + 2, 2)
    if not self.ports[port >> 3] & 1 << (port & 7):
        return OTHER_PORT
    if self.any_host:
        return ACCEPTED
    if v6 and parsed.v6:
        memcpy(halves, data + parsed.ip + 24, 16)
        return ACCEPTED if halves[0] == self.local_v6[0] and halves[1] == self.local_v6[1] else OTHER_ADDRESS
    memcpy(&host, data + parsed.ip + 16, 4)
    return ACCEPTED if host == self.local_v4 else OTHER_ADDRESS


cdef uint32_t receive_pieces(XdpUdpSocket self, Queue queue, RecvBatch batch, uint32_t first) noexcept nogil:
    """As `receive`, for packets that may span frames: each piece has a slot, all but the last are `continued`."""
    cdef Slots *slots = &batch.slots
    cdef const uint8_t *data
    cdef Parsed parsed
    cdef Verdict verdict
    cdef uint32_t out = first, pieces, whole, i
    while True:
        pieces = self.take_pieces(queue, slots, out, batch.capacity, &whole)
        if pieces == 0:
            break
        data = queue.pool.base + slots.offsets[out]
        verdict = parse_udp(data, slots.lengths[out], whole, &parsed, self.v4, self.v6)
        if verdict == ACCEPTED:
            verdict = admit(self, data, &parsed, True)
        if verdict != ACCEPTED:
            self.verdicts[<int> verdict] += 1
            self.put_pieces(queue, slots, out, pieces)
            continue
        pieces = self.trim_pieces(queue, slots, out, pieces, parsed.payload, parsed.end)
        for i in range(out, out + pieces):
            if self.records_v6:
                write_peer(self, slots, i, data, &parsed, True)
            else:
                write_peer(self, slots, i, data, &parsed, False)
            self.write_columns(slots, i, data, &parsed, pieces == 1)
        queue.counters.rx_packets += 1
        queue.counters.rx_bytes += parsed.end - parsed.payload
        out += pieces
    return out


cdef inline uint32_t receive(XdpUdpSocket self, Queue queue, RecvBatch batch, uint32_t out, const bint v4,
                             const bint v6, const bint plain) noexcept nogil:
    # Copies of what no store in the loop can change, as the compiler cannot know.
    cdef Slots slots = batch.slots
    cdef Ring rx
    cdef uint32_t *places = queue.umem.places
    cdef uint8_t *base = queue.pool.base
    cdef Desc *desc
    cdef Parsed parsed
    cdef Verdict verdict
    cdef uint64_t address, total_bytes = 0, memory = <uint64_t> queue.umem.frames << queue.umem.shift
    cdef uint32_t capacity = batch.capacity, filled = queue.filled, chunk = queue.umem.chunk_size
    cdef uint32_t shift = queue.umem.shift, i, count, frame, length, size, host
    cdef bint takes_v4 = v4 and (not v6 or self.v4), takes_v6 = v6 and self.v6
    cdef uint32_t least = queue.pool.geometry.rx_reserved, local_v4 = self.local_v4
    cdef uint32_t host_mask = 0 if self.any_host else 0xFFFFFFFF
    cdef uint16_t only_port = self.only_port
    while out < capacity:
        count = available(&queue.rx, capacity - out)
        if count == 0:
            break
        rx = queue.rx
        for i in range(count):
            desc = desc_at(&rx, rx.ours + i)
            address, length = desc.address, desc.length
            frame = <uint32_t> (address >> shift)
            if address >= memory or places[frame] != filled:
                queue.counters.bad_descriptors += 1
                continue
            places[frame] = HOME
            if outside(address, extent(desc), chunk, least):
                queue.counters.bad_descriptors += 1
                put_frame(queue.pool, frame)
                continue
            # A hostile address is not looked at: a prefetch of nowhere does nothing.
            prefetch(base + desc_at(&rx, rx.ours + i + PREFETCH_AHEAD).address)
            if takes_v4 and plain:
                size = plain_udp_v4(base + address, length)
                if size:
                    parsed.ip, parsed.transport, parsed.v6 = ETHERNET, ETHERNET + IPV4, False
                    memcpy(&host, base + address + (ETHERNET + 16), 4)
                    if (load16(base + address + (ETHERNET + IPV4 + 2)) == only_port
                            and (host ^ local_v4) & host_mask == 0):
                        slots.frames[out] = frame
                        slots.offsets[out] = address + (ETHERNET + IPV4 + UDP)
                        slots.lengths[out] = size - UDP
                        total_bytes += size - UDP
                        write_peer(self, &slots, out, base + address, &parsed, v6)
                        out += 1
                    else:
                        verdict = admit(self, base + address, &parsed, False)
                        self.verdicts[<int> verdict] += 1
                        put_frame(queue.pool, frame)
                    continue
            verdict = parse_udp(base + address, length, length, &parsed, takes_v4, takes_v6)
            if verdict == ACCEPTED:
                verdict = admit(self, base + address, &parsed, v6)
            if verdict != ACCEPTED:
                self.verdicts[<int> verdict] += 1
                put_frame(queue.pool, frame)
                continue
            slots.frames[out] = frame
            slots.offsets[out] = address + parsed.payload
            slots.lengths[out] = parsed.end - parsed.payload
            total_bytes += parsed.end - parsed.payload
            write_peer(self, &slots, out, base + address, &parsed, v6)
            if not plain:
                self.write_columns(&slots, out, base + address, &parsed, True)
            out += 1
        queue.rx.ours += count
        store_release(queue.rx.consumer, queue.rx.ours)
    queue.counters.rx_bytes += total_bytes
    return out


cdef bint source_fits(const Slots *slots, uint32_t slot, const Header *header) noexcept nogil:
    """Whether a slot's source address, where it has one, is of the family of the way that it goes."""
    cdef const uint8_t *host = slots.local_hosts + <uint64_t> slot * slots.host_size
    cdef uint64_t high
    cdef uint32_t mark, low
    if not slots.v6:
        return True
    memcpy(&high, host, 8)
    memcpy(&mark, host + 8, 4)
    memcpy(&low, host + 12, 4)
    if high == 0 and mark == 0 and low == 0:
        return True
    return (high == 0 and mark == htonl(0xFFFF)) != header.v6


cdef inline void build(XdpUdpSocket self, Queue queue, XdpUdpTxBatch batch, const Header *fixed,
                       uint32_t segment_size, int64_t payload_len,
                       uint32_t first, uint32_t tail, Outcome *outcome, const bint to_endpoint, const bint v6,
                       const bint plain, const bint checksum) noexcept nogil:
    """Lengths are the caller's to write at any time, from any thread: each is read once, checked, and only the
    checked value used. Offsets are ours, and leave room in front for any header.

    `v6` also stands for "perhaps IPv4": a header knows what it is.
    """
    # Copies of what no store in the loop can change, as the compiler cannot know.
    cdef Slots slots = batch.slots
    cdef Ring tx
    cdef uint32_t shift = queue.umem.shift
    cdef uint32_t *places = queue.umem.places
    cdef uint8_t *base = queue.pool.base
    cdef const Header *header = fixed
    cdef const uint8_t *record
    cdef uint8_t *payload
    cdef Desc *desc
    cdef Key key, last
    cdef uint64_t offset, bytes_sent = 0
    cdef uint32_t slot = first, frame, length, size, ip_size, used, whole, sent = 0
    cdef uint32_t most = queue.sendable(queue.tx.size), mark = queue.sent, singles = 0, further = 0
    cdef uint16_t port = 0
    cdef bint known = False
    tx = queue.tx
    outcome.stop = DONE
    last.high = last.low = 0
    while slot < tail:
        if sent >= most:
            outcome.stop = RING_FULL
            break
        frame = slots.frames[slot]
        length = slots.lengths[slot]
        offset = slots.offsets[slot]
        if offset + length > (<uint64_t> frame + 1) << shift:
            outcome.stop = OUTSIDE_FRAME
            break
        if to_endpoint:
            size = segment_size
            # Shorter by whole segments: the rest of a packet that was cut when rings or frames ran out.
            if payload_len >= 0 and length != payload_len and (plain or not self.in_pieces(&slots, slot)) and not (
                    size and length < payload_len and (payload_len - length) % size == 0):
                outcome.stop = WRONG_LENGTH
                break
        else:
            size = slots.segment_sizes[slot]
            record = slots.addresses + <uint64_t> slot * (STRIDE_V6 if slots.v6 else STRIDE_V4)
            memcpy(&port, record + PORT_OFFSET, 2)
            if port == 0:
                outcome.stop = NO_DESTINATION
                break
            key = key_of(record + (HOST_V6_OFFSET if slots.v6 else HOST_V4_OFFSET), slots.v6)
            if not known or key.low != last.low or key.high != last.high:
                header = find(self.table, key)
                if header == NULL:
                    outcome.stop = UNKNOWN_DESTINATION
                    break
                last, known = key, True
        ip_size = IPV6 if v6 and header.v6 else IPV4
        if not plain and not to_endpoint and slots.local_hosts != NULL and not source_fits(&slots, slot, header):
            outcome.stop = BAD_SOURCE
            break
        if not plain and self.in_pieces(&slots, slot):
            if size:
                outcome.stop = NOT_CUT
                break
            if to_endpoint and payload_len >= 0:
                add_pieces(&slots, &queue.pool.geometry, slot, tail, &whole)
                if whole != payload_len:
                    outcome.stop = WRONG_LENGTH
                    break
            used = self.send_pieces(queue, batch, header, slot, port, sent, most - sent, outcome)
            if outcome.stop != DONE:
                break
            sent += used
            slot += used
            further += used - 1
            continue
        if size and size < length:
            if ip_size + UDP + size > header.mtu:
                outcome.stop, outcome.limit = TOO_LARGE, header.mtu - ip_size - UDP
                break
            used = self.segment(queue, batch, header, slot, size, port, sent, most - sent, outcome)
            sent += used
            if outcome.stop != DONE:
                break
            slot += 1
            continue
        if ip_size + UDP + length > header.mtu:
            outcome.stop, outcome.limit = TOO_LARGE, header.mtu - ip_size - UDP
            break
        payload = base + offset
        if v6 and header.v6:
            write_v6(payload, length, header, port)
        elif v6 and not checksum:
            write_v4(payload, length, header, port, False)
        else:
            write_v4(payload, length, header, port, checksum)
        if not plain:
            self.rewrite(NULL if to_endpoint else &slots, slot, payload, header)
            self.sum_again(payload, length, header, add_words(payload, length, 0))
        desc = desc_at(&tx, tx.ours + sent)
        desc.address = offset - header.size
        desc.length = header.size + length
        desc.options = 0
        places[frame] = mark
        slots.frames[slot] = NO_FRAME
        bytes_sent += length
        sent += 1
        slot += 1
        singles += 1
    self.datagrams_sent += singles
    queue.tx.ours += sent
    queue.outstanding += sent
    queue.counters.tx_packets += sent - further
    queue.counters.tx_bytes += bytes_sent
    self.sent_bytes += bytes_sent
    outcome.accepted = slot - first
