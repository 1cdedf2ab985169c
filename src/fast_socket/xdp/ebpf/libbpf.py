"""The few functions of libbpf.so.1 that the XDP program needs, through ctypes.

The library is loaded on first use. Failures are plain `OSError`s with the kernel's errno; what they mean is for the
caller to say. What libbpf logs goes to the logger of this package, and its warnings into the error of a failed load.
"""

import ctypes
import errno
import functools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

from fast_socket.core.errors import CapabilityError

LOG = logging.getLogger("fast_socket.xdp.ebpf")

# Values of linux/bpf.h.
BPF_XDP = 37
BPF_ANY = 0
BPF_F_XDP_DEV_BOUND_ONLY = 1 << 6

LIBBPF_DEBUG = 2
LIBBPF_ERRNO_FIRST = 4000
"""From here on error numbers are libbpf's own, as for a file that is no BPF object."""
ERROR_LINES = 12
"""The verifier's log can be long; the reason is at its end."""

PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class LinkOptions(ctypes.Structure):
    """The head of struct bpf_link_create_opts; `size` tells libbpf that there is no more."""

    _fields_ = [("size", c_size_t), ("flags", c_uint32), ("padding", c_uint32)]


class TestOptions(ctypes.Structure):
    """struct bpf_test_run_opts."""

    __test__ = False  # pytest would collect it
    _fields_ = [
        ("size", c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_char_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("flags", c_uint32),
    ]


class LinkInfo(ctypes.Structure):
    """The head of struct bpf_link_info, as XDP links fill it in."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("program", c_uint32),
        ("padding", c_uint32),
        ("ifindex", c_uint32),
        ("rest", c_uint32 * 11),
    ]


SIGNATURES: dict[str, tuple[object, ...]] = {
    "libbpf_num_possible_cpus": (c_int,),
    "bpf_object__open_file": (c_void_p, c_char_p, c_void_p),
    "bpf_object__load": (c_int, c_void_p),
    "bpf_object__close": (None, c_void_p),
    "bpf_object__find_program_by_name": (c_void_p, c_void_p, c_char_p),
    "bpf_object__find_map_by_name": (c_void_p, c_void_p, c_char_p),
    "bpf_program__fd": (c_int, c_void_p),
    "bpf_program__set_ifindex": (None, c_void_p, c_uint32),
    "bpf_program__set_flags": (c_int, c_void_p, c_uint32),
    "bpf_map__fd": (c_int, c_void_p),
    "bpf_map__set_max_entries": (c_int, c_void_p, c_uint32),
    "bpf_map__set_initial_value": (c_int, c_void_p, c_char_p, c_size_t),
    "bpf_map_update_elem": (c_int, c_int, c_char_p, c_char_p, c_uint64),
    "bpf_map_lookup_elem": (c_int, c_int, c_char_p, c_void_p),
    "bpf_map_delete_elem": (c_int, c_int, c_char_p),
    "bpf_map_get_next_key": (c_int, c_int, c_char_p, c_void_p),
    "bpf_link_create": (c_int, c_int, c_int, c_int, POINTER(LinkOptions)),
    "bpf_link_detach": (c_int, c_int),
    "bpf_obj_pin": (c_int, c_int, c_char_p),
    "bpf_obj_get": (c_int, c_char_p),
    "bpf_obj_get_info_by_fd": (c_int, c_int, c_void_p, POINTER(c_uint32)),
    "bpf_prog_test_run_opts": (c_int, c_int, POINTER(TestOptions)),
}


class Warnings(threading.local):
    """Where this thread collects what libbpf warns of; None while nobody asks."""

    lines: list[str] | None = None


WARNINGS = Warnings()


def failure(what: str, code: int) -> OSError:
    return OSError(code, f"{what}: {os.strerror(code)}" if code < LIBBPF_ERRNO_FIRST else what)


class Library:
    """libbpf. Fds that it hands out are the caller's to close."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
            libc = ctypes.CDLL(None)
        except OSError as error:
            raise CapabilityError(
                f"XDP programs need libbpf.so.1 ({error}): install it, on Debian `apt-get install libbpf1`"
            ) from error
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._format, self._free = libc.vasprintf, libc.free
        self._format.restype, self._format.argtypes = c_int, [POINTER(c_void_p), c_char_p, c_void_p]
        self._free.restype, self._free.argtypes = None, [c_void_p]
        self._print = PRINT(self._log)  # libbpf keeps the pointer
        self._lib.libbpf_set_print.restype, self._lib.libbpf_set_print.argtypes = c_void_p, [PRINT]
        self._lib.libbpf_set_print(self._print)

    def _log(self, level: int, template: bytes, arguments: int) -> int:
        collected = WARNINGS.lines
        if level >= LIBBPF_DEBUG and not LOG.isEnabledFor(logging.DEBUG):
            return 0
        line = c_void_p()
        # The platforms' va_list is a pointer, or is passed as one.
        if self._format(ctypes.byref(line), template, arguments) < 0:
            return 0
        text = ctypes.string_at(line).decode(errors="replace").rstrip()
        self._free(line)
        LOG.debug("%s", text)
        if collected is not None and level < LIBBPF_DEBUG:
            collected += text.splitlines()
        return 0

    def _call(self, name: str, *arguments: object) -> int:
        result: int = getattr(self._lib, name)(*arguments)
        if result < 0:
            raise failure(name, -result)  # since libbpf 1.0 the result is the errno
        return result

    def _find(self, name: str, *arguments: object) -> int:
        pointer: int | None = getattr(self._lib, name)(*arguments)
        if not pointer:
            raise failure(name, ctypes.get_errno() or errno.ENOENT)
        return pointer

    # Objects and programs

    @contextmanager
    def open(self, path: Path) -> Iterator["Object"]:
        with _explained():
            pointer = self._find("bpf_object__open_file", os.fsencode(path), None)
        try:
            yield Object(self, pointer)
        finally:
            self._lib.bpf_object__close(pointer)

    def test_run(self, program: int, frame: bytes, repeat: int = 1) -> tuple[int, bytes]:
        """The program's verdict on a frame that nobody sent, and the frame as the program left it."""
        out = ctypes.create_string_buffer(len(frame) + 256)
        options = TestOptions(
            ctypes.sizeof(TestOptions), frame, ctypes.addressof(out), len(frame), len(out), repeat=repeat
        )
        self._call("bpf_prog_test_run_opts", program, ctypes.byref(options))
        return options.retval, out.raw[: options.data_size_out]

    # Maps

    def update(self, fd: int, key: bytes, value: bytes) -> None:
        self._call("bpf_map_update_elem", fd, key, value, BPF_ANY)

    def lookup(self, fd: int, key: bytes, size: int) -> bytes:
        value = ctypes.create_string_buffer(size)
        self._call("bpf_map_lookup_elem", fd, key, value)
        return value.raw

    def delete(self, fd: int, key: bytes) -> None:
        self._call("bpf_map_delete_elem", fd, key)

    def keys(self, fd: int, size: int) -> Iterator[bytes]:
        key: bytes | None = None
        following = ctypes.create_string_buffer(size)
        while True:
            try:
                self._call("bpf_map_get_next_key", fd, key, following)
            except FileNotFoundError:
                return
            key = following.raw
            yield key

    def possible_cpus(self) -> int:
        return self._call("libbpf_num_possible_cpus")

    def map_info(self, fd: int) -> MapInfo:
        info = MapInfo()
        self._info(fd, info)
        return info

    # Links and pins

    def link(self, program: int, ifindex: int, flags: int) -> int:
        options = LinkOptions(ctypes.sizeof(LinkOptions), flags)
        return self._call("bpf_link_create", program, ifindex, BPF_XDP, ctypes.byref(options))

    def link_info(self, fd: int) -> LinkInfo:
        info = LinkInfo()
        self._info(fd, info)
        return info

    def detach(self, link: int) -> None:
        self._call("bpf_link_detach", link)

    def pin(self, fd: int, path: Path) -> None:
        self._call("bpf_obj_pin", fd, os.fsencode(path))

    def pinned(self, path: Path) -> int:
        return self._call("bpf_obj_get", os.fsencode(path))

    def _info(self, fd: int, info: ctypes.Structure) -> None:
        size = c_uint32(ctypes.sizeof(info))
        self._call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(size))


