"""`open_udp`: a socket whose batches are awaited."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

from fast_socket.aio.claims import claim
from fast_socket.core.batch import RecvBatch, TxBatch
from fast_socket.core.errors import ConfigError, Error
from fast_socket.core.traits import UdpSocket

Rx = TypeVar("Rx", bound=RecvBatch)
Tx = TypeVar("Tx", bound=TxBatch)

IN_A_ROW = 16  # receives without waiting, before other tasks have a turn
RETRY_SECONDS = 0.001  # of a socket whose descriptor does not say when it has room


class AsyncUdp(Generic[Rx, Tx]):
    """A wait-driven UDP socket in an event loop: made by `open_udp`. For the thread of its loop; one task receives, and
    one sends, at a time.

    Cancellation is safe: nothing is received before it is returned, and what a send has not handed over is still in its
    batch.
    """

    def __init__(self, sock: UdpSocket[Rx, Tx, Any, Any], *, batch: int = 256) -> None:
        """Raises `ConfigError` for a socket that spins, or that belongs to another or to an endpoint."""
        if not hasattr(sock.driver, "fileno"):
            raise ConfigError(f"{sock!r} spins: an event loop needs one that was opened with driver=WaitDriver")
        self._sock = sock
        self._fd: int = sock.driver.fileno()
        claim(self._fd, self)
        self._rx = sock.recv_batch(batch)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at_once = 0  # receives in a row that did not wait
        self._waiting: dict[str, asyncio.Future[None]] = {}

    @property
    def socket(self) -> UdpSocket[Rx, Tx, Any, Any]:
        """The socket itself."""
        return self._sock

    def tx_batch(self, capacity: int) -> Tx:
        """Transmit storage, as of the socket."""
        return self._sock.tx_batch(capacity)

    async def recv_batch(self) -> Rx:
        """What has arrived, as soon as there is something: the same batch each time, its contents replaced.

        Raises what the socket's `recv` raises; `RuntimeError` while another task receives.
        """
        self._claim("recv_batch")
        if self._at_once >= IN_A_ROW:
            self._at_once = 0
            await self._wait("recv_batch", 0)
        self._at_once += 1
        while not self._sock.recv(self._rx):
            self._at_once = 0
            await self._wait("recv_batch")
        return self._rx

    async def send_batch(self, batch: Tx) -> int:
        """Send all of a batch, waiting for room as often as it takes; returns how many packets left. Raises `SendError`
        for one that is refused, which is then the first; `RuntimeError` while another task sends."""
        self._claim("send_batch")
        sent = 0
        while len(batch):
            now = self._sock.send(batch)
            sent += now
            if not len(batch):
                break
            if now:
                await self._wait("send_batch", 0)
            elif hasattr(self._sock, "recv_buffer_size"):  # the kernel says when its buffer has room
                await self._wait("send_batch")
            else:
                await self._wait("send_batch", RETRY_SECONDS)
        return sent

    def __aiter__(self) -> AsyncIterator[Rx]:
        return self

    async def __anext__(self) -> Rx:
        try:
            return await self.recv_batch()
        except Error:
            if self._fd < 0:  # closed by this object, which ends the iteration
                raise StopAsyncIteration from None
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; whoever waits has an `Error`, an iteration ends. Again is nothing."""
        for what in list(self._waiting):
            self._wake(what)
        self._fd = -1
        self._sock.close()

    def _claim(self, what: str) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if loop is not self._loop:
            raise RuntimeError(f"{what}() belongs to another event loop: open a socket in this one")
        if what in self._waiting:
            raise RuntimeError(f"{what}() is awaited by another task already")

    async def _wait(self, what: str, seconds: float | None = None) -> None:
        """Until the descriptor is readable, or writable; or for some time."""
        loop = asyncio.get_running_loop()
        self._waiting[what] = future = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._wake, what)
        if timer is None:
            (loop.add_reader if what == "recv_batch" else loop.add_writer)(self._fd, self._wake, what)
        try:
            await future
        finally:
            if future.cancelled():
                self._wake(what)
            del self._waiting[what]  # only now: until its task goes on, nobody else may wait
            if timer is not None:
                timer.cancel()

    def _wake(self, what: str) -> None:
        """End a wait; its descriptor is the loop's no more, so that it may be closed."""
        future = self._waiting.get(what)
        if future is None or self._loop is None:
            return
        if self._fd >= 0 and not self._loop.is_closed():
            (self._loop.remove_reader if what == "recv_batch" else self._loop.remove_writer)(self._fd)
        if not future.done():
            future.set_result(None)


def open_udp(
    local: Any = None, remote: Any = None, *, sock: Any = None, batch: int = 256, **options: Any
) -> AsyncUdp[Any, Any]:
    """An `AsyncUdp`: `async with fast_socket.aio.open_udp("0.0.0.0:9000") as sock`.

    It binds to `local`, connects to `remote`, or takes a wait-driven socket, say an `XdpUdpSocket`. `options` are those
    of `OsUdpOptions`. Raises as `OsUdpSocket.bind` and `connect`.
    """
    from fast_socket.os import OsUdpSocket

    given = sock is not None
    if given:
        if local is not None or remote is not None or options:
            raise ConfigError("sock is given: local, remote and options are for a new one, leave them out")
    elif remote is not None:
        sock = OsUdpSocket.connect(remote, local=local, **options)
    elif local is not None:
        sock = OsUdpSocket.bind(local, **options)
    else:
        raise ConfigError("open_udp() without an address: give local, remote or sock")
    try:
        return AsyncUdp(sock, batch=batch)
    except BaseException:
        if not given:
            sock.close()
        raise
