"""`create_datagram_endpoint`: what `loop.create_datagram_endpoint` does, with batches under it."""

import asyncio
import os
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from fast_socket.aio.transport import RX_BATCH, TX_BATCH, DatagramTransport, four_parts
from fast_socket.core.errors import ConfigError
from fast_socket.core.layout import BufferLayout

Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)

RX_FRAMES = RX_BATCH + 1  # one for the receive of one
MAX_DATAGRAM = 65_535  # a coalesced packet can be as large
TX_CAPACITY = 2048  # larger datagrams go one by one, past the batch


async def create_datagram_endpoint(
    protocol_factory: Callable[[], Protocol],
    local_addr: tuple[str, int] | None = None,
    remote_addr: tuple[str, int] | None = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    reuse_port: bool | None = None,
    allow_broadcast: bool | None = None,
    sock: Any = None,
    backend: str = "os",
    budget: int = 1024,
    **options: Any,
) -> tuple[DatagramTransport, Protocol]:
    """As `asyncio.loop.create_datagram_endpoint`, in the running loop: (transport, protocol).

    `sock` is a `socket.socket`, which the transport then owns, or a wait-driven UDP socket of this package, say an
    `XdpUdpSocket`. `budget` is how many datagrams a wake-up hands to the protocol before others have their turn.
    `options` are those of `OsUdpOptions`, such as ``recv_buffer=4 << 20`` or ``metadata=Metadata.ECN``; GRO and GSO are
    on unless they say otherwise. With ``backend="xdp"`` an `XdpUdpSocket` is opened on `local_addr`, and they are
    `device`, `queue` (0) and those of `XdpUdpOptions`.

    Raises what asyncio raises: `ValueError` for arguments that contradict each other, `OSError` for addresses that
    cannot be bound or reached; and `ConfigError` for a wrong option.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise ConfigError(f"budget is {budget!r}: give a number of datagrams from 1")
    if backend not in ("os", "xdp"):
        raise ConfigError(f'backend is {backend!r}: give "os" or "xdp"')
    peer: tuple[Any, ...] | None = None
    owned: Any = None
    ours: Any = sock
    if backend == "xdp":
        if local_addr is None or any((sock, remote_addr, family, proto, flags, reuse_port, allow_broadcast)):
            raise ValueError('backend="xdp" takes local_addr, device and queue: its sockets are not connected, and '
                             "share no port with others")  # fmt: skip
        ours = _open_queue(local_addr, **options)
    elif sock is not None:
        if any((local_addr, remote_addr, family, proto, flags, reuse_port, allow_broadcast)):
            raise ValueError("sock is given: local_addr, remote_addr, family, proto, flags, reuse_port and "
                             "allow_broadcast say what a new one is to be like, leave them out")  # fmt: skip
        if isinstance(sock, socket.socket):
            if sock.type != socket.SOCK_DGRAM:
                raise ValueError(f"A datagram socket was expected, got {sock!r}")
            owned = sock
        elif options:
            raise ConfigError(f"sock is open already: {', '.join(options)} can only be chosen when it is opened")
    else:
        owned, peer = await _open(loop, local_addr, remote_addr, family, proto, flags, reuse_port, allow_broadcast)
    if owned is not None:
        owned.setblocking(False)
        try:
            ours, connected_to = _adopt(owned, options)
        except BaseException:
            owned.close()
            raise
    else:
        if not hasattr(getattr(ours, "driver", None), "fileno"):
            raise ConfigError(f"sock is {sock!r}: give a socket.socket, or a UDP socket with a WaitDriver")
        remote = getattr(ours, "remote_address", None)
        connected_to = remote and _name(remote)
    extra = {"fast_socket": ours, "sockname": _name(ours.local_address) if owned is None else owned.getsockname()}
    if owned is not None:
        extra["socket"] = TransportSocket(owned)
    if connected_to is not None:
        peer = extra["peername"] = connected_to
    try:
        protocol = protocol_factory()
        transport = DatagramTransport(
            loop,
            ours,
            protocol,
            peer=peer,
            connected=connected_to is not None,
            budget=budget,
            extra=extra,
            owned=owned,
        )
    except BaseException:
        if ours is not sock:  # what the caller opened stays open
            ours.close()
        if owned is not None:
            owned.close()
        raise
    waiter = loop.create_future()
    loop.call_soon(protocol.connection_made, transport)
    loop.call_soon(transport.start)
    loop.call_soon(_wake, waiter)
    try:
        await waiter
    except BaseException:
        transport.close()
        raise
    return transport, protocol


def _name(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """An address of a socket of ours as asyncio has it."""
    return four_parts(address) if ":" in address[0] else address


def _open_queue(local_addr: tuple[str, int], *, device: Any = None, queue: int = 0, **options: Any) -> Any:
    from fast_socket.xdp import XdpUdpSocket

    if device is None:
        raise ConfigError('backend="xdp" without device: give the name of the interface')
    return XdpUdpSocket.open(device, queue, local=local_addr, **options)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _adopt(owned: socket.socket, options: dict[str, Any]) -> tuple[Any, tuple[Any, ...] | None]:
    """A socket of ours over a duplicate, so that `get_extra_info("socket")` stays what it was."""
    from fast_socket.os import OsUdpSocket

    peer = None
    with suppress(OSError):
        peer = owned.getpeername()
    chosen: dict[str, Any] = {
        "gro": True,
        "rx_layout": BufferLayout(payload_capacity=MAX_DATAGRAM),
        "tx_layout": BufferLayout(payload_capacity=TX_CAPACITY),
        "rx_frames": RX_FRAMES,
        "tx_frames": TX_BATCH,
        "icmp_errors": "raise",
    } | options
    if "pool" in options:
        for name in ("rx_layout", "tx_layout", "rx_frames", "tx_frames"):
            chosen.pop(name)
    copy = socket.socket(fileno=os.dup(owned.fileno()))
    try:
        return OsUdpSocket.from_socket(copy, **chosen), peer
    except BaseException:
        copy.close()
        raise


def _numeric(address: tuple[str, int], family: int, proto: int, flags: int) -> Any:
    """The answers for an address that is no name, which needs no thread; nothing for a name."""
    flags |= socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        return socket.getaddrinfo(*address, family=family, type=socket.SOCK_DGRAM, proto=proto, flags=flags)
    except socket.gaierror:
        return None


async def _open(
    loop: asyncio.AbstractEventLoop,
    local_addr: tuple[str, int] | None,
    remote_addr: tuple[str, int] | None,
    family: int,
    proto: int,
    flags: int,
    reuse_port: bool | None,
    allow_broadcast: bool | None,
) -> tuple[socket.socket, Any]:
    """A standard socket, bound and connected, and its peer; of several addresses that names stand for the first that
    works."""
    if not (local_addr or remote_addr):
        if not family:
            raise ValueError("unexpected address family: give local_addr, remote_addr or family")
        pairs: list[tuple[int, int, Any, Any]] = [(family, proto, None, None)]
    else:
        found: dict[tuple[int, int], list[Any]] = {}
        for place, address in enumerate((local_addr, remote_addr)):
            if address is None:
                continue
            if not (isinstance(address, tuple) and len(address) == 2):
                raise TypeError("2-tuple is expected")
            if isinstance(address[1], int) and not 0 <= address[1] <= 65535:
                raise OverflowError(f"port {address[1]} is not in 0..65535")
            answers = _numeric(address, family, proto, flags) or await loop.getaddrinfo(
                *address, family=family, type=socket.SOCK_DGRAM, proto=proto, flags=flags
            )
            if not answers:
                raise OSError("getaddrinfo() returned empty list")
            for answer_family, _, answer_proto, _, resolved in answers:
                found.setdefault((answer_family, answer_proto), [None, None])[place] = resolved
        pairs = [
            (*key, local, remote)
            for key, (local, remote) in found.items()
            if not ((local_addr and local is None) or (remote_addr and remote is None))
        ]
        if not pairs:
            raise ValueError("can not get address information")
    errors: list[OSError] = []
    for its_family, its_proto, local, remote in pairs:
        sock = socket.socket(its_family, socket.SOCK_DGRAM, its_proto)
        try:
            sock.setblocking(False)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if allow_broadcast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if local is not None:
                sock.bind(local)
            if remote is not None and not allow_broadcast:
                await loop.sock_connect(sock, remote)
            return sock, remote
        except OSError as error:
            sock.close()
            errors.append(error)
        except BaseException:
            sock.close()
            raise
    raise errors[0]