class Object:
    """An opened object file. Its fds are gone when it is closed: duplicate them."""

    def __init__(self, library: Library, pointer: int) -> None:
        self._library = library
        self._pointer = pointer

    def set_value(self, name: str, value: bytes) -> None:
        """The content of a data section."""
        self._library._call("bpf_map__set_initial_value", self._map(name), value, len(value))

    def set_max_entries(self, name: str, count: int) -> None:
        self._library._call("bpf_map__set_max_entries", self._map(name), count)

    def bind(self, name: str, ifindex: int) -> None:
        """A program for one device, which may then call into its driver."""
        program = self._program(name)
        self._library._lib.bpf_program__set_ifindex(program, ifindex)
        self._library._call("bpf_program__set_flags", program, BPF_F_XDP_DEV_BOUND_ONLY)

    def load(self) -> None:
        with _explained():
            self._library._call("bpf_object__load", self._pointer)

    def program(self, name: str) -> int:
        return self._library._call("bpf_program__fd", self._program(name))

    def map(self, name: str) -> int:
        return self._library._call("bpf_map__fd", self._map(name))

    def _program(self, name: str) -> int:
        return self._library._find("bpf_object__find_program_by_name", self._pointer, name.encode())

    def _map(self, name: str) -> int:
        return self._library._find("bpf_object__find_map_by_name", self._pointer, name.encode())


@contextmanager
def _explained() -> Iterator[None]:
    """Puts the last warnings of libbpf into the error."""
    lines: list[str] = []
    WARNINGS.lines = lines
    try:
        yield
    except OSError as error:
        text = "\n".join([str(error.strerror), *lines[-ERROR_LINES:]])
        raise OSError(error.errno, text) from error
    finally:
        WARNINGS.lines = None


@functools.cache
def library() -> Library:
    return Library()
