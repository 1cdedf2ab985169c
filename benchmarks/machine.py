"""The machine that figures are taken on, and what of the project was measured: what a reader needs to judge them, and
nothing that names the machine."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fast_socket as fs
from benchmarks.processes import ROOT
from fast_socket import lab

CPUS = Path("/sys/devices/system/cpu")
XDP_PORT = 9  # discard: nobody sends there
OFFLOADS = (
    "tx-udp-segmentation",
    "tx-generic-segmentation",
    "tx-checksum-ip-generic",
    "rx-gro",
    "rx-udp-gro-forwarding",
)


def first_line(*command: str) -> str:
    """Of a program's version text; "absent" without the program."""
    if not shutil.which(command[0]):
        return "absent"
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.partition("\n")[0].strip()


def text_of(path: Path, otherwise: str = "unknown") -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return otherwise


def compiler() -> str:
    return first_line(os.environ.get("CC", "cc"), "--version")


def compiler_flags() -> str:
    """Those that decide speed, as meson compiled the extensions with."""
    for commands in sorted((ROOT / "build").glob("cp*/compile_commands.json")):
        command = next(
            (each["command"] for each in json.loads(commands.read_text()) if each["file"].endswith(".pyx.c")), ""
        )
        return " ".join(re.findall(r"\s(-O\w|-m\w+=\S+|-D_?NDEBUG|-flto\S*|-fsanitize=\S+)", command))
    return "unknown"


def commit() -> str:
    """Of the measured tree, and whether it differs from that."""
    if not (found := first_line("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")):
        return "unknown"
    changed = first_line("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{found}, with changes" if changed else found


def topology() -> str:
    cpus = [path / "topology" for path in CPUS.glob("cpu[0-9]*")]
    cores = {(text_of(path / "physical_package_id"), text_of(path / "core_id")) for path in cpus}
    return f"{len(cpus)} logical CPUs, {len(cores)} cores, {len({package for package, _ in cores})} sockets"


def describe() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "commit": commit(),
        "CPU": model[1] if model else platform.machine(),
        "topology": topology(),
        "NUMA nodes": str(len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1),
        "governor": text_of(CPUS / "cpu0" / "cpufreq" / "scaling_governor", "none: the host decides"),
        "memory": f"{int(memory[1]) / (1 << 20):.0f} GiB" if memory else "unknown",
        "virtual": "yes" if "hypervisor" in info else "no",
        "clock": text_of(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        "huge pages": text_of(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": compiler(),
        "flags": compiler_flags(),
        "Cython": version("Cython"),
        "numpy": version("numpy"),
        "libc": " ".join(platform.libc_ver()),
        "iperf3": first_line("iperf3", "--version"),
    }


def info(host: lab.Host) -> list[str]:
    return [sys.executable, "-m", "fast_socket.cli", "info", host.interface.name, "--json"]


def xdp_modes(device: str) -> tuple[str, bool]:
    """What a socket gets that asks for nothing: where its program runs, and whether it is zero-copy."""
    with fs.XdpUdpSocket.open(device, local=("0.0.0.0", XDP_PORT)) as sock:
        mode = sock.program.mode if sock.program else None
        return mode.name.lower() if mode else "no", sock.zero_copy


def describe_device(host: lab.Host) -> dict[str, str]:
    """The device of a host: what `fast-socket info` tells of it, as far as it bears on speed."""
    found = host.popen(info(host), stdout=subprocess.PIPE, text=True)
    facts: dict[str, Any] = json.loads(found.communicate(timeout=30)[0])
    capabilities = facts["capabilities"]
    native, zero_copy = host.run(xdp_modes, host.interface.name)
    return {
        "driver": facts["driver"],
        "MTU": str(facts["mtu"]),
        "queues": f"{facts['rx_queues']} receive, {facts['tx_queues']} transmit",
        "NUMA node": str(facts["numa_node"]) if facts["numa_node"] >= 0 else "none",
        "native XDP": capabilities["native_xdp"],
        "zero-copy": capabilities["zero_copy"],
        "AF_XDP sockets": f"{native} program, {'zero-copy' if zero_copy else 'copy mode'}",
        "offloads": ", ".join(f"{name} {'on' if facts['offloads'][name] else 'off'}" for name in OFFLOADS),
    }
