"""Never run: what both checkers must refuse. Each of them heeds the ignores, and a line that one of them accepts leaves
its ignore unused, which is an error too."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import fast_socket as fs
from tests.typing.generic_workers import parts, register


def wrong_options() -> None:
    """Names and types of options are checked."""
    fs.OsUdpSocket.bind("127.0.0.1:0", reuse_prot=True)  # type: ignore[call-overload]
    fs.OsUdpSocket.bind("127.0.0.1:0", ttl="7")  # type: ignore[call-overload]
    fs.OsUdpSocket.bind("127.0.0.1:0", metadata=3)  # type: ignore[call-overload]
    fs.OsUdpSocket.bind("127.0.0.1:0", icmp_errors="ignore")  # type: ignore[call-overload]
    fs.OsUdpSocket.bind("127.0.0.1:0", driver=int)  # type: ignore[type-var]
    fs.OsUdpSocket.bind(5)  # type: ignore[call-overload]
    fs.OsUdpSocket.from_socket(3)  # type: ignore[call-overload]


def wrong_drivers(spinning: fs.OsUdpSocket[fs.BusyPollDriver]) -> None:
    """A spinning driver has no descriptor for event loops."""
    spinning.driver.fileno()  # type: ignore[attr-defined]
    register(spinning)  # type: ignore[type-var]
    waits: fs.WaitDriven = spinning.driver  # type: ignore[assignment]
    waits.wait()


def wrong_batches(sock: fs.OsUdpSocket[fs.WaitDriver], any_rx: fs.RecvBatch, any_tx: fs.TxBatch) -> None:
    """A socket takes batches of its own backend, each for its direction, and endpoints that are prepared."""
    rx, tx, _, endpoint = parts(sock)
    sock.recv(tx)  # type: ignore[arg-type]
    sock.send(rx)  # type: ignore[arg-type]
    sock.recv(any_rx)  # type: ignore[arg-type]
    sock.send(any_tx)  # type: ignore[arg-type]
    sock.send_to(fs.UdpEndpointSpec(remote="192.0.2.1:9"), tx)  # type: ignore[arg-type]
    sock.send_to(tx, endpoint)  # type: ignore[arg-type]
    tx.take_from(tx)  # type: ignore[arg-type]
    rx.append(b"x")  # type: ignore[attr-defined]
    rx.lengths = tx.lengths  # type: ignore[misc]


def wrong_packets(packet: fs.PacketBuffer, frozen: fs.FrozenPacket) -> None:
    """What is frozen cannot be written; a packet is no key."""
    frozen.append(b"x")  # type: ignore[attr-defined]
    packet.append("text")  # type: ignore[arg-type]
    packet.frame = 3  # type: ignore[misc]


def wrong_traits(sock: fs.OsUdpSocket[fs.WaitDriver]) -> None:
    """A UDP socket is neither a device nor a socket for whole IP packets."""
    device: fs.RawDevice = sock  # type: ignore[assignment]
    device.refresh_mtu()
    ip: fs.IpPacketSocket[fs.OsRecvBatch, fs.OsTxBatch, fs.WaitDriver, int] = sock  # type: ignore[assignment]
    ip.close()
    queue: fs.QueueId = fs.IfIndex(3)  # type: ignore[assignment]
    fs.RawDeviceStats(rx_packets=queue).rx_packets = 4  # type: ignore[misc]
