from ipaddress import IPv4Address, IPv6Address

from fast_socket.core.errors import Error
from fast_socket.core.routes import Unresolved

class UnresolvedError(Error):
    destination: IPv4Address | IPv6Address
    reason: Unresolved
    def __init__(self, destination: IPv4Address | IPv6Address, reason: Unresolved) -> None: ...
