"""Workers: one target, once for each plan, in processes or threads of their own, started at one instant.

A plan is whatever a worker needs to open its sockets: an address for SO_REUSEPORT, a queue, anything that can be
pickled. Where it has a `cpu`, its worker is pinned there. The target opens, says `ready()`, and works while it is
`running`; nothing on its way through packets is shared with other workers, and its counters have cache lines of their
own.

    def serve(plan, worker):
        received = worker.counter("received")
        with fs.OsUdpSocket.bind(plan.address, reuse_port=True) as sock:
            rx = sock.recv_batch(64)
            worker.ready()
            while worker.running:
                if sock.driver.wait(0.1):
                    received.add(sock.recv(rx))

Processes are spawned, not forked: a plan, and the target by its name, travel by pickle. They end with their parent,
however that ends.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Generic, Literal, Protocol, TypeVar

from fast_socket.core.affinity import pin_current_thread
from fast_socket.core.errors import ConfigError, Error

__all__ = ["Counter", "Progress", "Run", "Worker", "WorkerError", "WorkerResult", "run"]

P = TypeVar("P")
R = TypeVar("R")

CACHE_LINE = 64
CACHE_LINE_WORDS = CACHE_LINE // 8
STOP, START = 0, 1  # words of the control line
START_DELAY_NS = 5_000_000  # long enough for every worker to have read when it starts
LOOK_SECONDS = 0.05  # at signals, and at what else does not wake the parent
KILL_SECONDS = 1.0
MESSAGE_SECONDS = 5  # of silence within a message
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class WorkerError(Error):
    """A worker failed: its name is in the message, what it raised is the cause."""


class _StoppedError(Error):
    """The run ended before this worker was ready."""


class Counter:
    """A number that the parent reads while the worker adds to it."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview, at: int) -> None:
        self._words, self._at = words, at

    def add(self, count: int) -> None:
        """Of this worker only: nothing else may write it."""
        self._words[self._at] += count

    @property
    def value(self) -> int:
        count: int = self._words[self._at]
        return count


class _Channel(Protocol):
    """What of a `Connection` is used."""

    def send(self, message: Any, /) -> None: ...
    def recv(self) -> Any: ...
    def poll(self, timeout: float = ...) -> bool: ...
    def close(self) -> None: ...


class Worker:
    """What a target sees of its run. Belongs to the thread that the target runs in."""

    def __init__(self, index: int, words: memoryview, names: Sequence[str], channel: _Channel) -> None:
        self.index = index
        self.name = name_of(index)
        self._words, self._names, self._channel = words, list(names), channel
        self._row = row_of(index, len(names))
        self.was_ready = False

    @property
    def running(self) -> bool:
        """Until the run is over: for the loop's condition, it reads one word."""
        return not self._words[STOP]

    def counter(self, name: str) -> Counter:
        """One of the run's `counters`."""
        if name not in self._names:
            raise ConfigError(f"counter({name!r}): this run has {', '.join(self._names) or 'none'}")
        return Counter(self._words, self._row + self._names.index(name))

    def ready(self) -> None:
        """Say that the sockets are open, and come back when all workers start, at the same instant."""
        if self.was_ready:
            raise ConfigError("ready() is called once, when the sockets are open")
        self.was_ready = True
        try:
            self._channel.send(("ready", None))
            while not self._channel.poll(LOOK_SECONDS):
                if not self.running:
                    raise _StoppedError("the run ended before it began")
            self._channel.recv()
        except (EOFError, OSError) as error:
            if isinstance(error, _StoppedError):
                raise
            raise _StoppedError("the parent is gone") from None
        while (left := self._words[START] - time.monotonic_ns()) > 0:
            if left > 2_000_000:
                time.sleep((left - 1_000_000) / 1e9)


@dataclass(frozen=True, slots=True)
class WorkerResult(Generic[R]):
    """How one worker ended."""

    name: str
    value: R | None
    """What the target returned."""
    counters: Mapping[str, int]
    error: WorkerError | None = None
    """Of a worker that failed, where the others went on."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The counters of all workers at one moment."""

    seconds: float
    """Since the start."""
    workers: tuple[Mapping[str, int], ...]
    total: Mapping[str, int]
    rates: Mapping[str, float]
    """Of the totals, a second, since the last look."""


