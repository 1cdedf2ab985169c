"""A device queue as frames see it: the UMEM, its four rings, and which frame is where.

Frames go round: the pool's receive stack, FILL, RX, a batch, back to the stack; or the transmit stack, a batch, TX,
COMPLETION, back to the stack. A received frame may leave through TX as it is and comes home to the receive stack, from
where FILL takes it again. The stacks of the pool are the only hub.

Invariants
    - A frame is in exactly one place. `places` says which frames a device has: from the moment its address is written
      to FILL until its descriptor is read from RX a frame bears the queue's `filled` mark, from TX until COMPLETION its
      `sent` mark, and at any other time it is HOME.
    - What the device hands back is believed only if it names a frame that it has: anything else is counted as a bad
      descriptor, dropped, and reported once as `DeviceError`. So no frame is handed out twice.
    - No more frames are sent and not completed than COMPLETION has entries. The kernel's copy mode answers success and
      sends nothing
      when that ring is full (net/xdp/xsk.c); here it cannot be.
    - FILL is full before the queue is bound, and again after every receive.
    - Rings change only while the GIL is held; a system call that moves them on (`kick`) runs without it.
    - When the queue is closed, by whoever leaves it last, every frame that the device had goes home.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fast_socket.core.frames cimport FramePool, put_frame
from fast_socket.core.memory cimport Region
from fast_socket.core.section cimport hold
from fast_socket.xdp.headers cimport MOST_HEADER
from fast_socket.xdp.ring cimport Ring, address_at, available, load_acquire, room, store_release

from fast_socket.core.errors import ConfigError, DeviceError

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN

cdef enum:
    # Aligned chunks are powers of two from 2 KiB to a page: xdp_umem_reg in net/xdp/xdp_umem.c.
    LEAST_CHUNK = 2048


@cython.final
@cython.no_gc
cdef class Umem:
    """The book of which frames of a pool the device has. One for a pool, shared by the queues opened with it; the pool
    keeps it, it knows nothing of the pool."""

    def __cinit__(self, FramePool pool not None):
        cdef uint32_t chunk = pool.geometry.rx_chunk
        if pool.registration is not None:
            raise ConfigError("this pool is registered with a backend already")
        if chunk != pool.geometry.tx_chunk or chunk & (chunk - 1) or chunk < LEAST_CHUNK:
            raise ConfigError(f"the pool's chunks are {chunk} and {pool.geometry.tx_chunk} bytes: AF_XDP wants one "
                              f"power of two from {LEAST_CHUNK} for both; `umem_layouts` makes such layouts")
        if min(pool.geometry.rx_reserved, pool.geometry.tx_reserved) < MOST_HEADER:
            raise ConfigError(f"the pool's l2_headroom is {pool.geometry.rx_reserved} for receiving and "
                              f"{pool.geometry.tx_reserved} for sending: AF_XDP writes headers there and needs "
                              f"{MOST_HEADER} in both; `umem_layouts` makes such layouts")
        self.chunk_size = chunk
        self.frames = pool.rx_frames + pool.tx_frames
        while 1 << self.shift < chunk:
            self.shift += 1
        self.places_block = Region(<size_t> self.frames * sizeof(uint32_t))
        self.places = <uint32_t *> self.places_block.base
        self.registered_fd = -1

    def with_device(self, uint32_t first, uint32_t last):
        """How many of the frames from `first` to before `last` a device has."""
        cdef uint32_t i, count = 0
        for i in range(first, min(last, self.frames)):
            count += self.places[i] != HOME
        return count


def umem_of(FramePool pool not None):
    """The pool's `Umem`, made on first use. Raises `ConfigError` where its layouts do not suit."""
    hold(<void *> pool)
    if pool.registration is None:
        pool.registration = Umem(pool)
    if not isinstance(pool.registration, Umem):
        raise ConfigError("this pool belongs to another backend")
    return pool.registration


