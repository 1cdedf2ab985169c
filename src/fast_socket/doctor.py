"""What this machine and a device have of what the backends can use: the checks behind `fast-socket doctor`.

A check has three answers, as every probe here. None of them changes anything, none needs a privilege, and one that
cannot be made is `Support.UNKNOWN`.
"""

import contextlib
import ctypes
import errno
import importlib.metadata
import os
import re
import resource
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fast_socket.core.affinity import available_cpus, cpu_numa_node, device_queue_affinity
from fast_socket.core.capabilities import Support
from fast_socket.core.errors import CapabilityError
from fast_socket.os.probe import probe_gro, probe_gso
from fast_socket.xdp.interface import Interface

AF_XDP = 44  # <linux/socket.h>
LEAST_KERNEL = (5, 10)

# What kernels above the least one add, oldest first.
_KERNEL_ADDS = {
    (5, 11): "SO_PREFER_BUSY_POLL, BPF memory charged to the cgroup instead of memlock",
    (6, 3): "drivers declare their XDP features",
    (6, 6): "AF_XDP frames of several buffers",
    (6, 8): "transmit timestamps and checksums by AF_XDP",
}

# <linux/capability.h>: the bit, and what it is for.
_CAPABILITIES = {
    "CAP_NET_RAW": (13, "opens AF_XDP sockets"),
    "CAP_NET_ADMIN": (12, "attaches XDP programs, has neighbours resolved"),
    "CAP_BPF": (39, "loads BPF programs and maps"),
    "CAP_IPC_LOCK": (14, "lifts the memlock limit for packet memory"),
    "CAP_SYS_RESOURCE": (24, "raises the memlock limit"),
}
_CAP_SYS_ADMIN = 21  # stands in for CAP_BPF: bpf_capable() in <linux/capability.h> of the kernel

#: Bytes of locked memory below which a few queues of packet memory do not fit: 8 of 4096 frames of 2048 bytes.
_ENOUGH_MEMLOCK = 64 << 20

#: KiB of huge pages to suggest: packet memory of two such sets of queues.
_HUGE_KIB = 128 << 10

