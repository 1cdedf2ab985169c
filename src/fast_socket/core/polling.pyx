"""Waiting for packets: a file descriptor that cannot be closed under a running call, and the two drivers over it.

Batch size matters more than anything that is done per packet: a loop that receives as soon as one packet is there
receives one packet at a time. Both drivers can therefore hold a wake-up back until packets have gathered: with
``max_wait`` > 0, when the latest receive returned fewer than ``min_batch``, the next `wait` that finds the socket
readable pauses for ``max_wait`` before it returns. Under load receives are full and nothing pauses; a lone packet is
late by ``max_wait`` at most. It is off (0) by default, where latency counts.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADF, EINTR, errno
from libc.stdint cimport int64_t, uint64_t

from fast_socket.core.section cimport hold

from fast_socket.core.errors import ConfigError, Error


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *duration, timespec *left)
    enum:
        CLOCK_MONOTONIC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, void *mask)
    enum:
        POLLIN
        POLLOUT
        POLLNVAL

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *data, size_t size)
    ssize_t write(int fd, const void *data, size_t size)

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #define FAST_SOCKET_PAUSE() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define FAST_SOCKET_PAUSE() __asm__ volatile("yield")
    #else
    #define FAST_SOCKET_PAUSE() ((void) 0)
    #endif
    """
    void pause_cpu "FAST_SOCKET_PAUSE"() noexcept nogil

# A busy poller looks for signals and for a close this often, so that Ctrl-C is prompt and the GIL is let alone.
cdef int64_t SPIN_SLICE_NS = 10_000_000

cdef enum:
    LOOKS_PER_CLOCK = 16        # of a busy poller that looks at memory: the clock takes longer than a look

# One whose rings the kernel calls ready while we see nothing in them looks again after this time.
cdef int64_t RING_PAUSE_NS = 20_000


cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1_000_000_000 + now.tv_nsec


@cython.no_gc
cdef class Descriptor:
    """A file descriptor shared by a socket and its driver.

    Closing marks it closed at once and wakes whoever waits; the descriptor itself is closed by the last call that
    still uses it, so no call can ever reach a descriptor number that the kernel has given to somebody else. The counts
    change only while the GIL is held.
    """

    def __cinit__(self, int fd, str what="socket"):
        self.fd, self.wake, self.what = fd, -1, what

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        if self.wake >= 0:
            close(self.wake)

    cdef int enter(self) except -1:
        hold(<void *> self)
        if self.closed:
            raise Error(f"this {self.what} is closed", EBADF)
        self.users += 1
        return 0

    cdef void leave(self) noexcept:
        hold(<void *> self)
        self.users -= 1
        if self.closed and self.users == 0 and self.fd >= 0:
            self.shut()
            if self.fd >= 0:
                close(self.fd)
            self.fd = -1
            if self.wake >= 0:
                close(self.wake)
                self.wake = -1

    cdef int make_wake(self) except -1:
        """The eventfd that ends a wait, with the first that sleeps."""
        hold(<void *> self)
        if self.wake < 0:
            self.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
            if self.wake < 0:
                raise Error("cannot make the eventfd that ends a wait when the socket is closed", errno)
        return 0

    cdef void shut(self) noexcept:
        """What a backend gives back when the descriptor is closed; nobody is inside any more. It may close the
        descriptor itself, and then sets `fd` to -1. A subclass calls it from its own __dealloc__, too."""

    cdef bint look(self, short events) noexcept nogil:
        """Whether the descriptor has one of `events` (or an error to report) at this moment."""
        cdef pollfd fds
        cdef timespec no_time
        fds.fd, fds.events, fds.revents = self.fd, events, 0
        no_time.tv_sec = no_time.tv_nsec = 0
        return ppoll(&fds, 1, &no_time, NULL) > 0

    def fileno(self):
        """The descriptor's number, -1 once it is closed: as `socket.fileno`."""
        return -1 if self.closed else self.fd

    def close(self):
        """Close, now or as soon as the last running call returns. Again is nothing."""
        hold(<void *> self)
        cdef uint64_t one = 1
        if self.closed:
            return
        self.users += 1
        self.closed = True
        if self.wake >= 0:
            write(self.wake, &one, sizeof(one))
        self.leave()


