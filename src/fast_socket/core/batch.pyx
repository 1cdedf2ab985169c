"""Batches: packets as a structure of arrays.

A batch has `capacity` slots. A slot holds one frame of the batch's pool and, in columns beside it, where in the frame
the packet lies, its peer, and the metadata that the socket was built with. Columns are numpy views of native memory:
reading ``rx.lengths`` copies nothing, and a system call or ring operation fills it without Python's help. They show
the present contents; a receive into the batch, or a send from it, changes them.

A receive batch keeps its frames from one receive to the next and replaces only those that were taken away, so that the
same warm memory is used again and again. A transmit batch takes frames from the pool, and gives them up slot by slot,
from the front, as the backend accepts them.

Thread rules: one thread at a time. A second one that touches a batch while a system call works on it is refused with
`Error`; nothing is lost.
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyBUF_SIMPLE, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_AsSsize_t
from cpython.ref cimport Py_REFCNT
from libc.errno cimport ENOBUFS
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset, strchr

import re

from fast_socket.core.addresses cimport (
    AF_INET, AF_INET6, HOST_V4_OFFSET, HOST_V6_OFFSET, PORT_OFFSET, STRIDE_V4, STRIDE_V6, read_record,
    write_record,
)
from fast_socket.core.frames cimport FramePool, Geometry, NO_FRAME, Slots, chunk_end, packet_start, put_frame
from fast_socket.core.handler cimport DROP, FORWARD, REFLECT, Handler, ask
from fast_socket.core.memory cimport Region, column as make_column
from fast_socket.core.packet cimport Packet, PacketBuffer, packet_in_batch
from fast_socket.core.section cimport NO_GIL, hold

from fast_socket.core.errors import BufferTakenError, ConfigError, Error
from fast_socket.core.metadata import Metadata

cdef enum:
    MAX_CAPACITY = 1 << 20
    LINE = 64
    ECN_DEFAULT = 255           # transmit: leave the socket's own

cdef object MOST_POINTER = int.from_bytes(sizeof(void *) * b"\xFF", "little")

# Returns whether the packet is kept: zero drops it. Called with the GIL released.


cdef size_t aligned(size_t size) noexcept:
    return (size + LINE - 1) & ~<size_t> (LINE - 1)


@cython.no_gc
cdef class Batch:
    """What receive and transmit batches share. `len` is the length of the columns: received packets, the
    places of taken ones included, or packets that are still to be sent.

    ``batch[i]`` and iteration give `PacketBuffer` handles; iteration passes over slots whose packet was taken.
    """

    def __cinit__(self, FramePool pool not None, capacity, *, bint v6, metadata=Metadata.NONE,
                  bint segment_sizes=False, bint local_ports=False, bint multi_buffer=False):
        cdef Slots *slots = &self.slots
        cdef size_t n
        cdef uint8_t *base
        if not isinstance(capacity, int) or isinstance(capacity, bool) or not 1 <= capacity <= MAX_CAPACITY:
            raise ConfigError(f"batch capacity is {capacity!r}: give an int from 1 to {MAX_CAPACITY}")
        if not isinstance(metadata, Metadata):
            raise ConfigError(f"batch metadata is {metadata!r}: give a Metadata")
        self.pool = pool
        self.capacity = n = capacity
        self.metadata = metadata
        self.mask = metadata.value
        slots.v6 = v6
        slots.address_stride = STRIDE_V6 if v6 else STRIDE_V4
        slots.host_size = 16 if v6 else 4
        local, ecn, ttl = Metadata.LOCAL in metadata, Metadata.ECN in metadata, Metadata.TTL in metadata
        vlan, checksum = Metadata.VLAN in metadata, Metadata.CHECKSUM in metadata
        times = bool(metadata & (Metadata.TIMESTAMP | Metadata.HARDWARE_TIMESTAMP | Metadata.TXTIME))
        # One region, each column on its own cache lines.
        self.block = Region(aligned(8 * n) + 2 * aligned(4 * n) + aligned(slots.address_stride * n)
                            + (aligned(slots.host_size * n) + aligned(4 * n) if local else 0)
                            + (aligned(n) if ecn else 0) + (aligned(n) if ttl else 0)
                            + (aligned(8 * n) if times else 0) + (aligned(4 * n) if segment_sizes else 0)
                            + (aligned(2 * n) if local_ports else 0) + (aligned(2 * n) if vlan else 0)
                            + (aligned(n) if checksum else 0) + (aligned(n) if multi_buffer else 0))
        base = self.block.base
        slots.offsets = <uint64_t *> base
        base += aligned(8 * n)
        slots.frames = <uint32_t *> base
        base += aligned(4 * n)
        slots.lengths = <uint32_t *> base
        base += aligned(4 * n)
        slots.addresses = base
        base += aligned(slots.address_stride * n)
        if local:
            slots.local_hosts = base
            base += aligned(slots.host_size * n)
            slots.interfaces = <uint32_t *> base
            base += aligned(4 * n)
        if ecn:
            slots.ecn = base
            base += aligned(n)
        if ttl:
            slots.ttl = base
            base += aligned(n)
        if times:
            slots.times = <int64_t *> base
            base += aligned(8 * n)
        if segment_sizes:
            slots.segment_sizes = <uint32_t *> base
            base += aligned(4 * n)
        if local_ports:
            slots.local_ports = <uint16_t *> base
            base += aligned(2 * n)
        if vlan:
            slots.vlan = <uint16_t *> base
            base += aligned(2 * n)
        if checksum:
            slots.checksum = base
            base += aligned(n)
        if multi_buffer:
            slots.continued = base
        memset(slots.frames, 0xFF, 4 * n)
        slots.vacant = self.capacity
        self.packets = [None] * self.capacity
        self.columns = {}
        slots.packets = <void *> self.packets

    def __dealloc__(self):
        hold(<void *> self.pool)
        cdef uint32_t slot
        cdef PacketBuffer packet
        if self.packets is None:
            return
        for packet in self.packets:
            if packet is not None:
                packet.forget()
        slot = self.capacity
        while slot:
            slot -= 1
            if self.slots.frames[slot] != NO_FRAME:
                put_frame(self.pool, self.slots.frames[slot])

    cdef int require_idle(self) except -1:
        if self.slots.busy:
            raise Error("another thread is sending or receiving with this batch: wait until it returns")
        return 0

    cdef int claim(self) except -1:
        """Raise unless every frame of the batch may be moved, sent or recycled now."""
        self.require_idle()
        if self.slots.exports:
            raise BufferError(f"{self.slots.exports} memoryview(s) of packets in this batch exist: release them, or "
                              f"take() the packets")
        return 0

    def __len__(self):
        hold(<void *> self.pool)
        return self.tail - self.head

    def __getitem__(self, index):
        hold(<void *> self.pool)
        cdef Py_ssize_t at = PyNumber_AsSsize_t(index, IndexError), count = self.tail - self.head
        if at < 0:
            at += count
        if not 0 <= at < count:
            raise IndexError(f"batch index {index} with {count} packets here")
        return self.packet_at(self.head + <uint32_t> at)

    def __iter__(self):
        hold(<void *> self.pool)
        return BatchIterator(self)

    cdef object packet_at(self, uint32_t slot):
        cdef PacketBuffer packet
        self.require_idle()
        if self.slots.frames[slot] == NO_FRAME:
            raise BufferTakenError(f"the packet in slot {slot - self.head} was taken, sent or dropped")
        packet = <PacketBuffer> self.packets[slot]
        if packet is not None:
            if packet.epoch == self.slots.epoch and packet.frame == self.slots.frames[slot]:
                return packet
            # The list and this function: somebody still has the stale handle. Without the GIL counts say less.
            if NO_GIL or Py_REFCNT(packet) > 2:
                packet.forget()
                packet = None
        packet = packet_in_batch(self.pool, &self.slots, slot, packet)
        self.packets[slot] = packet
        return packet

    cdef object column(self, str name, void *base, bytes dtype, Py_ssize_t itemsize, Py_ssize_t stride,
                       Py_ssize_t width, bint readonly):
        """The live part of a column; the whole of it is made once."""
        whole = self.columns.get(name)
        if whole is None:
            import numpy
            whole = numpy.asarray(make_column(self.block, base, dtype, itemsize, self.capacity, stride, width,
                                              readonly))
            self.columns[name] = whole
        return whole[self.head:self.tail]

    cdef object optional_column(self, str name, void *base, bytes dtype, Py_ssize_t itemsize, Py_ssize_t stride,
                                Py_ssize_t width, bint readonly, str needed):
        if base == NULL:
            raise ConfigError(f"this socket was not built with the column {name}: make it with {needed}")
        return self.column(name, base, dtype, itemsize, stride, width, readonly)

    @property
    def memory(self):
        """uint8[bytes]: the pool's whole region, for numba and numpy; packet i is
        ``memory[offsets[i]:offsets[i] + lengths[i]]``. Raw: what is read here after the next receive is somebody
        else's packet."""
        hold(<void *> self.pool)
        whole = self.columns.get("memory")
        if whole is None:
            import numpy
            whole = self.columns["memory"] = numpy.frombuffer(self.pool.memory, dtype=numpy.uint8)
        return whole

    @property
    def offsets(self):
        """uint64[n], read-only: where each packet starts, in bytes from the pool's start."""
        hold(<void *> self.pool)
        return self.column("offsets", self.slots.offsets, b"Q", 8, 8, 1, True)

    @property
    def frames(self):
        """uint32[n], read-only: frame ids; 2**32 - 1 where the packet was taken."""
        hold(<void *> self.pool)
        return self.column("frames", self.slots.frames, b"I", 4, 4, 1, True)

    def gather(self, offset, dtype):
        """Column `dtype`[n] of the field at byte `offset` of every packet, say ``rx.gather(0, ">u2")`` for DNS ids.

        Zero where the packet is shorter or was taken. Raises `ConfigError` for a negative offset.
        """
        hold(<void *> self.pool)
        dtype = check_field_dtype(dtype)
        offset = check_field_offset(offset)
        self.require_idle()
        return gather_fields(self.pool, self.slots.frames + self.head, self.slots.offsets + self.head,
                             self.slots.lengths + self.head, self.tail - self.head, offset, dtype)


