"""UDP through the operating system's sockets, a batch per call.

Sending. `send` turns pending slots into messages and hands them to sendmmsg, up to 1024 at a time. Neighbouring slots
with one peer and one length become a single message that the kernel (or the NIC) segments: UDP GSO, without the caller
asking. Where payloads are neighbours in memory too, one vector covers them all: a kernel that copies one piece of 8 KiB
is half as long about it as with 128 pieces of 64 bytes.

Where it degrades. Without GSO each datagram is a message. A large send that is refused (EIO: no checksum offload or
IPsec on the way; EINVAL or EMSGSIZE: segments too large for a link) is done again in software from the first datagram
that did not go, so that nothing is lost and nothing sent twice; it is counted, said once in the log, and not tried
again with segments of that size. Without sendmmsg and recvmmsg each datagram is a call.

Receiving. recvmmsg writes payloads into frames and peers into the address column; control messages are asked for and
read only for the metadata that the socket was built with.

Nothing here blocks: waiting is the driver's. Both directions run without the GIL, on a batch that is marked busy.
"""

cimport cython
from libc.errno cimport (
    EADDRNOTAVAIL, EAGAIN, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EINTR, EINVAL, EIO, EMSGSIZE, ENETUNREACH,
    ENOPROTOOPT, ENOSYS,
    EOPNOTSUPP, EPROTO, errno,
)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fast_socket.core.addresses cimport HOST_V6_OFFSET, RECORD_V4, RECORD_V6, read_record, write_host, write_record
from fast_socket.core.frames cimport Slots
from fast_socket.core.section cimport hold
from fast_socket.core.polling cimport Descriptor
from fast_socket.os.batch cimport MAX_MESSAGES, OsRecvBatch, OsTxBatch, Planned
from fast_socket.os.linux cimport (
    MSG_DONTWAIT, MSG_ERRQUEUE, MSG_TRUNC, mmsghdr, msghdr, recvfrom, recvmmsg, recvmsg, sendmmsg, sendmsg, sendto,
)
from fast_socket.os.messages cimport ECN_DEFAULT, RX_CONTROL_SIZE, TxControl, read_control, write_control
from fast_socket.os.plan cimport ACCEPTABLE, NO_DESTINATION, OUTSIDE_FRAME, WRONG_LENGTH, Prepared, plan

import _socket as bare_socket
import logging
import socket as stdlib_socket
from types import GenericAlias

from fast_socket.core.capabilities import Support, UdpCapabilities, UdpStats
from fast_socket.core.endpoint import UdpEndpointSpec
from fast_socket.core.errors import ConfigError, DeviceError, Error, SendError
from fast_socket.core.metadata import Metadata
from fast_socket.os import options as os_options
from fast_socket.os.probe import probe_gro, probe_gso

log = logging.getLogger("fast_socket.os")

cdef extern from "<unistd.h>" nogil:
    int dup(int fd)

cdef enum:
    # What fits an Ethernet without jumbo frames, and a link with the least MTU of IPv6, 1280 (RFC 8200, section 5),
    # less the IPv6 and UDP headers: segments up to the second are never refused for the MTU.
    FITS_ETHERNET = 1_452
    ALWAYS_FITS = 1_232
    NO_LIMIT = 65_535

# Whoever has it may make objects without their public constructors.
cdef object KEY = object()

RECV_METADATA = (Metadata.ECN | Metadata.LOCAL | Metadata.TTL | Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP)
SEND_METADATA = Metadata.ECN | Metadata.LOCAL | Metadata.TTL | Metadata.TXTIME


cdef bint is_stale(int error) noexcept nogil:
    """Errors that an ICMP message about an earlier datagram leaves on a socket (icmp(7), net/ipv4/icmp.c)."""
    return error in (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, EPROTO, ENOPROTOOPT, EOPNOTSUPP)


cdef bint is_mapped(const uint8_t *record, bint v6) noexcept:
    """Whether a record names an IPv4 peer of an IPv6 socket."""
    cdef int i
    if not v6:
        return False
    for i in range(10):
        if record[HOST_V6_OFFSET + i]:
            return False
    return record[HOST_V6_OFFSET + 10] == 0xFF and record[HOST_V6_OFFSET + 11] == 0xFF


