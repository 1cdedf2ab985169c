"""gates: instructions per packet, counted by callgrind, against the recorded baseline.

Only what runs inside the extension's send, recv, take_from and run counts, with all that these call, so neither the
speed of the machine nor the interpreter's loop has a part in it; the kernel's work is not seen. The counts repeat
exactly: the workload runs twice, and unequal counts are an error. They hold for one compiler, one Python and one C
library: with others they are not comparable, and the gate says so and passes.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import fast_socket as fs
from benchmarks.gates_workload import CONFIGURATIONS, PACKETS, STEPS, XDP_CONFIGURATIONS
from benchmarks.machine import compiler
from benchmarks.processes import ROOT
from examples import _cli

BASELINE = ROOT / "benchmarks" / "gates.json"
TOLERANCE = 0.5  # instructions per packet
TIMEOUT = 60.0
# The wrappers that Python calls of the methods of these classes: the workload calls nothing else of these while it
# counts. (Patterns that are alike up to a wildcard are more than callgrind can tell apart.)
COUNTED = (
    "fast_socket_2os_3udp_11OsUdpSocket_*",
    "fast_socket_3xdp_3udp_12XdpUdpSocket_*",
    "fast_socket_4core_5batch_7TxBatch_*",
    "fast_socket_4core_5batch_9RecvBatch_*",
)
# glibc picks its memcpy by these.
CPU_FLAGS = ("avx2", "erms", "fsrm")

Counts = dict[str, float]


def gates(
    accept: Annotated[bool, typer.Option("--accept", help="Record the counts as the new baseline.")] = False,
) -> None:
    """Count instructions per packet and compare with the committed baseline."""
    console = _cli.console()
    if not shutil.which("valgrind"):
        raise fs.CapabilityError("valgrind is missing: apt-get install valgrind")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: measure(), range(2))
    if first != second:
        console.print(comparison(first, second, "first run", "second run"))
        raise SystemExit("gates: two runs gave unequal counts: something in the workload does not repeat")
    key = toolchain()
    if accept:
        BASELINE.write_text(json.dumps({"toolchain": key, "instructions_per_packet": first}, indent=2) + "\n")
        console.print(comparison(first, first))
        console.print(f"gates: recorded in {BASELINE.relative_to(ROOT)}")
        return
    if not BASELINE.exists():
        raise fs.ConfigError(f"there is no baseline {BASELINE.relative_to(ROOT)}: record one with --accept")
    recorded = json.loads(BASELINE.read_text())
    expected: Counts = recorded["instructions_per_packet"]
    console.print(comparison(expected, first))
    if recorded["toolchain"] != key:
        console.print("gates: passed unchecked: the baseline was recorded with another toolchain:")
        for name in sorted(key.keys() | recorded["toolchain"].keys()):
            ours, theirs = key.get(name), recorded["toolchain"].get(name)
            if ours != theirs:
                console.print(f"  {name}: baseline {theirs}, here {ours}", markup=False)
        return
    if moved := [name for name in sorted(first.keys() | expected.keys()) if has_moved(expected, first, name)]:
        console.print(comparison({name: expected[name] for name in moved if name in expected},
                                 {name: first[name] for name in moved if name in first}))  # fmt: skip
        raise SystemExit(
            f"gates: {len(moved)} of {len(first)} counts moved, those above. If that is wanted: make gates "
            "ARGS=--accept, and say why in the commit message (docs/src/testing.md)"
        )
    console.print("gates: passed")


def has_moved(expected: Counts, counts: Counts, name: str) -> bool:
    return name not in expected or name not in counts or abs(counts[name] - expected[name]) > TOLERANCE


def comparison(expected: Counts, counts: Counts, before: str = "baseline", after: str = "now") -> Table:
    table = Table("instructions per packet", before, after, "change", title_justify="left")
    for name in sorted(expected.keys() | counts.keys()):
        was, is_ = expected.get(name), counts.get(name)
        change = "new" if was is None else "gone" if is_ is None else f"{is_ - was:+.2f}"
        red = has_moved(expected, counts, name)
        cells = [name, *("-" if value is None else f"{value:.2f}" for value in (was, is_)), change]
        table.add_row(*cells, style="red" if red else "")
    return table


def measure() -> Counts:
    """Run the workload once; returns instructions per packet of each step."""
    with tempfile.TemporaryDirectory(prefix="fast-socket-gates-") as directory:
        library = Path(directory, "gates.so")
        source = ROOT / "benchmarks" / "gates.c"
        cc = os.environ.get("CC", "cc")
        subprocess.run([cc, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        run = subprocess.run(
            [
                "valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={directory}/out",
                "--instr-atstart=no", "--collect-atstart=no",
                *(f"--toggle-collect=__pyx_pw_11{name}" for name in COUNTED),
                sys.executable, "-m", "benchmarks.gates_workload", library,
            ],
            cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "0"}, check=False, capture_output=True, text=True,
            timeout=TIMEOUT,
        )  # fmt: skip
        if run.returncode:
            raise SystemExit(f"gates: the workload failed\n{run.stdout}{run.stderr}")
        totals: Counter[str] = Counter()
        for path in Path(directory).glob("out.*"):
            text = path.read_text()
            name = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
            total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
            if name and total:
                totals[name[1]] += int(total[1])
    names = [f"{configuration}/{step}" for configuration in (*XDP_CONFIGURATIONS, *CONFIGURATIONS) for step in STEPS]
    missing = [name for name in names if not totals[name]]
    if missing:
        raise SystemExit(
            f"gates: nothing was counted for {', '.join(missing)}: were the functions renamed or stripped?"
        )
    return {name: round(totals[name] / PACKETS, 3) for name in names}


def toolchain() -> dict[str, str]:
    """What the counts depend on beside our own code."""
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]))
    return {
        "architecture": platform.machine(),
        "cpu_flags": " ".join(flag for flag in CPU_FLAGS if flag in flags),
        "compiler": compiler(),
        "python": platform.python_version(),
        "cython": version("Cython"),
        "libc": "-".join(platform.libc_ver()),
        "valgrind": subprocess.run(
            ["valgrind", "--version"], check=True, capture_output=True, text=True
        ).stdout.strip(),
    }
