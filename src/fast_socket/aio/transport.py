"""The datagram transport: asyncio's contract over batches.

A wake-up receives whole batches and hands each datagram to the protocol, up to a budget, so that a flood on one socket
starves neither timers nor other sockets. What a protocol sends is gathered: it is copied into frames at once, and
leaves with one call at the end of the wake-up or iteration, or when there is a batch of it. Runs of datagrams of
one size to one peer leave as large sends where the socket can (GSO).
"""

import asyncio
import errno
import os
import socket
import threading
import warnings
from collections import deque
from time import monotonic
from typing import Any

from fast_socket.aio.claims import claim
from fast_socket.core.addresses import parse_address
from fast_socket.core.errors import ConfigError, Error, SendError

Address = tuple[Any, ...]

RX_BATCH = 128  # packets in a receive
TX_BATCH = 256  # datagrams that are gathered before they leave
HIGH_WATER = 64 * 1024  # as asyncio's own transports
HEADER = 8  # what a datagram counts in the buffer beside its bytes, as asyncio counts it
GATHER_SECONDS = 0.0001  # within a wake-up, before what was gathered leaves all the same
LOOK_EVERY = 8  # datagrams before a look at the clock
RETRY_SECONDS = 0.001  # where no descriptor says when there is room, or a free frame
HELD_SECONDS = 1.0  # that a packet waits for its neighbour, and those behind it
MANY = 32  # packets in a receive, from which on there may be more
MOST_ADDRESSES = 4096  # that are kept in both forms
ALONE = 16  # receives for one datagram after one that came by itself, before there may be a batch again
NO_BYTES = "data argument must be a bytes-like object, not {!r}"
#: What an earlier datagram left on the socket (icmp(7)): this one has not failed, and is sent again.
STALE = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


