"""UDP over the operating system's sockets: `OsUdpSocket`.

What it offers: sendmmsg and recvmmsg straight out of and into pool frames; GSO found by itself for runs of equal
datagrams to one peer, GRO on request; ECN, local address, TTL and timestamps per packet, for those who ask at
construction; multicast, broadcast, pacing, REUSEPORT steering. IPv4, IPv6 and dual-stack.

How it degrades: no GSO, or a route that refuses it: the same datagrams split in software, counted in
`stats().gso_fallbacks`. No batch calls: one system call per datagram. No CAP_NET_ADMIN: buffers as large as the
system's limits allow, with a warning. Everything else that is missing is a `CapabilityError` that names it.
"""

from fast_socket.os.batch import OsRecvBatch, OsTxBatch
from fast_socket.os.options import OsUdpOptions
from fast_socket.os.udp import OsUdpEndpoint, OsUdpSocket

__all__ = ["OsRecvBatch", "OsTxBatch", "OsUdpEndpoint", "OsUdpOptions", "OsUdpSocket"]
