cdef extern from "section.h" nogil:
    # The first statement of a function: the object's lock is held until it returns. Attached threads only.
    void hold "FAST_SOCKET_HOLD" (void *object) noexcept
    bint NO_GIL "FAST_SOCKET_NO_GIL"
