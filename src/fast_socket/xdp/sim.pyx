"""A simulated AF_XDP device: the kernel's side of the rings in memory, and a wire between devices.

The sockets, the UMEM and the rings are those of the real thing; only what the kernel would do is done here: frames are
taken from TX, checked as the kernel checks them, carried to the devices on the same wire, copied into frames from their
FILL rings, and completed. It needs no privilege, sends nothing anywhere, and runs the same way every time.

A wire can also misbehave as wires and kernels do, so that tests can: drop and duplicate packets (by a generator with a
seed), hold completions back, stop taking from TX so that rings fill, and hand back descriptors that no device should.

Thread rules: everything happens under the GIL, within the call that sends.
"""

cimport cython
from libc.errno cimport EBUSY, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from fast_socket.core.frames cimport FramePool
from fast_socket.core.memory cimport Region
from fast_socket.core.section cimport hold
from fast_socket.xdp.queue cimport Queue
from fast_socket.xdp.ring cimport (
    CONTINUED, Desc, Ring, address_at, desc_at, load_acquire, store_release,
)

from ipaddress import ip_interface

from fast_socket.core.affinity import QueueAffinity, available_cpus
from fast_socket.core.capabilities import Capabilities, Support
from fast_socket.core.errors import CapabilityError, ConfigError, Error
from fast_socket.core.ids import IfIndex, NumaNode, QueueId
from fast_socket.core.routes import Unresolved
from fast_socket.xdp.egress import Egress

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *data, size_t size)
    ssize_t write(int fd, const void *data, size_t size)

cdef enum:
    XDP_HEADROOM = 256              # as the kernel leaves it
    LINK_OVERHEAD = 22
    # Places in `statistics`, as struct xdp_statistics has them.
    RX_DROPPED = 0
    TX_INVALID = 2
    RX_RING_FULL = 3
    FILL_RING_EMPTY = 4
    FIRST_INDEX = 1 << 16           # of simulated interfaces: out of the way of real ones


@cython.final
cdef class Wire:
    """What simulated devices are plugged into. A frame goes to the device with its destination MAC, a group frame to
    every other device.

    `drop` and `duplicate` are probabilities, by a generator that starts at `seed`; they, `paused` (nothing is taken
    from TX), `hold_completions` (frames are sent, but not given back) and `clock_ns` (the receive timestamp of the next
    packet; it grows by one microsecond a packet) may be changed at any time.
    """

    def __cinit__(self, *, double drop=0.0, double duplicate=0.0, uint64_t seed=1):
        self.devices = []
        self.drop, self.duplicate = drop, duplicate
        self.random = seed * 2 + 1
        self.clock_ns = 1_000_000_000

    def __dealloc__(self):
        free(self.queues)

    cdef int plug_in(self, SimulatedQueue queue) except -1:
        hold(<void *> self)
        cdef void **grown
        if self.open_queues == self.places:
            grown = <void **> realloc(self.queues, (self.places + 16) * sizeof(void *))
            if grown == NULL:
                raise MemoryError("cannot plug in another simulated queue")
            self.queues, self.places = grown, self.places + 16
        self.queues[self.open_queues] = <void *> queue
        self.open_queues += 1
        return 0

    cdef void unplug(self, SimulatedQueue queue) noexcept:
        hold(<void *> self)
        cdef uint32_t i, kept = 0
        for i in range(self.open_queues):
            if self.queues[i] != <void *> queue:
                self.queues[kept] = self.queues[i]
                kept += 1
        self.open_queues = kept

    cdef double chance(self) noexcept:
        """A number from 0 to 1: xorshift64* (Marsaglia 2003, Vigna 2016)."""
        self.random ^= self.random >> 12
        self.random ^= self.random << 25
        self.random ^= self.random >> 27
        return <double> ((self.random * <uint64_t> 0x2545F4914F6CDD1D) >> 11) / <double> (<uint64_t> 1 << 53)

    cdef void carry(self, SimulatedQueue source, const uint8_t *frame, uint32_t length) noexcept:
        cdef SimulatedQueue target
        cdef bint group = length and frame[0] & 1
        cdef uint32_t copies = 1, i
        if self.drop > 0 and self.chance() < self.drop:
            return
        if self.duplicate > 0 and self.chance() < self.duplicate:
            copies = 2
        for i in range(self.open_queues):
            target = <SimulatedQueue> self.queues[i]
            if target.device is source.device or target.closed:
                continue
            if not group and (length < 6 or memcmp(<const char *> target.device.mac, frame, 6)):
                continue
            if target.queue_id != spread(frame, length, target.device.queue_count):
                continue
            target.deliver(frame, length)
            if copies == 2:
                target.deliver(frame, length)

    def resume(self):
        """Take what waits in TX and give held completions back, as far as `paused` and `hold_completions` allow."""
        hold(<void *> self)
        cdef uint32_t i
        for i in range(self.open_queues):
            (<SimulatedQueue> self.queues[i]).transmit()
            (<SimulatedQueue> self.queues[i]).give_back()


