"""AF_XDP: UDP payloads or whole IP datagrams through a device queue, past the kernel's network stack.

An XDP program (`fast_socket.xdp.ebpf`) redirects what was asked for to the queue's socket and passes everything else on
to the kernel. Frames live in a UMEM that kernel and program share; headers are read and written here. Linux 5.18.

How it degrades: zero-copy where the driver has it, else the kernel copies, and `zero_copy` says which; native XDP, else
generic. Without libbpf, privilege or a device there is `fast_socket.xdp.sim`: the same rings, sockets and loops over a
wire in memory.
"""

from fast_socket.xdp import sim
from fast_socket.xdp.aggregate import XdpAggregateEgress, XdpAggregateEndpoint, XdpIpPacketAggregate, XdpUdpAggregate
from fast_socket.xdp.batch import XdpIpRecvBatch, XdpIpTxBatch, XdpUdpRecvBatch, XdpUdpTxBatch
from fast_socket.xdp.claim import All, First, Queues
from fast_socket.xdp.device import XdpDevice
from fast_socket.xdp.ebpf import XdpCounters, XdpFilter, XdpMode, XdpProgram
from fast_socket.xdp.egress import Egress
from fast_socket.xdp.factory import WorkerPlan, XdpFactory
from fast_socket.xdp.header_table import UnresolvedError
from fast_socket.xdp.ip import IpFamilies, XdpEgress, XdpIpPacketSocket
from fast_socket.xdp.monitor import RouteMonitor
from fast_socket.xdp.options import XdpOptions, XdpUdpOptions, umem_layouts
from fast_socket.xdp.prefix_table import PrefixTable
from fast_socket.xdp.raw_device import XdpRawDevice
from fast_socket.xdp.router import XdpQueueLocalRouter, XdpUdpRouter
from fast_socket.xdp.sim import SimulatedDevice, Wire
from fast_socket.xdp.udp import XdpUdpEndpoint, XdpUdpSocket

__all__ = [
    "All",
    "Egress",
    "First",
    "IpFamilies",
    "PrefixTable",
    "Queues",
    "RouteMonitor",
    "SimulatedDevice",
    "UnresolvedError",
    "Wire",
    "WorkerPlan",
    "XdpAggregateEgress",
    "XdpAggregateEndpoint",
    "XdpCounters",
    "XdpDevice",
    "XdpEgress",
    "XdpFactory",
    "XdpFilter",
    "XdpIpPacketAggregate",
    "XdpIpPacketSocket",
    "XdpIpRecvBatch",
    "XdpIpTxBatch",
    "XdpMode",
    "XdpOptions",
    "XdpProgram",
    "XdpQueueLocalRouter",
    "XdpRawDevice",
    "XdpUdpAggregate",
    "XdpUdpEndpoint",
    "XdpUdpOptions",
    "XdpUdpRecvBatch",
    "XdpUdpRouter",
    "XdpUdpSocket",
    "XdpUdpTxBatch",
    "sim",
    "umem_layouts",
]
