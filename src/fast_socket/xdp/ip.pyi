from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar, final, overload

from typing_extensions import Unpack

from fast_socket.core.capabilities import RawDeviceStats
from fast_socket.core.polling import BusyPollDriver, WaitDriver
from fast_socket.core.routes import IpAddress
from fast_socket.xdp.batch import XdpIpRecvBatch, XdpIpTxBatch
from fast_socket.xdp.options import XdpOptions
from fast_socket.xdp.sim import SimulatedDevice
from fast_socket.xdp.socket import XdpSocket

D = TypeVar("D", WaitDriver, BusyPollDriver)
Chosen = TypeVar("Chosen", WaitDriver, BusyPollDriver)

class IpFamilies(Enum):
    V4Only = "v4"
    V6Only = "v6"
    Mixed = "mixed"

@final
class XdpEgress:
    @property
    def destination(self) -> IPv4Address | IPv6Address: ...
    @property
    def id(self) -> int: ...

@final
class XdpIpPacketSocket(XdpSocket[D]):
    @overload
    @staticmethod
    def open(
        device: str | SimulatedDevice, queue: int = 0, *, families: IpFamilies = ..., **options: Unpack[XdpOptions]
    ) -> XdpIpPacketSocket[WaitDriver]: ...
    @overload
    @staticmethod
    def open(
        device: str | SimulatedDevice,
        queue: int = 0,
        *,
        families: IpFamilies = ...,
        driver: type[Chosen],
        **options: Unpack[XdpOptions],
    ) -> XdpIpPacketSocket[Chosen]: ...
    @property
    def families(self) -> IpFamilies: ...
    def stats(self) -> RawDeviceStats: ...
    def recv_batch(self, capacity: int) -> XdpIpRecvBatch: ...
    def tx_batch(self, capacity: int) -> XdpIpTxBatch: ...
    def resolve(self, destination: str | IpAddress) -> XdpEgress: ...
    def recv(self, batch: XdpIpRecvBatch) -> int: ...
    def send(self, batch: XdpIpTxBatch) -> int: ...
    def send_via(self, egress: XdpEgress, batch: XdpIpTxBatch) -> int: ...