cdef uint32_t spread(const uint8_t *frame, uint32_t length, uint32_t queues) noexcept:
    """The receive queue of a frame: by the source port of untagged UDP over IPv4 without options, else 0."""
    if queues < 2 or length < 42 or frame[12] != 8 or frame[13] != 0 or frame[14] != 0x45:
        return 0
    return (frame[34] << 8 | frame[35]) % queues


@cython.final
@cython.no_gc_clear
cdef class SimulatedQueue(Queue):
    """Made by `SimulatedDevice.open_queue`."""

    def __dealloc__(self):
        hold(<void *> self.wire)
        if self.fd >= 0:
            self.shut()

    cdef uint32_t lay_out(self, Ring *ring, uint32_t entries, uint32_t entry_size, uint32_t at) noexcept:
        """Indices on cache lines of their own, then the entries; returns where the next ring begins."""
        cdef uint8_t *base = self.block.base + at
        ring.producer = <uint32_t *> base
        ring.consumer = <uint32_t *> (base + 64)
        ring.flags = <uint32_t *> (base + 128)
        ring.entries = base + 192
        ring.size = entries
        return at + 192 + (entries * entry_size + 63) // 64 * 64

    cdef void shut(self) noexcept:
        if self.wire is not None:
            self.wire.unplug(self)
        if self.umem is not None:
            self.recover()

    def device_statistics(self):
        hold(<void *> self.wire)
        return tuple([self.statistics[i] for i in range(6)])

    cdef int kick(self) noexcept nogil:
        self.counters.kicks += 1
        with gil:
            self.transmit()
        return 0

    cdef void wake_rx(self) noexcept nogil:
        hold(<void *> self.wire)        # it is called with the GIL
        cdef uint64_t value
        if self.signalled and load_acquire(self.rx.producer) == self.rx.ours:
            self.signalled = False
            read(self.fd, &value, sizeof(value))

    cdef void signal(self) noexcept:
        cdef uint64_t one = 1
        if not self.signalled:
            self.signalled = True
            write(self.fd, &one, sizeof(one))

    cdef void complete(self, uint64_t address) noexcept:
        cdef uint32_t produced = load_acquire(self.completion.producer)
        address_at(&self.completion, produced)[0] = address
        store_release(self.completion.producer, produced + 1)

    cdef void give_back(self) noexcept:
        cdef uint32_t i
        if self.wire.hold_completions:
            return
        for i in range(self.late_count):
            self.complete(self.late[i])
        self.late_count = 0

    cdef void transmit(self) noexcept:
        """What the kernel does with TX in copy mode."""
        hold(<void *> self.wire)
        cdef Desc *desc
        cdef Desc first
        cdef uint32_t consumed = load_acquire(self.tx.consumer), chunk = self.umem.chunk_size
        cdef uint64_t size = <uint64_t> self.umem.frames * chunk
        cdef bytes whole
        if self.wire.paused:
            return
        while consumed != load_acquire(self.tx.producer):
            # As the kernel, which reserves a completion first: no room, nothing sent.
            if (load_acquire(self.completion.producer) - load_acquire(self.completion.consumer) + self.late_count
                    >= self.completion.size):
                break
            desc = desc_at(&self.tx, consumed)
            first = desc[0]
            consumed += 1
            store_release(self.tx.consumer, consumed)
            # xp_aligned_validate_desc, net/xdp/xsk_queue.h: what is discarded here is never completed.
            if (first.length == 0 or first.options & ~<uint32_t> CONTINUED or first.address >= size
                    or (first.address & (chunk - 1)) + first.length > chunk):
                self.statistics[TX_INVALID] += 1
                continue
            if first.options & CONTINUED or len(self.pieces):
                self.pieces += (<char *> self.pool.base + first.address)[:first.length]
                if not first.options & CONTINUED:
                    whole, self.pieces = self.pieces, b""
                    self.wire.carry(self, <const uint8_t *> <const char *> whole, <uint32_t> len(whole))
            else:
                self.wire.carry(self, self.pool.base + first.address, first.length)
            if self.wire.hold_completions:
                self.late[self.late_count] = first.address
                self.late_count += 1
            else:
                self.complete(first.address)

    cdef void deliver(self, const uint8_t *frame, uint32_t length) noexcept:
        """What the kernel does with a packet that was redirected here."""
        cdef uint32_t filled, chunk = self.umem.chunk_size, space = chunk - XDP_HEADROOM - self.headroom
        cdef uint32_t pieces = (length + space - 1) // space if length else 1, i, part
        cdef uint32_t produced = load_acquire(self.rx.producer)
        cdef uint64_t address
        cdef Desc *desc
        if pieces > 1 and not self.multi_buffer:
            self.statistics[RX_DROPPED] += 1
            return
        filled = load_acquire(self.fill.consumer)
        if load_acquire(self.fill.producer) - filled < pieces:
            self.statistics[FILL_RING_EMPTY] += 1
            self.statistics[RX_DROPPED] += 1        # both, as the kernel counts
            return
        if self.rx.size - (produced - load_acquire(self.rx.consumer)) < pieces:
            self.statistics[RX_RING_FULL] += 1
            return
        for i in range(pieces):
            address = address_at(&self.fill, filled + i)[0] & ~<uint64_t> (chunk - 1)
            address += XDP_HEADROOM + self.headroom
            part = min(space, length)
            memcpy(self.pool.base + address, frame, part)
            if self.timestamps and i == 0:
                memcpy(self.pool.base + address - 8, &self.wire.clock_ns, 8)
            frame += part
            length -= part
            desc = desc_at(&self.rx, produced + i)
            desc.address, desc.length, desc.options = address, part, CONTINUED if i + 1 < pieces else 0
        self.wire.clock_ns += 1000
        store_release(self.fill.consumer, filled + pieces)
        store_release(self.rx.producer, produced + pieces)
        self.signal()

    def _require_open(self):
        hold(<void *> self.wire)
        if self.closed or not self.has_rings:
            raise Error("this simulated queue is closed")

    def inject_receive(self, uint64_t address, uint32_t length, uint32_t options=0):
        """Hand a descriptor to RX as it is, whatever it names."""
        hold(<void *> self.wire)
        cdef uint32_t produced
        cdef Desc *desc
        self._require_open()
        produced = load_acquire(self.rx.producer)
        desc = desc_at(&self.rx, produced)
        desc.address, desc.length, desc.options = address, length, options
        store_release(self.rx.producer, produced + 1)
        self.signal()

    def inject_completion(self, uint64_t address):
        """Hand an address to COMPLETION as it is."""
        hold(<void *> self.wire)
        self._require_open()
        self.complete(address)

    def inject_frame(self, bytes frame not None):
        """Deliver a frame as if it had come from the wire."""
        hold(<void *> self.wire)
        self._require_open()
        self.deliver(<const uint8_t *> <const char *> frame, <uint32_t> len(frame))

    def move_index(self, str ring not None, uint32_t by):
        """Move the device's own index of "rx" or "completion" on, past what it has written: a corrupt ring."""
        hold(<void *> self.wire)
        cdef uint32_t *index
        self._require_open()
        index = self.rx.producer if ring == "rx" else self.completion.producer
        store_release(index, load_acquire(index) + by)


