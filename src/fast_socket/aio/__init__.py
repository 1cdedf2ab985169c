"""asyncio over batches: a datagram endpoint in place of the loop's own, and sockets to await.

transport, protocol = await fast_socket.aio.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 9000))
"""

from fast_socket.aio.actor import UdpHandle, open_actor
from fast_socket.aio.batches import AsyncUdp, open_udp
from fast_socket.aio.endpoint import create_datagram_endpoint
from fast_socket.aio.transport import DatagramTransport

__all__ = ["AsyncUdp", "DatagramTransport", "UdpHandle", "create_datagram_endpoint", "open_actor", "open_udp"]
