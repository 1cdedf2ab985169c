"""What a driver says through the ethtool ioctl: its queue counts and its own counters.

The structures are those of include/uapi/linux/ethtool.h, reached by SIOCETHTOOL (include/uapi/linux/sockios.h). An ioctl
answers for the namespace of the calling thread.
"""

import array
import fcntl
import socket
import struct
from dataclasses import dataclass

SIOCETHTOOL = 0x8946
ETHTOOL_GSTRINGS = 0x1B
ETHTOOL_GSTATS = 0x1D
ETHTOOL_GSSET_INFO = 0x37
ETHTOOL_GCHANNELS = 0x3C
ETH_SS_STATS = 1
NAME_LENGTH = 32  # ETH_GSTRING_LEN


@dataclass(frozen=True, slots=True)
class Channels:
    """Queue counts as ethtool -l shows them: in use, and at the most."""

    combined: int
    rx: int
    tx: int
    most_combined: int
    most_rx: int
    most_tx: int


def _ask(device: str, request: bytes) -> bytes:
    """Raises OSError where the driver does not answer that."""
    data = array.array("B", request)
    address, _ = data.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("@16sP", device.encode(), address))
    return data.tobytes()


def channels(device: str) -> Channels | None:
    """None where the driver has no such setting."""
    try:
        answer = _ask(device, struct.pack("@9I", ETHTOOL_GCHANNELS, *[0] * 8))
    except OSError:
        return None
    _, most_rx, most_tx, _, most_combined, rx, tx, _, combined = struct.unpack("@9I", answer)
    return Channels(combined, rx, tx, most_combined, most_rx, most_tx)


def statistics(device: str) -> dict[str, int]:
    """The driver's own counters (ethtool -S), {} where it has none."""
    try:
        sizes = _ask(device, struct.pack("@IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_STATS, 0))
        present, count = struct.unpack_from("@QI", sizes, 8)
        if not present or not count:
            return {}
        names = _ask(device, struct.pack("@III", ETHTOOL_GSTRINGS, ETH_SS_STATS, count) + bytes(NAME_LENGTH * count))
        values = _ask(device, struct.pack("@II", ETHTOOL_GSTATS, count) + bytes(8 * count))
    except OSError:
        return {}
    texts = (names[12 + NAME_LENGTH * i : 12 + NAME_LENGTH * (i + 1)] for i in range(count))
    labels = [text.split(b"\0")[0].decode(errors="replace") for text in texts]
    return dict(zip(labels, struct.unpack_from(f"@{count}Q", values, 8), strict=True))