cdef SimulatedQueue open_queue(FramePool pool, SimulatedDevice device, uint32_t queue, object options):
    cdef SimulatedQueue self, other
    cdef int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    cdef uint32_t at, i
    if fd < 0:
        raise Error("cannot make the eventfd of a simulated queue", errno)
    self = SimulatedQueue.__new__(SimulatedQueue, fd, "simulated queue")
    memset(self.statistics, 0, sizeof(self.statistics))
    self.device, self.wire, self.queue_id = device, device.wire, queue
    self.headroom = options.rx_headroom(pool)
    self.timestamps, self.multi_buffer = options.wants_timestamps, options.multi_buffer
    self.pieces = b""
    self.join(pool)
    self.block = Region(4 * (192 + 64) + 16 * (<size_t> options.rx_ring + <size_t> options.tx_ring)
                        + 8 * (<size_t> options.fill_entries(pool) + 2 * <size_t> options.completion_ring))
    at = self.lay_out(&self.rx, options.rx_ring, 16, 0)
    at = self.lay_out(&self.tx, options.tx_ring, 16, at)
    at = self.lay_out(&self.fill, options.fill_entries(pool), 8, at)
    at = self.lay_out(&self.completion, options.completion_ring, 8, at)
    self.late = <uint64_t *> (self.block.base + at)
    self.has_rings = True
    self.refill()
    for i in range(self.wire.open_queues):
        other = <SimulatedQueue> self.wire.queues[i]
        if other.device is device and other.queue_id == queue:
            raise Error(f"queue {queue} of {device.name} is taken: close that socket, or use another queue", EBUSY)
    self.wire.plug_in(self)
    return self


