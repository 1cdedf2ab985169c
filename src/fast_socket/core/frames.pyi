from typing import final

from fast_socket.core.layout import BufferLayout
from fast_socket.core.memory import Region

@final
class FramePool:
    def __init__(
        self,
        *,
        rx_frames: int,
        tx_frames: int,
        rx_layout: BufferLayout,
        tx_layout: BufferLayout,
        huge_pages: bool = False,
        numa_node: int | None = None,
    ) -> None: ...
    @property
    def memory(self) -> Region: ...
    @property
    def rx_layout(self) -> BufferLayout: ...
    @property
    def tx_layout(self) -> BufferLayout: ...
    @property
    def rx_frames(self) -> int: ...
    @property
    def tx_frames(self) -> int: ...
    @property
    def rx_available(self) -> int: ...
    @property
    def tx_available(self) -> int: ...
    @property
    def rx_with_device(self) -> int: ...
    @property
    def tx_with_device(self) -> int: ...