@dataclass(frozen=True, slots=True)
class Run(Generic[R]):
    """How all ended."""

    workers: tuple[WorkerResult[R], ...]
    seconds: float
    """From the start to the end of the last worker."""
    stopped_by: str | None
    """SIGINT or SIGTERM, where one of them ended the run."""

    @property
    def total(self) -> dict[str, int]:
        """The counters, added up."""
        return total_of([worker.counters for worker in self.workers])


def run(
    plans: Sequence[P],
    target: Callable[[P, Worker], R],
    *,
    kind: Literal["process", "thread"] | None = None,
    counters: Sequence[str] = ("received", "sent"),
    duration: float | None = None,
    on_failure: Literal["stop", "go on"] = "stop",
    on_ready: Callable[[], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    interval: float = 1.0,
    ready_timeout: float = 10.0,
    stop_timeout: float = 5.0,
) -> Run[R]:
    """Call `target(plan, worker)` for every plan at once; returns when all have ended. `kind` is "process" by default,
    and "thread" where the GIL is off.

    `on_ready` is called once, when all are ready and none has started, `on_progress` every `interval` seconds.

    The run is over when all targets have returned, after `duration` seconds, when `on_progress` returns True, on SIGINT
    or SIGTERM (in the main thread; a second one ends the program), and with the first failure unless
    ``on_failure="go on"``. Then `worker.running` is False; a process that goes on all the same for `stop_timeout`
    seconds is killed.

    Raises `WorkerError` with the worker's name, from what it raised: with the first failure, or when all have failed;
    also for one that is not ready in time, ends without a word, or never stops. Raises `ConfigError`.
    """
    kind = kind or ("process" if gil_enabled() else "thread")
    check(plans, target, kind, counters, duration, on_failure, interval, ready_timeout, stop_timeout)
    started = _Started.of(kind, plans, target, list(counters))
    with _signals() as heard:
        try:
            started.await_ready(time.monotonic() + ready_timeout, heard)
            if on_ready is not None and not heard:
                on_ready()
            started.begin()
            started.follow(duration, on_failure, on_progress, interval, heard)
        finally:
            started.end(stop_timeout)
    return started.report(on_failure, heard[0] if heard else None)


def check(
    plans: Sequence[Any], target: Any, kind: Any, counters: Any, duration: Any, on_failure: Any, *times: Any
) -> None:
    """Raise `ConfigError` for what can never work."""
    if not plans:
        raise ConfigError("plans is empty: give one for each worker")
    if not callable(target):
        raise ConfigError(f"target is {target!r}: give a function of a plan and a Worker")
    if kind not in ("process", "thread"):
        raise ConfigError(f"kind is {kind!r}: give 'process' or 'thread'")
    if on_failure not in ("stop", "go on"):
        raise ConfigError(f"on_failure is {on_failure!r}: give 'stop' or 'go on'")
    if isinstance(counters, str) or not all(isinstance(name, str) for name in counters):
        raise ConfigError(f"counters is {counters!r}: give names")
    if len(set(counters)) != len(counters):
        raise ConfigError(f"counters is {counters!r}: give each name once")
    if duration is not None:
        times = (*times, duration)
    for seconds in times:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 1e9:
            raise ConfigError(f"{seconds!r} as a time: give seconds above 0")


def gil_enabled() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def name_of(index: int) -> str:
    return f"worker {index}"


def name_of_signal(number: int) -> str:
    known = signal.Signals.__members__.values()
    return signal.Signals(number).name if number in known else str(number)


def row_of(index: int, counters: int) -> int:
    """The first word of a worker's counters: lines of its own, behind the control line."""
    lines = -(-max(counters, 1) // CACHE_LINE_WORDS)
    return CACHE_LINE_WORDS * (1 + index * lines)


def total_of(counters: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in counters) for name in (counters[0] if counters else ())}


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Note SIGINT and SIGTERM instead of ending; the second one does."""
    heard: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        heard.append(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(target: Callable[[Any, Worker], Any], plan: Any, worker: Worker, channel: _Channel) -> None:
    """One worker from its first to its last step; what comes of it goes through the channel."""
    try:
        cpu = getattr(plan, "cpu", None)
        if cpu is not None:
            pin_current_thread(cpu)
        value = target(plan, worker)
        if not worker.was_ready:
            raise ConfigError("the target returned without ready(): call it when the sockets are open")
        message: tuple[str, Any] = ("result", value)
    except _StoppedError:
        message = ("result", None)
    except BaseException as error:
        message = ("error", (portable(error), traceback.format_exc()))
    with suppress(OSError):  # the parent is gone, or has given up on us
        try:
            channel.send(message)
        except Exception as error:  # cannot be pickled
            channel.send(("error", (ConfigError(f"the target returned {message[1]!r}: {error}"), "")))


def portable(error: BaseException) -> BaseException:
    """What arrives in another process: the exception where it can be pickled, else its text."""
    with suppress(BaseException):
        if isinstance(pickle.loads(pickle.dumps(error)), BaseException):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def in_process(index: int, block: Any, names: Sequence[str], channel: Connection, packed: bytes, parent: int) -> None:
    """The first step of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent says what follows
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        plan, target = pickle.loads(packed)
    except BaseException as error:  # the module of either raises when it is imported
        with suppress(OSError):
            channel.send(("error", (portable(error), traceback.format_exc())))
        return
    serve(target, plan, Worker(index, words_of(block), names, channel), channel)


def await_end(task: Any, seconds: float) -> None:
    """As join(seconds), which waits for ever for a process that has closed its descriptors."""
    if not hasattr(task, "exitcode"):
        task.join(seconds)
        return
    until = time.monotonic() + seconds
    while task.exitcode is None and time.monotonic() < until:
        time.sleep(0.002)


def limit_waiting(channel: Connection) -> None:
    """A worker that is stopped in the middle of a message must not stop the parent."""
    with socket.socket(fileno=os.dup(channel.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", MESSAGE_SECONDS, 0))


def words_of(block: Any) -> memoryview:
    """The block from its first whole cache line on: the same in every process, which maps whole pages of it."""
    skipped = -ctypes.addressof(block) % CACHE_LINE
    return memoryview(block).cast("B")[skipped:].cast("Q")


@dataclass
class _Member:
    """A worker as the parent sees it."""

    channel: Connection
    task: Any
    """A multiprocessing.Process or a threading.Thread."""
    state: Literal["starting", "ready", "ended"] = "starting"
    value: Any = None
    error: WorkerError | None = None


@dataclass
class _Started:
    """All workers of a run."""

    words: memoryview
    names: list[str]
    members: list[_Member] = field(default_factory=list)
    start: float = 0.0
    finish: float = 0.0

    @classmethod
    def of(cls, kind: str, plans: Sequence[Any], target: Any, names: list[str]) -> "_Started":
        context = multiprocessing.get_context("spawn")
        # A line more, for what is allocated need not begin with one.
        block = context.RawArray(ctypes.c_uint64, row_of(len(plans), len(names)) + CACHE_LINE_WORDS)
        made = cls(words_of(block), names)
        try:
            packed = [pickle.dumps((plan, target)) for plan in plans] if kind == "process" else []
        except Exception as error:
            raise ConfigError(f"plans and target must be fit for pickle to start processes: {error}") from error
        try:
            for index, plan in enumerate(plans):
                ours, theirs = context.Pipe()
                if kind == "process":
                    limit_waiting(ours)
                    arguments = (index, block, names, theirs, packed[index], os.getpid())
                    task: Any = context.Process(target=in_process, args=arguments, name=name_of(index), daemon=True)
                else:
                    worker = Worker(index, made.words, names, theirs)
                    task = threading.Thread(
                        target=serve, args=(target, plan, worker, theirs), name=name_of(index), daemon=True
                    )
                made.members.append(_Member(ours, task))
                task.start()
                if kind == "process":
                    theirs.close()
        except BaseException:
            made.end(0.0)
            raise
        return made

    def await_ready(self, deadline: float, heard: list[str]) -> None:
        while waiting := [i for i, member in enumerate(self.members) if member.state == "starting"]:
            self.listen(LOOK_SECONDS)
            for member in self.members:
                if member.error is not None:
                    raise member.error
            if heard:
                return
            if time.monotonic() > deadline:
                names = ", ".join(name_of(i) for i in waiting)
                raise WorkerError(f"{names} not ready in time: have the target call worker.ready(), or give it longer "
                                  f"with ready_timeout")  # fmt: skip

    def begin(self) -> None:
        self.start = time.monotonic() + START_DELAY_NS / 1e9
        self.words[START] = time.monotonic_ns() + START_DELAY_NS
        for member in self.members:
            with suppress(OSError):  # it has just died: noticed soon
                member.channel.send("start")

    def listen(self, timeout: float) -> None:
        """Take what the workers have to say, waiting for it no longer than `timeout`."""
        alive: dict[Any, int] = {}
        for index, member in enumerate(self.members):
            if member.state != "ended":
                alive[member.channel] = index
                if hasattr(member.task, "sentinel"):  # also where somebody else still has the other end open
                    alive[member.task.sentinel] = index
        for index in sorted({alive[each] for each in wait(list(alive), timeout)}):
            member = self.members[index]
            try:
                kind, value = member.channel.recv() if member.channel.poll() else ("silence", None)
            except (EOFError, OSError):  # or it stopped in the middle of a message: SO_RCVTIMEO
                kind, value = "silence", None
            except BaseException as error:  # its value or exception raises when it is made here
                if isinstance(error, KeyboardInterrupt):
                    raise
                kind, value = "error", (portable(error), "")
            if kind == "ready":
                member.state = "ready"
                continue
            member.state = "ended"
            if kind == "result":
                member.value = value
            elif kind == "error" and value is not None:
                cause, text = value
                if not isinstance(cause, BaseException):
                    cause = RuntimeError(f"the worker raised what is no exception here: {cause!r}")
                member.error = WorkerError(f"{name_of(index)} failed: {type(cause).__name__}: {cause}")
                member.error.__cause__ = cause
                if text:
                    cause.add_note(text)
            else:
                await_end(member.task, KILL_SECONDS)
                code = getattr(member.task, "exitcode", None)
                how = f"ended without a word, by exit code {code}"
                if code is None:
                    how = "went silent"  # it was stopped, or closed its descriptors
                elif code < 0:
                    how = f"ended without a word, by signal {name_of_signal(-code)}"
                member.error = WorkerError(f"{name_of(index)} {how}")

    def follow(
        self,
        duration: float | None,
        on_failure: str,
        on_progress: Callable[[Progress], object] | None,
        interval: float,
        heard: list[str],
    ) -> None:
        over = self.start + duration if duration is not None else float("inf")
        shown, before = self.start, total_of(self.counters())
        while any(member.state != "ended" for member in self.members):
            now = time.monotonic()
            if now >= over or heard:
                return
            if on_failure == "stop" and any(member.error for member in self.members):
                return
            if on_progress is not None and now >= shown + interval:
                workers = self.counters()
                total = total_of(workers)
                rates = {name: (total[name] - before[name]) / (now - shown) for name in total}
                shown, before = now, total
                if on_progress(Progress(now - self.start, tuple(workers), total, rates)) is True:
                    return
            due = shown + interval if on_progress is not None else over
            self.listen(min(LOOK_SECONDS, max(min(over, due) - now, 0.0)))

    def counters(self) -> list[dict[str, int]]:
        rows = (row_of(index, len(self.names)) for index in range(len(self.members)))
        return [{name: self.words[row + at] for at, name in enumerate(self.names)} for row in rows]

    def end(self, timeout: float) -> None:
        """Have all stop; what does not is killed. Nothing is left behind but a thread that never looks at `running`."""
        self.words[STOP] = 1
        deadline = time.monotonic() + timeout
        try:
            while any(member.state != "ended" for member in self.members) and (left := deadline - time.monotonic()) > 0:
                self.listen(min(LOOK_SECONDS, left))
        finally:
            self.put_away(timeout)

    def put_away(self, timeout: float) -> None:
        for index, member in enumerate(self.members):
            if member.task.ident is None:
                continue
            if member.state != "ended":
                member.state = "ended"
                member.error = member.error or WorkerError(f"{name_of(index)} did not stop within {timeout:g} s: have "
                                                           f"its loop look at worker.running")  # fmt: skip
                if hasattr(member.task, "kill"):
                    member.task.kill()
            await_end(member.task, KILL_SECONDS)
            if hasattr(member.task, "kill") and member.task.is_alive():
                member.task.kill()
                member.task.join()
        self.finish = time.monotonic()
        for member in self.members:
            member.channel.close()

    def report(self, on_failure: str, stopped_by: str | None) -> Run[Any]:
        failures = [member.error for member in self.members if member.error]
        if failures and (on_failure == "stop" or len(failures) == len(self.members)):
            raise failures[0]
        workers = tuple(
            WorkerResult(name_of(index), member.value, counters, member.error)
            for index, (member, counters) in enumerate(zip(self.members, self.counters(), strict=True))
        )
        return Run(workers, self.finish - self.start if self.start else 0.0, stopped_by)