@cython.final
@cython.no_gc_clear
cdef class SimulatedDevice:
    """A network device on a `Wire`; give it to `XdpUdpSocket.open` or `XdpIpPacketSocket.open` in place of a name.

    `addresses` are "192.0.2.1/24" or "2001:db8::1/64" texts. Its router knows the addresses of every device on the
    wire: there are no neighbours to wait for.
    """

    zero_copy = False
    driver_name = "simulated"
    numa_node = NumaNode(-1)

    def __cinit__(self, wire, name="sim0", *, addresses=(), mac=None, mtu=1500, queues=1):
        if not isinstance(wire, Wire):
            raise ConfigError(f"wire is {wire!r}: give a Wire")
        if not isinstance(name, str):
            raise ConfigError(f"name is {name!r}: give a str")
        for what, value, least, most in (("mtu", mtu, 68, 65_535), ("queues", queues, 1, 64)):
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{what} is {value!r}: give an int from {least} to {most}")
        try:
            self.addresses = tuple([ip_interface(text) for text in addresses])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"addresses is {addresses!r}: {error}") from None
        number = len(wire.devices) + 1
        if mac is None:
            mac = bytes((2, 0, 0, 0, number >> 8 & 255, number & 255))
        if not isinstance(mac, bytes) or len(mac) != 6 or mac[0] & 1:
            raise ConfigError(f"mac is {mac!r}: give six bytes, not those of a group")
        self.mac, self.wire, self.name, self.mtu, self.queue_count = mac, wire, name, mtu, queues
        self.ifindex = IfIndex(FIRST_INDEX + number)
        self.wire.devices.append(self)
        self.wire.generation += 1

    def __repr__(self):
        return f"<SimulatedDevice {self.name}>"

    @property
    def queues(self):
        """A CPU for each, in turn."""
        cpus = available_cpus()
        return tuple(QueueAffinity(QueueId(i), (cpus[i % len(cpus)],)) for i in range(self.queue_count))

    def capabilities(self):
        """What it does: a `Capabilities`."""
        return Capabilities(native_xdp=Support.YES, zero_copy=Support.NO, multi_buffer=Support.YES,
                            rx_timestamp=Support.YES, queues=self.queue_count)

    def refresh_mtu(self):
        """The MTU, which nobody else changes."""
        return self.mtu

    def make_router(self, source=None):
        """A router over the addresses on the wire."""
        return SimulatedRouter(self)

    def open_queue(self, pool, queue, options):
        """What the sockets open; see `fast_socket.xdp.queue`."""
        if not isinstance(queue, int) or isinstance(queue, bool) or not 0 <= queue < self.queue_count:
            raise ConfigError(f"queue is {queue!r}: {self.name} has {self.queue_count} queue(s), from 0")
        if options.mode == "zero_copy":
            raise CapabilityError(f"{self.name} is simulated, it has no zero-copy mode: use mode='auto' or 'copy'")
        return open_queue(pool, self, queue, options)

    def attach(self, queue, number, options):
        """Nothing: every packet of the queue is redirected."""
        if options.program is not None:
            raise ConfigError(f"program is given, but {self.name} is simulated and runs none: leave it out")
        if options.attach == "offload":
            raise CapabilityError(f"{self.name} is simulated, it has nothing to offload to: leave attach out")
        return None


@cython.final
@cython.no_gc_clear
cdef class SimulatedRouter:
    """Resolves the addresses of the devices on a wire, and groups. Satisfies `XdpUdpRouter`."""

    def __cinit__(self, SimulatedDevice device not None):
        self.device = device

    @property
    def generation(self):
        """Grows with every device that is plugged in."""
        return self.device.wire.generation

    def resolve(self, destination):
        """An `Egress`, or `Unresolved.NO_ROUTE`."""
        cdef SimulatedDevice device = self.device
        source = mac = None
        for address in device.addresses:
            if address.version == destination.version:
                source = address.ip
                break
        if destination.is_multicast:
            packed = destination.packed
            # RFC 1112, section 6.4; RFC 2464, section 7
            mac = (bytes((1, 0, 0x5E, packed[1] & 0x7F)) + packed[2:] if destination.version == 4
                   else b"\x33\x33" + packed[12:])
        for other in device.wire.devices:
            for address in other.addresses:
                if destination == address.ip:
                    mac = other.mac
                elif address.version == 4 and destination == address.network.broadcast_address:
                    mac = b"\xff" * 6
        if mac is None:
            return Unresolved.NO_ROUTE
        return Egress(interface=device.ifindex, source_mac=device.mac, destination_mac=mac, mtu=device.mtu,
                      source=source)
