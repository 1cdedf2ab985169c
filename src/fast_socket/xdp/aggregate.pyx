"""One socket over several queues of a device, for one thread: a sweep receives from all, and what is sent is spread.

The members are ordinary sockets on one UMEM, with a part of the receive frames in the FILL ring of each. Frames go home
to the one pool, whichever member they came in or left by. A sweep begins with another member each time, so that under
load, when one queue fills a batch, all have their turn. A member that fails keeps nothing from the others: what the
sweep has gathered is returned, and the error raised by a later one that finds nothing.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from fast_socket.core.batch cimport RecvBatch, TxBatch
from fast_socket.core.section cimport hold
from fast_socket.xdp.batch cimport XdpIpRecvBatch
from fast_socket.xdp.queue cimport Queue
from fast_socket.xdp.ring cimport load_acquire
from fast_socket.xdp.socket cimport XdpSocket, packets_in

import dataclasses
import errno
import select
import time

from fast_socket.core.endpoint import UdpEndpointSpec
from fast_socket.core.errors import ConfigError, Error, SendError
from fast_socket.core.polling import BusyPollDriver
from fast_socket.xdp.claim import queue_numbers
from fast_socket.xdp.ip import IpFamilies, XdpIpPacketSocket
from fast_socket.xdp.options import CheckedOptions, as_device
from fast_socket.xdp.udp import XdpUdpSocket

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
        POLLOUT

cdef uint32_t NO_LIMIT = 0xFFFFFFFF
FRAMES_A_QUEUE = 2048
MOST_FILL = 4096
LOOK_SECONDS = 0.1          # a sleeping wait looks at closed members and signals this often
OF_THE_POOL = ("rx_layout", "tx_layout", "rx_frames", "tx_frames", "huge_pages", "numa_node")


cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    # MurmurHash3's finaliser.
    value ^= value >> 33
    value *= <uint64_t> 0xFF51AFD7ED558CCD
    value ^= value >> 33
    return value


@cython.final
cdef class XdpAggregateDriver:
    """Waits for any member: sleeping, or spinning where the sockets were opened with ``driver=BusyPollDriver``."""

    def wait(self, timeout=None):
        """True as soon as a sweep has something to return, False after `timeout` seconds; None waits for ever. Raises
        `Error` when the aggregate is closed."""
        return self.wait_for(POLLIN, timeout)

    def wait_writable(self, timeout=None):
        """As `wait`, until some member has room."""
        return self.wait_for(POLLOUT, timeout)

    cdef bint wait_for(self, short events, object timeout) except -1:
        cdef XdpSocket member
        cdef bint ready
        cdef uint32_t open_now, registered = 0
        if timeout is not None and (not isinstance(timeout, (int, float)) or not 0 <= timeout <= 1e9):
            raise ConfigError(f"timeout is {timeout!r}: give seconds from 0, or None to wait for ever")
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = None
        while True:
            open_now = 0
            for member in self.members:
                if member.queue.closed:
                    continue
                open_now += 1
                member.queue.enter()
                ready = member.queue.look(events)
                member.queue.leave()
                if ready:
                    return True
            if open_now == 0:
                raise Error("this aggregate is closed", errno.EBADF)
            PyErr_CheckSignals()
            left = LOOK_SECONDS if deadline is None else min(deadline - time.monotonic(), LOOK_SECONDS)
            if left <= 0:
                return False
            if self.spin:
                with nogil:         # others may run
                    pass
                continue
            if registered != open_now:          # a closed member's descriptor would be ready for ever
                poll, registered = select.poll(), open_now
                for member in self.members:
                    if member.fileno() >= 0:
                        poll.register(member.fileno(), events)
            poll.poll(left * 1000)
            if events & POLLOUT:
                time.sleep(0.0001)  # the kernel's threshold is not ours


cdef class XdpAggregate:
    """Not made directly: see `XdpUdpAggregate` and `XdpIpPacketAggregate`."""

    def __init__(self):
        raise TypeError(f"make an {type(self).__name__} with open()")

    cdef int require_open(self) except -1:
        if self.closed:
            raise Error("this aggregate is closed", errno.EBADF)
        return 0

    def __repr__(self):
        hold(<void *> self.pool)
        return f"<{type(self).__name__} {'closed' if self.closed else self.device} of {len(self.members)}>"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """Close all members, detach what was attached for them. Again is nothing."""
        hold(<void *> self.pool)
        self.closed = True
        program, self.program = self.program, None
        router, self.router = self.router, None
        try:
            for member in self.members:
                member.close()
        finally:
            if program is not None:
                program.detach()
                program.close()
            if router is not None and hasattr(router, "close"):
                router.close()

    @property
    def queue_ids(self):
        """The device queues, in the order of `members`."""
        return tuple([member.queue_id for member in self.members])

    def recv_batch(self, capacity):
        """Receive storage, as of a member."""
        return self.members[0].recv_batch(capacity)

    def tx_batch(self, capacity):
        """Transmit storage, as of a member."""
        return self.members[0].tx_batch(capacity)

    def recv(self, RecvBatch batch not None):
        """Replace the batch's contents with what has arrived at any member; returns the number of packets, 0 when there
        is nothing. Raises as a member's `recv`; what a member that failed has to say comes when a sweep is empty."""
        hold(<void *> self.pool)
        cdef XdpSocket member
        cdef Queue queue
        cdef uint32_t count = self.count, out = 0, end, i
        cdef bint dry = True
        self.require_open()
        member = self.members[0]
        member.check_batch(batch, False)
        batch.vacate()
        for i in range(count):
            if out == batch.capacity:
                break
            member = self.members[(self.turn + i) % count]
            queue = member.queue
            try:
                queue.enter()
            except Error as error:
                self.failure = error
                continue
            end = member.receive_into(batch, out)
            queue.refill()
            if load_acquire(queue.fill.consumer) == queue.fill.ours:
                member.frame_shortages += 1
            else:
                dry = False
            queue.wake_rx()
            queue.leave()
            if isinstance(batch, XdpIpRecvBatch):
                (<XdpIpRecvBatch> batch).note_queue(out, end, member.queue_number)
            out = batch.tail = end      # at once: what else happens in this sweep, these packets are in it
            try:
                queue.report()
            except Error as error:
                self.failure = error
        self.turn = (self.turn + 1) % count
        batch.tail, batch.datagram_total = out, packets_in(&batch.slots, out)
        if out == 0 and self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if out == 0 and dry and self.pool.rx_free == 0:
            raise Error(f"all {self.pool.rx_frames} receive frames are taken: release packets, or ask for more with "
                        f"rx_frames", errno.ENOBUFS)
        return out

    def send(self, TxBatch batch not None):
        """Send pending packets, from the first on; returns how many the devices took over. Prefix semantics, errors and
        frames as of a member: the first packet that its member does not take ends the call.

        With ``spread="flow"`` a packet leaves by the member that its destination is assigned to, so that packets to one
        destination stay in order; with "round_robin" each call has another member's turn, and others help where its
        rings are full.
        """
        hold(<void *> self.pool)
        return self.send_ways(batch, None, 0)

    cdef uint32_t member_for(self, TxBatch batch, uint32_t slot) noexcept nogil:
        """Of a UDP packet, by its destination record; of an IP packet, by the addresses in it."""
        cdef uint64_t words[4]
        cdef uint64_t offset = batch.slots.offsets[slot]
        cdef const uint8_t *ip = self.pool.base + offset
        words[0] = words[1] = words[2] = words[3] = 0
        if self.udp:
            memcpy(words, batch.slots.addresses + <uint64_t> slot * batch.slots.address_stride,
                   min(batch.slots.address_stride, <uint32_t> sizeof(words)))
        elif offset + 40 <= self.pool.memory.size:
            if ip[0] >> 4 == 6:
                memcpy(words, ip + 8, 32)
            else:
                memcpy(words, ip + 12, 8)
        return <uint32_t> (mix(words[0] ^ mix(words[1] ^ mix(words[2] ^ mix(words[3])))) % self.count)

    cdef uint32_t end_of_run(self, TxBatch batch, uint32_t member) noexcept nogil:
        """Behind the pending slots, from the first on, that leave by the same member as the first."""
        cdef uint32_t slot = batch.head + 1, stride = batch.slots.address_stride
        cdef uint64_t mine, before
        cdef const uint8_t *record
        if self.count == 1:
            return batch.tail
        while slot < batch.tail:
            if batch.slots.continued == NULL or not batch.slots.continued[slot - 1]:
                record = batch.slots.addresses + <uint64_t> slot * stride
                # To the same as the one before, which costs no hashing. All of an IPv4 record is in its first 8 bytes.
                if self.udp:
                    memcpy(&mine, record, 8)
                    memcpy(&before, record - stride, 8)
                    if mine == before and (not batch.slots.v6 or memcmp(record, record - stride, stride) == 0):
                        slot += 1
                        continue
                if self.member_for(batch, slot) != member:
                    break
            slot += 1
        return slot

    cdef object send_ways(self, TxBatch batch, list ways, uint32_t lane):
        """`ways` are one way for each member, to one destination, which is assigned to the member `lane`."""
        cdef XdpSocket member
        cdef uint32_t count = self.count, at = 0, i, limit, head
        cdef bint several = False
        self.require_open()
        member = self.members[0]
        member.check_batch(batch, True)
        total = 0
        try:
            if not self.by_flow:
                for i in range(count):
                    at = (self.tx_turn + i) % count
                    member = self.members[at]
                    total += member.send_some(batch, None if ways is None else ways[at], NO_LIMIT)
                    if batch.head == batch.tail:
                        break
                self.tx_turn = (self.tx_turn + 1) % count
                return total
            if ways is not None:                # one destination for all
                member = self.members[lane]
                return member.send_some(batch, ways[lane], NO_LIMIT)
            while batch.head < batch.tail:
                head = batch.head
                at = self.member_for(batch, head)
                limit = self.end_of_run(batch, at)
                member = self.members[at]
                if limit == batch.tail and not several:
                    return member.send_some(batch, None, NO_LIMIT)
                several = member.quiet = True           # told together, at the end
                accepted = member.send_some(batch, None, limit)
                total += accepted
                if accepted < limit - head:
                    break
            return total
        except SendError as error:
            error.accepted += total
            raise
        finally:
            for member in self.members if several else ():
                if member.quiet and not member.queue.closed:
                    member.quiet = False
                    member.queue.enter()
                    try:
                        member.ring_doorbell()
                    finally:
                        member.queue.leave()

    def drain_tx_completions(self):
        """Bring frames home that the devices have sent; returns how many."""
        hold(<void *> self.pool)
        self.require_open()
        return sum([member.drain_tx_completions() for member in self.members if not member.closed])

    def notify_tx(self):
        """Have the devices look at what still waits in the TX rings."""
        hold(<void *> self.pool)
        self.require_open()
        for member in self.members:
            if not member.closed:
                member.notify_tx()

    def stats(self):
        """The members' counters, added up: of the class that a member's `stats` returns."""
        hold(<void *> self.pool)
        return added([member.stats() for member in self.members])

    def queue_stats(self):
        """The members' `RawDeviceStats`, added up."""
        hold(<void *> self.pool)
        return added([member.queue_stats() for member in self.members])


