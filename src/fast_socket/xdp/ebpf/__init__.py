"""The XDP program that redirects wanted frames to AF_XDP sockets, and its control from Python.

Whatever the filter does not ask for stays with the kernel. The program comes compiled with the package; loading it
needs libbpf.so.1, Linux 5.18, CAP_BPF and CAP_NET_ADMIN. Nothing is degraded in silence: `XdpProgram.mode` says how it
is attached.
"""

from fast_socket.xdp.ebpf.program import XdpCounters, XdpFilter, XdpMode, XdpProgram

__all__ = ["XdpCounters", "XdpFilter", "XdpMode", "XdpProgram"]
