from typing import TypeVar, final, overload

from typing_extensions import Unpack

from fast_socket.core.addresses import Address
from fast_socket.core.capabilities import UdpCapabilities, UdpStats
from fast_socket.core.endpoint import UdpEndpointSpec
from fast_socket.core.polling import BusyPollDriver, WaitDriver
from fast_socket.xdp.batch import XdpUdpRecvBatch, XdpUdpTxBatch
from fast_socket.xdp.options import XdpUdpOptions
from fast_socket.xdp.sim import SimulatedDevice
from fast_socket.xdp.socket import XdpSocket

D = TypeVar("D", WaitDriver, BusyPollDriver)
Chosen = TypeVar("Chosen", WaitDriver, BusyPollDriver)

@final
class XdpUdpEndpoint:
    @property
    def spec(self) -> UdpEndpointSpec: ...

@final
class XdpUdpSocket(XdpSocket[D]):
    @overload
    @staticmethod
    def open(
        device: str | SimulatedDevice, queue: int = 0, *, local: Address, **options: Unpack[XdpUdpOptions]
    ) -> XdpUdpSocket[WaitDriver]: ...
    @overload
    @staticmethod
    def open(
        device: str | SimulatedDevice,
        queue: int = 0,
        *,
        local: Address,
        driver: type[Chosen],
        **options: Unpack[XdpUdpOptions],
    ) -> XdpUdpSocket[Chosen]: ...
    @property
    def local_address(self) -> tuple[str, int]: ...
    @property
    def ports(self) -> frozenset[int]: ...
    def capabilities(self) -> UdpCapabilities: ...
    def stats(self) -> UdpStats: ...
    def recv_batch(self, capacity: int) -> XdpUdpRecvBatch: ...
    def tx_batch(self, capacity: int) -> XdpUdpTxBatch: ...
    def prepare_udp_endpoint(self, spec: UdpEndpointSpec) -> XdpUdpEndpoint: ...
    def recv(self, batch: XdpUdpRecvBatch) -> int: ...
    def send(self, batch: XdpUdpTxBatch) -> int: ...
    def send_to(self, endpoint: XdpUdpEndpoint, batch: XdpUdpTxBatch) -> int: ...