cdef void add_counters(Counters *total, const Counters *more) noexcept:
    """Calls count for themselves and are added up while the GIL is held: two threads may send at once."""
    cdef uint64_t *to = <uint64_t *> total
    cdef const uint64_t *what = <const uint64_t *> more
    cdef size_t i
    for i in range(sizeof(Counters) // sizeof(uint64_t)):
        to[i] += what[i]


@cython.final
cdef class OsUdpEndpoint:
    """A peer with its address and control messages ready: made by `OsUdpSocket.prepare_udp_endpoint`. Immutable; any
    thread may use it, and so may other sockets of the same family (one with `ecn` carries the DSCP of the socket that
    made it)."""

    def __cinit__(self, key=None):
        if key is not KEY:
            raise TypeError("endpoints are made by OsUdpSocket.prepare_udp_endpoint(UdpEndpointSpec(remote=...))")

    def __repr__(self):
        return f"<OsUdpEndpoint {self.spec}>"


@cython.final
cdef class OsUdpSocket:
    """A UDP socket of the operating system that moves batches. Make one with `bind`, `connect` or `from_socket`; the
    keyword options of all three are those of `OsUdpOptions`.

    Linux 4.18 or later (recvmmsg, SO_MEMINFO, UDP GSO); what is newer degrades as the package's docstring says. Thread
    rules: any thread may call anything at any time. One batch serves one call at a time: a second one is refused with
    `Error`. `close` during a call of another thread takes effect at once for new calls, and for the descriptor when
    that call returns.
    """

    __class_getitem__ = classmethod(GenericAlias)       # OsUdpSocket[WaitDriver], for annotations

    def __cinit__(self, key=None):
        if key is not KEY:
            raise TypeError("make an OsUdpSocket with bind(), connect() or from_socket()")

    @staticmethod
    def bind(address, **options):
        """A socket bound to `address`: ("host", port), "host:port" or "[v6]:port"; port 0 lets the kernel choose.

        "[::]:port" serves IPv4 too, unless ``v6only=True``. Raises `ConfigError`, `CapabilityError`, or `Error` with
        the kernel's errno (EADDRINUSE, EADDRNOTAVAIL, EACCES).
        """
        cdef OsUdpSocket self = OsUdpSocket.__new__(OsUdpSocket, KEY)
        checked = os_options.CheckedOptions.check(options)
        self.pool = checked.make_pool()
        self.open(os_options.open_bound(address, checked), checked)
        return self

    @staticmethod
    def connect(remote, *, local=None, **options):
        """A socket connected to `remote`: it sends there by default, receives only from there, and hears of ICMP
        errors. `local` binds it first. Raises as `bind`."""
        cdef OsUdpSocket self = OsUdpSocket.__new__(OsUdpSocket, KEY)
        checked = os_options.CheckedOptions.check(options)
        self.pool = checked.make_pool()
        self.open(os_options.open_connected(remote, local, checked), checked)
        return self

    @staticmethod
    def from_socket(socket, **options):
        """Adopt a `socket.socket`, which is detached: its descriptor belongs to the new object. What only takes
        effect at bind (reuse_port, reuse_address, v6only) is refused. Raises as `bind`; on an error the given socket
        still owns its descriptor."""
        cdef OsUdpSocket self = OsUdpSocket.__new__(OsUdpSocket, KEY)
        checked = os_options.CheckedOptions.check(options)
        self.pool = checked.make_pool()
        self.open(os_options.adopt(socket, checked), checked)
        return self

    cdef int open(self, object sock, object options) except -1:
        """Take over a standard socket that has its options."""
        self.v6 = sock.family == stdlib_socket.AF_INET6
        # Detached, not kept: the collector may run a socket object's finaliser when the number is somebody else's.
        self.descriptor = Descriptor(sock.detach(), "socket")
        self.metadata = options.metadata
        self._driver = options.driver(self.descriptor, min_batch=options.min_batch, max_wait=options.max_wait)
        self.gro = options.gro
        self.recv_mask = (options.metadata & RECV_METADATA).value
        self.send_mask = (options.metadata & SEND_METADATA).value
        self.rules.per_slot_control = self.send_mask != 0
        self.batch_calls = options.batch_calls
        self.error_queue = options.report_enobufs
        self.raise_icmp = options.icmp_errors == "raise"
        self.gso_support, self.rules.gso_segments, self.rules.gso_limit = Support.NO, 1, NO_LIMIT
        if options.gso and options.batch_calls:
            self.gso_support, self.rules.gso_segments = probe_gso(self.v6)
        if options.gso_size and self.gso_support is Support.YES:
            self.rules.socket_segment = self._ask(lambda sock: os_options.set_segment_size(sock, options.gso_size))
        tos, traffic_class, peer = self._ask(os_options.sending_state)
        self.rules.tos, self.rules.traffic_class = tos, traffic_class
        if peer is not None:
            write_record(self.rules.peer, self.v6, peer, "peer")
            self.rules.connected = True
        return 0

    def __repr__(self):
        return "<OsUdpSocket closed>" if self.descriptor.closed else f"<OsUdpSocket {self.local_address}>"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """Close the socket; whoever waits on its driver is woken with `Error`. Batches and packets stay readable.
        Again is nothing."""
        self.descriptor.close()

    @property
    def closed(self):
        return self.descriptor.closed

    def fileno(self):
        """The descriptor, -1 once closed."""
        return self.descriptor.fileno()

    @property
    def driver(self):
        """How to wait: a `WaitDriver` or a `BusyPollDriver`, as chosen."""
        return self._driver

    @property
    def local_address(self):
        """(host, port) that the socket is bound to."""
        return self._readable(self._ask(lambda sock: sock.getsockname()))

    @property
    def remote_address(self):
        """(host, port) that the socket is connected to, or None."""
        return self._readable(self._ask(lambda sock: sock.getpeername())) if self.rules.connected else None

    def _readable(self, name):
        """A socket name in the form that packets show: with its scope, and IPv4 as IPv4."""
        cdef uint8_t record[32]
        write_record(record, self.v6, name, "address")
        host, port = read_record(record)
        return host or name[0], port

    @property
    def recv_buffer_size(self):
        """Bytes of the receive buffer in force, as the kernel charges them."""
        return self._ask(lambda sock: sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF))

    @property
    def send_buffer_size(self):
        """Bytes of the send buffer in force, as the kernel charges them."""
        return self._ask(lambda sock: sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF))

    @property
    def path_mtu(self):
        """The kernel's present path MTU towards the peer of a connected socket, bytes of the IP packet."""
        return self._ask(os_options.path_mtu)

    def _ask(self, question):
        """Ask something of a standard socket object over the descriptor, while that is sure to be ours."""
        cdef int copy
        self.descriptor.enter()
        try:
            # Over a duplicate, and by the type without Python code: a signal handler may raise at any point of it,
            # and an object that owns our descriptor would take it along.
            copy = dup(self.descriptor.fd)
            if copy < 0:
                raise Error("cannot ask the socket", errno)
            sock = bare_socket.socket(stdlib_socket.AF_INET6 if self.v6 else stdlib_socket.AF_INET,
                                      stdlib_socket.SOCK_DGRAM, 0, copy)
            try:
                return question(sock)
            finally:
                sock.close()
        finally:
            self.descriptor.leave()

    def join(self, group, *, interface=None, source=None):
        """Receive what is sent to a multicast group, on one interface (the system's choice without), from one source
        only where it is given. Raises `ConfigError`, or `Error` with the kernel's errno."""
        self._ask(lambda sock: os_options.membership(sock, group, interface, source, join=True))

    def leave(self, group, *, interface=None, source=None):
        """Undo a `join` with the same arguments."""
        self._ask(lambda sock: os_options.membership(sock, group, interface, source, join=False))

    def capabilities(self):
        """What this socket can do, as built and as found: a `UdpCapabilities`."""
        return UdpCapabilities(
            batch_calls=self.batch_calls,
            gso=self.gso_support if self.rules.gso_segments > 1 else Support.NO,
            gro=probe_gro(self.v6) if self.gro else Support.NO,
            max_gso_segments=self.rules.gso_segments,
            max_payload=min(self.pool.geometry.tx_chunk - self.pool.geometry.tx_payload, 65_527 if self.v6 else 65_507),
            recv_metadata=self.metadata & RECV_METADATA,
            send_metadata=self.metadata & SEND_METADATA,
        )

    def stats(self):
        """Counters since the socket was made: a `UdpStats`."""
        try:
            drops = self._ask(os_options.kernel_drops)
        except Error:
            drops = None
        c = self.counters
        return UdpStats(
            received=c.received, received_bytes=c.received_bytes, sent=c.sent, sent_bytes=c.sent_bytes,
            truncated=c.truncated, kernel_drops=drops, gso_sends=c.gso_sends, gso_fallbacks=c.gso_fallbacks,
            stale_errors=c.stale_errors, would_block=c.would_block, frame_shortages=c.frame_shortages,
        )

    def recv_batch(self, capacity):
        """Receive storage of `capacity` slots, with the columns that the socket was built to deliver."""
        return OsRecvBatch(self.pool, capacity, v6=self.v6, metadata=self.metadata & RECV_METADATA,
                           segment_sizes=self.gro)

    def tx_batch(self, capacity):
        """Transmit storage of `capacity` slots."""
        return OsTxBatch(self.pool, capacity, v6=self.v6, metadata=self.metadata & SEND_METADATA, segment_sizes=True)

    def drain_tx_completions(self):
        """0: a send copies, so frames are home when it returns."""
        return 0

    def notify_tx(self):
        """Nothing: `send` has handed everything to the kernel."""

    def prepare_udp_endpoint(self, spec):
        """Take the address work out of the loop: a `OsUdpEndpoint` for `send_to`. Raises `ConfigError`."""
        cdef OsUdpEndpoint endpoint = OsUdpEndpoint.__new__(OsUdpEndpoint, KEY)
        cdef Prepared *prepared = &endpoint.prepared
        cdef TxControl control
        cdef uint8_t host[16]
        if not isinstance(spec, UdpEndpointSpec):
            raise ConfigError(f"prepare_udp_endpoint({spec!r}): give a UdpEndpointSpec")
        if spec.source_port not in (None, self.local_address[1]):
            raise ConfigError(f"UdpEndpointSpec.source_port is {spec.source_port}, but an OS socket sends from the "
                              f"port that it is bound to, {self.local_address[1]}: leave it out, or bind to it")
        endpoint.spec, endpoint.v6 = spec, self.v6
        write_record(prepared.record, self.v6, spec.remote, "UdpEndpointSpec.remote")
        prepared.segment_size = spec.gso_size
        prepared.payload_len = -1 if spec.payload_len is None else spec.payload_len
        control.source_host, control.interface, control.departure_time = NULL, 0, 0
        control.ecn = ECN_DEFAULT if spec.ecn is None else int(spec.ecn)
        control.ttl, control.tos, control.traffic_class = spec.ttl or 0, self.rules.tos, self.rules.traffic_class
        if spec.source is not None:
            if (":" in spec.source) != (":" in spec.remote[0]) and not is_mapped(prepared.record, self.v6):
                raise ConfigError(f"UdpEndpointSpec.source is {spec.source} and remote {spec.remote[0]}: give two "
                                  f"addresses of one family, IPv4 or IPv6")
            write_host(host, self.v6, spec.source, "UdpEndpointSpec.source")
            control.source_host = host
        prepared.control_size = write_control(prepared.control, &control, prepared.record, self.v6)
        return endpoint

    def recv(self, OsRecvBatch batch not None):
        """Replace the batch's contents with what has arrived; returns the number of packets, 0 when there is nothing.

        Never blocks, allocates nothing. Raises `Error` when the socket is closed, every receive frame is taken, or an
        ICMP error is to be raised; `BufferError` while packets of the batch are viewed; `ConfigError` for a batch of
        another pool, family or choice of metadata; `DeviceError` for what the kernel says of the device.
        """
        hold(<void *> self.pool)
        cdef Counters counters
        cdef uint32_t usable
        cdef int count, error = 0
        memset(&counters, 0, sizeof(counters))
        if (batch.pool is not self.pool or batch.slots.v6 != self.v6 or batch.mask != self.recv_mask
                or (batch.slots.segment_sizes != NULL) != self.gro):
            raise ConfigError("this receive batch belongs to another socket: use one made by this socket's recv_batch")
        if self.pending_error:
            error, self.pending_error = self.pending_error, 0
            raise (Error if is_stale(error) else DeviceError)("cannot receive", error)
        usable = batch.replace()
        if batch.refilled:
            batch.aim(usable)
        if usable < batch.capacity:
            counters.frame_shortages = 1
        self.descriptor.enter()
        batch.slots.busy = True
        with nogil:
            count = self.receive(batch, usable, &error, &counters)
        batch.slots.busy = False
        self.descriptor.leave()
        add_counters(&self.counters, &counters)
        batch.tail = count
        self._driver.last_batch = count
        if error and count:
            self.pending_error, error = error, 0        # the packets first; the next receive says it
        if error:
            raise (Error if is_stale(error) else DeviceError)("cannot receive", error)
        return count

    cdef int receive(self, OsRecvBatch batch, uint32_t usable, int *error, Counters *counters) noexcept nogil:
        """Receive into the first `usable` slots; returns how many were filled. A stale error is counted and the call
        made again, twice at the most."""
        cdef Slots *slots = &batch.slots
        cdef mmsghdr *message
        cdef uint64_t total_bytes = 0, total = 0
        cdef uint32_t done = 0, i, last, length, stride, name_size = RECORD_V6 if slots.v6 else RECORD_V4
        cdef int count, retries = 0
        cdef int64_t single
        while done < usable:
            message = &batch.messages[done]
            if usable - done == 1 or not self.batch_calls:
                # One at a time: recvfrom is the shortest way through the kernel, recvmsg the next.
                if batch.controls == NULL:
                    # With MSG_TRUNC it returns what the datagram had, however much of it was stored: udp(7).
                    single = recvfrom(self.descriptor.fd, message.msg_hdr.msg_iov.iov_base,
                                      message.msg_hdr.msg_iov.iov_len, MSG_DONTWAIT | MSG_TRUNC,
                                      message.msg_hdr.msg_name, &message.msg_hdr.msg_namelen)
                    message.msg_hdr.msg_flags = 0
                    if single > <int64_t> message.msg_hdr.msg_iov.iov_len:
                        single = message.msg_hdr.msg_iov.iov_len
                        message.msg_hdr.msg_flags = MSG_TRUNC
                else:
                    single = recvmsg(self.descriptor.fd, &message.msg_hdr, MSG_DONTWAIT)
                count = -1 if single < 0 else 1
                message.msg_len = <unsigned int> single
            else:
                count = recvmmsg(self.descriptor.fd, message, min(usable - done, MAX_MESSAGES), MSG_DONTWAIT, NULL)
            if count < 0:
                if errno == EINTR:
                    continue
                if errno == ENOSYS and self.batch_calls:
                    self.batch_calls, self.rules.gso_segments = False, 1
                    continue
                if errno == EAGAIN:
                    if self.error_queue:
                        counters.stale_errors += self.drain_errors()
                    break
                if is_stale(errno) and not self.raise_icmp:
                    counters.stale_errors += not self.error_queue      # which has it too
                    retries += 1
                    if retries < 3:
                        continue
                    break
                error[0] = errno
                break
            last = done + count
            for i in range(done, last):
                message = &batch.messages[i]
                length = message.msg_len
                slots.lengths[i] = length
                slots.offsets[i] = <uint64_t> (<uint8_t *> message.msg_hdr.msg_iov.iov_base - batch.pool.base)
                total_bytes += length
                if message.msg_hdr.msg_flags & MSG_TRUNC:
                    counters.truncated += 1
                message.msg_hdr.msg_namelen = name_size
                if batch.controls != NULL:
                    preset_columns(slots, i, length)
                    read_control(&message.msg_hdr, slots, i)
                    message.msg_hdr.msg_controllen = RX_CONTROL_SIZE
                    if slots.segment_sizes != NULL:
                        stride = slots.segment_sizes[i]
                        total += (length + stride - 1) // stride if stride else 1
            if slots.segment_sizes == NULL:
                total += count
            done += count
            if self.batch_calls and <uint32_t> count < MAX_MESSAGES:
                break
        batch.datagram_total = total
        counters.received = total
        counters.received_bytes = total_bytes
        return done

    cdef uint32_t drain_errors(self) noexcept nogil:
        """Empty the error queue that IP_RECVERR fills, as far as it is long now, so that waiting does not find it again
        for ever; returns how many reports there were."""
        cdef msghdr message
        cdef uint32_t count = 0
        memset(&message, 0, sizeof(message))
        while count < MAX_MESSAGES and recvmsg(self.descriptor.fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0:
            count += 1
            message.msg_flags = 0
        return count

    def send(self, OsTxBatch batch not None):
        """Send pending packets to their destinations, from the first on; returns how many the kernel accepted.

        Those are gone from the batch, and their frames are home. Fewer than were pending: the send buffer is full, the
        rest stays; wait with ``driver.wait_writable()`` and call again. A packet that is refused raises `SendError`
        with `accepted`, and is then the first pending one. Raises `Error` when closed, `BufferError` while packets
        are viewed, `ConfigError` for a batch of another socket.
        """
        hold(<void *> self.pool)
        return self.finish_send(batch, self.start_send(batch, NULL), None)

    def send_to(self, OsUdpEndpoint endpoint not None, OsTxBatch batch not None):
        """As `send`, every packet to one prepared endpoint: its address, metadata and segment size hold, those in the
        batch do not count."""
        hold(<void *> self.pool)
        if endpoint.v6 != self.v6:
            raise ConfigError("this endpoint was prepared by a socket of the other family")
        return self.finish_send(batch, self.start_send(batch, &endpoint.prepared), endpoint)

    cdef Outcome start_send(self, OsTxBatch batch, const Prepared *endpoint) except *:
        cdef Outcome outcome
        cdef Counters counters
        memset(&counters, 0, sizeof(counters))
        if (batch.pool is not self.pool or batch.slots.v6 != self.v6 or batch.mask != self.send_mask
                or batch.slots.segment_sizes == NULL):
            raise ConfigError("this transmit batch belongs to another socket: use one made by this socket's tx_batch; "
                              "take_from moves packets between sockets that were opened with the same pool=")
        batch.claim()
        self.descriptor.enter()
        batch.slots.busy = True
        with nogil:
            outcome = self.transmit(batch, endpoint, &counters)
        batch.slots.busy = False
        self.descriptor.leave()
        add_counters(&self.counters, &counters)
        return outcome

    cdef object finish_send(self, OsTxBatch batch, Outcome outcome, OsUdpEndpoint endpoint):
        """Bring accepted frames home, and say what stopped the rest."""
        cdef uint32_t slot, length
        batch.accept(outcome.accepted)
        # Before anybody's logging handler, or another thread, can change it.
        slot, length = batch.head, batch.slots.lengths[batch.head] if batch.head < batch.tail else 0
        destination, source = "", None
        if outcome.error or outcome.refusal != ACCEPTABLE:
            destination = batch.packet_at(slot).address[0] or read_record(self.rules.peer)[0]
            if endpoint is not None:
                destination, source = endpoint.spec.remote[0], endpoint.spec.source
        if self.counters.gso_fallbacks and not self.gso_logged:
            self.gso_logged = True
            which = "all"
            if self.rules.gso_segments > 1:
                which = f"segments of more than {self.rules.gso_limit} bytes"
            log.warning("a large send was refused: this socket now splits %s in software", which)
        if outcome.refusal == ACCEPTABLE and outcome.error == 0:
            return outcome.accepted
        if outcome.refusal == NO_DESTINATION:
            why = "it has no destination (port 0), and the socket is not connected"
        elif outcome.refusal == WRONG_LENGTH:
            why = f"it has {length} bytes, but the endpoint was prepared with payload_len={outcome.wanted_length}"
        elif outcome.refusal == OUTSIDE_FRAME:
            why = f"its length {length} leaves its frame"
        elif outcome.error == EMSGSIZE:
            why = (f"its {length} bytes are too many for one datagram here (65,507 over IPv4, 65,527 over IPv6, the "
                   "MTU where fragments are not allowed)")
        elif outcome.error in (EINVAL, ENETUNREACH, EADDRNOTAVAIL) and source:
            why = f"{length} bytes to {destination}; is {source} an address of this host?"
        else:
            why = f"{length} bytes to {destination or 'the peer'}"
        raise SendError(f"cannot send packet {outcome.accepted}: {why}", outcome.error or EINVAL,
                        accepted=outcome.accepted)

    cdef int hand_over(self, mmsghdr *messages, uint32_t count) noexcept nogil:
        """sendmmsg, or for one message the shortest way into the kernel; returns how many it took, or -1 with errno."""
        cdef msghdr *message = &messages.msg_hdr
        if count == 1 or not self.batch_calls:
            if message.msg_iovlen == 1 and message.msg_controllen == 0:
                return -1 if sendto(self.descriptor.fd, message.msg_iov.iov_base, message.msg_iov.iov_len, MSG_DONTWAIT,
                                    message.msg_name, message.msg_namelen) < 0 else 1
            return -1 if sendmsg(self.descriptor.fd, message, MSG_DONTWAIT) < 0 else 1
        return sendmmsg(self.descriptor.fd, messages, count, MSG_DONTWAIT)

    cdef Outcome transmit(self, OsTxBatch batch, const Prepared *endpoint, Counters *counters) noexcept nogil:
        cdef Slots *slots = &batch.slots
        cdef Planned *planned
        cdef Outcome outcome
        cdef uint32_t slot = batch.head, count, at, refused_size = 0
        cdef int taken, i
        cdef bint retried = False, segment = True
        outcome.accepted, outcome.error, outcome.refusal = 0, 0, ACCEPTABLE
        while slot < batch.tail:
            # After a refused large send, one plain datagram tells whether it was the size that was refused.
            count = plan(&self.rules, batch, endpoint, slot, MAX_MESSAGES if segment else 1, segment,
                         &outcome.refusal)
            at = 0
            while at < count:
                taken = self.hand_over(&batch.messages[at], count - at)
                if taken < 0:
                    break
                for i in range(taken):
                    planned = &batch.planned[at + i]
                    if planned.slots == 0:
                        slots.offsets[slot] += planned.bytes
                        slots.lengths[slot] -= planned.bytes
                    slot += planned.slots
                    counters.sent += planned.datagrams
                    counters.sent_bytes += planned.bytes
                    counters.gso_sends += planned.segment_size != 0
                at += taken
                retried = False
            if at == count:
                if refused_size:
                    counters.gso_fallbacks += 1
                    self.segments_refused(refused_size, outcome.error)
                    refused_size, segment, outcome.error = 0, True, 0
                if outcome.refusal != ACCEPTABLE:
                    break
                continue
            outcome.refusal = ACCEPTABLE        # whatever is wrong with a later slot, an earlier one failed first
            if errno == EINTR:
                continue
            if errno == ENOSYS and self.batch_calls and count - at > 1:
                self.batch_calls, self.rules.gso_segments = False, 1
                continue
            if errno == EAGAIN:
                counters.would_block += 1
                if self.error_queue:
                    counters.stale_errors += self.drain_errors()
                outcome.error = 0
                break
            if batch.planned[at].segment_size and (errno == EIO or errno == EINVAL or errno == EMSGSIZE):
                refused_size, segment, outcome.error = batch.planned[at].segment_size, False, errno
                continue
            if is_stale(errno) and not retried and not self.raise_icmp:
                retried = True
                counters.stale_errors += not self.error_queue      # which has it too
                continue
            outcome.error = errno
            break
        outcome.accepted = slot - batch.head
        outcome.wanted_length = endpoint.payload_len if endpoint != NULL else -1
        return outcome

    cdef void segments_refused(self, uint32_t size, int error) noexcept nogil:
        """Segments of `size` bytes did not go together, but one did alone. If it can have been too large for a link,
        smaller ones may still go; otherwise there is no segmentation on this way, and it is not tried again. A socket
        is refused three times at the most."""
        if error != EIO and size > ALWAYS_FITS:
            self.rules.gso_limit = FITS_ETHERNET if size > FITS_ETHERNET else ALWAYS_FITS
        else:
            self.rules.gso_segments = 1


cdef inline void preset_columns(Slots *slots, uint32_t slot, uint32_t length) noexcept nogil:
    """What a datagram has of which the kernel says nothing."""
    if slots.segment_sizes != NULL:
        slots.segment_sizes[slot] = length
    if slots.ecn != NULL:
        slots.ecn[slot] = 0
    if slots.ttl != NULL:
        slots.ttl[slot] = 0
    if slots.times != NULL:
        slots.times[slot] = 0
    if slots.local_hosts != NULL:
        memset(slots.local_hosts + <size_t> slot * slots.host_size, 0, slots.host_size)
        slots.interfaces[slot] = 0
