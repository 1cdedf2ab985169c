"""Packets as objects: `PacketBuffer`, and `FrozenPacket`, its immutable form.

A batch keeps one permanent `PacketBuffer` per slot and hands it out again for the next packet, because a fresh object
per packet costs half as much again. A handle must therefore know whether the packet it was given for is still there:
it remembers the batch's epoch, which grows whenever the contents are replaced, and its frame, which leaves the slot
when it is sent or taken. Where someone still holds the old handle, the batch makes a new object instead, so a stale
handle stays stale for ever and never turns into somebody else's packet.

Memoryviews are counted, per packet and per batch. While one exists, whatever would move, send or recycle the bytes
under it raises `BufferError`; the view itself keeps the packet, and the packet the memory, alive.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo, PyObject_GetBuffer, PyBuffer_Release, PyBUF_SIMPLE
from cpython.number cimport PyNumber_AsSsize_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from fast_socket.core.addresses cimport STRIDE_V4, STRIDE_V6, ntohs, read_host, read_record, write_record
from fast_socket.core.frames cimport FramePool, NO_FRAME, Slots, chunk_end, lowest_start, put_frame
from fast_socket.core.section cimport hold

from fast_socket.core.errors import BufferTakenError, ConfigError, Error
from fast_socket.core.metadata import ChecksumStatus, Ecn, UdpRecvMeta

cdef enum:
    HAS_LOCAL = 1
    HAS_ECN = 2
    HAS_TTL = 4
    HAS_TIME = 8
    HAS_SEGMENT_SIZE = 16
    HAS_LOCAL_PORT = 32
    HAS_VLAN = 64
    HAS_CHECKSUM = 128


cdef unsigned int columns_of(Slots *slots) noexcept:
    return ((HAS_LOCAL if slots.local_hosts != NULL else 0) | (HAS_ECN if slots.ecn != NULL else 0)
            | (HAS_TTL if slots.ttl != NULL else 0) | (HAS_TIME if slots.times != NULL else 0)
            | (HAS_SEGMENT_SIZE if slots.segment_sizes != NULL else 0)
            | (HAS_LOCAL_PORT if slots.local_ports != NULL else 0) | (HAS_VLAN if slots.vlan != NULL else 0)
            | (HAS_CHECKSUM if slots.checksum != NULL else 0))


cdef void copy_meta(Slots *slots, uint32_t slot, PacketMeta *meta) noexcept:
    memcpy(meta.address, slots.addresses + <size_t> slot * slots.address_stride, slots.address_stride)
    if slots.local_hosts != NULL:
        memcpy(meta.local_host, slots.local_hosts + <size_t> slot * slots.host_size, slots.host_size)
        meta.interface = slots.interfaces[slot]
    if slots.ecn != NULL:
        meta.ecn = slots.ecn[slot]
    if slots.ttl != NULL:
        meta.ttl = slots.ttl[slot]
    if slots.times != NULL:
        meta.time = slots.times[slot]
    if slots.segment_sizes != NULL:
        meta.segment_size = slots.segment_sizes[slot]
    if slots.local_ports != NULL:
        meta.local_port = slots.local_ports[slot]
    if slots.vlan != NULL:
        meta.vlan = slots.vlan[slot]
    if slots.checksum != NULL:
        meta.checksum = slots.checksum[slot]


@cython.no_gc
cdef class Packet:
    """What `PacketBuffer` and `FrozenPacket` share: reading. Supports the buffer protocol, `len` and `bytes`."""

    def __cinit__(self):
        self.frame = NO_FRAME

    def __init__(self):
        raise TypeError("packets come from batches: batch[i], or iterate over the batch")

    def __dealloc__(self):
        hold(<void *> self.pool)
        if self.slots == NULL and self.frame != NO_FRAME:
            put_frame(self.pool, self.frame)

    cdef int locate(self) except -1:
        """Refresh offset and length. Raises BufferTakenError for a stale handle."""
        cdef Slots *slots = self.slots
        if slots != NULL:
            if slots.busy:
                raise Error("another thread is sending or receiving this packet's batch: wait until it returns")
            if slots.epoch == self.epoch and slots.frames[self.slot] == self.frame:
                self.load()
                return 0
        elif self.frame != NO_FRAME:
            return 0
        raise BufferTakenError(
            "this packet is gone: it was sent, taken, frozen, released, or replaced by a later receive; take() keeps "
            "one"
        )

    cdef void load(self) noexcept:
        """Copy offset and length out of the columns. Anybody may write any length into those of a transmit batch, at
        any time, so the copy is cut to the frame, and only the copy is used."""
        cdef uint64_t end = chunk_end(&self.pool.geometry, self.frame)
        self.offset = self.slots.offsets[self.slot]
        self.length = self.slots.lengths[self.slot]
        if self.offset + self.length > end:
            self.length = <uint32_t> (end - self.offset)

    cdef uint8_t *record(self) noexcept:
        """The peer's address record."""
        if self.slots == NULL:
            return &self.meta_copy.address[0]
        return self.slots.addresses + <size_t> self.slot * self.slots.address_stride

    cdef int detach(self) except -1:
        """Make the packet own its frame: after this no batch knows it."""
        self.locate()
        if self.slots == NULL:
            return 0
        if self.slots.transmit:
            raise ConfigError("a packet of a transmit batch stays there until it is sent or discarded")
        self.present = columns_of(self.slots)
        copy_meta(self.slots, self.slot, &self.meta_copy)
        self.slots.frames[self.slot] = NO_FRAME
        self.slots.vacant += 1
        self.slots.exports -= self.exports
        packets = <list> self.slots.packets
        self.slots = NULL
        packets[self.slot] = None
        return 0

    cdef void forget(self) noexcept:
        """The batch goes away or gives its slot to another object; frames that are being viewed stay with the view."""
        if self.slots == NULL:
            return
        if self.exports and self.slots.epoch == self.epoch and self.slots.frames[self.slot] == self.frame:
            self.load()
            self.present = columns_of(self.slots)
            copy_meta(self.slots, self.slot, &self.meta_copy)
            self.slots.frames[self.slot] = NO_FRAME
        else:
            self.frame = NO_FRAME
        self.slots = NULL

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        hold(<void *> self.pool)
        self.locate()
        PyBuffer_FillInfo(buffer, self, self.pool.base + self.offset, self.length, self.frozen, flags)
        self.exports += 1
        if self.slots != NULL:
            self.slots.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        hold(<void *> self.pool)
        self.exports -= 1
        if self.slots != NULL:
            self.slots.exports -= 1

    def __len__(self):
        hold(<void *> self.pool)
        self.locate()
        return self.length

    def __bytes__(self):
        hold(<void *> self.pool)
        self.locate()
        return (<char *> self.pool.base + self.offset)[:self.length]

    def __repr__(self):
        hold(<void *> self.pool)
        try:
            return f"<{type(self).__name__} frame {self.frame}, {len(self)} bytes>"
        except Error:
            return f"<{type(self).__name__}, gone>"

    cdef const uint8_t *bounded(self, object start, Py_ssize_t size) except NULL:
        cdef Py_ssize_t at = PyNumber_AsSsize_t(start, IndexError)
        self.locate()
        if at < 0 or size < 0 or at > <Py_ssize_t> self.length - size:
            raise IndexError(f"{size} bytes at offset {at} are not inside a packet of {self.length} bytes")
        return self.pool.base + self.offset + at

    def read(self, start, size):
        """`size` bytes from offset `start`. Raises `IndexError` where the packet is shorter."""
        hold(<void *> self.pool)
        cdef Py_ssize_t wanted = PyNumber_AsSsize_t(size, IndexError)
        return (<const char *> self.bounded(start, wanted))[:wanted]

    def u8(self, start):
        """The byte at offset `start`. Raises `IndexError`, as the readers of wider fields do."""
        hold(<void *> self.pool)
        return self.bounded(start, 1)[0]

    def u16(self, start):
        """The 16-bit field at offset `start`, network byte order."""
        hold(<void *> self.pool)
        cdef const uint8_t *at = self.bounded(start, 2)
        return at[0] << 8 | at[1]

    def u32(self, start):
        """The 32-bit field at offset `start`, network byte order."""
        hold(<void *> self.pool)
        return int.from_bytes((<const char *> self.bounded(start, 4))[:4], "big")

    def u64(self, start):
        """The 64-bit field at offset `start`, network byte order."""
        hold(<void *> self.pool)
        return int.from_bytes((<const char *> self.bounded(start, 8))[:8], "big")

    @property
    def frame(self):
        """The frame's id in its pool."""
        hold(<void *> self.pool)
        self.__len__()
        return self.frame

    @property
    def address(self):
        """The peer as (host, port): where it came from, or where it is to go; ("", 0) where none is set."""
        hold(<void *> self.pool)
        self.locate()
        return read_record(self.record())

    @address.setter
    def address(self, value):
        hold(<void *> self.pool)
        cdef uint8_t record[STRIDE_V6]
        if self.frozen:
            raise TypeError("a frozen packet cannot be changed")
        # Reading an address can run anybody's code: only then look where it goes.
        write_record(record, self.v6, value, "address")
        self.locate()
        memcpy(self.record(), record, STRIDE_V6 if self.v6 else STRIDE_V4)

    def meta(self):
        """This packet's metadata, as far as its socket delivers it: a `UdpRecvMeta`."""
        hold(<void *> self.pool)
        cdef PacketMeta meta
        cdef unsigned int present = self.present
        self.locate()
        if self.slots == NULL:
            meta = self.meta_copy
        else:
            memset(&meta, 0, sizeof(meta))
            present = columns_of(self.slots)
            copy_meta(self.slots, self.slot, &meta)
        return UdpRecvMeta(
            source=read_record(meta.address),
            local=read_host(meta.local_host, self.v6) if present & HAS_LOCAL else None,
            interface=meta.interface if present & HAS_LOCAL else None,
            ecn=Ecn(meta.ecn & 3) if present & HAS_ECN else None,
            ttl=meta.ttl if present & HAS_TTL else None,
            timestamp_ns=meta.time if present & HAS_TIME else None,
            gro_stride=meta.segment_size if present & HAS_SEGMENT_SIZE else None,
            local_port=ntohs(meta.local_port) if present & HAS_LOCAL_PORT else None,
            vlan=meta.vlan if present & HAS_VLAN else None,
            checksum=ChecksumStatus(meta.checksum) if present & HAS_CHECKSUM else None,
        )


