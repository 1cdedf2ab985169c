"""Tools as processes: start one, wait until it is ready, follow its progress, end it, take its report.

All tools, ours, the C loops and plain_socket.py, keep to one convention: a listener prints `ready` when bound; SIGTERM
ends any of them at once; the last line is a JSON object.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fast_socket as fs

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "benchmarks" / "reference"
C = REFERENCE / "build"
PLAIN = [sys.executable, str(REFERENCE / "plain_socket.py")]
OURS = [sys.executable, "-m", "benchmarks"]
BLAST = [sys.executable, str(ROOT / "examples" / "blast.py")]
PONG_SERVER = [sys.executable, str(ROOT / "examples" / "pong_server.py")]

START_SECONDS = 15.0
STOP_SECONDS = 5.0
STOPPING = (signal.SIGINT, signal.SIGTERM)

Report = dict[str, Any]
Spawn = Callable[..., "subprocess.Popen[str]"]


class ToolError(fs.Error):
    """A tool did not do what it should; says what it wrote."""


class Tool:
    """A running tool. Its output is read by a thread, so that it never waits for us."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        spawn: Spawn = subprocess.Popen,
        cpu: int | None = None,
        ready: Sequence[str] = ("ready", "listening"),  # the latter is iperf3's word
        prompt: bool = False,
    ) -> None:
        self.argv = [*(["taskset", "--cpu-list", str(cpu)] if cpu is not None else []), *argv]
        self.lines: list[str] = []
        self.progress: Mapping[str, int] = {}
        self.ready_cpu_seconds = 0.0
        self._ready_words = ready
        self._ready = threading.Event()
        self._stopping = False
        self._process = spawn(
            self.argv,
            cwd=ROOT,
            stdin=subprocess.PIPE if prompt else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())
                if line.startswith('{"progress"'):
                    self.progress = json.loads(self.lines.pop())["progress"]
                elif any(word in line for word in self._ready_words):
                    self.ready_cpu_seconds = self._cpu_seconds()
                    self._ready.set()
        self._ready.set()

    def _cpu_seconds(self) -> float:
        """Of the main thread, which is all that the tools measured have; also of one that has ended."""
        try:
            return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, IndexError):  # a kernel without CONFIG_SCHED_INFO
            return 0.0

    def wait_ready(self) -> "Tool":
        if not self._ready.wait(START_SECONDS) or not self.running:
            self.kill()
            raise self.error("did not get ready")
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return not self.wait(0)

    def say(self, line: str) -> None:
        """To a tool that was started with a prompt."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self.error(f"did not take {line!r}") from None

    def signal(self, number: int) -> None:
        if self.running:
            self._process.send_signal(number)

    def stop(self) -> Report:
        """End it and take its report."""
        # Not SIGINT, which the terminal may have sent it already: a second one ends it without a report.
        self._stopping = True
        self.signal(signal.SIGTERM)
        return self.report(STOP_SECONDS)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._close_prompt()

    def _close_prompt(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what it did not take is still to be written
                self._process.stdin.close()

    def wait(self, seconds: float) -> bool:
        """True once it has ended, False after so many seconds."""
        deadline = time.monotonic() + seconds
        # Not reaped yet, for then its CPU time would be gone.
        while self._process.returncode is None and not os.waitid(
            os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG
        ):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def output(self, seconds: float) -> str:
        """All that it wrote, once it has ended by itself. Raises ToolError for a time-out and for a failure."""
        if not self.wait(seconds):
            self.kill()
            raise self.error(f"did not end within {seconds:.0f} s")
        self.cpu_seconds = self._cpu_seconds() - self.ready_cpu_seconds
        self._reader.join()
        self._close_prompt()
        # A second signal, while it was ending after the first, comes too late to matter: the report is what counts.
        status = self._process.wait()
        if status != 0 and not (self._stopping and -status in STOPPING):
            raise self.error(f"failed with status {self._process.returncode}")
        return "\n".join(self.lines)

    def report(self, seconds: float) -> Report:
        """Its JSON, with `cpu_seconds` where it does not say so itself: from ready to the end."""
        lines = self.output(seconds).splitlines()
        try:
            report: Report = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise self.error("gave no report") from None
        report.setdefault("cpu_seconds", round(self.cpu_seconds, 6))
        return report

    def error(self, what: str) -> ToolError:
        """With what it wrote last."""
        return ToolError(f"{' '.join(self.argv)}: {what}\n" + "\n".join(self.lines[-20:]))