def added(all_stats):
    """Counters of one class as one."""
    kind = type(all_stats[0])
    values = {}
    for field in dataclasses.fields(kind):
        numbers = [getattr(each, field.name) for each in all_stats]
        values[field.name] = None if None in numbers else sum(numbers)
    return kind(**values)


cdef int open_members(XdpAggregate self, object open_one, object check, object device, object queues, object spread,
                      dict options) except -1:
    """Pool, program and router for all, and a member on each queue. On an error nothing stays open."""
    from fast_socket.xdp.device import XdpDevice, filter_of
    from fast_socket.xdp.ebpf import XdpMode, XdpProgram
    if spread not in ("flow", "round_robin"):
        raise ConfigError(f"spread is {spread!r}: give 'flow' or 'round_robin'")
    self.device = as_device(device)
    numbers = queue_numbers(self.device, queues)
    frames = {name: FRAMES_A_QUEUE * len(numbers) for name in ("rx_frames", "tx_frames")
              if options.get(name) is None and options.get("pool") is None}
    checked = check(self.device, options | frames)
    self.pool = checked.make_pool(self.device)
    self.by_flow, self.udp = spread == "flow", isinstance(self, XdpUdpAggregate)
    options = {name: value for name, value in options.items() if name not in OF_THE_POOL} | {"pool": self.pool}
    share = max(self.pool.rx_frames // len(numbers), 1)
    options.setdefault("fill_ring", max(min(1 << share.bit_length() - 1, MOST_FILL), 2))
    members = []
    self.members = ()
    try:
        if options.get("router") is None:
            options["router"] = self.router = self.device.make_router(checked.source)
        if options.get("program") is None and isinstance(self.device, XdpDevice):
            stamped = checked.wants_timestamps
            self.program = XdpProgram.load(filter_of(checked), queues=max(numbers) + 1, timestamps=stamped,
                                           device=self.device.name if stamped else None)
            self.program.attach(self.device.name, XdpMode(checked.attach))
            options["program"] = self.program
        for number in numbers:
            members.append(open_one(self.device, number, **options))
            self.members = tuple(members)
    except BaseException:
        self.close()
        raise
    self.count = len(members)
    self.driver = XdpAggregateDriver()
    (<XdpAggregateDriver> self.driver).members = self.members
    (<XdpAggregateDriver> self.driver).spin = checked.driver is BusyPollDriver
    return 0


@cython.final
cdef class XdpUdpAggregate(XdpAggregate):
    """One `XdpUdpSocket` over several queues. Made by `open`. Thread rules: one thread uses it at a time; `close` may
    come from any."""

    @staticmethod
    def open(device, queues, *, local, spread="flow", **options):
        """Sockets on `queues` of `device` (`All`, `First(n)` or `Queues([...])`), as one.

        `local` and `options` are those of `XdpUdpSocket.open`; `rx_frames` and `tx_frames` count for all together, by
        default 2048 for each queue. Without a `program` one is loaded and attached for all. Raises as
        `XdpUdpSocket.open`; either all are open or none.
        """
        cdef XdpUdpAggregate self = XdpUdpAggregate.__new__(XdpUdpAggregate)

        def open_one(device, queue, **given):
            return XdpUdpSocket.open(device, queue, local=local, **given)

        def check(device, given):
            return CheckedOptions.check_udp(device, local, given)

        open_members(self, open_one, check, device, queues, spread, options)
        return self

    @property
    def local_address(self):
        """(host, port) that the members receive at."""
        return self.members[0].local_address

    def capabilities(self):
        """Those of a member."""
        return self.members[0].capabilities()

    def prepare_udp_endpoint(self, spec):
        """As of a member, for `send_to` of this aggregate."""
        hold(<void *> self.pool)
        cdef XdpAggregateEndpoint endpoint = XdpAggregateEndpoint.__new__(XdpAggregateEndpoint)
        if not isinstance(spec, UdpEndpointSpec):
            raise ConfigError(f"prepare_udp_endpoint({spec!r}): give a UdpEndpointSpec")
        endpoint.spec, endpoint.aggregate = spec, self
        endpoint.ways = [member.prepare_udp_endpoint(spec) for member in self.members]
        endpoint.lane = <uint64_t> <Py_hash_t> hash(spec.remote) % self.count
        return endpoint

    def send_to(self, XdpAggregateEndpoint endpoint not None, TxBatch batch not None):
        """As `send`, every packet to one prepared endpoint."""
        hold(<void *> self.pool)
        if endpoint.aggregate is not self:
            raise ConfigError("this endpoint was prepared by another aggregate: prepare one with this")
        return self.send_ways(batch, endpoint.ways, endpoint.lane)


@cython.final
cdef class XdpIpPacketAggregate(XdpAggregate):
    """One `XdpIpPacketSocket` over several queues. Made by `open`; thread rules as `XdpUdpAggregate`. The column
    `egresses` of its batches belongs to single sockets: leave it 0."""

    @staticmethod
    def open(device, queues, *, families=IpFamilies.Mixed, spread="flow", **options):
        """As `XdpUdpAggregate.open`, with `families` and options of `XdpIpPacketSocket.open`."""
        cdef XdpIpPacketAggregate self = XdpIpPacketAggregate.__new__(XdpIpPacketAggregate)

        def open_one(device, queue, **given):
            return XdpIpPacketSocket.open(device, queue, families=families, **given)

        def check(device, given):
            return CheckedOptions.check_ip(device, families, given)

        if not isinstance(families, IpFamilies):
            raise ConfigError(f"families is {families!r}: give one of {', '.join(map(str, IpFamilies))}")
        open_members(self, open_one, check, device, queues, spread, options)
        return self

    def recv_batch(self, capacity):
        """Receive storage; `meta(i).queue` says which queue a packet came by."""
        batch = self.members[0].recv_batch(capacity)
        (<XdpIpRecvBatch> batch).remember_queues()
        return batch

    def resolve(self, destination):
        """The way to an address for `send_via` of this aggregate: an `XdpAggregateEgress`. Raises as a member's
        `resolve`."""
        hold(<void *> self.pool)
        cdef XdpAggregateEgress egress = XdpAggregateEgress.__new__(XdpAggregateEgress)
        self.require_open()
        egress.ways = [member.resolve(destination) for member in self.members]
        egress.destination, egress.aggregate = egress.ways[0].destination, self
        egress.lane = <uint64_t> <Py_hash_t> hash(egress.destination) % self.count
        return egress

    def send_via(self, XdpAggregateEgress egress not None, TxBatch batch not None):
        """As `send`, every packet by one egress, whatever its destination."""
        hold(<void *> self.pool)
        if egress.aggregate is not self:
            raise ConfigError("this egress was resolved by another aggregate: resolve one with this")
        return self.send_ways(batch, egress.ways, egress.lane)


@cython.final
cdef class XdpAggregateEndpoint:
    """A peer of an `XdpUdpAggregate`, prepared for each of its members."""

    def __init__(self):
        raise TypeError("endpoints are made by XdpUdpAggregate.prepare_udp_endpoint(UdpEndpointSpec(remote=...))")

    def __repr__(self):
        return f"<XdpAggregateEndpoint {self.spec}>"


@cython.final
cdef class XdpAggregateEgress:
    """A way of an `XdpIpPacketAggregate`, resolved for each of its members."""

    def __init__(self):
        raise TypeError("egresses are made by XdpIpPacketAggregate.resolve(destination)")

    def __repr__(self):
        return f"<XdpAggregateEgress to {self.destination}>"
