"""Handlers for `RecvBatch.run`, written in Python and compiled by numba. Needs numba (the extra `numba`).

    from fast_socket.numba import DROP, REFLECT, packet_handler

    @packet_handler
    def echo_short(packet, data, source, state):
        return REFLECT if packet.length <= 512 else DROP

    rx.run(echo_short, reflect=tx)

It runs inside the native receive loop, with the GIL released: no Python object, no interpreter, no allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fast_socket.core.errors import CapabilityError, ConfigError

try:
    import numba
    from numba import types
except ImportError as error:
    raise CapabilityError(
        f"fast_socket.numba needs numba, and importing it says: {error}; pip install 'fast-socket[numba]'"
    ) from error


__all__ = [
    "DROP",
    "FORWARD",
    "KEEP",
    "PACKET",
    "REFLECT",
    "PacketHandler",
    "packet_handler",
    "signature",
]

# What becomes of a packet: see `RecvBatch.run`.
DROP = 0
KEEP = 1
REFLECT = 2
FORWARD = 3
FAILED = -1

PACKET: np.dtype[Any] = np.dtype([("length", "u4"), ("room", "u4"), ("index", "u4"), ("source_length", "u4")])
"""`struct packet` of `RecvBatch.run`."""


def signature(user: Any = types.voidptr) -> Any:
    """Of a handler, for `numba.cfunc` without the decorator; `user` is the numba type of its last argument."""
    return types.int32(
        types.CPointer(numba.from_dtype(PACKET)), types.CPointer(types.uint8), types.CPointer(types.uint8), user
    )


Handler = Callable[[Any, Any, Any, Any], int]


class PacketHandler:
    """A compiled handler; `packet_handler` makes it. Calling it calls the Python function, for tests.

    It may be used from any number of threads at once; what the handler does to a common `state` is then its own affair:
    give each worker its own by `with_state`. `address` is that of the machine code, `user` that of the state, 0 without
    one: what `RecvBatch.run` looks for. Both are valid as long as this object lives.
    """

    function: Handler
    state: NDArray[Any] | None
    address: int
    user: int

    def __init__(self, function: Handler, state: NDArray[Any] | None, compiled: Any) -> None:
        self.function, self.state = function, state
        self._compiled = compiled  # keeps the machine code
        self.address = compiled.address
        self.user = 0 if state is None else state.ctypes.data

    def __call__(self, packet: Any, data: Any, source: Any, state: Any) -> int:
        return self.function(packet, data, source, state)

    def with_state(self, state: NDArray[Any]) -> PacketHandler:
        """The same machine code over another array, of the same dtype and shape. Raises `ConfigError` for others."""
        if self.state is None:
            raise ConfigError("this handler was compiled without a state: packet_handler(state=array)")
        checked = check_state(state)
        if (checked.dtype, checked.shape) != (self.state.dtype, self.state.shape):
            raise ConfigError(
                f"state is {checked.dtype}{list(checked.shape)}: this handler was compiled for "
                f"{self.state.dtype}{list(self.state.shape)}"
            )
        return PacketHandler(self.function, checked, self._compiled)


@overload
def packet_handler(function: Handler, /) -> PacketHandler: ...


@overload
def packet_handler(*, state: NDArray[Any] | None = None) -> Callable[[Handler], PacketHandler]: ...


def packet_handler(
    function: Handler | None = None,
    /,
    *,
    state: NDArray[Any] | None = None,
) -> PacketHandler | Callable[[Handler], PacketHandler]:
    """Compile ``function(packet, data, source, state)`` for `RecvBatch.run`, which says what its verdicts mean.

    - `packet`: a record of `length`, `room` and `index`, uint32. Assigning `packet.length` changes the datagram's.
    - `data`: uint8[room], the frame from the datagram's first byte on.
    - `source`: uint8[n], the sender's address record. Bytes 2..3 are the port, big-endian; 4..7 the address of a
      sockaddr_in (IPv4 sockets), 8..23 that of a sockaddr_in6.
    - `state`: the array given here, by reference, or None: counters, tables. It is writable, C-contiguous, and of plain
      values.

    An exception in the handler, such as an index outside of an array, drops the packet and is counted in
    `RecvBatch.handler_errors`.

    Compiles at once, in some 0.2 to 1 s. Raises `ConfigError` for a state it cannot pass, and numba's own errors (from
    `numba.core.errors`) for Python that it cannot compile.
    """
    if function is None:
        return lambda later: compile_handler(later, state)
    return compile_handler(function, state)


def check_state(state: NDArray[Any]) -> NDArray[Any]:
    if not isinstance(state, np.ndarray):
        raise ConfigError(f"state is a {type(state).__name__}: give a numpy array")
    if state.dtype.hasobject or not state.flags.c_contiguous or not state.flags.writeable or state.ndim == 0:
        raise ConfigError(
            f"state is {state.dtype}{list(state.shape)}, {state.ndim} dimensions: give an array of one dimension or "
            "more, C-contiguous, writable, of plain values"
        )
    return state


def compile_handler(function: Handler, state: NDArray[Any] | None) -> PacketHandler:
    # Bounds are checked where the arrays are indexed, in the function. It costs nothing that could be measured: with
    # and without, the DNS responder's handler takes 67 and 76 ns a query.
    inner = numba.njit(boundscheck=True)(function)
    carray: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]
    if state is None:
        user = types.voidptr

        def handler(packet: Any, data: Any, source: Any, user: Any) -> Any:
            record = carray(packet, 1)[0]
            try:
                return inner(record, carray(data, record.room), carray(source, record.source_length), None)
            except Exception:
                return FAILED
    else:
        shape, user = check_state(state).shape, types.CPointer(numba.from_dtype(state.dtype))

        def handler(packet: Any, data: Any, source: Any, user: Any) -> Any:
            record = carray(packet, 1)[0]
            try:
                return inner(
                    record, carray(data, record.room), carray(source, record.source_length), carray(user, shape)
                )
            except Exception:
                return FAILED

    return PacketHandler(function, state, numba.cfunc(signature(user))(handler))
