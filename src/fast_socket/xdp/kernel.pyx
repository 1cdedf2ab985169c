"""An AF_XDP socket of the kernel on one device queue.

In order: socket, UMEM (or a share in one), ring sizes, mappings, FILL filled, bind. Some drivers wedge when they are
bound with an empty FILL ring, and some leak when even a sender has none, so it is filled in every case. Binding is
EBUSY for a moment after another socket on the queue was closed, because the kernel tears down later: it is tried again
for 100 ms, as the kernel's own test suite does (tools/testing/selftests/bpf/xskxceiver.c). Without a forced mode the
kernel falls back to copying in silence; what is in force is read back (XDP_OPTIONS).

Sources of constants: include/uapi/linux/if_xdp.h. Linux 5.4; multi-buffer 6.6; the transmit budget 6.18.
"""

cimport cython
from libc.errno cimport (
    EACCES, EAGAIN, EBUSY, EINTR, EINVAL, ENETDOWN, ENOBUFS, ENODEV, ENOMEM, ENOPROTOOPT,
    EOPNOTSUPP, EPERM, EPROTONOSUPPORT, ENXIO, errno,
)
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fast_socket.core.frames cimport FramePool
from fast_socket.xdp.queue cimport Queue
from fast_socket.xdp.ring cimport NEED_WAKEUP, Ring, load_acquire, load_relaxed, wants_wakeup

import time

from fast_socket.core.errors import CapabilityError, ConfigError, DeviceError, Error

cdef extern from "<sys/socket.h>" nogil:
    int socket(int family, int kind, int protocol)
    int setsockopt(int fd, int level, int name, const void *value, uint32_t size)
    int getsockopt(int fd, int level, int name, void *value, uint32_t *size)
    struct sockaddr:
        pass
    int bind(int fd, const sockaddr *address, uint32_t size)
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const sockaddr *address, uint32_t address_size)
    ssize_t recvfrom(int fd, void *data, size_t size, int flags, sockaddr *address, uint32_t *address_size)
    enum:
        SOCK_RAW
        SOCK_CLOEXEC
        SOL_SOCKET
        MSG_DONTWAIT

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    void *MAP_FAILED
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_POPULATE

cdef enum:
    AF_XDP = 44
    SOL_XDP = 283
    XDP_MMAP_OFFSETS = 1
    XDP_RX_RING = 2
    XDP_TX_RING = 3
    XDP_UMEM_REG = 4
    XDP_UMEM_FILL_RING = 5
    XDP_UMEM_COMPLETION_RING = 6
    XDP_STATISTICS = 7
    XDP_OPTIONS = 8
    XDP_MAX_TX_SKB_BUDGET = 9
    XDP_SHARED_UMEM = 1
    XDP_COPY = 2
    XDP_ZEROCOPY = 4
    XDP_USE_NEED_WAKEUP = 8
    XDP_USE_SG = 16
    XDP_OPTIONS_ZEROCOPY = 1
    SO_BUSY_POLL = 46
    SO_PREFER_BUSY_POLL = 69
    SO_BUSY_POLL_BUDGET = 70
    BIND_TRIES = 10
    MOST_IDLE_KICKS = 4         # without progress: then the device takes nothing now, whatever it answers

# XDP_PGOFF_*: what to map, in the order of our rings.
cdef uint64_t RX_PAGES = 0
cdef uint64_t TX_PAGES = 0x80000000
cdef uint64_t FILL_PAGES = 0x100000000
cdef uint64_t COMPLETION_PAGES = 0x180000000


cdef struct MmapOffsets:
    RingOffset rx
    RingOffset tx
    RingOffset fill
    RingOffset completion


cdef struct UmemRegistration:
    # struct xdp_umem_reg
    uint64_t address
    uint64_t size
    uint32_t chunk_size
    uint32_t headroom
    uint32_t flags
    uint32_t tx_metadata_size


cdef struct XdpAddress:
    # struct sockaddr_xdp
    uint16_t family
    uint16_t flags
    uint32_t interface
    uint32_t queue
    uint32_t shared_umem_fd


