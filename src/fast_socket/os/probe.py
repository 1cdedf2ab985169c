"""What this kernel does with UDP segmentation: found by doing it over loopback, once per family."""

import functools
import logging
import socket
import struct

from fast_socket.core.capabilities import Support
from fast_socket.os.options import SOL_UDP, UDP_GRO, UDP_SEGMENT

log = logging.getLogger("fast_socket.os")

#: UDP_MAX_SEGMENTS in include/linux/udp.h: 64 in older kernels, 128 in newer ones.
SEGMENT_LIMITS = (128, 64)


@functools.cache
def probe_gso(v6: bool) -> tuple[Support, int]:
    """Whether UDP_SEGMENT works, and how many segments one send may have. The segment size is given per message,
    never set on a socket: it would stay."""
    family, host = (socket.AF_INET6, "::1") if v6 else (socket.AF_INET, "127.0.0.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
            receiver.bind((host, 0))
            sender.connect(receiver.getsockname())
            for segments in SEGMENT_LIMITS:
                try:
                    sender.sendmsg(
                        [bytes(segments)], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", 1))], socket.MSG_DONTWAIT
                    )
                except OSError:
                    continue
                # A kernel that ignores the message would have sent one datagram of all bytes.
                receiver.settimeout(1)
                if len(receiver.recv(segments)) == 1:
                    return Support.YES, segments
            return Support.NO, 1
    except OSError as error:
        log.info("could not probe UDP GSO over loopback (%s): it will be tried and dropped if refused", error)
        return Support.UNKNOWN, SEGMENT_LIMITS[-1]


@functools.cache
def probe_gro(v6: bool) -> Support:
    """Whether a socket can ask for coalesced datagrams."""
    try:
        with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.setsockopt(SOL_UDP, UDP_GRO, 1)
            except OSError:
                return Support.NO
            return Support.YES
    except OSError:
        return Support.UNKNOWN