@cython.no_gc
cdef class Driver:
    """What both drivers share. Thread rules: any thread may wait, also several at once."""

    def __cinit__(self, Descriptor descriptor not None, *, min_batch=1, max_wait=0.0):
        if not isinstance(min_batch, int) or isinstance(min_batch, bool) or not 1 <= min_batch <= 1 << 20:
            raise ConfigError(f"min_batch is {min_batch!r}: give an int from 1 to {1 << 20}")
        if not isinstance(max_wait, (int, float)) or not 0 <= max_wait <= 1:
            raise ConfigError(f"max_wait is {max_wait!r}: give seconds from 0 to 1")
        self.descriptor, self.min_batch, self.max_wait = descriptor, min_batch, max_wait
        self.last_batch = min_batch

    cdef int wait_for(self, short events, object timeout, bint spin) except -1:
        """1 when the descriptor has one of `events` (or an error to report), 0 when the time is over."""
        cdef Descriptor descriptor = self.descriptor
        cdef pollfd fds[2]
        cdef timespec limit
        cdef int64_t deadline = -1, slice_end, left, pause_ns = 0
        cdef uint64_t woken
        cdef int ready = 0, error = 0
        cdef unsigned int turns = 0, looks = LOOKS_PER_CLOCK if descriptor.has_rings and timeout != 0 else 1
        if timeout is not None:
            if not isinstance(timeout, (int, float)) or not 0 <= timeout <= 1e9:
                raise ConfigError(f"timeout is {timeout!r}: give seconds from 0, or None to wait for ever")
            deadline = now_ns() + <int64_t> (<double> timeout * 1e9)
        descriptor.enter()
        try:
            if not spin and timeout != 0:
                descriptor.make_wake()
            fds[0].fd, fds[0].events = descriptor.fd, events
            fds[1].fd, fds[1].events = descriptor.wake, POLLIN
            fds[0].revents = fds[1].revents = 0
            if events & POLLIN and self.last_batch < self.min_batch:
                pause_ns = <int64_t> (self.max_wait * 1e9)
            if descriptor.has_rings and events == POLLIN and pause_ns == 0 and descriptor.look(events):
                return 1                # a look at memory: not worth letting the GIL go
            while True:
                with nogil:
                    if spin:
                        slice_end = now_ns() + SPIN_SLICE_NS
                        if 0 <= deadline < slice_end:
                            slice_end = deadline
                        while True:
                            ready = descriptor.look(events)
                            if ready != 0:
                                break
                            turns += 1
                            if turns % looks == 0 and now_ns() >= slice_end:
                                break
                            pause_cpu()
                    elif descriptor.has_rings and descriptor.look(events):
                        ready = 1
                    else:
                        left = max(deadline - now_ns(), 0) if deadline >= 0 else 0
                        limit.tv_sec, limit.tv_nsec = left // 1_000_000_000, left % 1_000_000_000
                        ready = ppoll(fds, 2, NULL if deadline < 0 else &limit, NULL)
                    error = errno
                    if ready > 0 and pause_ns > 0 and not fds[1].revents:
                        pause_for(pause_ns, spin)
                if ready > 0 and descriptor.has_rings and not fds[1].revents and not fds[0].revents & ~events \
                        and not descriptor.look(events):
                    ready = 0           # the kernel's threshold is not ours: look again in a moment
                    with nogil:
                        pause_for(RING_PAUSE_NS, spin)
                if ready < 0 and error != EINTR:
                    raise Error(f"cannot wait for this {descriptor.what}", error)
                if descriptor.closed:
                    raise Error(f"this {descriptor.what} was closed while waiting", EBADF)
                PyErr_CheckSignals()
                if ready > 0 and fds[1].revents:
                    # Not closed, and yet woken: a forked child, which shares the eventfd, has closed its copy.
                    read(descriptor.wake, &woken, sizeof(woken))
                    fds[1].revents = 0
                    ready = 1 if fds[0].revents else 0
                if ready > 0:
                    return 1
                if deadline >= 0 and now_ns() >= deadline:
                    return 0
        finally:
            descriptor.leave()

    def __repr__(self):
        return f"<{type(self).__name__} min_batch={self.min_batch} max_wait={self.max_wait}>"


cdef void pause_for(int64_t duration, bint spin) noexcept nogil:
    cdef timespec time
    cdef int64_t end
    if spin:
        end = now_ns() + duration
        while now_ns() < end:
            pause_cpu()
    else:
        time.tv_sec, time.tv_nsec = duration // 1_000_000_000, duration % 1_000_000_000
        nanosleep(&time, NULL)


@cython.final
@cython.no_gc
cdef class WaitDriver(Driver):
    """Sleep in the kernel until the socket is readable. `fileno()` serves selectors and event loops.

    `max_wait` is subject to the thread's timer slack, 50 us unless prctl(PR_SET_TIMERSLACK) says otherwise.
    """

    def fileno(self):
        """The pollable descriptor, -1 once the socket is closed."""
        return self.descriptor.fileno()

    def wait(self, timeout=None):
        """True as soon as a receive has something to return, False after `timeout` seconds; None waits for ever.

        Raises `Error` when the socket is closed meanwhile, also from another thread.
        """
        return self.wait_for(POLLIN, timeout, False) == 1

    def wait_writable(self, timeout=None):
        """As `wait`, until a send has room."""
        return self.wait_for(POLLOUT, timeout, False) == 1


@cython.final
@cython.no_gc
cdef class BusyPollDriver(Driver):
    """Spin until the socket is readable: the lowest latency, for a whole CPU."""

    def wait(self, timeout=None):
        """True as soon as a receive has something to return, False after `timeout` seconds; None spins for ever.

        Raises `Error` when the socket is closed meanwhile, also from another thread.
        """
        return self.wait_for(POLLIN, timeout, True) == 1

    def wait_writable(self, timeout=None):
        """As `wait`, until a send has room."""
        return self.wait_for(POLLOUT, timeout, True) == 1