@cython.final
@cython.no_gc
cdef class KernelQueue(Queue):
    """Made by `open_kernel_queue`."""

    def __dealloc__(self):
        if self.fd >= 0:
            self.shut()

    cdef void shut(self) noexcept:
        cdef int i
        self.last_statistics = self.read_statistics()
        if self.umem is not None and self.umem.registered_fd == self.fd:
            self.umem.registered_fd = -1
        close(self.fd)          # first: until then the kernel writes into the frames that it has
        self.fd = -1
        if self.umem is not None:
            self.recover()
        for i in range(4):
            if self.mappings[i].base != NULL:
                munmap(self.mappings[i].base, self.mappings[i].size)
                self.mappings[i].base = NULL

    cdef tuple read_statistics(self):
        cdef uint64_t values[6]
        cdef uint32_t size = sizeof(values)
        memset(values, 0, sizeof(values))
        if getsockopt(self.fd, SOL_XDP, XDP_STATISTICS, values, &size) < 0:
            return (0,) * 6
        # struct xdp_statistics: rx_dropped contains what found FILL empty, and not what found RX full (Linux 6.18).
        return values[0], values[1], values[2], values[3], values[4], values[5]

    def device_statistics(self):
        return self.last_statistics if self.fd < 0 or self.closed else self.read_statistics()

    cdef int map_ring(self, Ring *ring, int which, uint32_t entries, size_t entry_size, const RingOffset *offset,
                      uint64_t pages) except -1:
        cdef size_t size = offset.descriptors + entries * entry_size
        cdef void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.fd, <long> pages)
        if base == MAP_FAILED:
            raise Error("cannot map a ring of the AF_XDP socket", errno)
        self.mappings[which].base, self.mappings[which].size = base, size
        ring.producer = <uint32_t *> (<uint8_t *> base + offset.producer)
        ring.consumer = <uint32_t *> (<uint8_t *> base + offset.consumer)
        ring.flags = <uint32_t *> (<uint8_t *> base + offset.flags)
        ring.entries = <uint8_t *> base + offset.descriptors
        ring.size = entries
        return 0

    cdef int set_option(self, int level, int name, uint32_t value, str what, str needs) except -1:
        if setsockopt(self.fd, level, name, &value, sizeof(value)) == 0:
            return 0
        if errno in (ENOPROTOOPT, EPERM, EOPNOTSUPP):
            raise CapabilityError(f"cannot set {what} to {value}, which needs {needs}", errno)
        raise Error(f"cannot set {what} to {value}", errno)

    cdef int set_up(self, object options) except -1:
        """UMEM, rings and mappings."""
        cdef UmemRegistration registration
        cdef MmapOffsets offsets
        cdef uint32_t size = sizeof(offsets)
        if self.umem.registered_fd < 0:
            memset(&registration, 0, sizeof(registration))
            registration.address = <uint64_t> self.pool.base
            registration.size = <uint64_t> self.umem.frames * self.umem.chunk_size
            registration.chunk_size = self.umem.chunk_size
            registration.headroom = options.rx_headroom(self.pool)
            if setsockopt(self.fd, SOL_XDP, XDP_UMEM_REG, &registration, sizeof(registration)) < 0:
                hint = {
                    ENOBUFS: ": its memory counts against RLIMIT_MEMLOCK: raise it, or run with CAP_IPC_LOCK",
                    ENOMEM: ": its memory counts against RLIMIT_MEMLOCK: raise it, or run with CAP_IPC_LOCK",
                    EINVAL: f": chunks of {self.umem.chunk_size} bytes with {registration.headroom} of headroom are "
                            f"refused",
                }.get(errno, "")
                raise Error(f"cannot register {registration.size} bytes as UMEM{hint}", errno)
        self.set_option(SOL_XDP, XDP_UMEM_FILL_RING, options.fill_entries(self.pool), "fill_ring",
                        "a kernel with AF_XDP")
        self.set_option(SOL_XDP, XDP_UMEM_COMPLETION_RING, options.completion_ring, "completion_ring",
                        "a kernel with AF_XDP")
        self.set_option(SOL_XDP, XDP_RX_RING, options.rx_ring, "rx_ring", "a kernel with AF_XDP")
        self.set_option(SOL_XDP, XDP_TX_RING, options.tx_ring, "tx_ring", "a kernel with AF_XDP")
        if options.tx_budget is not None:
            self.set_option(SOL_XDP, XDP_MAX_TX_SKB_BUDGET, options.tx_budget, "tx_budget", "Linux 6.18")
        if options.busy_poll is not None:
            self.set_option(SOL_SOCKET, SO_BUSY_POLL, options.busy_poll, "busy_poll", "CAP_NET_ADMIN")
            self.polls = True
        if options.prefer_busy_poll:
            self.set_option(SOL_SOCKET, SO_PREFER_BUSY_POLL, 1, "prefer_busy_poll",
                            "Linux 5.11 and CAP_NET_ADMIN")
        if options.busy_poll_budget is not None:
            self.set_option(SOL_SOCKET, SO_BUSY_POLL_BUDGET, options.busy_poll_budget, "busy_poll_budget",
                            "Linux 5.11 and CAP_NET_ADMIN")
        if getsockopt(self.fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &size) < 0:
            raise Error("cannot read the offsets of the AF_XDP rings", errno)
        if size != sizeof(offsets):
            raise CapabilityError("this kernel's rings have no flags: AF_XDP needs Linux 5.4")
        self.map_ring(&self.rx, 0, options.rx_ring, 16, &offsets.rx, RX_PAGES)
        self.map_ring(&self.tx, 1, options.tx_ring, 16, &offsets.tx, TX_PAGES)
        self.map_ring(&self.fill, 2, options.fill_entries(self.pool), 8, &offsets.fill, FILL_PAGES)
        self.map_ring(&self.completion, 3, options.completion_ring, 8, &offsets.completion, COMPLETION_PAGES)
        self.has_rings = True
        self.refill()
        return 0

    cdef int attempt(self, uint32_t interface, uint16_t flags) noexcept nogil:
        """Bind once; returns 0 or an errno."""
        cdef XdpAddress address
        memset(&address, 0, sizeof(address))
        address.family, address.interface, address.queue = AF_XDP, interface, self.queue_id
        address.flags = flags
        if self.umem.registered_fd >= 0:
            # Alone: with any other flag it is EINVAL (net/xdp/xsk.c), modes are those of the first socket.
            address.flags, address.shared_umem_fd = XDP_SHARED_UMEM, self.umem.registered_fd
        return errno if bind(self.fd, <const sockaddr *> &address, sizeof(address)) < 0 else 0

    cdef int bind_to(self, object device, object options) except -1:
        cdef uint16_t base = 0
        cdef int error = 0
        cdef uint32_t interface = device.ifindex, mode, size = sizeof(mode)
        if options.need_wakeup:
            base |= XDP_USE_NEED_WAKEUP
        if options.multi_buffer:
            base |= XDP_USE_SG
        modes = {"copy": (XDP_COPY,), "zero_copy": (XDP_ZEROCOPY,), "auto": (XDP_ZEROCOPY, XDP_COPY)}[options.mode]
        for flag in modes:
            for _ in range(BIND_TRIES):
                error = self.attempt(interface, base | flag)
                if error != EBUSY:
                    break
                time.sleep(0.01)
            if error == 0 or error == EBUSY or self.umem.registered_fd >= 0:
                break
        if error:
            self.refuse(error, device, options)
        if getsockopt(self.fd, SOL_XDP, XDP_OPTIONS, &mode, &size) == 0:
            self.zero_copy = (mode & XDP_OPTIONS_ZEROCOPY) != 0
        if options.mode == "zero_copy" and not self.zero_copy:
            raise CapabilityError("this pool's first socket is in copy mode, and so are all others on it: open with "
                                  "a pool of its own for mode='zero_copy'")
        self.copy, self.need_wakeup = not self.zero_copy, options.need_wakeup
        if self.umem.registered_fd < 0:
            self.umem.registered_fd = self.fd
        return 0

    def refuse(self, error, device, options):
        """Say why the kernel did not bind."""
        where = f"queue {self.queue_id} of {device.name}"
        if error == EBUSY:
            raise Error(f"{where} is taken by another AF_XDP socket: close that, or use another queue", error)
        if error == EINVAL and self.queue_id >= device.queue_count:
            raise ConfigError(f"queue is {self.queue_id}: {device.name} has {device.queue_count} queue(s), from 0",
                              error)
        if error == ENETDOWN:
            raise DeviceError(f"{device.name} is down: bring it up (ip link set {device.name} up)", error)
        if error == ENODEV or error == ENXIO:
            raise DeviceError(f"there is no device {device.name} any more", error)
        if error == EINVAL and self.umem.registered_fd >= 0:
            raise Error(f"{where} is taken by another socket on this pool, or cannot share its memory: use "
                        f"another queue",
                        error)
        if error in (EOPNOTSUPP, EINVAL, EPROTONOSUPPORT) and options.mode == "zero_copy":
            raise CapabilityError(f"{where}: its driver has no zero-copy mode (or not with these rings and chunks): "
                                  f"use mode='auto' or 'copy'", error)
        if error in (EOPNOTSUPP, EINVAL) and options.multi_buffer:
            raise CapabilityError(f"{where}: multi_buffer needs Linux 6.6, and a driver that takes it", error)
        raise Error(f"cannot bind to {where} in mode {options.mode}", error)

    cdef int kick(self) noexcept nogil:
        """Have the kernel send what is in TX. In copy mode a call sends 32 packets at the most (or `tx_budget`) and
        says EAGAIN; it also stops, answering success, when the completions are full. So it is called until TX is empty,
        or nothing moves."""
        cdef uint32_t before, after = load_acquire(self.tx.consumer)
        cdef int idle = 0
        while self.tx.ours != after and idle < MOST_IDLE_KICKS:
            if self.need_wakeup and not wants_wakeup(&self.tx):
                return 0
            before = after
            self.counters.kicks += 1
            if sendto(self.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0:
                if errno == ENOBUFS:
                    return 0                # the socket's send buffer is full: completions will make room
                # EAGAIN: more to do; EBUSY: a packet was dropped, and completed; others: the device is gone.
                if errno != EAGAIN and errno != EBUSY and errno != EINTR:
                    return errno
            elif not self.copy:
                return 0                    # the driver goes on by itself
            after = load_acquire(self.tx.consumer)
            idle = idle + 1 if after == before else 0
        return 0

    cdef void wake_rx(self) noexcept nogil:
        if self.polls or (self.need_wakeup and load_relaxed(self.fill.flags) & NEED_WAKEUP
                          and wants_wakeup(&self.fill)):
            recvfrom(self.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)

    cdef bint look(self, short events) noexcept nogil:
        if Queue.look(self, events):
            return True
        if self.polls:
            recvfrom(self.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)
            return Queue.look(self, events)
        return False


def open_kernel_queue(FramePool pool not None, device, queue, options):
    """An AF_XDP socket, bound to a queue of a device, its FILL ring filled; packets come once a program redirects them.

    Raises `ConfigError`, `CapabilityError`, `DeviceError`, or `Error` with the kernel's errno; leaves nothing open.
    """
    cdef KernelQueue self
    cdef int fd
    if not isinstance(queue, int) or isinstance(queue, bool) or not 0 <= queue < 1 << 16:
        raise ConfigError(f"queue is {queue!r}: give an int from 0")
    if queue >= device.queue_count:
        raise ConfigError(f"queue is {queue}: {device.name} has {device.queue_count} queue(s), from 0")
    fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
    if fd < 0:
        if errno == EPERM or errno == EACCES:
            raise CapabilityError("AF_XDP sockets need CAP_NET_RAW: run as root, or give the program that capability",
                                  errno)
        raise CapabilityError("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS, Linux 4.18)", errno)
    self = KernelQueue.__new__(KernelQueue, fd, "AF_XDP socket")
    self.last_statistics = (0,) * 6
    self.queue_id = queue
    self.join(pool)
    try:
        self.set_up(options)
        self.bind_to(device, options)
    except BaseException:
        self.close()
        raise
    return self