@cython.no_gc
cdef class Queue(Descriptor):
    """What the kernel's and the simulated queue share. A `Descriptor`, so that nothing is unmapped under a call."""

    def __cinit__(self, int fd, str what="socket"):
        memset(&self.counters, 0, sizeof(self.counters))

    cdef int join(self, FramePool pool) except -1:
        """Become one of the queues on this pool's memory."""
        hold(<void *> pool)
        self.pool, self.umem = pool, umem_of(pool)
        self.umem.queues += 1
        self.filled, self.sent = self.umem.queues << 1, self.umem.queues << 1 | 1
        return 0

    cdef int report(self) except -1:
        """Raise what there is to say of the device, once. What it can still do, later calls do."""
        cdef int error = self.pending_error
        if error:
            self.pending_error = 0
            raise DeviceError(f"the device behind this {self.what} refuses to work", error)
        if self.broken():
            raise DeviceError(f"the device behind this {self.what} moved an index past the end of its ring: close it")
        if self.counters.bad_descriptors and not self.bad_reported:
            self.bad_reported = True
            raise DeviceError(f"the device handed back {self.counters.bad_descriptors} descriptor(s) that it does not "
                              f"have, or must not: they were dropped, and more will be counted in silence")
        return 0

    cdef bint broken(self) noexcept nogil:
        """Whether RX or COMPLETION claims more than it holds: nothing of it can be believed any more."""
        return (self.rx.theirs - self.rx.ours > self.rx.size
                or self.completion.theirs - self.completion.ours > self.completion.size)

    cdef void refill(self) noexcept nogil:
        """Give every free receive frame to FILL, as far as it has room. GIL held."""
        cdef uint32_t i, frame, count = room(&self.fill, self.pool.rx_free)
        cdef Ring fill = self.fill
        cdef uint32_t *stack = self.pool.rx_stack + self.pool.rx_free
        cdef uint32_t *places = self.umem.places
        cdef uint32_t filled = self.filled, shift = self.umem.shift
        if count == 0:
            return
        for i in range(count):
            stack -= 1
            frame = stack[0]
            places[frame] = filled
            address_at(&fill, fill.ours + i)[0] = <uint64_t> frame << shift
        self.pool.rx_free -= count
        self.fill.ours += count
        store_release(self.fill.producer, self.fill.ours)

    cdef uint32_t drain(self) noexcept nogil:
        """Bring frames home that the device has sent; returns how many. GIL held."""
        cdef uint32_t i, frame, count = available(&self.completion, self.completion.size), home = 0
        cdef Ring completion = self.completion
        cdef uint32_t *places = self.umem.places
        cdef uint64_t address, memory = <uint64_t> self.umem.frames << self.umem.shift
        cdef uint32_t sent = self.sent, shift = self.umem.shift, rx_frames = self.pool.geometry.rx_frames
        cdef uint32_t *tx_top = self.pool.tx_stack + self.pool.tx_free
        cdef uint32_t *rx_top = self.pool.rx_stack + self.pool.rx_free
        if count == 0:
            return 0
        for i in range(count):
            address = address_at(&completion, completion.ours + i)[0]
            frame = <uint32_t> (address >> shift)
            if address >= memory or places[frame] != sent:
                self.counters.bad_descriptors += 1
                continue
            places[frame] = HOME
            if frame < rx_frames:
                rx_top[0] = frame
                rx_top += 1
            else:
                tx_top[0] = frame
                tx_top += 1
            home += 1
        self.pool.tx_free = <uint32_t> (tx_top - self.pool.tx_stack)
        self.pool.rx_free = <uint32_t> (rx_top - self.pool.rx_stack)
        self.completion.ours += count
        store_release(self.completion.consumer, self.completion.ours)
        self.outstanding -= home
        self.counters.completed += home
        return home

    cdef uint32_t sendable(self, uint32_t wanted) noexcept nogil:
        """Descriptors that TX takes now, `wanted` or fewer, so that each has a completion to come home by."""
        cdef uint32_t most = self.completion.size - self.outstanding
        return room(&self.tx, min(wanted, most))

    cdef uint32_t most_pieces(self) noexcept nogil:
        """Descriptors that empty rings take: a packet with more never leaves."""
        return min(self.tx.size, self.completion.size)

    cdef void publish_tx(self) noexcept nogil:
        store_release(self.tx.producer, self.tx.ours)

    cdef bint look(self, short events) noexcept nogil:
        """Readable: RX has something. Writable: a send finds room, or completions that make some."""
        if not self.has_rings:          # one that nobody opened
            return Descriptor.look(self, events)
        if events & POLLIN:
            return load_acquire(self.rx.producer) != self.rx.ours
        if self.has_room():
            return True
        self.kick()             # copy mode sends only when it is told to
        return self.has_room()

    cdef bint has_room(self) noexcept nogil:
        cdef bint completed = load_acquire(self.completion.producer) != self.completion.ours
        return (self.tx.ours - load_acquire(self.tx.consumer) < self.tx.size
                and (self.outstanding < self.completion.size or completed))

    cdef uint32_t filled_now(self) noexcept:
        """Frames in FILL and in RX."""
        if self.fd < 0:
            return 0
        return (self.fill.ours - load_acquire(self.fill.consumer)) + (load_acquire(self.rx.producer) - self.rx.ours)

    def device_statistics(self):
        """(rx_dropped, rx_invalid_descriptors, tx_invalid_descriptors, rx_ring_full, rx_fill_ring_empty, tx_ring_empty)
        as the device counts them."""
        return (0,) * 6

    cdef int kick(self) noexcept nogil:
        """Have the device look at TX; returns an errno that means the device is gone, or 0."""
        return 0

    cdef void wake_rx(self) noexcept nogil:
        """Have the device look at FILL, where it sleeps."""

    cdef void recover(self) noexcept:
        """The device has nothing any more: what it had goes home. GIL held."""
        hold(<void *> self.pool)
        cdef FramePool pool = self.pool
        cdef uint32_t frame = self.umem.frames if self.umem is not None else 0
        while frame:
            frame -= 1
            if self.umem.places[frame] == self.filled or self.umem.places[frame] == self.sent:
                self.umem.places[frame] = HOME
                put_frame(pool, frame)
        self.outstanding = 0
