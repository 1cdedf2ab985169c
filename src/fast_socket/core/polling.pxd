cimport cython
from libc.stdint cimport int64_t, uint32_t


cdef class Descriptor:
    cdef int fd
    cdef int wake
    cdef uint32_t users
    cdef readonly bint closed
    cdef bint has_rings             # look() costs no system call, so that it comes before a wait
    cdef str what

    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef int make_wake(self) except -1
    cdef void shut(self) noexcept
    cdef bint look(self, short events) noexcept nogil


cdef class Driver:
    cdef Descriptor descriptor
    cdef readonly uint32_t min_batch
    cdef readonly double max_wait
    cdef uint32_t last_batch        # what the latest receive returned; the socket writes it

    cdef int wait_for(self, short events, object timeout, bint spin) except -1


@cython.final
cdef class WaitDriver(Driver):
    pass


@cython.final
cdef class BusyPollDriver(Driver):
    pass