cdef object gather_fields(FramePool pool, uint32_t *frames, uint64_t *offsets, uint32_t *lengths, uint32_t count,
                          object offset, object dtype):
    """`frames` may be NULL, where every row is present."""
    import numpy
    result = numpy.zeros(count, dtype=dtype)
    cdef uint64_t at = offset
    cdef size_t size = result.dtype.itemsize
    cdef uint32_t i
    cdef Py_buffer target
    PyObject_GetBuffer(result.view(numpy.uint8) if count and size else numpy.zeros(0, numpy.uint8), &target,
                       PyBUF_SIMPLE)
    try:
        for i in range(count if size else 0):
            # Lengths of a transmit batch are anybody's to write: the region is the bound that cannot be moved.
            if ((frames == NULL or frames[i] != NO_FRAME) and at + size <= lengths[i]
                    and offsets[i] + at + size <= pool.memory.size):
                memcpy(<uint8_t *> target.buf + i * size, pool.base + offsets[i] + at, size)
    finally:
        PyBuffer_Release(&target)
    return result


cdef object check_field_dtype(object dtype):
    """A numpy dtype of plain bytes. Whatever of the caller's runs here runs before the batch is looked at."""
    import numpy
    try:
        plain = numpy.dtype(dtype) if dtype is not None else None
    except TypeError as error:
        raise ConfigError(f"gather dtype {dtype!r}: {error}") from None
    if plain is None or plain.hasobject or plain.subdtype is not None:
        raise ConfigError(f"gather dtype {dtype!r}: give a dtype of plain bytes, not of objects or arrays")
    return plain


cdef object check_field_offset(object offset):
    """An exact int: one of a subclass could answer otherwise the next time."""
    if isinstance(offset, int) and not isinstance(offset, bool):
        plain = int.__index__(offset)
        if 0 <= plain <= 0xFFFFFFFF:
            return plain
    raise ConfigError(f"field offset is {offset!r}: give a byte offset from 0")


