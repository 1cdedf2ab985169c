"""`open_actor`: one task owns a socket, any number of others have handles to it.

The owner hands each packet to whichever handle waits longest, in the frame that it came in, and sends what all of them
gave it in batches. Handles wait for packets, and for room.
"""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Self

from fast_socket.aio.batches import RETRY_SECONDS, AsyncUdp, open_udp
from fast_socket.core.errors import ConfigError, Error, SendError
from fast_socket.core.packet import PacketBuffer

logger = logging.getLogger(__name__)

OnError = Callable[[SendError], object]


class UdpHandle:
    """A share in a socket that a task owns: made by `open_actor` and `clone`. For the thread of its loop.

    `async for packet in handle` ends when the handle is closed. The last handle to be closed closes the socket.
    """

    def __init__(self, owner: "_Owner") -> None:
        self._owner: _Owner | None = owner
        owner.handles += 1

    @property
    def socket(self) -> Any:
        """The socket itself: for its address, statistics and pool; the owner receives and sends. Raises `Error` (EBADF)
        when closed."""
        return self._open().sock.socket

    @property
    def refused(self) -> int:
        """Packets that were queued and then refused; each was told to `on_error`."""
        return self._open().refused

    def clone(self) -> "UdpHandle":
        """Another handle, to be closed by itself."""
        return UdpHandle(self._open())

    async def recv(self) -> PacketBuffer:
        """The next packet, which no other handle gets: the frame itself, the caller's until it is released or sent.

        Cancellation loses nothing. Raises `Error` (EBADF) when closed, also meanwhile, and what ended the owner.
        """
        while not (owner := self._open()).inbox:
            await owner.readers.wait()
        packet = owner.inbox.popleft()
        owner.inbox_room.wake()
        return packet

    async def send(self, data: Any, to: Any = None) -> None:
        """Queue a packet, as soon as there is room. A `PacketBuffer` of `recv` moves, without a copy, and goes back to
        its sender unless `to` is given; bytes are copied.

        Cancelled, it has queued nothing. Raises `ConfigError` for a bad address or size, `BufferError` while the packet
        is viewed, `Error` (EBADF) when closed. What the socket refuses later is told to `on_error`.
        """
        while not (owner := self._open()).add(data, to):
            await owner.writers.wait()

    def close(self) -> None:
        """Give the share up. With the last one all that is queued and has room leaves, and the socket closes; packets
        that were received stay valid. Again is nothing."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.let_go()

    def __aiter__(self) -> AsyncIterator[PacketBuffer]:
        return self

    async def __anext__(self) -> PacketBuffer:
        try:
            return await self.recv()
        except Error:
            if self._owner is None:
                raise StopAsyncIteration from None
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> "_Owner":
        if self._owner is None:
            raise Error("this handle is closed", errno.EBADF)
        self._owner.check()
        return self._owner


class _Line:
    """Tasks that wait, the first to come the first to go; whoever is woken looks again by itself."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.wake()  # it was this one's turn: the next has it
            with suppress(ValueError):
                self.waiting.remove(future)
            raise

    def wake(self, count: int = 1) -> None:
        while count and self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1


class _Owner:
    """What the handles share: the socket, the two tasks that use it, and what is on its way."""

    def __init__(self, sock: AsyncUdp[Any, Any], backlog: int, room: int, on_error: OnError) -> None:
        self.sock, self.backlog, self.room, self.on_error = sock, backlog, room, on_error
        self.handles = self.queued = self.refused = 0
        self.failure: BaseException | None = None
        self.inbox: deque[PacketBuffer] = deque()
        self.filling, self.leaving = sock.tx_batch(room), sock.tx_batch(room)
        self.readers, self.writers, self.inbox_room, self.work = _Line(), _Line(), _Line(), _Line()
        self.tasks = [asyncio.create_task(work()) for work in (self.receive, self.send)]
        for task in self.tasks:
            task.add_done_callback(self.ended)

    async def receive(self) -> None:
        while True:
            try:
                batch = await self.sock.recv_batch()
            except Error as error:
                if error.errno != errno.ENOBUFS:
                    raise
                await asyncio.sleep(RETRY_SECONDS)  # the handles hold all frames
                continue
            for packet in batch:
                while len(self.inbox) >= self.backlog:
                    await self.inbox_room.wait()
                self.inbox.append(packet.take())
                self.readers.wake()

    def add(self, data: Any, to: Any) -> bool:
        """Queue a packet; False is that there is no room."""
        if self.queued >= self.room:
            return False
        try:
            self.filling.append(data, to)
        except Error as error:
            if error.errno != errno.ENOBUFS:
                raise
            # Its frames are elsewhere, under way or held: nobody says when they come home.
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.writers.wake)
            return False
        self.queued += 1
        self.work.wake()
        return True

    async def send(self) -> None:
        while True:
            while not len(self.filling):
                await self.work.wait()
            batch = self.filling
            self.filling, self.leaving = self.leaving, batch
            count = len(batch)
            while len(batch):
                try:
                    await self.sock.send_batch(batch)
                except SendError as error:
                    self.refuse(error)
            self.queued -= count
            self.writers.wake(count)

    def refuse(self, error: SendError) -> None:
        self.leaving.discard(1)
        self.refused += 1
        self.on_error(error)

    def check(self) -> None:
        """Raise what ended a task."""
        if self.failure is not None:
            raise Error(f"the task that owns the socket has ended: {self.failure}", errno.EBADF) from self.failure

    def ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self.failure = self.failure or task.exception()
        self.stop()

    def let_go(self) -> None:
        self.handles -= 1
        self.readers.wake(len(self.readers.waiting))  # those of the closed handle, who look again, among them
        self.writers.wake(len(self.writers.waiting))
        if not self.handles and self.failure is None:
            for batch in (self.leaving, self.filling):
                while len(batch):
                    try:
                        if not self.sock.socket.send(batch):
                            break
                    except SendError as error:
                        batch.discard(1)
                        self.refused += 1
                        self.on_error(error)
        if not self.handles:
            self.stop()

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.sock.close()
        self.inbox.clear()
        for line in (self.readers, self.writers):
            line.wake(len(line.waiting))


def report(error: SendError) -> None:
    logger.warning("a packet was refused: %s", error)


def open_actor(
    local: Any = None,
    remote: Any = None,
    *,
    sock: Any = None,
    backlog: int = 256,
    room: int = 256,
    on_error: OnError = report,
    **options: Any,
) -> UdpHandle:
    """The first handle to a socket that tasks of the running loop own: `async with aio.open_actor("0.0.0.0:9000")`.

    `local`, `remote`, `sock` and `options` are those of `open_udp`. `backlog` is how many packets wait for handles
    before the owner stops receiving, and the kernel drops and counts; `room` how many wait to be sent before `send`
    waits. `on_error` is called with each `SendError` of a packet that was queued; it is logged unless said otherwise.

    Raises as `open_udp`; `ConfigError` for another number than 1 to 65536, `RuntimeError` outside a running loop.
    """
    asyncio.get_running_loop()
    for name, number in (("backlog", backlog), ("room", room)):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 65536:
            raise ConfigError(f"{name} is {number!r}: give a number of packets from 1 to 65536")
    opened = open_udp(local, remote, sock=sock, **options)
    try:
        return UdpHandle(_Owner(opened, backlog, room, on_error))
    except BaseException:
        opened.close()
        raise
