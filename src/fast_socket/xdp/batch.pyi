from typing import final

import numpy as np
from numpy.typing import NDArray

from fast_socket.core.batch import RecvBatch, TxBatch
from fast_socket.core.metadata import IpPacketRecvMeta

@final
class XdpUdpRecvBatch(RecvBatch): ...

@final
class XdpUdpTxBatch(TxBatch): ...

@final
class XdpIpRecvBatch(RecvBatch):
    def meta(self, index: int) -> IpPacketRecvMeta: ...

@final
class XdpIpTxBatch(TxBatch):
    def take_from(self, source: RecvBatch, *, reply: bool = False) -> int: ...
    @property
    def egresses(self) -> NDArray[np.uint32]: ...
