"""Fast Socket: high-rate packet I/O, one socket API over OS UDP sockets, AF_XDP queues and what comes after.

import fast_socket as fs

with fs.OsUdpSocket.bind("0.0.0.0:9000") as sock:           # a pong server
    rx, tx = sock.recv_batch(256), sock.tx_batch(256)
    while sock.driver.wait(timeout=1.0):
        sock.recv(rx)
        tx.take_from(rx)                                    # the same frames, back to each sender, no copy
        sock.send(tx)
"""

from fast_socket.core.addresses import parse_address
from fast_socket.core.affinity import (
    QueueAffinity,
    available_cpus,
    cpu_numa_node,
    device_queue_affinity,
    parse_cpu_list,
    pin_current_thread,
    pinned,
)
from fast_socket.core.batch import Datagrams, RecvBatch, TxBatch
from fast_socket.core.capabilities import Capabilities, RawDeviceStats, Support, UdpCapabilities, UdpStats
from fast_socket.core.endpoint import UdpEndpointSpec
from fast_socket.core.errors import BufferTakenError, CapabilityError, ConfigError, DeviceError, Error, SendError
from fast_socket.core.frames import FramePool
from fast_socket.core.ids import IfIndex, NumaNode, QueueId, RouteId, SocketId
from fast_socket.core.layout import BufferLayout
from fast_socket.core.metadata import (
    ChecksumStatus,
    Ecn,
    IpPacketRecvMeta,
    Metadata,
    PathMtu,
    TxOffload,
    UdpRecvMeta,
)
from fast_socket.core.packet import FrozenPacket, PacketBuffer
from fast_socket.core.placement import MemoryPlacement
from fast_socket.core.polling import BusyPollDriver, WaitDriver
from fast_socket.core.routes import EgressResolver, NeighborTable, Route, RouteTable, Unresolved
from fast_socket.core.traits import BusyPoll, IpPacketSocket, PollDriver, RawDevice, UdpSocket, WaitDriven
from fast_socket.os import OsRecvBatch, OsTxBatch, OsUdpEndpoint, OsUdpOptions, OsUdpSocket
from fast_socket.xdp import (
    All,
    Egress,
    First,
    IpFamilies,
    PrefixTable,
    Queues,
    RouteMonitor,
    SimulatedDevice,
    UnresolvedError,
    Wire,
    WorkerPlan,
    XdpAggregateEgress,
    XdpAggregateEndpoint,
    XdpCounters,
    XdpDevice,
    XdpEgress,
    XdpFactory,
    XdpFilter,
    XdpIpPacketAggregate,
    XdpIpPacketSocket,
    XdpIpRecvBatch,
    XdpIpTxBatch,
    XdpMode,
    XdpOptions,
    XdpProgram,
    XdpQueueLocalRouter,
    XdpRawDevice,
    XdpUdpAggregate,
    XdpUdpEndpoint,
    XdpUdpOptions,
    XdpUdpRecvBatch,
    XdpUdpRouter,
    XdpUdpSocket,
    XdpUdpTxBatch,
    umem_layouts,
)

__version__ = "0.1.0"

__all__ = [
    "All",
    "BufferLayout",
    "BufferTakenError",
    "BusyPoll",
    "BusyPollDriver",
    "Capabilities",
    "CapabilityError",
    "ChecksumStatus",
    "ConfigError",
    "Datagrams",
    "DeviceError",
    "Ecn",
    "Egress",
    "EgressResolver",
    "Error",
    "First",
    "FramePool",
    "FrozenPacket",
    "IfIndex",
    "IpFamilies",
    "IpPacketRecvMeta",
    "IpPacketSocket",
    "MemoryPlacement",
    "Metadata",
    "NeighborTable",
    "NumaNode",
    "OsRecvBatch",
    "OsTxBatch",
    "OsUdpEndpoint",
    "OsUdpOptions",
    "OsUdpSocket",
    "PacketBuffer",
    "PathMtu",
    "PollDriver",
    "PrefixTable",
    "QueueAffinity",
    "QueueId",
    "Queues",
    "RawDevice",
    "RawDeviceStats",
    "RecvBatch",
    "Route",
    "RouteId",
    "RouteMonitor",
    "RouteTable",
    "SendError",
    "SimulatedDevice",
    "SocketId",
    "Support",
    "TxBatch",
    "TxOffload",
    "UdpCapabilities",
    "UdpEndpointSpec",
    "UdpRecvMeta",
    "UdpSocket",
    "UdpStats",
    "Unresolved",
    "UnresolvedError",
    "WaitDriven",
    "WaitDriver",
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
    "available_cpus",
    "cpu_numa_node",
    "device_queue_affinity",
    "parse_address",
    "parse_cpu_list",
    "pin_current_thread",
    "pinned",
    "umem_layouts",
]
