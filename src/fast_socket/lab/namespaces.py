"""Named network namespaces: making, entering, listing and removing those of a lab.

A name is `fslab-<pid>-<start time>-<lab>-<host>`. The pid and the start time (clock ticks since boot) together name one
process for the life of the machine, so whether a namespace is a leftover can be read from its name alone: it is one
exactly when no such process lives. Labs are therefore not to be mixed across PID namespaces that share `/run`.

The kernel scopes namespaces to *threads*, which is what makes the rest work: a thread may move to another network and
mount namespace while the rest of the process stays where it is.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("fast_socket.lab")

RUN_DIR = Path("/var/run/netns")  # NETNS_RUN_DIR of iproute2's include/namespace.h
PREFIX = "fslab"
_NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)-\d+-[^/]+")

# <linux/sched.h>
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
# <linux/mount.h>
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_BIND, _MS_REC, _MS_SLAVE, _MS_SHARED = 0x1000, 0x4000, 1 << 19, 1 << 20
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# <linux/capability.h>; CAP_SYS_CHROOT is what setns(2) asks for to join a mount namespace
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_ADMIN": 21}

_KILL_SECONDS = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *args: object) -> None:
    # os.unshare and os.setns exist only since Python 3.12.
    if getattr(_libc, function)(*args) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def _mount(source: bytes, target: bytes, kind: bytes, flags: int) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), None)


def die_with_parent(parent: int) -> None:
    """In a fresh child: have the kernel send SIGKILL when the *thread* that forked it ends (prctl(2))."""
    _call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)
    if os.getppid() != parent:  # the parent died before the line above
        os._exit(1)


def missing_capabilities() -> list[str]:
    """Names of the capabilities that a lab needs and this process lacks."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def start_time(pid: int) -> int | None:
    """Start time of a living process in clock ticks since boot (field 22 of proc_pid_stat(5)), None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command's name, in parentheses, may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def make_name(lab: int, host: str) -> str:
    """Name of the namespace of `host` in this process's lab number `lab`."""
    return f"{PREFIX}-{os.getpid()}-{start_time(os.getpid())}-{lab}-{host}"


def isolate(name: str | None = None) -> None:
    """Move the calling thread into a new network namespace, named if `name` is given, with a /sys of its own.

    The thread cannot come back: let it end. Raises OSError.
    """
    _call("unshare", CLONE_NEWNET)
    if name is not None:
        _register(name)
    _call("unshare", CLONE_NEWNS)
    # Our mounts must not reach the machine, but its unmounts must reach us: a copy of another namespace's mount kept
    # here would keep that namespace alive after its removal.
    _mount(b"none", b"/", b"none", _MS_REC | _MS_SLAVE)
    # A sysfs shows the devices of the namespace it was mounted in.
    _mount(b"sysfs", b"/sys", b"sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def join(net: int, mnt: int, directory: str) -> None:
    """Move the calling thread into the namespaces of two file descriptors; it then works in `directory`."""
    _call("setns", net, CLONE_NEWNET)
    _call("unshare", CLONE_FS)  # setns refuses to change the mount namespace under threads that share it
    _call("setns", mnt, CLONE_NEWNS)
    with contextlib.suppress(OSError):  # setns left us in /; a directory that is gone cannot be returned to
        os.chdir(directory)


def _register(name: str) -> None:
    RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _locked(RUN_DIR):  # as iproute2 does, or two at once would stack mounts on the directory
        target = os.fsencode(RUN_DIR)
        try:
            _mount(b"", target, b"none", _MS_SHARED | _MS_REC)
        except OSError:  # not a mount point yet
            _mount(target, target, b"none", _MS_BIND | _MS_REC)
            _mount(b"", target, b"none", _MS_SHARED | _MS_REC)
    path = RUN_DIR / name
    path.touch(mode=0o444, exist_ok=False)
    _mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _MS_BIND)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def leftovers() -> list[str]:
    """Names of lab namespaces whose process no longer exists."""
    if not RUN_DIR.is_dir():
        return []
    matches = filter(None, map(_NAME.fullmatch, os.listdir(RUN_DIR)))
    return sorted(m.group() for m in matches if start_time(int(m[1])) != int(m[2]))


def remove(name: str) -> None:
    """End every process in the lab namespace `name` and remove the name; the kernel frees it with its last user."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a lab's namespace")
    path = RUN_DIR / name
    try:
        end_processes_in(path)
    finally:
        with contextlib.suppress(OSError):  # EINVAL: killed between making the file and mounting on it
            _call("umount2", os.fsencode(path), _MNT_DETACH)
        path.unlink(missing_ok=True)


def end_processes_in(path: Path) -> None:
    """SIGKILL every other process in a namespace and wait until they are gone, at most about 2 s."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return
    deadline = time.monotonic() + _KILL_SECONDS
    # Again until nobody is left, for a process may fork while it is looked for.
    while pids := [pid for pid in _pids() if _kill_if_in(pid, wanted)]:
        log.debug("killed processes %s in %s", pids, path.name)
        if time.monotonic() > deadline:
            return


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal() and int(entry) != os.getpid()]


def _kill_if_in(pid: int, namespace: os.stat_result) -> bool:
    try:
        fd = os.pidfd_open(pid)  # pins the process: its number may be given to another before the signal
    except OSError:
        return False
    try:
        here = os.stat(f"/proc/{pid}/ns/net")
        if not os.path.samestat(here, namespace):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        # A dying process leaves its namespaces before it is gone; the descriptor is readable once it is.
        if not select.select([fd], [], [], _KILL_SECONDS)[0]:
            log.warning("process %d does not end", pid)
        return True
    except OSError:  # it has ended
        return False
    finally:
        os.close(fd)
