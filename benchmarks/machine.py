"""The machine that figures are taken on: what a reader needs to judge them, and nothing that names it."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path


def first_line(*command: str) -> str:
    """Of a program's version text; "absent" without the program."""
    if not shutil.which(command[0]):
        return "absent"
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.partition("\n")[0].strip()


def compiler() -> str:
    return first_line(os.environ.get("CC", "cc"), "--version")


def describe() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "CPU": f"{model[1] if model else platform.machine()}, {os.cpu_count()} logical CPUs",
        "memory": f"{int(memory[1]) / (1 << 20):.0f} GiB" if memory else "unknown",
        "virtual": "yes" if "hypervisor" in info else "no",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": compiler(),
        "Cython": version("Cython"),
        "numpy": version("numpy"),
        "libc": " ".join(platform.libc_ver()),
        "iperf3": first_line("iperf3", "--version"),
    }
