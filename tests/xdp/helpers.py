"""The least of an AF_XDP socket: it receives what a program redirects, in copy mode."""

import ctypes
import mmap
import os
import select
import socket
import struct

SECONDS = 5.0

# Values of linux/if_xdp.h.
AF_XDP = 44
SOL_XDP = 283
XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 1, 2, 4, 5, 6
XDP_PGOFF_RX_RING, XDP_UMEM_PGOFF_FILL_RING = 0, 0x100000000
XDP_COPY = 2
FRAMES, FRAME = 64, 4096


class Ring:
    """One that this side reads or fills once around: enough for `FRAMES` frames."""

    def __init__(self, fd: int, page: int, offsets: tuple[int, ...], entry: int) -> None:
        self.producer, self.consumer, self.entries, _ = offsets
        self.memory = mmap.mmap(fd, self.entries + FRAMES * entry, offset=page)

    def index(self, at: int) -> int:
        value: int = struct.unpack_from("=I", self.memory, at)[0]
        return value

    def close(self) -> None:
        self.memory.close()


class Receiver:
    """Made in the device's namespace; usable from anywhere."""

    def __init__(self, ifindex: int, queue: int = 0) -> None:
        self.socket = socket.socket(AF_XDP, socket.SOCK_RAW)
        self.memory = mmap.mmap(-1, FRAMES * FRAME)
        start = ctypes.c_char.from_buffer(self.memory)
        address = ctypes.addressof(start)
        del start
        self.socket.setsockopt(SOL_XDP, XDP_UMEM_REG, struct.pack("=QQIIII", address, FRAMES * FRAME, FRAME, 0, 0, 0))
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING):
            self.socket.setsockopt(SOL_XDP, ring, FRAMES)
        offsets = struct.unpack("=16Q", self.socket.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
        self.fill = Ring(self.fileno(), XDP_UMEM_PGOFF_FILL_RING, offsets[8:12], 8)
        self.ring = Ring(self.fileno(), XDP_PGOFF_RX_RING, offsets[:4], 16)
        for number in range(FRAMES):
            struct.pack_into("=Q", self.fill.memory, self.fill.entries + 8 * number, number * FRAME)
        struct.pack_into("=I", self.fill.memory, self.fill.producer, FRAMES)
        name = struct.pack("=HHIII", AF_XDP, XDP_COPY, ifindex, queue, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(self.fileno(), name, len(name)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self, before: int = 0, seconds: float = SECONDS) -> bytes | None:
        """The next frame, with so many bytes from in front of it; None if none comes."""
        consumer = self.ring.index(self.ring.consumer)
        if self.ring.index(self.ring.producer) == consumer and not select.select([self.socket], [], [], seconds)[0]:
            return None
        address, length, _ = struct.unpack_from("=QII", self.ring.memory, self.ring.entries + 16 * (consumer % FRAMES))
        struct.pack_into("=I", self.ring.memory, self.ring.consumer, consumer + 1)
        return self.memory[address - before : address + length]

    def close(self) -> None:
        self.socket.close()
        self.fill.close()
        self.ring.close()
        self.memory.close()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
