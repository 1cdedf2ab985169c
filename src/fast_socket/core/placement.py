"""Where memory lies: which NUMA nodes, and how much of it in huge pages."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryPlacement:
    """The pages of a memory region at one moment, in bytes: what was asked for can be refused at any page fault."""

    resident: int | None
    """In use; the rest was never touched. None where the kernel does not say (move_pages(2), CONFIG_NUMA)."""
    huge: int
    """In transparent huge pages (AnonHugePages in /proc/self/smaps): at the most, where the kernel keeps the region and
    its neighbour in memory as one."""
    nodes: Mapping[int, int]
    """Of what is in use, how much lies on each NUMA node."""


def huge_bytes(start: int, size: int) -> int:
    """AnonHugePages of the mappings between `start` and `start + size`; 0 without /proc."""
    total = 0
    inside = False
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as smaps:
            for line in smaps:
                name, *rest = line.split()
                if not name.endswith(":"):
                    first, _, last = name.partition("-")
                    inside = int(first, 16) < start + size and start < int(last, 16)
                elif inside and name == "AnonHugePages:":
                    total += int(rest[0]) << 10
    except OSError:
        return 0
    return min(total, size)
