"""UDP in whole IP packets, a batch at a time: which packets are such, their fields as columns, and the way back.

For batches of AF_XDP IP packet sockets; packets with IPv4 options or IPv6 extension headers are not `plain`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

import fast_socket as fs
from benchmarks.sequence import NOT_A_NUMBER, Column

PROTOCOL_UDP = 17
UDP_LEN = 8
CHECKSUM = 6  # its offset in the UDP header


@dataclass(frozen=True)
class UdpPackets:
    """Where the fields of one family's packets are, in bytes from the IP header on."""

    families: fs.IpFamilies
    first_byte: int
    """Version, and for IPv4 the header's length: the first byte under `mask`."""
    mask: int
    protocol: int
    source: int
    """The source address; the destination's is right behind."""
    host_len: int
    udp: int

    def plain(self, batch: fs.XdpIpRecvBatch) -> Column:
        """Which packets are UDP without options: bool[n]. For others the columns below mean nothing."""
        first = batch.gather(0, "u1") & np.uint8(self.mask)
        protocol = batch.gather(self.protocol, "u1")
        whole = batch.lengths >= self.udp + UDP_LEN
        plain: Column = (first == self.first_byte) & (protocol == PROTOCOL_UDP) & whole
        return plain

    def sources(self, batch: fs.XdpIpRecvBatch) -> Column:
        """Source addresses: uint32[n, words]."""
        return self._words(batch, self.source)

    def source_ports(self, batch: fs.XdpIpRecvBatch) -> Column:
        return batch.gather(self.udp, ">u2").astype(np.uint16)

    def numbers(self, batch: fs.XdpIpRecvBatch) -> Column:
        """The big-endian numbers at the start of the payloads, as `Sequences` takes them: int64[n]."""
        numbers: Column = np.minimum(batch.gather(self.udp + UDP_LEN, ">u8"), NOT_A_NUMBER).astype(np.int64)
        return numbers

    def turn_round(self, batch: fs.XdpIpTxBatch) -> None:
        """Make each plain packet the answer to itself: exchange addresses and ports.

        No checksum changes by that. But the kernel leaves a sender's UDP checksum to the device, and a veth leaves it
        undone: for IPv4 none is sent (RFC 768), for IPv6, where there has to be one, it is made anew.
        """
        if not len(batch):
            return
        ports = batch.gather(self.udp, "u4").view(np.uint16).reshape(-1, 2)
        batch.scatter(self.udp, np.ascontiguousarray(ports[:, ::-1]).view(np.uint32).ravel())
        hosts = self._words(batch, self.source), self._words(batch, self.source + self.host_len)
        for word in range(self.host_len // 4):
            batch.scatter(self.source + self.host_len + 4 * word, np.ascontiguousarray(hosts[0][:, word]))
            batch.scatter(self.source + 4 * word, np.ascontiguousarray(hosts[1][:, word]))
        checksums = np.zeros(len(batch), np.uint16)
        batch.scatter(self.udp + CHECKSUM, checksums)
        if self.families is fs.IpFamilies.V6Only:  # not "self is V6": a worker has a copy
            batch.scatter(self.udp + CHECKSUM, self._checksums(batch))

    def _words(self, batch: fs.XdpIpRecvBatch | fs.XdpIpTxBatch, offset: int) -> Column:
        return np.stack([batch.gather(offset + at, "u4") for at in range(0, self.host_len, 4)], axis=1)

    def _checksums(self, batch: fs.XdpIpTxBatch) -> Any:
        """Of packets whose checksum is 0 now: over the addresses, the UDP header and payload, and what RFC 8200,
        section 8.1, adds to them."""
        sums = np.zeros(len(batch), np.uint64)
        for length in np.unique(batch.lengths):
            same = np.flatnonzero(batch.lengths == length)
            covered = np.zeros((len(same), (int(length) - self.source + 1) // 2 * 2), np.uint8)
            at = batch.offsets[same].astype(np.int64)[:, None] + np.arange(self.source, int(length))
            covered[:, : int(length) - self.source] = batch.memory[at]
            sums[same] = covered.view(">u2").sum(axis=1, dtype=np.uint64) + PROTOCOL_UDP + int(length) - self.udp
        for _ in range(2):
            sums = (sums & np.uint64(0xFFFF)) + (sums >> np.uint64(16))
        return np.where(sums == 0xFFFF, 0xFFFF, 0xFFFF - sums).astype(">u2")


V4 = UdpPackets(fs.IpFamilies.V4Only, first_byte=0x45, mask=0xFF, protocol=9, source=12, host_len=4, udp=20)
V6 = UdpPackets(fs.IpFamilies.V6Only, first_byte=0x60, mask=0xF0, protocol=6, source=8, host_len=16, udp=40)
