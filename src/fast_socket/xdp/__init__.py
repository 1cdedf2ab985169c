"""AF_XDP: frames straight from the driver's receive queue, past the kernel's network stack.

`fast_socket.xdp.ebpf` holds the program that decides which frames take that way. Needs Linux 5.18.
"""

from fast_socket.xdp.ebpf import XdpCounters, XdpFilter, XdpMode, XdpProgram

__all__ = ["XdpCounters", "XdpFilter", "XdpMode", "XdpProgram"]
