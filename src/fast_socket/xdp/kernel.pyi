from typing import Any, final

from fast_socket.core.frames import FramePool
from fast_socket.xdp.queue import Queue

@final
class KernelQueue(Queue):
    @property
    def queue_id(self) -> int: ...

def open_kernel_queue(pool: FramePool, device: Any, queue: int, options: Any) -> KernelQueue: ...
