"""Who waits for a descriptor: an event loop has one reader for each, and a second would silence the first."""

from typing import Any
from weakref import WeakValueDictionary

from fast_socket.core.errors import ConfigError

_OWNERS: "WeakValueDictionary[int, Any]" = WeakValueDictionary()


def claim(fd: int, owner: Any) -> None:
    """Note that `owner`, which has the socket as `_sock`, waits for this descriptor. Raises `ConfigError` where another
    does."""
    other = _OWNERS.get(fd)
    if other is not None and not other._sock.closed:
        raise ConfigError(f"{owner._sock!r} belongs to {other!r} already: open a socket for each")
    _OWNERS[fd] = owner
