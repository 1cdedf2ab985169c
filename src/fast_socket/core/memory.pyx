"""Memory that outlives every view of it.

A `Region` is anonymous memory owned by one Python object. Frames, columns and the kernel's message vectors all live in
regions. Whoever exposes a part of one (a numpy column, a memoryview of a packet) keeps the region alive through the
buffer protocol, so no order of closing and dropping can leave a view of unmapped memory.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.errno cimport ENOSYS, EPERM, errno
from libc.stddef cimport size_t
from libc.stdint cimport SIZE_MAX, uint8_t, uintptr_t
from libc.string cimport memset

from fast_socket.core.errors import CapabilityError, ConfigError
from fast_socket.core.placement import MemoryPlacement, huge_bytes

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_mbind
        SYS_move_pages

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    long sysconf(int name)
    enum:
        _SC_PAGESIZE

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    void *MAP_FAILED
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_HUGEPAGE

cdef enum:
    HUGE_PAGE = 2 << 20         # of x86-64, and of arm64 with 4 KiB pages
    MPOL_PREFERRED = 1          # <linux/mempolicy.h>
    MOST_NODES = 1024           # CONFIG_NODES_SHIFT is 10 at the most
    MASK_WORDS = 32             # for as many bits, whatever the size of a long
    PAGES_AT_ONCE = 512


cdef class Region:
    """`size` bytes of zeroed, page-aligned memory, touched only when used; unmapped with its last reference.

    With `huge_pages` it is rounded up to whole huge pages and aligned to them, and the kernel is asked for transparent
    ones (madvise(2), MADV_HUGEPAGE): fewer TLB misses, for more memory in use. The attribute says whether it agreed to.
    With `numa_node` pages are taken from that node as long as it has any (mbind(2), MPOL_PREFERRED). What came of
    either, once the memory is in use, `placement` says. Raises `ConfigError` for a node that is not there,
    `CapabilityError` for a kernel without NUMA, `MemoryError`.
    """

    def __cinit__(self, size_t size, *, bint huge_pages=False, numa_node=None):
        cdef size_t slack = HUGE_PAGE if huge_pages else 0
        cdef size_t lead
        cdef void *memory
        if size > SIZE_MAX - 2 * HUGE_PAGE:
            raise MemoryError(f"cannot map {size} bytes")
        self.size = size if size else 1
        if huge_pages:
            self.size = (self.size + HUGE_PAGE - 1) & ~<size_t> (HUGE_PAGE - 1)
        memory = mmap(NULL, self.size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError(f"cannot map {size} bytes")
        self.base = <uint8_t *> memory
        if huge_pages:
            # Mapped with a huge page to spare: what lies before the first boundary and behind the end goes back.
            lead = (HUGE_PAGE - <size_t> self.base % HUGE_PAGE) % HUGE_PAGE
            if lead:
                munmap(self.base, lead)
            self.base += lead
            if slack > lead:
                munmap(self.base + self.size, slack - lead)
            self.huge_pages = madvise(self.base, self.size, MADV_HUGEPAGE) == 0
        if numa_node is not None:
            self.prefer(numa_node)

    cdef int prefer(self, object node) except -1:
        cdef unsigned long mask[MASK_WORDS]
        cdef unsigned int number
        if not isinstance(node, int) or isinstance(node, bool) or not 0 <= node < MOST_NODES:
            raise ConfigError(f"numa_node is {node!r}: give the number of a NUMA node, from 0, or None")
        number = node
        memset(mask, 0, sizeof(mask))
        mask[number // (8 * sizeof(unsigned long))] |= <unsigned long> 1 << number % (8 * sizeof(unsigned long))
        # The kernel takes one bit less than it is told of.
        if syscall(SYS_mbind, self.base, self.size, <unsigned long> MPOL_PREFERRED, mask,
                   <unsigned long> MOST_NODES + 1, <unsigned long> 0) == 0:
            return 0
        if errno == ENOSYS or errno == EPERM:
            raise CapabilityError(f"numa_node is {node}, but memory cannot be placed here (mbind; CONFIG_NUMA)", errno)
        raise ConfigError(f"numa_node is {node}: this machine has no such node with memory "
                          f"(/sys/devices/system/node/has_memory)", errno)

    def placement(self):
        """Where the pages in use are now: a `MemoryPlacement`. It looks at every page: for set-up, not for loops."""
        cdef void *pages[PAGES_AT_ONCE]
        cdef int nodes[PAGES_AT_ONCE]
        cdef size_t page = sysconf(_SC_PAGESIZE), at = 0, count, i
        found, resident = {}, 0
        while at < self.size:
            count = min(<size_t> PAGES_AT_ONCE, (self.size - at + page - 1) // page)
            for i in range(count):
                pages[i] = self.base + at + i * page
                nodes[i] = -1
            if syscall(SYS_move_pages, 0, count, pages, NULL, nodes, 0) < 0:
                return MemoryPlacement(resident=None, huge=huge_bytes(<uintptr_t> self.base, self.size), nodes={})
            for i in range(count):
                if nodes[i] >= 0:               # else an errno: not there yet
                    found[nodes[i]] = found.get(nodes[i], 0) + page
                    resident += page
            at += count * page
        return MemoryPlacement(resident=resident, huge=huge_bytes(<uintptr_t> self.base, self.size), nodes=found)

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.base, <Py_ssize_t> self.size, 0, flags)


cdef class Column:
    """A typed, strided window on native memory, for numpy to wrap; `owner` keeps that memory alive."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.readonly and flags & PyBUF_WRITABLE:
            raise BufferError("this column is read-only")
        if flags & PyBUF_STRIDES != PyBUF_STRIDES:
            raise BufferError("a column is strided: view it through numpy or memoryview")
        buffer.buf = self.base
        buffer.obj = self
        buffer.len = self.itemsize * self.shape[0] * (self.shape[1] if self.dimensions == 2 else 1)
        buffer.itemsize = self.itemsize
        buffer.readonly = self.readonly
        buffer.ndim = <int> self.dimensions
        buffer.format = <char *> self.format if flags & PyBUF_FORMAT else NULL
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef Column column(object owner, void *base, bytes format, Py_ssize_t itemsize, Py_ssize_t rows, Py_ssize_t stride,
                   Py_ssize_t width, bint readonly):
    """A column of `rows` items `stride` bytes apart; `width` items beside each other where it is not 1."""
    cdef Column self = Column.__new__(Column)
    self.owner = owner
    self.base = base
    self.format = format
    self.itemsize = itemsize
    self.dimensions = 1 if width == 1 else 2
    self.shape[0] = rows
    self.shape[1] = width
    self.strides[0] = stride
    self.strides[1] = itemsize
    self.readonly = readonly
    return self
