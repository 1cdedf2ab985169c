"""prefix-lookup: longest-prefix match over a table as large as the Internet's, against other tables for Python.

The table is made up, the same each time: 900,000 IPv4 prefixes whose lengths are spread about as those of a full BGP
table (more than half are /24). pytricia and py-radix are contenders where they are installed.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np

import fast_socket as fs

PREFIXES = 900_000
BATCH = 64
BATCHES = 4000
# Prefix lengths and their share.
LENGTHS = {8: 0.0001, 12: 0.0009, 16: 0.014, 18: 0.015, 19: 0.03, 20: 0.045, 21: 0.055, 22: 0.12, 23: 0.11, 24: 0.6,
           28: 0.005, 32: 0.005}  # fmt: skip
TARGET_NS, TARGET_TIMES = 15.0, 5.0

Look = Callable[[Any], Any]


class Row(TypedDict):
    contender: str
    nanoseconds: float
    build_seconds: float
    megabytes: float | None


def made_up(count: int) -> tuple[Any, Any]:
    """Networks, uint8[n, 4], and their lengths."""
    rng = np.random.default_rng(1)
    shares = np.array(list(LENGTHS.values()))
    lengths = rng.choice(np.array(list(LENGTHS)), count, p=shares / shares.sum())
    numbers = rng.integers(1 << 24, 0xDFFFFFFF, count, dtype=np.uint64).astype(np.uint32)
    numbers &= (np.uint64(0xFFFFFFFF) << (32 - lengths).astype(np.uint64)).astype(np.uint32)
    return numbers.astype(">u4").view(np.uint8).reshape(-1, 4), lengths


def ours(rows: Any, lengths: Any) -> tuple[Look, float]:
    table, out = fs.PrefixTable(rows, lengths, np.arange(len(rows))), np.empty(BATCH, np.uint32)
    return lambda batch: table.lookup(batch, out), table.nbytes / 1e6


def pytricia(rows: Any, lengths: Any) -> tuple[Look, None]:
    table = importlib.import_module("pytricia").PyTricia(32)
    for number, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        table.insert(int.from_bytes(row.tobytes(), "big"), length, number)
    get = table.get
    return lambda batch: [get(address) for address in batch.view(">u4").ravel().tolist()], None


def radix(rows: Any, lengths: Any) -> tuple[Look, None]:
    table = importlib.import_module("radix").Radix()
    for number, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        table.add(packed=row.tobytes(), masklen=length).data["n"] = number
    best = table.search_best
    return lambda batch: [best(packed=row.tobytes()) for row in batch], None


CONTENDERS: dict[str, Callable[[Any, Any], tuple[Look, float | None]]] = {
    "fast_socket": ours,
    "pytricia": pytricia,
    "py-radix": radix,
}
MODULES = {"pytricia": "pytricia", "py-radix": "radix"}


def compare(prefixes: int = PREFIXES) -> list[Row]:
    """Nanoseconds an address, in batches, addresses from anywhere; the best of five passes."""
    rows, lengths = made_up(prefixes)
    rng = np.random.default_rng(2)
    batches = [rng.integers(0, 256, (BATCH, 4), dtype=np.uint8) for _ in range(BATCHES)]
    found: list[Row] = []
    for name, build in CONTENDERS.items():
        if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
            continue
        start = time.perf_counter()
        look, megabytes = build(rows, lengths)
        built = time.perf_counter() - start
        passes = []
        for _ in range(5):
            start = time.perf_counter()
            for batch in batches:
                look(batch)
            passes.append((time.perf_counter() - start) / (BATCH * BATCHES) * 1e9)
        found.append(Row(contender=name, nanoseconds=min(passes), build_seconds=built, megabytes=megabytes))
    return found


def rows(taken: list[Row]) -> list[tuple[str, ...]]:
    """Of a table with our row first."""
    mine = taken[0]["nanoseconds"]
    made: list[tuple[str, ...]] = []
    for row in taken:
        times = "" if row is taken[0] else f"{row['nanoseconds'] / mine:.1f} times"
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        made.append((row["contender"], f"{row['nanoseconds']:.1f}", times, f"{row['build_seconds']:.2f}", size))
    return made
