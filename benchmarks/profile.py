"""profile: where the time of a sender or a listener goes. Flame graph, report and the devices' counters in one folder.

By perf where it works, with the kernel's frames: `cpu-clock` where there are no hardware counters. Else by py-spy, with
the native frames of the extension modules and without the kernel's.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import fast_socket as fs
from benchmarks import figures, flame, machine
from benchmarks.figures import LIVE_BUFFER, Ends, c_blast, c_count, milliseconds, our_blast, our_count
from benchmarks.processes import BLAST, OURS, ROOT, C, Tool
from benchmarks.xdp_peers import SOURCE_PORT
from examples import _cli
from fast_socket import lab

HERTZ = 999  # not in step with anything that happens 1000 times a second
SPY_HERTZ = 199  # py-spy stops the program to look at it
MARGIN = 30.0
PERF_RECORD = ["perf", "record", "--quiet", "--call-graph", "dwarf,16384"]


class Subject(StrEnum):
    OS_BLAST = "os-blast"
    OS_COUNT = "os-count"
    XDP_BLAST = "xdp-blast"
    XDP_COUNT = "xdp-count"


class Profiler(StrEnum):
    PERF = "perf"
    PY_SPY = "py-spy"


#: For each file what it is: the README of the folder.
FILES = {
    "flame.svg": "flame graph: open it in a browser, hovering names a frame and its share",
    "stacks.folded": "the stacks behind it, one a line with its count",
    "report.txt": "perf's own report: shares of symbols, without children",
    "perf.data": "what perf recorded, for `perf report --input`",
    "report.json": "what the profiled tool says it did",
    "peer.json": "what the other end says it did",
    "counters.json": "counters of both devices before and after, and what changed (`ethtool -S` and `ip -s link`)",
    "machine.json": "the machine, the tree and the devices",
    "command.txt": "the commands that ran",
}


def why_not(profiler: Profiler) -> str | None:
    """Why a profiler cannot be used here, and how to get it."""
    if profiler is Profiler.PY_SPY:
        return None if py_spy() else "py-spy is not installed (pip install py-spy)"
    if not shutil.which("perf"):
        return "perf is not installed (apt-get install linux-perf)"
    trial = subprocess.run([*PERF_RECORD, "--output", "-", "true"], check=False, capture_output=True)
    if not trial.returncode:
        return None
    return f"perf cannot record: {(trial.stderr.decode().strip().splitlines() or ['it says nothing'])[-1]}"


def py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def choose(wanted: Profiler | None) -> Profiler:
    reasons = []
    for each in [wanted] if wanted else list(Profiler):
        if (reason := why_not(each)) is None:
            return each
        reasons.append(reason)
    raise fs.CapabilityError("; ".join(reasons))


def commands(subject: Subject, ends: Ends, seconds: float) -> tuple[list[str], list[str], bool]:
    """Ours, the other end's, and whether ours is the receiver."""
    duration, longer = milliseconds(seconds), milliseconds(seconds + MARGIN)
    near, far = ends.near.interface, ends.far.interface
    match subject:
        case Subject.OS_BLAST:
            return [*our_blast(ends), *duration], [*c_count(ends, "gro", LIVE_BUFFER), *longer], False
        case Subject.OS_COUNT:
            ours = our_count(ends, LIVE_BUFFER, "--no-sequence", "--no-gro")
            return [*ours, *longer], [*c_blast(ends, "sendmmsg"), *duration], True
        case Subject.XDP_BLAST:
            ours = [*BLAST, "--mode", "xdp", "--device", near.name, "--target", ends.target, "--json"]
            count = [str(C / "xdp_count"), "--iface", far.name, "--wait", "spin", "--bind", ends.target]
            return [*ours, *duration], [*count, *longer], False
        case Subject.XDP_COUNT:
            ours = [*OURS, "xdp-count", "--device", far.name, "--bind", ends.target, "--wait", "spin", "--json"]
            blast = [
                str(C / "xdp_blast"),
                "--iface",
                near.name,
                "--source-mac",
                near.mac,
                "--dest-mac",
                far.mac,
            ]
            blast += ["--source", f"{near.ipv4}:{SOURCE_PORT}", "--dest", ends.target]
            return [*ours, *longer], [*blast, *duration], True


