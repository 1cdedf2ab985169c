from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, final

from fast_socket.core.affinity import QueueAffinity
from fast_socket.core.capabilities import Capabilities
from fast_socket.core.frames import FramePool
from fast_socket.core.ids import IfIndex, NumaNode
from fast_socket.core.routes import IpAddress, Unresolved
from fast_socket.xdp.egress import Egress
from fast_socket.xdp.queue import Queue

@final
class Wire:
    drop: float
    duplicate: float
    paused: bool
    hold_completions: bool
    clock_ns: int
    def __init__(self, *, drop: float = 0.0, duplicate: float = 0.0, seed: int = 1) -> None: ...
    @property
    def devices(self) -> list[SimulatedDevice]: ...
    @property
    def generation(self) -> int: ...
    def resume(self) -> None: ...

@final
class SimulatedQueue(Queue):
    @property
    def device(self) -> SimulatedDevice: ...
    @property
    def queue_id(self) -> int: ...
    def inject_receive(self, address: int, length: int, options: int = 0) -> None: ...
    def inject_completion(self, address: int) -> None: ...
    def inject_frame(self, frame: bytes) -> None: ...
    def move_index(self, ring: str, by: int) -> None: ...

class SimulatedDevice:
    zero_copy: bool
    driver_name: str
    numa_node: NumaNode
    wire: Wire
    name: str
    mac: bytes
    mtu: int
    queue_count: int
    ifindex: IfIndex
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    def __init__(
        self,
        wire: Wire,
        name: str = "sim0",
        *,
        addresses: Sequence[str] = (),
        mac: bytes | None = None,
        mtu: int = 1500,
        queues: int = 1,
    ) -> None: ...
    @property
    def queues(self) -> tuple[QueueAffinity, ...]: ...
    def capabilities(self) -> Capabilities: ...
    def refresh_mtu(self) -> int: ...
    def make_router(self) -> SimulatedRouter: ...
    def open_queue(self, pool: FramePool, queue: int, options: Any) -> SimulatedQueue: ...
    def attach(self, queue: Queue, number: int, options: Any) -> None: ...

class SimulatedRouter:
    device: SimulatedDevice
    def __init__(self, device: SimulatedDevice) -> None: ...
    @property
    def generation(self) -> int: ...
    def resolve(self, destination: IpAddress) -> Egress | Unresolved: ...
