"""What the tests of OS sockets share: plain peers, receivers that wait, options read back, captures of a link."""

import functools
import os
import socket
import struct
import time

import pytest
from scapy.layers.inet import IP, UDP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.l2 import Ether

import fast_socket as fs

SECONDS = 5.0
HOSTS = {"v4": "127.0.0.1", "v6": "::1"}
# A dual-stack socket with an IPv4 peer is a third family: IPv6 in its addresses, IPv4 on the wire.
FAMILIES = ["v4", "v6", "dual"]

# include/uapi/linux/udp.h, asm-generic/socket.h, if_packet.h, virtio_net.h
SOL_UDP, UDP_SEGMENT, UDP_GRO, UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX = 17, 103, 104, 101, 102
SO_NO_CHECK = 11
SOL_PACKET, PACKET_VNET_HDR, ETH_P_ALL, PACKET_OUTGOING = 263, 15, 3, 4
VNET_HEADER = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VIRTIO_NET_HDR_GSO_UDP_L4 = 5
IPPROTO_UDP = 17


def plain(host="127.0.0.1", port=0, **options):
    """A bound standard socket that does not wait for ever. `options` are of SOL_SOCKET, without the SO_."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(SECONDS)
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, f"SO_{name.upper()}"), value)
    sock.bind((host, port))
    return sock


def bind(family, **options):
    """A Fast Socket of a family on this machine's loopback: "v4", "v6", "dual"."""
    return fs.OsUdpSocket.bind("[::]:0" if family == "dual" else (HOSTS[family], 0), **options)


def reachable(sock, family):
    """Where an IPv4 or IPv6 peer on this machine reaches `sock`; a dual-stack one over IPv4."""
    return ("127.0.0.1" if family == "dual" else HOSTS[family], sock.local_address[1])


def peer_of(family):
    """A plain peer for a socket of a family."""
    return plain("::1" if family == "v6" else "127.0.0.1")


def receive(sock, count, size=65_535):
    """`count` datagrams of a plain socket, and the proof that there is no further one."""
    got = [sock.recv(size) for _ in range(count)]
    assert nothing_more(sock)
    return got


def nothing_more(sock):
    """On loopback and veth a datagram is there when the send returns, so there is nothing to wait for."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(timeout)


def collect(sock, count, capacity=256):
    """`count` datagrams of a Fast Socket, coalesced ones taken apart; fails when they do not come or more come."""
    rx = sock.recv_batch(capacity)
    got = []
    while len(got) < count:
        assert sock.driver.wait(SECONDS), f"{len(got)} of {count} came; {sock.stats()}"
        sock.recv(rx)
        got += rx.datagrams()
    assert sock.recv(rx) == 0
    return got


def receive_batch(sock, count=1, capacity=64):
    """A batch with exactly `count` packets. They must be there already or come one after the other."""
    rx = sock.recv_batch(capacity)
    deadline = time.monotonic() + SECONDS
    while not sock.recv(rx):
        assert time.monotonic() < deadline, f"nothing came; {sock.stats()}"
        sock.driver.wait(0.1)
    assert len(rx) == count
    return rx


def numbered(count, size):
    """`count` different payloads of one size."""
    return [i.to_bytes(4, "big").ljust(size, b"%c" % (i % 256)) for i in range(count)]


def queue(sock, payloads, to=None, capacity=None):
    """A transmit batch with these payloads pending."""
    tx = sock.tx_batch(capacity or max(len(payloads), 1))
    for payload in payloads:
        tx.append(payload, to)
    return tx


def send_all(sock, tx):
    """Send until nothing is pending; returns how many went."""
    sent = 0
    deadline = time.monotonic() + SECONDS
    while len(tx):
        assert time.monotonic() < deadline
        sent += sock.send(tx)
        if len(tx):
            sock.driver.wait_writable(0.1)
    return sent


def option(sock, level, name, size=0):
    """An option of a Fast Socket as the kernel has it."""
    with socket.socket(fileno=os.dup(sock.fileno())) as view:
        return view.getsockopt(level, name, size) if size else view.getsockopt(level, name)


@functools.cache
def gso_segments():
    """Segments of one large send here, 1 without GSO."""
    with bind("v4") as sock:
        return sock.capabilities().max_gso_segments


needs_gso = pytest.mark.skipif("gso_segments() == 1", reason="this kernel has no UDP GSO (Linux 4.18)")


class Frame:
    """One captured frame: scapy's view of it, and what the kernel says of its segmentation."""

    def __init__(self, data):
        self.flags, self.gso_type, _, self.gso_size, _, _ = VNET_HEADER.unpack_from(data)
        self.ether = Ether(data[VNET_HEADER.size :])
        self.ip = self.ether[IPv6] if IPv6 in self.ether else self.ether[IP]
        self.udp = self.ip[UDP]
        self.payload = bytes(self.udp.payload)[: self.udp.len - 8]

    @property
    def tos(self):
        return self.ip.tc if IPv6 in self.ether else self.ip.tos

    @property
    def ttl(self):
        return self.ip.hlim if IPv6 in self.ether else self.ip.ttl

    @property
    def checksum_ok(self):
        """Computed again over pseudo header, header and payload (RFC 768, RFC 8200 section 8.1)."""
        data = bytes(self.udp)[: self.udp.len]
        zeroed = data[:6] + b"\0\0" + data[8:]
        compute = in6_chksum if IPv6 in self.ether else in4_chksum
        return self.udp.chksum == (compute(IPPROTO_UDP, self.ip, zeroed) or 0xFFFF)

    @property
    def datagrams(self):
        """The payloads of the datagrams that this frame stands for."""
        if self.gso_type != VIRTIO_NET_HDR_GSO_UDP_L4:
            return [self.payload]
        return [self.payload[i : i + self.gso_size] for i in range(0, len(self.payload), self.gso_size)]


class Capture:
    """Everything that an interface receives: a raw socket in its host."""

    def __init__(self, interface):
        self.sock = interface.host.run(self._open, interface.name)

    @staticmethod
    def _open(name):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((name, 0))
        return sock

    def raw(self):
        """Frames that came in so far and were not returned yet, as bytes behind a virtio_net_hdr."""
        frames = []
        while True:
            try:
                data, address = self.sock.recvfrom(1 << 17, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return frames
            if address[2] != PACKET_OUTGOING:
                frames.append(data)

    def udp(self, port, datagrams):
        """The frames to a UDP port, at least as many as these datagrams need; fails if they do not come."""
        deadline = time.monotonic() + SECONDS
        found = []
        while sum(len(frame.datagrams) for frame in found) < datagrams:
            assert time.monotonic() < deadline, f"{found} instead of {datagrams} datagrams"
            for data in self.raw():
                ether = Ether(data[VNET_HEADER.size :])
                if UDP in ether and ether[UDP].dport == port:
                    found.append(Frame(data))
            time.sleep(0.001)
        assert sum(len(frame.datagrams) for frame in found) == datagrams
        return found

    def close(self):
        self.sock.close()