@cython.final
@cython.no_gc
cdef class PacketBuffer(Packet):
    """One packet in one frame: readable, writable in place, and growable into its head- and tailroom.

    In a batch it is a handle on a slot; `take()` makes it the owner of its frame, which then survives the batch, may
    cross threads, and returns to its pool when the packet is dropped, from whichever thread. A handle whose packet was
    sent, taken or replaced raises `BufferTakenError`. Thread rules: one thread at a time.
    """

    cdef int locate_unexported(self) except -1:
        self.locate()
        if self.exports:
            raise BufferError(f"{self.exports} memoryview(s) of this packet exist: release them first")
        return 0

    cdef void store(self, uint32_t before) noexcept:
        """Write a changed offset and length back to where the batch keeps them. `before` is the old length: a packet
        that was a single datagram stays one, whatever its size."""
        cdef uint32_t *segment_size = &self.meta_copy.segment_size
        if self.slots != NULL:
            self.slots.offsets[self.slot] = self.offset
            self.slots.lengths[self.slot] = self.length
            if self.slots.segment_sizes == NULL or self.slots.transmit:
                return
            segment_size = &self.slots.segment_sizes[self.slot]
        if segment_size[0] >= before:
            segment_size[0] = self.length

    @property
    def headroom(self):
        """Bytes that can be prepended."""
        hold(<void *> self.pool)
        self.locate()
        return self.offset - lowest_start(&self.pool.geometry, self.frame)

    @property
    def tailroom(self):
        """Bytes that can be appended."""
        hold(<void *> self.pool)
        self.locate()
        return chunk_end(&self.pool.geometry, self.frame) - self.offset - self.length

    def prepend(self, data):
        """Put bytes in front. Raises `ConfigError` where the headroom is too small, `BufferError` while viewed."""
        hold(<void *> self.pool)
        self._grow(data, True)

    def append(self, data):
        """Put bytes behind. Raises `ConfigError` where the tailroom is too small, `BufferError` while viewed."""
        hold(<void *> self.pool)
        self._grow(data, False)

    cdef int _grow(self, object data, bint front) except -1:
        cdef uint64_t room
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            self.locate_unexported()
            room = self.headroom if front else self.tailroom
            if <uint64_t> source.len > room:
                raise ConfigError(f"{source.len} bytes do not fit: the {'headroom' if front else 'tailroom'} is {room} "
                                  f"bytes; choose a larger one in the BufferLayout")
            if front:
                self.offset -= source.len
            memmove(self.pool.base + self.offset + (0 if front else self.length), source.buf, source.len)
            self.length += <uint32_t> source.len
            self.store(self.length - <uint32_t> source.len)
        finally:
            PyBuffer_Release(&source)
        return 0

    def write(self, start, data):
        """Overwrite bytes in place from offset `start`. Raises `IndexError` where the packet is shorter."""
        hold(<void *> self.pool)
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            memmove(<void *> self.bounded(start, source.len), source.buf, source.len)
        finally:
            PyBuffer_Release(&source)

    def trim_prefix(self, size):
        """Cut `size` bytes off the front. Raises `IndexError` where the packet is shorter, `BufferError` while
        viewed."""
        hold(<void *> self.pool)
        self._trim(size, True)

    def trim_suffix(self, size):
        """Cut `size` bytes off the end. Raises as `trim_prefix`."""
        hold(<void *> self.pool)
        self._trim(size, False)

    cdef int _trim(self, object size, bint front) except -1:
        cdef Py_ssize_t cut = PyNumber_AsSsize_t(size, IndexError)
        self.locate_unexported()
        if not 0 <= cut <= <Py_ssize_t> self.length:
            raise IndexError(f"cannot cut {cut} bytes off a packet of {self.length} bytes")
        self.length -= <uint32_t> cut
        if front:
            self.offset += cut
        self.store(self.length + <uint32_t> cut)
        return 0

    def take(self):
        """Own the packet: it leaves its batch and lives as long as this object. Returns the object itself. Raises
        `ConfigError` for one in a transmit batch, which would be left with a gap."""
        hold(<void *> self.pool)
        self.detach()
        return self

    def release(self):
        """Return the frame to its pool now. Raises `BufferError` while viewed; the handle is gone afterwards."""
        hold(<void *> self.pool)
        cdef uint32_t frame
        self.locate_unexported()
        self.detach()
        frame, self.frame = self.frame, NO_FRAME
        put_frame(self.pool, frame)

    def freeze(self):
        """Give the packet up for an immutable one, without a copy. Raises `BufferError` while viewed, because a
        writable view would still change it."""
        hold(<void *> self.pool)
        cdef FrozenPacket frozen
        frozen = FrozenPacket.__new__(FrozenPacket)
        self.locate_unexported()
        self.detach()
        frozen.pool = self.pool
        frozen.frame, self.frame = self.frame, NO_FRAME
        frozen.offset, frozen.length = self.offset, self.length
        frozen.frozen, frozen.v6 = True, self.v6
        frozen.present, frozen.meta_copy = self.present, self.meta_copy
        return frozen


@cython.final
@cython.no_gc
cdef class FrozenPacket(Packet):
    """An immutable packet that owns its frame: share it between threads at will, use it as a key. Its frame returns to
    the pool with the last reference or view. Equal to any bytes-like object of the same content."""

    def __hash__(self):
        return hash(self.__bytes__())

    def __eq__(self, other):
        try:
            view = memoryview(other)
        except (TypeError, ValueError, BufferError):
            return NotImplemented
        return self.__bytes__() == bytes(view)


cdef PacketBuffer packet_in_batch(FramePool pool, Slots *slots, uint32_t slot, PacketBuffer reuse):
    """The handle on a slot: `reuse` re-aimed, or a new object where that is None."""
    cdef PacketBuffer packet = reuse if reuse is not None else PacketBuffer.__new__(PacketBuffer)
    packet.pool = pool
    packet.slots = slots
    packet.slot = slot
    packet.frame = slots.frames[slot]
    packet.epoch = slots.epoch
    packet.v6 = slots.v6
    return packet
