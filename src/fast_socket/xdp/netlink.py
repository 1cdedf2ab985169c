"""A netlink socket of one network namespace, kept open: what the backend asks the kernel about routes and neighbours.

The socket is ours, pyroute2 encodes and decodes its messages. The namespace is that of the thread that opens it, for
ever: a router answers for its device's namespace, whichever thread sends, and pyroute2's own sockets belong to the thread
that uses them. Kernel errors come back as `Error` with their errno.
"""

import importlib
import itertools
import socket
import threading
from typing import Any

from fast_socket.core.errors import CapabilityError, Error

# include/uapi/linux/netlink.h and rtnetlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_CREATE = 1, 4, 0x300, 0x100, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWNEIGH = 28
NTF_USE = 1  # include/uapi/linux/neighbour.h: resolve it, as if a packet were sent there
#: What is asked for, its message class in pyroute2, and the request's type.
DUMPS = {
    "links": ("ifinfmsg", 18),
    "addresses": ("ifaddrmsg", 22),
    "routes": ("rtmsg", 26),
    "neighbors": ("ndmsg", 30),
}
RECEIVE_BYTES = 1 << 17
SECONDS = 5.0

Message = tuple[dict[str, Any], dict[str, Any]]


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
        self._marshal = load("pyroute2.netlink.rtnl.marshal").MarshalRtnl()
        self._sequence = itertools.count(1)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(SECONDS)

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Again is nothing."""
        self._socket.close()

    def _exchange(self, message: Any, kind: int, flags: int, what: str) -> list[Any]:
        with self._lock:
            sequence = next(self._sequence)
            message["header"].update(type=kind, flags=flags | NLM_F_REQUEST, sequence_number=sequence, pid=0)
            message.encode()
            answers: list[Any] = []
            try:
                self._socket.send(message.data)
                while True:
                    for answer in self._marshal.parse(self._socket.recv(RECEIVE_BYTES)):
                        header = answer["header"]
                        if header["sequence_number"] != sequence:
                            continue
                        if header["type"] == NLMSG_ERROR:
                            if header["error"] is not None:
                                raise Error(f"netlink: cannot {what}", header["error"].code)
                            return answers
                        if header["type"] == NLMSG_DONE:
                            return answers
                        answers.append(answer)
            except OSError as error:
                if isinstance(error, Error):
                    raise
                raise Error(f"netlink: cannot {what}", error.errno) from error

    def dump(self, kind: str, family: int = 0) -> list[Message]:
        """All "links", "addresses", "routes" or "neighbors", each as its fields and its attributes by name."""
        name, request = DUMPS[kind]
        message = getattr(load(f"pyroute2.netlink.rtnl.{name}"), name)()
        message["ndm_family" if name == "ndmsg" and "ndm_family" in message else "family"] = family
        answers = self._exchange(message, request, NLM_F_DUMP, f"list {kind}")
        return [(answer, dict(answer["attrs"])) for answer in answers]

    def request_neighbor(self, interface: int, family: int, address: str) -> None:
        """Have the kernel resolve a neighbour, by ARP or neighbour discovery, without waiting for it."""
        message = load("pyroute2.netlink.rtnl.ndmsg").ndmsg()
        message.update(family=family, ifindex=interface, state=0, flags=NTF_USE)
        message["attrs"] = [("NDA_DST", address)]
        self._exchange(message, RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, f"ask for the neighbour {address}")