#: The largest MTU of a single-buffer XDP program on veth with pages of 4096 bytes (veth_xdp_set() in
#: drivers/net/veth.c); that of other drivers is near it.
_SINGLE_BUFFER_MTU = 3506


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report."""

    name: str
    answer: Support
    found: str
    advice: str = ""
    """How to get what is missing, or what to mind."""


def check_machine() -> list[Check]:
    """Kernel, privileges, libraries, memory and CPUs."""
    return list(_machine())


def check_device(device: str) -> list[Check]:
    """A network device. `ConfigError` if there is none of that name."""
    device_queue_affinity(device)  # knows the names without pyroute2
    try:
        return list(_device(Interface.read(device)))
    except CapabilityError as error:
        return [Check("device", Support.UNKNOWN, "cannot be read", str(error))]


def _yes(condition: bool) -> Support:
    return Support.YES if condition else Support.NO


def _machine() -> Iterator[Check]:
    release = os.uname().release
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    added = [f"{major}.{minor}: {what}" for (major, minor), what in _KERNEL_ADDS.items() if version < (major, minor)]
    advice = f"newer ones add {'; '.join(added)}" if added else ""
    if version < LEAST_KERNEL:
        advice = f"this package's AF_XDP needs {'.'.join(map(str, LEAST_KERNEL))}; {advice}"
    yield Check("kernel", _yes(version >= LEAST_KERNEL), release, advice)
    yield _af_xdp()
    yield from _bpf()
    yield from _privileges()
    yield _libbpf()
    yield _pyroute2()
    for name, probe in (("UDP GSO", lambda v6: probe_gso(v6)[0]), ("UDP GRO", probe_gro)):
        answers = {"IPv4": probe(False), "IPv6": probe(True)}
        worst = next((a for a in (Support.NO, Support.UNKNOWN) if a in answers.values()), Support.YES)
        found = ", ".join(f"{family} {answer.value}" for family, answer in answers.items())
        yield Check(name, worst, found, "" if worst else "Linux 4.18 has GSO, 5.0 has GRO; IPv6 may be switched off")
    yield from _memory()
    cpus = available_cpus()
    nodes = sorted({cpu_numa_node(cpu) for cpu in cpus})
    yield Check("CPUs", Support.YES, f"{len(cpus)} usable: {_ranges(cpus)}")
    known = [node for node in nodes if node >= 0]
    found = f"{len(known)} node{'s' * (len(known) != 1)}: {_ranges(known)}" if known else "the kernel does not say"
    yield Check("NUMA", Support.YES if known else Support.UNKNOWN, found)


def _af_xdp() -> Check:
    name, advice = "AF_XDP", "a kernel with CONFIG_XDP_SOCKETS=y"
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW).close()
    except PermissionError:  # the family was found, and asks for CAP_NET_RAW
        return Check(name, Support.YES, "in this kernel")
    except OSError as error:
        absent = error.errno == errno.EAFNOSUPPORT
        return Check(name, Support.NO if absent else Support.UNKNOWN, os.strerror(error.errno or 0), advice)
    return Check(name, Support.YES, "in this kernel, and a socket opens")


def _bpf() -> Iterator[Check]:
    unprivileged = _read("/proc/sys/kernel/unprivileged_bpf_disabled")
    # The file is part of the system call (kernel/bpf/syscall.c): where only the file is missing, so is bpf().
    if unprivileged is not None:
        who = "unprivileged processes may load some programs, XDP not" if unprivileged == "0" else "for the privileged"
        yield Check("bpf()", Support.YES, f"{who} (kernel.unprivileged_bpf_disabled={unprivileged})")
    elif Path("/proc/sys/kernel").is_dir():
        yield Check("bpf()", Support.NO, "not in this kernel", "a kernel with CONFIG_BPF_SYSCALL=y")
    else:
        yield Check("bpf()", Support.UNKNOWN, "/proc/sys is not mounted")
    jit = _read("/proc/sys/net/core/bpf_jit_enable")
    if jit is None:
        yield Check("BPF JIT", Support.UNKNOWN, "net.core.bpf_jit_enable cannot be read here")
    elif jit == "0":
        yield Check("BPF JIT", Support.NO, "off", "sysctl -w net.core.bpf_jit_enable=1")
    else:
        yield Check("BPF JIT", Support.YES, "on")
    if Path("/sys/kernel/btf/vmlinux").exists():
        yield Check("BTF", Support.YES, "of the kernel")
    else:
        yield Check("BTF", Support.NO, "none", "a kernel with CONFIG_DEBUG_INFO_BTF=y")


def _effective() -> int | None:
    for line in (_read("/proc/thread-self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return None


def _privileges() -> Iterator[Check]:
    effective = _effective()
    for name, (bit, purpose) in _CAPABILITIES.items():
        if effective is None:
            yield Check(name, Support.UNKNOWN, "/proc is not mounted")
            continue
        have = bool(effective >> bit & 1) or (name == "CAP_BPF" and bool(effective >> _CAP_SYS_ADMIN & 1))
        advice = "" if have else f"run as root, or give the service AmbientCapabilities={name}"
        if not have and name == "CAP_SYS_RESOURCE" and effective >> _CAPABILITIES["CAP_IPC_LOCK"][0] & 1:
            advice = "none needed: CAP_IPC_LOCK is there"
        yield Check(name, _yes(have), purpose, advice)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    lifted = bool((effective or 0) >> _CAPABILITIES["CAP_IPC_LOCK"][0] & 1)
    enough = lifted or soft == resource.RLIM_INFINITY or soft >= _ENOUGH_MEMLOCK
    found = f"{_limit(soft)}, at most {_limit(hard)}" + ", which CAP_IPC_LOCK lifts" * lifted
    yield Check("memlock", _yes(enough), found, "" if enough else "ulimit -l unlimited, or LimitMEMLOCK=infinity")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value >> 10} KiB"


def _libbpf() -> Check:
    try:
        library = ctypes.CDLL("libbpf.so.1")
    except OSError as error:
        return Check("libbpf", Support.NO, str(error), "apt-get install libbpf1, or your system's libbpf 1.x")
    library.libbpf_version_string.restype = ctypes.c_char_p
    return Check("libbpf", Support.YES, library.libbpf_version_string().decode())


def _pyroute2() -> Check:
    try:
        return Check("pyroute2", Support.YES, importlib.metadata.version("pyroute2"))
    except importlib.metadata.PackageNotFoundError:
        return Check("pyroute2", Support.NO, "not installed", 'pip install "fast-socket[xdp]"')


def _memory() -> Iterator[Check]:
    pools = sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"), key=lambda pool: _kib(pool.name))
    if not pools:
        yield Check("huge pages", Support.UNKNOWN, "none of any size, or /sys is not mounted", "CONFIG_HUGETLBFS=y")
    for pool in pools:
        total, free = (_read(pool / name) for name in ("nr_hugepages", "free_hugepages"))
        size = _kib(pool.name)
        advice = "" if total not in (None, "0") else f"optional: echo {max(1, _HUGE_KIB // size)} > {pool}/nr_hugepages"
        yield Check(f"huge pages, {size} KiB", _yes(not advice), f"{total} reserved, {free} free", advice)


def _kib(name: str) -> int:
    return int(name.removeprefix("hugepages-").removesuffix("kB"))


def _device(it: Interface) -> Iterator[Check]:
    here = it.name
    yield Check("device", Support.YES, f"{here}, index {it.index}, {it.mac.hex(':') or 'not Ethernet'}")
    yield Check("up", _yes(it.up), "yes" if it.up else "no", "" if it.up else f"ip link set {here} up")
    yield Check(
        "carrier", _yes(it.carrier), "yes" if it.carrier else "no", "" if it.carrier else "the cable, or the other end"
    )
    yield Check("driver", _yes(bool(it.driver)), " ".join(filter(None, (it.driver, it.bus_info))) or "none")
    can = it.capabilities
    driver = it.driver or "the driver"
    for name, answer, without in (
        ("native XDP", can.native_xdp, "generic mode works, slower"),
        ("zero-copy", can.zero_copy, "copy mode works, slower"),
        ("multi-buffer", can.multi_buffer, "frames must fit one buffer"),
    ):
        found, advice = {
            Support.YES: (f"{driver} declares it", ""),
            Support.NO: (f"{driver} does not declare it", without),
            Support.UNKNOWN: ("not declared before Linux 6.3", "try it"),
        }[answer]
        yield Check(name, answer, found, advice)
    yield Check("queues", Support.YES, f"{it.rx_queues} to receive, {it.tx_queues} to transmit")
    if it.channels is None:
        yield Check("channels", Support.UNKNOWN, "the driver does not tell")
    else:
        combined, rx, tx, *most = it.channels
        parts = zip(("combined", "rx", "tx"), (combined, rx, tx), most, strict=True)
        yield Check("channels", Support.YES, ", ".join(f"{now} of {limit} {kind}" for kind, now, limit in parts))
    affinity = ", ".join(f"{each.queue} on {_ranges(each.cpus)}" for each in it.queues)
    shared = len({each.cpu for each in it.queues}) < len(it.queues)
    yield Check("queue CPUs", Support.YES, affinity or "none", "queues share a CPU" if shared else "")
    fits = it.mtu <= _SINGLE_BUFFER_MTU
    yield Check(
        "MTU", _yes(fits or bool(can.multi_buffer)), str(it.mtu),
        "" if fits else f"above {_SINGLE_BUFFER_MTU} or so a frame takes several buffers, which needs multi-buffer",
    )  # fmt: skip
    yield _vlan(it)
    program = it.program
    yield Check(
        "room for XDP",
        _yes(program is None),
        "no program attached" if program is None else f"program {program.id} is attached, {program.mode}",
        "" if program is None else f"end what runs it, or if nobody does: ip link set {here} xdp off",
    )


def _vlan(it: Interface) -> Check:
    stripped = it.offloads.get("rx-vlan-hw-parse")
    if stripped is None:
        return Check("VLAN tags", Support.UNKNOWN, "the driver does not tell")
    if stripped:
        advice = f"XDP does not see tags that the device takes off: ethtool -K {it.name} rxvlan off, where VLANs matter"
        return Check("VLAN tags", Support.YES, "taken off by the device on receive", advice)
    return Check("VLAN tags", Support.YES, "left in received frames")


def _ranges(numbers: Iterable[int]) -> str:
    """The kernel's list format: 0-3,8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _read(path: str | Path) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    return None