def wrapped(profiler: Profiler, argv: list[str], folder: Path) -> list[str]:
    if profiler is Profiler.PERF:
        return [*PERF_RECORD, "--freq", str(HERTZ), "--output", str(folder / "perf.data"), "--", *argv]
    options = ["record", "--native", "--rate", str(SPY_HERTZ), "--format", "raw"]
    return [str(py_spy()), *options, "--output", str(folder / "stacks.folded"), "--", *argv]


def counters(ends: Ends) -> dict[str, dict[str, int]]:
    """Of both devices: the kernel's and the driver's."""

    def of(host: lab.Host) -> dict[str, int]:
        found = host.popen(machine.info(host), stdout=subprocess.PIPE, text=True)
        facts: dict[str, Any] = json.loads(found.communicate(timeout=MARGIN)[0])
        return {**facts["statistics"], **facts["driver_statistics"]}

    return {"near": of(ends.near), "far": of(ends.far)}


def changes(
    before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    return {
        side: {
            name: value - before[side].get(name, 0) for name, value in now.items() if value != before[side].get(name, 0)
        }
        for side, now in after.items()
    }


def record(subject: Subject, profiler: Profiler, seconds: float, folder: Path) -> None:
    figures.build_references()
    cpus = fs.available_cpus()

    def write(name: str, content: Any) -> None:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")

    with lab.two_hosts(static_neighbors=True) as (near, far):
        ends = Ends(near, far, str(far.interface.ipv4), cpus[0], cpus[-1])
        ours, theirs, receives = commands(subject, ends, seconds)
        argv = wrapped(profiler, ours, folder)
        write(
            "machine.json", machine.describe() | {"device": machine.describe_device(near), "profiler": profiler.value}
        )
        write("command.txt", f"{' '.join(argv)}\n{' '.join(theirs)}\n")
        before = counters(ends)
        if receives:
            receiver = ends.receiver(argv)
            peer = ends.sender(theirs).report(seconds + MARGIN)
            time.sleep(figures.SETTLE)
            report = stop_profiled(receiver)
        else:
            receiver = ends.receiver(theirs)
            report = last_json(ends.sender(argv).output(seconds + MARGIN))
            peer = receiver.stop()
        after = counters(ends)
    write("report.json", report)
    write("peer.json", peer)
    write("counters.json", {"before": before, "after": after, "changes": changes(before, after)})
    if profiler is Profiler.PERF:
        data = ["--input", str(folder / "perf.data")]
        script = perf("script", *data, "--fields", "comm,ip,sym")
        write("stacks.folded", "\n".join(flame.folded_perf(script)) + "\n")
        write("report.txt", perf("report", *data, "--stdio", "--no-children", "--call-graph", "none"))
    write(
        "flame.svg",
        flame.svg((folder / "stacks.folded").read_text().splitlines(), f"{subject.value}, by {profiler.value}"),
    )
    there = [f"- `{name}`: {what}" for name, what in FILES.items() if (folder / name).exists()]
    write("README.md", "\n".join([f"# Profile of {subject.value}, by {profiler.value}", "", *there]) + "\n")


def stop_profiled(tool: Tool) -> dict[str, Any]:
    """The profiled tool is the profiler's child: that is whom to end."""
    children = Path(f"/proc/{tool.pid}/task/{tool.pid}/children").read_text().split()
    for child in children:
        subprocess.run(["kill", "-TERM", child], check=True)
    return last_json(tool.output(MARGIN))


def last_json(output: str) -> dict[str, Any]:
    """The report, among what the profiler says."""
    found: dict[str, Any] = next(
        json.loads(line) for line in reversed(output.splitlines()) if line.startswith('{"tool"')
    )
    return found


def perf(*arguments: str) -> str:
    return subprocess.run(["perf", *arguments], check=True, capture_output=True, text=True).stdout


def profile(
    subject: Annotated[Subject, typer.Argument(help="Which of our tools; the other end is the C loop.")],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="The folder; benchmarks/results/profile-SUBJECT by itself.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=60.0, help="How long traffic flows.")] = 3.0,
    by: Annotated[Profiler | None, typer.Option(help="By itself perf where it works, else py-spy.")] = None,
) -> None:
    """Profile one of our tools over a two-host lab."""
    if reason := lab.why_unavailable():
        raise fs.CapabilityError(f"profiles need a two-host lab: {reason}")
    profiler = choose(by)
    folder = (out or ROOT / "benchmarks" / "results" / f"profile-{subject.value}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    record(subject, profiler, seconds, folder)
    _cli.console().print(f"profile: {folder}/README.md says what is there", markup=False)
