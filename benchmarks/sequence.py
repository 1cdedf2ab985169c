"""What numbered traffic tells: how many datagrams were lost, and how many came late.

A sender numbers its datagrams from 0, as a big-endian 64-bit integer at offset 0. Each thread of a sender has a socket,
and so a source port, of its own: a *stream* is what comes from one address and port. Of a stream

- `lost` is how many of the numbers up to the highest one seen have not come: also those before the first one, so the
  listener has to start first; what is lost after the last one nobody can tell but the sender;
- `reordered` is how many came after a higher one (RFC 4737); a late one is no longer lost;
- a duplicate counts as reordered and makes up for one that is lost: over one link, neither happens.

The kernel's drop counter cannot say this: it counts a coalesced buffer (GRO) as one, however many datagrams it holds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fast_socket as fs

NOT_A_NUMBER = 1 << 48  # nobody sends so many: this payload is something else
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads the words of an IPv6 address

Column = NDArray[Any]


@dataclass
class Stream:
    """What came from one address and port."""

    received: int = 0
    highest: int = -1
    reordered: int = 0

    def note(self, numbers: Column) -> None:
        """Numbers in the order of arrival."""
        seen = np.maximum.accumulate(np.concatenate(([self.highest], numbers)))  # before each, and after the last
        self.reordered += int(np.count_nonzero(numbers <= seen[:-1]))
        self.received += len(numbers)
        self.highest = int(seen[-1])

    @property
    def lost(self) -> int:
        return max(self.highest + 1 - self.received, 0)

    @property
    def numbered(self) -> bool:
        """Whether the payload can be numbers at all, and not text, or zeros."""
        return self.highest < NOT_A_NUMBER and not (self.highest == 0 and self.received > 1)


class Sequences:
    """The streams of one listener."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}

    def note(self, rx: fs.RecvBatch) -> None:
        """Everything in a receive batch, coalesced packets taken apart."""
        datagrams = rx.datagrams()
        # Signed, so that "none yet" is -1; what exceeds it cannot be a number.
        numbers = np.minimum(datagrams.gather(0, ">u8"), NOT_A_NUMBER).astype(np.int64)
        self.note_columns(source_keys(rx.source_addresses, rx.source_ports)[datagrams.slots], numbers)

    def note_columns(self, keys: Column, numbers: Column) -> None:
        """For each datagram, in the order of arrival, the key of its source and its number."""
        if not len(keys):
            return
        present = [keys[0]] if (keys == keys[0]).all() else np.unique(keys)
        for key in present:
            chosen = numbers if len(present) == 1 else numbers[keys == key]
            self.streams.setdefault(int(key), Stream()).note(chosen)


def source_keys(addresses: Column, ports: Column) -> Column:
    """A number for each packet's source: for IPv4 address and port themselves, for IPv6 a hash of them."""
    keys = np.zeros(len(ports), np.uint64)
    for word in np.ascontiguousarray(addresses).view(np.uint32).T:
        keys = keys * MIX + word
    return (keys << np.uint64(16)) + ports


def merged(listeners: list[Sequences]) -> dict[str, int | None]:
    """`lost` and `reordered` over all streams, None where no stream is numbered. The kernel may hand one stream to two
    sockets (when the group of sockets that share a port changes): then its counts are put together first."""
    streams: dict[int, Stream] = {}
    for listener in listeners:
        for key, part in listener.streams.items():
            whole = streams.setdefault(key, Stream())
            whole.received += part.received
            whole.reordered += part.reordered
            whole.highest = max(whole.highest, part.highest)
    numbered = [stream for stream in streams.values() if stream.numbered]
    if not numbered:
        return {"lost": None, "reordered": None}
    return {
        "lost": sum(stream.lost for stream in numbered),
        "reordered": sum(stream.reordered for stream in numbered),
    }
