from typing import final

from fast_socket.core.batch import RecvBatch, TxBatch

@final
class OsRecvBatch(RecvBatch): ...

@final
class OsTxBatch(TxBatch): ...