class DatagramTransport(asyncio.DatagramTransport):
    """Made by `create_datagram_endpoint`. For the thread of its loop only, as every asyncio transport.

    Beside asyncio's contract: `get_extra_info("fast_socket")` is the socket; a protocol with
    `datagrams_received(batch)` gets whole receive batches in place of single datagrams; `send_batch(tx)` sends a batch
    of the socket's own.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: Any,
        protocol: asyncio.BaseProtocol,
        *,
        peer: Address | None,
        connected: bool,
        budget: int,
        extra: dict[str, Any],
        owned: Any = None,
    ) -> None:
        super().__init__(extra)
        self._loop, self._sock, self._owned = loop, sock, owned
        self._peer, self._connected = peer, connected
        self._v6 = owned.family == socket.AF_INET6 if owned is not None else ":" in sock.local_address[0]
        self._kernel = hasattr(
            sock, "recv_buffer_size"
        )  # says when there is room, and what became of earlier datagrams
        self._outward: dict[Address, Address] = {}  # IPv6: our addresses in asyncio's form, and back
        self._inward: dict[Address, Address] = {}
        self._thread = threading.get_ident()
        self._fd = sock.fileno()
        self._lost = True  # until all is made
        claim(self._fd, self)
        self._budget = budget
        self._rx, self._rx_one, self._tx = sock.recv_batch(RX_BATCH), sock.recv_batch(1), sock.tx_batch(TX_BATCH)
        self._recv, self._send = sock.recv, sock.send
        self._most_alone = ALONE if owned is not None and sock.pool.rx_frames > RX_BATCH else 0
        self._alone = 0  # how many more receives are for one datagram
        self._append = self._tx.append
        self._gathered = 0  # bytes in the transmit batch, as the buffer counts them
        self._late: deque[tuple[bytes, Address | None]] = deque()  # behind a batch that could not leave
        self._late_size = 0
        self._held_since = 0.0  # since when the first packet waits for its neighbour, if it does
        self._flushing = self._writing = self._paused = False
        self._closing = self._lost = False
        self.set_write_buffer_limits()
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else f"fd={self._fd}"
        return f"<{type(self).__name__} {state} {self._sock!r}>"

    def __del__(self) -> None:
        if not getattr(self, "_lost", True):
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._sock.close()
            if self._owned is not None:
                self._owned.close()

    # ---- what asyncio asks of every transport ----

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol
        self._by_batch = hasattr(protocol, "datagrams_received")

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As `asyncio.WriteTransport.set_write_buffer_limits`: in bytes, each datagram with 8 more."""
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._gathered + self._late_size

    def close(self) -> None:
        """What was given to `sendto` is sent first; then `connection_lost(None)`."""
        if self._closing:
            return
        self._closing = True
        self._loop.remove_reader(self._fd)
        self._flush()
        if not self.get_write_buffer_size() and not self._lost:
            self._lose(None)

    def abort(self) -> None:
        """Without sending what waits."""
        self._drop()
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._fd)
        if not self._lost:
            self._lose(None)

    # ---- receiving ----

    def start(self) -> None:
        """Receive from now on: after `connection_made`."""
        if not self._closing:
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        rx = self._rx
        if self._alone:  # the last one came by itself: a receive for one is quicker, from a frame kept for it
            self._alone -= 1
            rx = self._rx_one
        left, self._due = self._budget, monotonic() + GATHER_SECONDS
        flushing, self._flushing = self._flushing, True  # what is sent meanwhile leaves at the end of this, not later
        try:
            while True:
                try:
                    count = self._recv(rx)
                except Error as error:
                    if error.errno == errno.ENOBUFS:
                        if rx is self._rx_one:  # its frame is elsewhere, others may be free
                            self._alone = 0
                            break
                        self._rest()
                    else:
                        self._rearm()
                    self._call("error_received", plain(error))
                    break
                except BufferError as error:  # a view of the last batch is still held: that one stays its holder's
                    self._report(error, "A packet is viewed after datagrams_received() returned: take() it")
                    self._rx, self._rx_one = self._sock.recv_batch(RX_BATCH), self._sock.recv_batch(1)
                    self._rest()
                    break
                datagrams = rx.datagram_count
                if not count:
                    self._alone = 0
                    self._rearm()
                    break
                if self._by_batch:
                    self._call("datagrams_received", rx)
                elif datagrams == 1:
                    packet = rx[0]
                    self._hand_over(bytes(packet), packet.address)
                    if rx is self._rx:
                        self._alone = self._most_alone
                else:
                    self._deliver(rx)
                left -= datagrams
                if count < MANY or left <= 0 or self._closing:  # fewer: the loop says when there is more
                    break
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fail(error, "Fatal read error on datagram transport")
        finally:
            self._flushing = flushing
            if self._gathered and not self._writing and not self._lost:
                self._flush()

    def _rearm(self) -> None:
        """uvloop looks no more at a descriptor that has had an error, until it is added again."""
        if not self._closing:
            self._loop.remove_reader(self._fd)
            self.start()

    def _rest(self) -> None:
        """The protocol holds all frames, and the descriptor stays readable: not again at once, and for ever."""
        if not self._closing:
            self._loop.remove_reader(self._fd)
            self._loop.call_later(RETRY_SECONDS, self.start)

    def _deliver(self, rx: Any) -> None:
        datagrams = rx.datagrams()
        address, last = None, -1
        for at, (slot, data) in enumerate(zip(datagrams.slots.tolist(), datagrams, strict=True)):
            if slot != last:
                address, last = datagrams.source(at), slot
            self._hand_over(data, address)
            if self._closing:
                return
            if not at % LOOK_EVERY and self._gathered and monotonic() > self._due and not self._writing:
                self._flush()  # a protocol that takes long: its peers do not wait for the end of the batch
                self._due = monotonic() + GATHER_SECONDS

    def _hand_over(self, data: bytes, address: Any) -> None:
        if self._v6:
            address = self._outward.get(address) or self._with_scope(address)
        try:
            self._protocol.datagram_received(data, address)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error, "Exception in datagram_received()")

    # ---- sending ----

    def sendto(self, data: Any, addr: Any = None) -> None:
        """As `asyncio.DatagramTransport.sendto`; the bytes are copied at once. Empty datagrams are sent."""
        if self._peer is not None:
            if addr is not None and addr != self._peer:
                raise ValueError(f"Invalid address: must be None or {self._peer}")
            addr = None if self._connected else self._peer
        elif addr is None:
            raise ValueError("Invalid address: this endpoint has no remote_addr, give one")
        if self._closing:
            return
        if not self._flushing:
            if threading.get_ident() != self._thread:
                raise RuntimeError("sendto() belongs to the thread of the loop: use loop.call_soon_threadsafe")
            self._loop.call_soon(self._flush_soon)
            self._flushing = True
        if self._v6 and addr is not None:
            addr = self._inward.get(addr) or self._without_scope(addr)
        if self._late:
            self._keep(data, addr)
            return
        try:
            self._append(data, addr)
        except TypeError:
            raise TypeError(NO_BYTES.format(type(data).__name__)) from None
        except ConfigError as error:
            self._send_alone(data, addr, error)
            return
        except Error as error:
            if error.errno != errno.ENOBUFS:
                self._call("error_received", plain(error))
                return
            self._flush()  # the batch is full, or all frames are under way
            if self.is_closing():
                return
            if self._late or not self._tx.room or self._tx.room < self._tx.capacity:
                self._keep(data, addr)
                return
            try:
                self._append(data, addr)
            except Error:  # the frames are in batches of the protocol's own
                self._keep(data, addr)
                self._wait_for_room()
                return
        self._gathered += len(data) + HEADER

    def send_batch(self, tx: Any) -> int:
        """Send a batch of the socket's own, behind what waits; returns how many packets left. The rest stays in the
        batch. Raises `SendError`."""
        self._flush()
        if self._closing or self.get_write_buffer_size():
            return 0
        sent: int = self._sock.send(tx)
        return sent

    def _send_alone(self, data: Any, addr: Address | None, error: ConfigError) -> None:
        """What does not fit a frame goes by itself, behind what was gathered; an address that is none is refused."""
        if not self._is_large(data):
            self._call("error_received", plain(error))
            return
        self._flush()
        if self._closing:
            return
        if self.get_write_buffer_size():
            self._keep(data, addr)
        elif not self._send_large(data, addr):
            self._keep(data, addr)
            self._wait_for_room()

    def _is_large(self, data: Any) -> bool:
        capacity: int = self._tx.pool.tx_layout.payload_capacity
        return self._owned is not None and memoryview(data).nbytes > capacity

    def _send_large(self, data: Any, addr: Address | None) -> bool:
        """Past the batch; False is that there is no room."""
        try:
            if addr is None:
                self._owned.send(data)
            else:
                host, port = parse_address(addr)  # no names
                self._owned.sendto(data, (f"::ffff:{host}" if self._v6 and ":" not in host else host, port))
        except BlockingIOError:
            return False
        except ConfigError as error:
            self._call("error_received", plain(error))
        except OSError as refused:
            self._call("error_received", refused)
        return True

    def _keep(self, data: Any, addr: Address | None) -> None:
        try:
            data = bytes(memoryview(data))
        except TypeError:
            raise TypeError(NO_BYTES.format(type(data).__name__)) from None
        self._late.append((data, addr))
        self._late_size += len(data) + HEADER
        self._pause()

    def _flush_soon(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        """Send what was gathered, and of what came late as much as goes."""
        if self._is_lost():
            return
        tx, earlier, refused = self._tx, None, 0
        while True:
            while len(tx):
                try:
                    if self._send(tx):
                        self._held_since = 0.0
                except SendError as error:
                    self._held_since = 0.0
                    refused += 1
                    if refused > TX_BATCH:  # error_received() sends again, and again
                        self._loop.call_soon(self._flush)
                        return
                    told: SendError | None = error
                    # An earlier datagram's, as far as one can tell: told once this one has left.
                    if error.errno in STALE and self._kernel and (earlier is None or error.accepted):
                        told, earlier = earlier, error
                    else:
                        earlier = None
                        tx.discard(1)
                    if told is not None:
                        self._call("error_received", plain(told))
                        if self._is_lost():
                            return
                    continue
                except Error as error:
                    self._fail(error, "Fatal write error on datagram transport")
                    return
                break
            if earlier is not None:
                self._call("error_received", plain(earlier))
                if self._is_lost():
                    return
                earlier = None
            if len(tx):
                if not self._kernel and self._give_up():
                    tx.discard(1)
                    unreachable = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
                    self._call("error_received", unreachable)
                    if self._is_lost():
                        return
                    continue
                self._gathered = int(tx.lengths.sum()) + HEADER * len(tx)  # some may have left
                self._wait_for_room()
                if self._paused and not self._is_lost():
                    self._resume()
                return
            self._gathered = 0
            if not self._late:
                break
            while self._late and tx.room:
                data, addr = self._late[0]
                try:
                    self._append(data, addr)
                except ConfigError as error:
                    if len(tx):
                        break  # those before it first
                    self._late.popleft()
                    self._late_size -= len(data) + HEADER
                    if not self._is_large(data):
                        self._call("error_received", plain(error))
                    elif not self._send_large(data, addr):
                        self._late.appendleft((data, addr))
                        self._late_size += len(data) + HEADER
                        self._wait_for_room()
                        return
                    if self._is_lost():
                        return
                    continue
                except Error:  # no frame is free: they come home when the kernel has sent them
                    self._wait_for_room()
                    break
                else:
                    self._gathered += len(data) + HEADER
                self._late.popleft()
                self._late_size -= len(data) + HEADER
            if self._late and not len(tx):
                return
        if self._writing:
            self._stop_writing()
        if self._paused:
            self._resume()
        if self._closing and not self._lost:
            self._lose(None)

    def _give_up(self) -> bool:
        """Whether the first packet has waited for its neighbour as long as it may."""
        now = monotonic()
        if not self._held_since:
            self._held_since = now
        elif now - self._held_since > HELD_SECONDS:
            self._held_since = 0.0
            return True
        return False

    def _wait_for_room(self) -> None:
        if not self._writing and not self._lost:
            self._writing = True
            if self._kernel:
                self._loop.add_writer(self._fd, self._flush)
            else:  # a ring: there is always room, but a neighbour may be awaited
                self._loop.call_later(RETRY_SECONDS, self._flush_again)
        self._pause()

    def _flush_again(self) -> None:
        self._writing = False
        if not self._lost:
            self._flush()

    def _stop_writing(self) -> None:
        if self._kernel:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _pause(self) -> None:
        if not self._paused and not self._lost and self.get_write_buffer_size() > self._high:
            self._paused = True
            self._call("pause_writing")

    def _resume(self) -> None:
        if self.get_write_buffer_size() <= self._low:
            self._paused = False
            self._call("resume_writing")

    # ---- addresses of IPv6, which asyncio has in four parts ----

    def _with_scope(self, ours: Address) -> Address:
        return self._learn(ours, four_parts(ours))[1]

    def _without_scope(self, theirs: Address) -> Address:
        if len(theirs) < 4 or not theirs[3] or "%" in theirs[0]:
            return theirs[:2]
        return self._learn((f"{theirs[0]}%{theirs[3]}", theirs[1]), theirs)[0]

    def _learn(self, ours: Address, theirs: Address) -> tuple[Address, Address]:
        if len(self._outward) >= MOST_ADDRESSES:
            self._outward.clear()
            self._inward.clear()
        self._outward[ours], self._inward[theirs] = theirs, ours
        return ours, theirs

    # ---- the end ----

    def _is_lost(self) -> bool:
        return self._lost  # which callbacks change, unseen by type checkers

    def _drop(self) -> None:
        self._late.clear()
        self._late_size = self._gathered = 0
        if not self._lost:
            self._tx.discard()

    def _fail(self, error: BaseException, message: str) -> None:
        self._report(error, message)
        self._drop()
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._fd)
        if not self._lost:
            self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        self._lost = True
        if self._writing:
            self._stop_writing()
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._sock.close()
            if self._owned is not None:
                self._owned.close()

    def _call(self, method: str, *arguments: Any) -> None:
        """Of the protocol, which may lack it."""
        try:
            getattr(self._protocol, method)(*arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error, f"Exception in {method}()")

    def _report(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )


def four_parts(address: Address) -> Address:
    """An IPv6 address of ours, or an IPv4 one of a dual-stack socket, as the socket module has it."""
    host, port = address
    name, _, zone = host.partition("%")
    scope = 0 if not zone else int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return name if ":" in name else f"::ffff:{name}", port, 0, scope


def plain(error: Error) -> OSError:
    """What asyncio's own transport would have had: say, ConnectionRefusedError. Ours is its cause."""
    made = OSError(error.errno, os.strerror(error.errno)) if error.errno else OSError(str(error))
    made.__cause__ = error
    return made
