"""Memory that outlives every view of it.

A `Region` is anonymous memory owned by one Python object. Frames, columns and the kernel's message vectors all live in
regions. Whoever exposes a part of one (a numpy column, a memoryview of a packet) keeps the region alive through the
buffer protocol, so no order of closing and dropping can leave a view of unmapped memory.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.stddef cimport size_t
from libc.stdint cimport SIZE_MAX, uint8_t


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


cdef class Region:
    """`size` bytes of zeroed, page-aligned memory, touched only when used; unmapped with its last reference.

    With `huge_pages` it is rounded up to whole huge pages and aligned to them, and the kernel is asked for transparent
    ones (madvise(2), MADV_HUGEPAGE): fewer TLB misses, for more memory in use. The attribute says whether it agreed to.
    """

    def __cinit__(self, size_t size, *, bint huge_pages=False):
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