cdef int open_source(object payload, Py_buffer *source, str what) except -1:
    """A C-contiguous view of plain values: pointers to objects do not belong on a wire."""
    try:
        PyObject_GetBuffer(payload, source, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    except (ValueError, BufferError) as error:
        raise ConfigError(f"{what}: {error}; numpy.ascontiguousarray makes a copy that will do") from None
    # In a structured format (PEP 3118) what stands between colons are names.
    if (source.format != NULL and strchr(source.format, b"O") != NULL
            and b"O" in re.sub(rb":[^:]*:", b"", <bytes> source.format)):
        PyBuffer_Release(source)
        raise ConfigError(f"{what}: an array of Python objects: give numbers or bytes")
    return 0


@cython.final
@cython.no_gc
cdef class BatchIterator:
    cdef Batch batch
    cdef uint32_t slot

    def __cinit__(self, Batch batch not None):
        self.batch, self.slot = batch, batch.head

    def __iter__(self):
        return self

    def __next__(self):
        hold(<void *> self.batch.pool)
        while self.slot < self.batch.tail:
            self.slot += 1
            if self.batch.slots.frames[self.slot - 1] != NO_FRAME:
                return self.batch.packet_at(self.slot - 1)
        raise StopIteration


@cython.no_gc
cdef class RecvBatch(Batch):
    """Reusable receive storage: `socket.recv(batch)` replaces its contents."""

    cdef int vacate(self) except -1:
        """Forget the contents and let every frame go home, for a backend whose frames come with the packets."""
        cdef Slots *slots = &self.slots
        cdef FramePool pool = self.pool
        cdef uint32_t i = self.tail
        self.claim()
        slots.epoch += 1
        while i:
            i -= 1
            if slots.frames[i] != NO_FRAME:
                put_frame(pool, slots.frames[i])
                slots.frames[i] = NO_FRAME
        slots.vacant = 0
        self.head = self.tail = 0
        self.datagram_total = 0
        return 0

    cdef uint32_t replace(self) except 0:
        """Forget the contents and give every slot a frame; returns how many slots, from the first, have one."""
        cdef Slots *slots = &self.slots
        cdef FramePool pool = self.pool
        cdef uint32_t i, last = self.capacity
        self.claim()
        slots.epoch += 1
        self.head = self.tail = 0
        self.datagram_total = 0
        self.refilled = slots.vacant != 0
        if self.refilled:
            slots.vacant = 0
            for i in range(self.capacity):
                if slots.frames[i] == NO_FRAME and pool.rx_free:
                    pool.rx_free -= 1
                    slots.frames[i] = pool.rx_stack[pool.rx_free]
                elif slots.frames[i] == NO_FRAME:
                    # The pool is empty: close the gap with the last frame that the batch has.
                    while last > i + 1 and slots.frames[last - 1] == NO_FRAME:
                        last -= 1
                    if last <= i + 1:
                        slots.vacant = self.capacity - i
                        break
                    last -= 1
                    slots.frames[i], slots.frames[last] = slots.frames[last], NO_FRAME
        if slots.vacant == self.capacity:
            raise Error(f"all {pool.rx_frames} receive frames are taken: release packets, or ask for more with "
                        f"rx_frames", ENOBUFS)
        return self.capacity - slots.vacant

    @property
    def datagram_count(self):
        """Datagrams that the last receive delivered: more than slots where GRO coalesced them."""
        hold(<void *> self.pool)
        return self.datagram_total

    @property
    def lengths(self):
        """uint32[n], read-only: bytes of each packet."""
        hold(<void *> self.pool)
        return self.column("lengths", self.slots.lengths, b"I", 4, 4, 1, True)

    @property
    def source_addresses(self):
        """uint8[n, 4] for an IPv4 socket, uint8[n, 16] for an IPv6 or dual-stack one (IPv4 peers are IPv4-mapped);
        network byte order, read-only."""
        hold(<void *> self.pool)
        return self.column("source_addresses", self.slots.addresses + (HOST_V6_OFFSET if self.slots.v6 else
                           HOST_V4_OFFSET), b"B", 1, self.slots.address_stride, self.slots.host_size, True)

    @property
    def source_ports(self):
        """uint16[n], big-endian dtype (compares as usual), read-only."""
        hold(<void *> self.pool)
        return self.column("source_ports", self.slots.addresses + PORT_OFFSET, b">H", 2, self.slots.address_stride, 1,
                           True)

    @property
    def local_addresses(self):
        """Where each datagram was sent to; shape and form as `source_addresses`. Needs Metadata.LOCAL."""
        hold(<void *> self.pool)
        return self.optional_column("local_addresses", self.slots.local_hosts, b"B", 1, self.slots.host_size,
                                    self.slots.host_size, True, "Metadata.LOCAL")

    @property
    def interfaces(self):
        """uint32[n], read-only: the index of the interface it came in through. Needs Metadata.LOCAL."""
        hold(<void *> self.pool)
        return self.optional_column("interfaces", self.slots.interfaces, b"I", 4, 4, 1, True, "Metadata.LOCAL")

    @property
    def ecn(self):
        """uint8[n], read-only: the two ECN bits. Needs Metadata.ECN."""
        hold(<void *> self.pool)
        return self.optional_column("ecn", self.slots.ecn, b"B", 1, 1, 1, True, "Metadata.ECN")

    @property
    def ttl(self):
        """uint8[n], read-only: TTL or hop limit on arrival. Needs Metadata.TTL."""
        hold(<void *> self.pool)
        return self.optional_column("ttl", self.slots.ttl, b"B", 1, 1, 1, True, "Metadata.TTL")

    @property
    def timestamps(self):
        """int64[n], read-only: ns since the Unix epoch, 0 where the kernel gave none. Needs Metadata.TIMESTAMP or
        HARDWARE_TIMESTAMP."""
        hold(<void *> self.pool)
        return self.optional_column("timestamps", self.slots.times, b"q", 8, 8, 1, True,
                                    "Metadata.TIMESTAMP or Metadata.HARDWARE_TIMESTAMP")

    @property
    def local_ports(self):
        """uint16[n], big-endian dtype, read-only: the port that each datagram was sent to, on a socket that has
        several."""
        hold(<void *> self.pool)
        return self.optional_column("local_ports", self.slots.local_ports, b">H", 2, 2, 1, True, "several ports")

    @property
    def vlan(self):
        """uint16[n], read-only: the outer 802.1Q tag control information, 0 for untagged. Needs Metadata.VLAN."""
        hold(<void *> self.pool)
        return self.optional_column("vlan", self.slots.vlan, b"H", 2, 2, 1, True, "Metadata.VLAN")

    @property
    def checksum(self):
        """uint8[n], read-only: a `ChecksumStatus`. Needs Metadata.CHECKSUM."""
        hold(<void *> self.pool)
        return self.optional_column("checksum", self.slots.checksum, b"B", 1, 1, 1, True, "Metadata.CHECKSUM")

    @property
    def continued(self):
        """uint8[n], read-only: 1 where the packet goes on in the next slot. Needs multi_buffer=True."""
        hold(<void *> self.pool)
        return self.optional_column("continued", self.slots.continued, b"B", 1, 1, 1, True, "multi_buffer=True")

    @property
    def gro_strides(self):
        """uint32[n], read-only: bytes of each datagram in a coalesced packet (the last may be shorter), else its
        length. Needs gro=True."""
        hold(<void *> self.pool)
        return self.optional_column("gro_strides", self.slots.segment_sizes, b"I", 4, 4, 1, True, "gro=True")

    def datagrams(self):
        """The packets walked as single datagrams: a `Datagrams`. Without GRO each packet is one."""
        hold(<void *> self.pool)
        self.require_idle()
        return Datagrams(self)

    @property
    def handler_errors(self):
        """Packets that handlers failed on, since the batch was made: dropped by `run`."""
        hold(<void *> self.pool)
        return self.failed

    def run(self, handler, user=None, *, TxBatch reflect=None, TxBatch forward=None):
        """Call a compiled handler for every datagram, with the GIL released; returns how many packets stay here.

        `handler` is an address, or an object with an `address` attribute (`fast_socket.numba.packet_handler` makes
        one, a numba cfunc is one), of a C function::

            struct packet { uint32_t length, room, index, source_length; };
            int handler(struct packet *packet, uint8_t *data, uint8_t *source, void *user);

        `data` is the datagram, `packet->length` bytes, in its frame: it may be rewritten, and grow or shrink by a new
        `length`, to `room` at the most. `index` is its packet's in the columns. `source` is its sender's address
        record, `source_length` bytes: a sockaddr_in, or a sockaddr_in6 for an IPv6 or dual-stack socket, whose family
        cannot be changed; else zero in a batch of IP packets.
        `user` is an address that is passed on; without one the handler's own, its `user` attribute, or NULL. The
        handler returns

        - 0, DROP: the packet leaves the batch and its frame returns to the pool.
        - 1, KEEP, and any other number: it stays.
        - 2, REFLECT: it moves to the transmit batch `reflect`, addressed to what `source` holds now, from the address
          that it was sent to where both batches have Metadata.LOCAL. IP packets cannot be reflected.
        - 3, FORWARD: it moves to the transmit batch `forward`, its destination left to the caller.
        - below 0: it failed. The packet is dropped and counted in `handler_errors`, as is one with a length beyond
          `room`.

        A packet stays where there is no such batch, or no room in it, and where it would be reflected to port 0. A
        coalesced packet gets the largest verdict of its datagrams, and their lengths cannot change.

        Raises `ConfigError` where a transmit batch is of another pool or cannot take the packets (`take_from`), or
        these are in pieces; `BufferError` while packets are viewed. An address is called as it is: a wrong one
        crashes, as it would anywhere else.
        """
        hold(<void *> self.pool)
        cdef uintptr_t address = check_pointer(getattr(handler, "address", handler), "handler")
        cdef void *context = <void *> <uintptr_t> check_pointer(
            (getattr(handler, "user", 0) if user is None else user), "user")
        cdef Slots *slots = &self.slots
        cdef FramePool pool = self.pool
        cdef Geometry geometry = pool.geometry
        cdef uint8_t *base = pool.base
        cdef uint32_t i, kept = 0
        cdef int verdict
        if address == 0:
            raise ConfigError("the handler's address is 0: give the address of a compiled function")
        self.claim()
        if reflect is not None:
            reflect.require_source(self, True)
        if forward is not None:
            forward.require_source(self, False)
        if slots.continued != NULL and (reflect is not None or forward is not None):
            raise ConfigError("run: packets in pieces cannot be moved by a handler: keep them, then take_from")
        # Both may be the same batch: it is cleared twice.
        if reflect is not None:
            reflect.await_handler(self.tail - self.head)
        if forward is not None:
            forward.await_handler(self.tail - self.head)
        slots.busy = True
        try:
            with nogil:
                for i in range(self.head, self.tail):
                    if slots.frames[i] == NO_FRAME:
                        continue
                    verdict = ask(<Handler> address, context, base, &geometry, slots, i, self.head)
                    if verdict < 0:
                        self.failed += 1
                    if verdict <= DROP:
                        slots.lengths[i] |= DROP_MARK
                    elif verdict == REFLECT and reflect is not None and port_of(slots, i):
                        reflect.move_in(slots, i, True)
                    elif verdict == FORWARD and forward is not None:
                        forward.move_in(slots, i, False)
        finally:
            slots.busy = False
            if reflect is not None:
                reflect.slots.busy = False
            if forward is not None:
                forward.slots.busy = False
        for i in range(self.head, self.tail):
            if slots.frames[i] != NO_FRAME and slots.lengths[i] & DROP_MARK:
                slots.lengths[i] &= ~<uint32_t> DROP_MARK
                put_frame(pool, slots.frames[i])
                slots.frames[i] = NO_FRAME
                slots.vacant += 1
            elif slots.frames[i] != NO_FRAME:
                kept += 1
        return kept

# Chunks are at most 1 GiB (BufferLayout), so a length never has this bit.
cdef enum:
    DROP_MARK = 0x80000000


@cython.final
cdef class Datagrams:
    """The datagrams of a receive batch, coalesced ones taken apart, as columns: `slots` uint32[m] (which packet of the
    batch), `offsets` uint64[m], `lengths` uint32[m], as in the batch. ``datagrams[i]`` and iteration give bytes; for
    no copy, use the columns with ``batch.memory``. Valid until the batch is received into again, or the packet is
    taken or trimmed: then `BufferTakenError`."""

    def __cinit__(self, RecvBatch batch not None):
        import numpy
        cdef Slots *source = &batch.slots
        cdef uint32_t i, stride, left
        cdef size_t total = 0, at = 0
        cdef uint64_t offset
        batch.require_idle()
        self.batch, self.epoch, self.vacant = batch, source.epoch, source.vacant
        for i in range(batch.head, batch.tail):
            if source.frames[i] != NO_FRAME:
                stride = source.segment_sizes[i] if source.segment_sizes != NULL else 0
                total += (source.lengths[i] + stride - 1) // stride if stride and source.lengths[i] else 1
        # Columns over bytes: unlike arrays that own their data, nobody can make them writable.
        self.count = total
        self.block = PyBytes_FromStringAndSize(NULL, 16 * total)
        self.native_offsets = <uint64_t *> PyBytes_AS_STRING(self.block)
        self.native_lengths = <uint32_t *> (self.native_offsets + total)
        self.native_slots = self.native_lengths + total
        for i in range(batch.head, batch.tail):
            if source.frames[i] == NO_FRAME:
                continue
            left, offset = source.lengths[i], source.offsets[i]
            stride = source.segment_sizes[i] if source.segment_sizes != NULL else 0
            if stride == 0:
                stride = left
            while True:
                self.native_offsets[at] = offset
                self.native_lengths[at] = min(stride, left)
                self.native_slots[at] = i - batch.head
                at += 1
                if left <= stride:
                    break
                left -= stride
                offset += stride
        self.offsets = numpy.frombuffer(self.block, numpy.uint64, total)
        self.lengths = numpy.frombuffer(self.block, numpy.uint32, total, 8 * total)
        self.slots = numpy.frombuffer(self.block, numpy.uint32, total, 12 * total)

    cdef int require_current(self) except -1:
        self.batch.require_idle()
        if self.batch.slots.epoch != self.epoch:
            raise BufferTakenError("the batch was received into again: walk it anew")
        return 0

    cdef size_t checked(self, object index) except? 0xFFFFFFFFFFFFFFFF:
        cdef Py_ssize_t at = PyNumber_AsSsize_t(index, IndexError)
        self.require_current()
        if at < 0:
            at += self.count
        if not 0 <= at < <Py_ssize_t> self.count:
            raise IndexError(f"datagram {index} of {self.count}")
        return at

    def __len__(self):
        hold(<void *> self.batch.pool)
        return self.count

    def __getitem__(self, index):
        hold(<void *> self.batch.pool)
        cdef size_t at = self.checked(index)
        cdef uint32_t slot = self.native_slots[at], length = self.native_lengths[at]
        cdef uint64_t offset = self.native_offsets[at]
        cdef Slots *slots = &self.batch.slots
        if (slots.frames[slot] == NO_FRAME or offset < slots.offsets[slot]
                or offset + length > slots.offsets[slot] + slots.lengths[slot]):
            raise BufferTakenError("this datagram's packet was taken or trimmed since the walk")
        return (<const char *> self.batch.pool.base + offset)[:length]

    def __iter__(self):
        hold(<void *> self.batch.pool)
        return (self[i] for i in range(len(self)))

    def source(self, index):
        """(host, port) that datagram `index` came from."""
        hold(<void *> self.batch.pool)
        cdef size_t at = self.checked(index)
        return read_record(self.batch.slots.addresses
                           + <size_t> self.native_slots[at] * self.batch.slots.address_stride)

    def gather(self, offset, dtype):
        """Column of the field at byte `offset` of every datagram, as `RecvBatch.gather`."""
        hold(<void *> self.batch.pool)
        dtype = check_field_dtype(dtype)
        offset = check_field_offset(offset)
        self.require_current()
        if self.batch.slots.vacant != self.vacant:
            raise BufferTakenError("packets were taken since the walk: gather first")
        return gather_fields(self.batch.pool, NULL, self.native_offsets, self.native_lengths, <uint32_t> self.count,
                             offset, dtype)


cdef void copy_rare(const Slots *src, uint32_t i, Slots *dst, uint32_t to, bint ports, bint pieces) noexcept nogil:
    """Out of the loop's way: few sockets have such columns."""
    if ports:
        dst.local_ports[to] = src.local_ports[i]
    if pieces:
        dst.continued[to] = src.continued[i]


cdef inline uint16_t port_of(const Slots *slots, uint32_t slot) noexcept nogil:
    """In network byte order."""
    cdef uint16_t port
    memcpy(&port, slots.addresses + <size_t> slot * slots.address_stride + PORT_OFFSET, 2)
    return port


cdef bint is_group(const uint8_t *host, bint v6) noexcept nogil:
    """Multicast or limited broadcast: nothing can be sent from there."""
    cdef int i
    if not v6:
        return host[0] >= 224
    for i in range(10):
        if host[i]:
            return host[0] == 0xFF
    return host[10] == 0xFF and host[11] == 0xFF and host[12] >= 224


@cython.no_gc
cdef class TxBatch(Batch):
    """Packets on their way out. `len` counts those not yet accepted; `socket.send(batch)` accepts from the front.

    Room that a partial send frees returns when the batch is drained; `discard` drains it without sending.
    """

    def __cinit__(self, *args, **options):
        self.slots.transmit = True

    cdef void rewind(self) noexcept:
        """A drained batch starts again at its first slot; the handles of its past are stale."""
        if self.head == self.tail:
            self.head = self.tail = 0
            self.slots.epoch += 1

    cdef void clear_slots(self, uint32_t first, uint32_t count) noexcept:
        """The columns of slots that get new frames, back to "not set"."""
        cdef Slots *slots = &self.slots
        cdef uint16_t family = AF_INET6 if slots.v6 else AF_INET
        cdef uint32_t i
        memset(slots.addresses + <size_t> first * slots.address_stride, 0, <size_t> count * slots.address_stride)
        for i in range(first, first + count):
            memcpy(slots.addresses + <size_t> i * slots.address_stride, &family, 2)
        memset(slots.lengths + first, 0, 4 * <size_t> count)
        if slots.segment_sizes != NULL:
            memset(slots.segment_sizes + first, 0, 4 * <size_t> count)
        if slots.local_hosts != NULL:
            memset(slots.local_hosts + <size_t> first * slots.host_size, 0, <size_t> count * slots.host_size)
            memset(slots.interfaces + first, 0, 4 * <size_t> count)
        if slots.ecn != NULL:
            memset(slots.ecn + first, ECN_DEFAULT, count)
        if slots.ttl != NULL:
            memset(slots.ttl + first, 0, count)
        if slots.times != NULL:
            memset(slots.times + first, 0, 8 * <size_t> count)
        if slots.local_ports != NULL:
            memset(slots.local_ports + first, 0, 2 * <size_t> count)
        if slots.vlan != NULL:
            memset(slots.vlan + first, 0, 2 * <size_t> count)
        if slots.continued != NULL:
            memset(slots.continued + first, 0, count)

    cdef uint32_t take_frames(self, uint32_t count) noexcept:
        """Give up to `count` further slots a fresh, empty frame."""
        cdef FramePool pool = self.pool
        cdef Geometry geometry = pool.geometry
        cdef uint32_t i, frame, first = self.tail
        count = min(count, min(self.capacity - first, pool.tx_free))
        self.clear_slots(first, count)
        for i in range(count):
            frame = pool.tx_stack[pool.tx_free - 1 - i]
            self.slots.frames[first + i] = frame
            self.slots.offsets[first + i] = packet_start(&geometry, frame)
        pool.tx_free -= count
        self.tail += count
        return count

    cdef void accept(self, uint32_t count) noexcept:
        """The first `count` pending slots are sent and their frames free: home they go, last one first."""
        cdef FramePool pool = self.pool
        cdef uint32_t i = self.head + count
        while i > self.head:
            i -= 1
            if self.slots.frames[i] != NO_FRAME:
                put_frame(pool, self.slots.frames[i])
                self.slots.frames[i] = NO_FRAME
        self.head += count
        self.rewind()

    @property
    def room(self):
        """Slots that can still be filled, frames of the pool permitting."""
        hold(<void *> self.pool)
        return self.capacity - self.tail

    @property
    def lengths(self):
        """uint32[n], writable: bytes of each packet. `send` refuses one that leaves its frame."""
        hold(<void *> self.pool)
        return self.column("lengths", self.slots.lengths, b"I", 4, 4, 1, False)

    @property
    def destination_addresses(self):
        """uint8[n, 4] or uint8[n, 16], network byte order, writable. Set the ports too: a slot with port 0 has no
        destination, and goes where the socket is connected to."""
        hold(<void *> self.pool)
        return self.column("destination_addresses", self.slots.addresses + (HOST_V6_OFFSET if self.slots.v6 else
                           HOST_V4_OFFSET), b"B", 1, self.slots.address_stride, self.slots.host_size, False)

    @property
    def destination_ports(self):
        """uint16[n], big-endian dtype, writable."""
        hold(<void *> self.pool)
        return self.column("destination_ports", self.slots.addresses + PORT_OFFSET, b">H", 2,
                           self.slots.address_stride, 1, False)

    def set_destinations(self, to):
        """One peer for every pending slot; single ones can then be changed through the columns."""
        hold(<void *> self.pool)
        cdef uint8_t record[STRIDE_V6]
        cdef uint32_t i
        write_destination(record, self.slots.v6, to)
        self.require_idle()
        for i in range(self.head, self.tail):
            memcpy(self.slots.addresses + <size_t> i * self.slots.address_stride, record, self.slots.address_stride)

    @property
    def segment_sizes(self):
        """uint32[n], writable: a packet longer than this leaves as datagrams of this size (GSO, or split in native
        code where there is none); 0 sends it as one datagram."""
        hold(<void *> self.pool)
        return self.optional_column("segment_sizes", self.slots.segment_sizes, b"I", 4, 4, 1, False,
                                    "a tx_batch that segments")

    @property
    def source_addresses(self):
        """As `destination_addresses`: where each packet is to leave from; all zero lets the kernel choose. Needs
        Metadata.LOCAL."""
        hold(<void *> self.pool)
        return self.optional_column("source_addresses", self.slots.local_hosts, b"B", 1, self.slots.host_size,
                                    self.slots.host_size, False, "Metadata.LOCAL")

    @property
    def interfaces(self):
        """uint32[n], writable: the interface to leave through, 0 for any. Needs Metadata.LOCAL."""
        hold(<void *> self.pool)
        return self.optional_column("interfaces", self.slots.interfaces, b"I", 4, 4, 1, False, "Metadata.LOCAL")

    @property
    def ecn(self):
        """uint8[n], writable: the two ECN bits, 255 for the socket's own. Needs Metadata.ECN."""
        hold(<void *> self.pool)
        return self.optional_column("ecn", self.slots.ecn, b"B", 1, 1, 1, False, "Metadata.ECN")

    @property
    def ttl(self):
        """uint8[n], writable: TTL or hop limit, 0 for the socket's own. Needs Metadata.TTL."""
        hold(<void *> self.pool)
        return self.optional_column("ttl", self.slots.ttl, b"B", 1, 1, 1, False, "Metadata.TTL")

    @property
    def source_ports(self):
        """uint16[n], big-endian dtype, writable: the port to leave from, 0 for the socket's own; on a socket that has
        several."""
        hold(<void *> self.pool)
        return self.optional_column("source_ports", self.slots.local_ports, b">H", 2, 2, 1, False, "several ports")

    @property
    def continued(self):
        """uint8[n], writable: 1 where the packet goes on in the next slot. Needs multi_buffer=True."""
        hold(<void *> self.pool)
        return self.optional_column("continued", self.slots.continued, b"B", 1, 1, 1, False, "multi_buffer=True")

    @property
    def departure_times(self):
        """int64[n], writable: ns on the socket's pacing clock, 0 for now. Needs Metadata.TXTIME."""
        hold(<void *> self.pool)
        return self.optional_column("departure_times", self.slots.times, b"q", 8, 8, 1, False, "Metadata.TXTIME")

    def allocate(self, count=None):
        """Take `count` empty frames from the pool into further slots, all that fit by default; returns how many there
        were. Raises `ConfigError` for a negative count."""
        hold(<void *> self.pool)
        cdef uint32_t wanted = check_count(count, "allocate")
        self.require_idle()
        return self.take_frames(wanted)

    def fill(self, payload):
        """Write the payload of every pending slot: one bytes-like for all, or a C-contiguous 2-D array with a row for
        each. Sets the lengths. Raises `ConfigError` where a row is missing or a frame too small."""
        hold(<void *> self.pool)
        cdef Py_buffer source
        cdef Slots *slots = &self.slots
        cdef uint32_t i, count
        cdef size_t size, step = 0
        cdef uint64_t start
        cdef Geometry geometry = self.pool.geometry
        cdef uint8_t *base = self.pool.base
        cdef const uint8_t *data
        open_source(payload, &source, "fill")
        try:
            self.claim()
            count = self.tail - self.head
            size = source.len
            if source.ndim == 2:
                if <uint32_t> source.shape[0] != count:
                    raise ConfigError(f"fill: {source.shape[0]} rows for {count} pending packets: give one for each")
                size = step = source.shape[1] * source.itemsize
            elif source.ndim > 2:
                raise ConfigError(f"fill: an array of {source.ndim} dimensions: give bytes or rows of bytes")
            data = <const uint8_t *> source.buf
            for i in range(self.head, self.tail):
                start = packet_start(&geometry, slots.frames[i])
                if start + size > chunk_end(&geometry, slots.frames[i]):
                    raise ConfigError(f"fill: {size} bytes do not fit a frame of "
                                      f"{chunk_end(&geometry, slots.frames[i]) - start}: open the socket with "
                                      f"tx_layout=BufferLayout(payload_capacity={size})")
                slots.offsets[i] = start
                slots.lengths[i] = <uint32_t> size
                memcpy(base + start, data, size)
                data += step
        finally:
            PyBuffer_Release(&source)

    def scatter(self, offset, values):
        """Write value i of a 1-D numpy array, as its dtype lays it out, at byte `offset` of pending packet i.

        Raises `ConfigError` where a value is missing or a packet too short.
        """
        hold(<void *> self.pool)
        cdef Py_buffer source
        cdef Slots *slots = &self.slots
        cdef uint32_t i, count
        cdef uint64_t at = check_field_offset(offset)
        cdef size_t size
        open_source(values, &source, "scatter")
        try:
            self.claim()
            count = self.tail - self.head
            if source.ndim != 1 or source.shape[0] != count:
                raise ConfigError(f"scatter: give a 1-D array of {count} values, one for each pending packet")
            size = source.itemsize
            for i in range(count):
                if at + size > slots.lengths[self.head + i]:
                    raise ConfigError(f"scatter: {size} bytes at {at} are outside packet {i} of "
                                      f"{slots.lengths[self.head + i]} bytes: fill it first")
                if (slots.offsets[self.head + i] + at + size
                        > chunk_end(&self.pool.geometry, slots.frames[self.head + i])):
                    raise ConfigError(f"scatter: packet {i} is longer than its frame")
                memcpy(self.pool.base + slots.offsets[self.head + i] + at, <uint8_t *> source.buf + i * size, size)
        finally:
            PyBuffer_Release(&source)

    cdef int require_room(self) except -1:
        self.require_idle()
        if self.tail == self.capacity:
            raise Error(f"the transmit batch is full, {self.tail - self.head} of {self.capacity} slots are pending: "
                        f"send it first", ENOBUFS)
        return 0

    def append(self, data, to=None):
        """Add one packet. A `PacketBuffer` of the same pool is moved in, without a copy, and its handle is gone
        afterwards; anything bytes-like is copied into a fresh frame, other packets with their GRO stride. `to` is its
        destination; without it a packet goes to its own `address`, and bytes go where the socket is connected to.

        Raises `Error` (ENOBUFS) when the batch or the pool is full, `ConfigError` for a bad address or size,
        `BufferError` while the packet is viewed. On an error nothing has changed.
        """
        hold(<void *> self.pool)
        cdef uint8_t record[STRIDE_V6]
        cdef uint32_t slot
        cdef PacketBuffer packet
        cdef Py_buffer source
        cdef uint64_t capacity
        cdef uint32_t stride = 0
        if to is not None:
            write_destination(record, self.slots.v6, to)
        elif isinstance(data, Packet):
            address = data.address
            if address[1]:
                write_record(record, self.slots.v6, address, "destination")
                to = True
        if isinstance(data, PacketBuffer) and (<PacketBuffer> data).pool is self.pool:
            packet = data
            # Only now, and nothing is allocated from here on: the collector could run anybody's code.
            packet.locate_unexported()
            self.require_room()
            packet.detach()
            slot = self.tail
            self.clear_slots(slot, 1)
            self.slots.frames[slot], packet.frame = packet.frame, NO_FRAME
            self.slots.offsets[slot], self.slots.lengths[slot] = packet.offset, packet.length
            if self.slots.segment_sizes != NULL and packet.meta_copy.segment_size < packet.length:
                self.slots.segment_sizes[slot] = packet.meta_copy.segment_size
            self.tail += 1
        else:
            if isinstance(data, Packet):
                stride = data.meta().gro_stride or 0
            PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
            try:
                # Only now, because giving its buffer may have run anybody's code.
                self.require_room()
                slot = self.tail
                capacity = self.pool.geometry.tx_chunk - self.pool.geometry.tx_payload
                if <uint64_t> source.len > capacity:
                    raise ConfigError(f"a payload of {source.len} bytes does not fit a frame of {capacity}: open the "
                                      f"socket with tx_layout=BufferLayout(payload_capacity={source.len})")
                if self.take_frames(1) == 0:
                    raise Error(f"all {self.pool.tx_frames} transmit frames are in use: send or discard, or ask for "
                                f"more with tx_frames", ENOBUFS)
                memcpy(self.pool.base + self.slots.offsets[slot], source.buf, source.len)
                self.slots.lengths[slot] = <uint32_t> source.len
                if self.slots.segment_sizes != NULL and stride < <uint64_t> source.len:
                    self.slots.segment_sizes[slot] = stride
            finally:
                PyBuffer_Release(&source)
        if to is not None:
            memcpy(self.slots.addresses + <size_t> slot * self.slots.address_stride, record, self.slots.address_stride)

    cdef int require_source(self, RecvBatch source, bint reply) except -1:
        """Raise unless packets of that batch can move into this one now, replies or not."""
        if source.pool is not self.pool:
            raise ConfigError("the batches belong to different pools: open both sockets with the same pool=, or copy "
                              "with append()")
        if reply and source.slots.v6 != self.slots.v6:
            raise ConfigError("one batch is IPv4, the other IPv6: there is no way back; take_from(reply=False), or "
                              "forward= of run, and set destinations")
        return self.claim()

    cdef void await_handler(self, uint32_t count) noexcept:
        """Clear the slots that so many packets may move into, and keep everybody else off."""
        self.clear_slots(self.tail, min(self.capacity - self.tail, count))
        self.slots.busy = True

    cdef void move_in(self, Slots *src, uint32_t slot, bint reply) noexcept nogil:
        """One packet, into a slot that was cleared; where there is no room it stays."""
        cdef Slots *dst = &self.slots
        if self.tail < self.capacity:
            move_slot(src, slot, dst, self.tail, reply, reply and src.local_hosts != NULL and dst.local_hosts != NULL,
                      src.segment_sizes != NULL and dst.segment_sizes != NULL,
                      reply and src.local_ports != NULL and dst.local_ports != NULL, False)
            self.tail += 1

    def take_from(self, RecvBatch source not None, *, bint reply=True):
        """Move received packets in, without a copy, as many as there is room for; returns how many.

        They go back to their senders, from the address that they were sent to where both batches have
        Metadata.LOCAL; with ``reply=False`` the destinations are left to the caller. A GRO packet leaves as the
        datagrams that it came as. A packet in pieces moves as a whole or not at all. What did not fit stays in
        `source`, and so do packets from port 0, which nobody can answer (RFC 768), and what is left of a packet of
        which pieces were taken. Raises `ConfigError` where the batches are of different pools or families,
        `BufferError` while packets are viewed.
        """
        hold(<void *> self.pool)
        cdef Slots *src = &source.slots
        cdef Slots *dst = &self.slots
        cdef uint32_t i, to, first
        cdef bint local = reply and src.local_hosts != NULL and dst.local_hosts != NULL
        cdef bint sizes = src.segment_sizes != NULL and dst.segment_sizes != NULL
        cdef bint ports = reply and src.local_ports != NULL and dst.local_ports != NULL
        self.require_source(source, reply)
        source.claim()
        first = to = self.tail
        self.clear_slots(first, min(self.capacity - first, source.tail - source.head))
        if src.continued != NULL:
            to = self.take_whole(source, to, reply, local, sizes, ports)
        else:
            for i in range(source.head, source.tail):
                if to == self.capacity:
                    break
                if src.frames[i] == NO_FRAME or (reply and port_of(src, i) == 0):
                    continue
                move_slot(src, i, dst, to, reply, local, sizes, ports, False)
                to += 1
        self.tail = to
        return to - first

    cdef uint32_t take_whole(self, RecvBatch source, uint32_t to, bint reply, bint local, bint sizes,
                             bint ports) noexcept:
        """The loop of `take_from` for packets in pieces: each moves with all its slots, or stays."""
        cdef Slots *src = &source.slots
        cdef Slots *dst = &self.slots
        cdef uint32_t i = source.head, end
        while i < source.tail:
            end = behind_packet(src, i, source.tail)
            if (is_whole(src, i, end) and (dst.continued != NULL or end == i + 1)
                    and not (reply and port_of(src, i) == 0)):
                if to + (end - i) > self.capacity:
                    break
                while i < end:
                    move_slot(src, i, dst, to, reply, local, sizes, ports, dst.continued != NULL)
                    i += 1
                    to += 1
            i = end
        return to

    def discard(self, count=None):
        """Return the frames of the first `count` pending slots, all by default, to the pool without sending; returns
        how many there were."""
        hold(<void *> self.pool)
        cdef uint32_t wanted = check_count(count, "discard")
        self.claim()
        wanted = min(wanted, self.tail - self.head)
        self.accept(wanted)
        return wanted


cdef int write_destination(uint8_t *record, bint v6, object to) except -1:
    cdef uint16_t port
    write_record(record, v6, to, "destination")
    memcpy(&port, record + PORT_OFFSET, 2)
    if port == 0:
        raise ConfigError(f"destination {to!r}: nothing can be sent to port 0")
    return 0


cdef inline void move_slot(Slots *src, uint32_t i, Slots *dst, uint32_t to, bint reply, bint local, bint sizes,
                           bint ports, bint pieces) noexcept nogil:
    dst.frames[to], src.frames[i] = src.frames[i], NO_FRAME
    src.vacant += 1
    dst.offsets[to], dst.lengths[to] = src.offsets[i], src.lengths[i]
    if reply and dst.v6:        # constant sizes: a move or two, instead of a call
        memcpy(dst.addresses + <size_t> to * STRIDE_V6, src.addresses + <size_t> i * STRIDE_V6, STRIDE_V6)
    elif reply:
        memcpy(dst.addresses + <size_t> to * STRIDE_V4, src.addresses + <size_t> i * STRIDE_V4, STRIDE_V4)
    if local and not is_group(src.local_hosts + <size_t> i * src.host_size, src.v6):
        memcpy(dst.local_hosts + <size_t> to * dst.host_size, src.local_hosts + <size_t> i * dst.host_size,
               dst.host_size)
    if sizes and src.segment_sizes[i] < src.lengths[i]:
        dst.segment_sizes[to] = src.segment_sizes[i]
    if ports or pieces:
        copy_rare(src, i, dst, to, ports, pieces)


cdef uint32_t behind_packet(const Slots *slots, uint32_t slot, uint32_t tail) noexcept nogil:
    """The slot behind the pieces of the packet that begins in `slot`."""
    while slots.continued[slot] and slot + 1 < tail:
        slot += 1
    return slot + 1


cdef bint is_whole(const Slots *slots, uint32_t slot, uint32_t end) noexcept nogil:
    """Whether none of its pieces was taken."""
    while slot < end and slots.frames[slot] != NO_FRAME:
        slot += 1
    return slot == end


cdef uint32_t check_count(object count, str what) except? 0xFFFFFFFF:
    """A count as a C integer, with nothing of the caller's left to run afterwards; None is all."""
    if count is None:
        return 0xFFFFFFFF
    if isinstance(count, int) and not isinstance(count, bool):
        plain = int.__index__(count)
        if 0 <= plain <= 0xFFFFFFFF:
            return plain
    raise ConfigError(f"{what}({count!r}): give an int from 0, or nothing for all")


cdef uintptr_t check_pointer(object value, str what) except? 0:
    if isinstance(value, int) and not isinstance(value, bool):
        plain = int.__index__(value)
        if 0 <= plain <= MOST_POINTER:
            return plain
    raise ConfigError(f"{what} is {value!r}: give an address, an int from 0")
