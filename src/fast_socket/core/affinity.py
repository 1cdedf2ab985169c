"""Which CPU serves which queue, and pinning the calling thread there."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fast_socket.core.errors import ConfigError
from fast_socket.core.ids import NumaNode, QueueId

#: More than any kernel is built for (CONFIG_NR_CPUS is 8192 at most): a larger number is a mistake.
MAX_CPU = 65_535


@dataclass(frozen=True, slots=True)
class QueueAffinity:
    """A queue and the CPUs that its interrupt may run on, best first; `numa_node` -1 where the kernel does not say."""

    queue: QueueId
    cpus: tuple[int, ...]
    numa_node: NumaNode = NumaNode(-1)

    @property
    def cpu(self) -> int:
        """The CPU for this queue's worker."""
        return self.cpus[0]

    def __post_init__(self) -> None:
        if self.queue < 0:
            raise ConfigError(f"QueueAffinity.queue is {self.queue}: give a queue from 0")
        if not self.cpus or min(self.cpus) < 0:
            raise ConfigError(f"QueueAffinity.cpus is {self.cpus}: give at least one CPU, each from 0")


def available_cpus() -> tuple[int, ...]:
    """CPUs that this thread may run on, ascending: cgroup cpusets and taskset are respected."""
    return tuple(sorted(os.sched_getaffinity(0)))


def pin_current_thread(cpus: int | Iterable[int]) -> tuple[int, ...]:
    """Let the calling thread (not the process) run on `cpus` only; returns the CPUs that it could run on before.

    Raises `ConfigError` for a CPU that does not exist or that this process may not use.
    """
    before, wanted = available_cpus(), cpus
    try:
        wanted = (cpus,) if isinstance(cpus, int) else tuple(cpus)
        # On Linux, pid 0 is the calling thread: sched_setaffinity(2).
        os.sched_setaffinity(0, wanted)
    except (OSError, ValueError, OverflowError, TypeError) as error:
        raise ConfigError(
            f"cannot pin {threading.current_thread().name} to CPU {wanted}: {error}; this process may use {before}"
        ) from error
    return before


@contextmanager
def pinned(cpus: int | Iterable[int]) -> Iterator[None]:
    """Pin the calling thread for the length of a ``with`` block."""
    before = pin_current_thread(cpus)
    try:
        yield
    finally:
        pin_current_thread(before)


def cpu_numa_node(cpu: int) -> NumaNode:
    """The NUMA node of a CPU, -1 where the kernel does not say."""
    try:
        entries = os.listdir(f"/sys/devices/system/cpu/cpu{cpu}")
    except OSError:
        return NumaNode(-1)
    return next((NumaNode(int(e[4:])) for e in entries if e.startswith("node") and e[4:].isdigit()), NumaNode(-1))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's list format, "0-3,8": CPUs in sysfs and /proc/irq. Raises `ConfigError` for anything else."""
    cpus: list[int] = []
    try:
        for part in filter(None, text.strip().split(",")):
            first, dash, last = part.partition("-")
            low, high = int(first), int(last if dash else first)
            if not 0 <= low <= high <= MAX_CPU:
                raise ValueError
            cpus.extend(range(low, high + 1))
    except ValueError:
        raise ConfigError(f"CPU list {text!r}: give numbers up to {MAX_CPU} and ranges, as in 0-3,8") from None
    return tuple(cpus)


def device_queue_affinity(device: str) -> tuple[QueueAffinity, ...]:
    """For each receive queue of `device`, the CPUs of its interrupt.

    Where a device has no interrupt of its own per queue (veth, loopback, most virtual devices) queue *i* is given the
    *i*-th CPU that this thread may use, in turn. Raises `ConfigError` for an unknown device.
    """
    sysfs = Path("/sys/class/net") / device
    try:
        present = sorted(entry.name for entry in sysfs.parent.iterdir())
    except OSError:
        present = []
    if device not in present:
        raise ConfigError(f"no device {device!r} here; there are {', '.join(present) or 'none'}")
    queues = len(list((sysfs / "queues").glob("rx-*")))
    usable = available_cpus()
    try:
        node = NumaNode(int((sysfs / "device" / "numa_node").read_text()))
    except (OSError, ValueError):
        node = NumaNode(-1)
    return tuple(
        QueueAffinity(QueueId(queue), cpus or (usable[queue % len(usable)],), node)
        for queue, cpus in enumerate(_irq_cpus(sysfs, max(queues, 1), usable))
    )


def _irq_cpus(sysfs: Path, queues: int, usable: tuple[int, ...]) -> list[tuple[int, ...]]:
    """CPUs of each queue's MSI interrupt, empty where there is none.

    Drivers hold one vector per queue, and often one or more for administration before them, so the last `queues`
    vectors are taken.
    """
    try:
        irqs = sorted(int(entry.name) for entry in (sysfs / "device" / "msi_irqs").iterdir())[-queues:]
    except (OSError, ValueError):
        irqs = []
    found: list[tuple[int, ...]] = []
    for irq in irqs:
        try:
            cpus = parse_cpu_list(Path(f"/proc/irq/{irq}/effective_affinity_list").read_text())
        except (OSError, ConfigError):
            cpus = ()
        found.append(tuple(cpu for cpu in cpus if cpu in usable))
    return found + [()] * (queues - len(found))
