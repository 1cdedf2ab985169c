"""A netlink socket of one network namespace, kept open: what the backend asks of pyroute2, which has no type information.

The namespace is that of the thread that opens it, for ever: a socket's router answers for the device's namespace,
whichever thread sends. Kernel errors come back as `Error` with their errno.
"""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

from fast_socket.core.errors import CapabilityError, Error

NTF_USE = 1  # include/uapi/linux/neighbour.h: resolve it, as if a packet were sent there


def load(module: str) -> Any:
    """A part of pyroute2, or `CapabilityError` with the way to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CapabilityError(
            'AF_XDP needs pyroute2, which cannot be imported: pip install "fast-socket[xdp]"'
        ) from error


class Netlink:
    """Questions about links, addresses, routes and neighbours. Thread-safe: one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket = load("pyroute2").IPRoute()
        self._error = load("pyroute2.netlink.exceptions").NetlinkError

    def close(self) -> None:
        """Again is nothing."""
        self._socket.close()

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[Any]:
        with self._lock:
            try:
                yield self._socket
            except self._error as error:
                raise Error(f"netlink: cannot {what}", error.code) from error

    def dump(self, kind: str, **match: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """All "links", "addr", "routes" or "neighbours", each as its fields and its attributes by name."""
        with self._asking(f"list {kind}") as socket:
            return [(message, dict(message["attrs"])) for message in getattr(socket, f"get_{kind}")(**match)]

    def request_neighbor(self, interface: int, family: int, address: str) -> None:
        """Have the kernel resolve a neighbour, by ARP or neighbour discovery, without waiting for it."""
        with self._asking(f"ask for the neighbour {address}") as socket:
            socket.neigh("replace", dst=address, ifindex=interface, family=family, state=0, flags=NTF_USE)
