from libc.stddef cimport size_t
from libc.stdint cimport uint8_t


cdef class Region:
    cdef uint8_t *base
    cdef readonly size_t size
    cdef readonly bint huge_pages

    cdef int prefer(self, object node) except -1


cdef class Column:
    cdef object owner
    cdef void *base
    cdef bytes format
    cdef Py_ssize_t itemsize, dimensions
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]
    cdef bint readonly

cdef Column column(object owner, void *base, bytes format, Py_ssize_t itemsize, Py_ssize_t rows, Py_ssize_t stride,
                   Py_ssize_t width, bint readonly)
