"""bench: take the figures in alternating runs; write the record, a page with plots, and RESULTS.md."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from statistics import median
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

import fast_socket as fs
from benchmarks import api_shapes, figures, machine, prefix_lookup, report, results, user_time
from benchmarks.aio_figures import AIO_FIGURES
from benchmarks.dns_figures import DNS_FIGURES
from benchmarks.figures import FIGURES as OS_FIGURES
from benchmarks.figures import Absent, Ends, Measure, Sample
from benchmarks.processes import ROOT
from benchmarks.results import OURS
from benchmarks.scaling import SCALING_FIGURES
from benchmarks.sweeps import SWEEPS, Sweep
from benchmarks.xdp_figures import XDP_FIGURES
from examples import _cli
from fast_socket import lab

FIGURES = (*OS_FIGURES, *DNS_FIGURES, *AIO_FIGURES, *XDP_FIGURES, *SCALING_FIGURES)
RESULTS = ROOT / "benchmarks" / "results"
SUMMARY = ROOT / "benchmarks" / "RESULTS.md"
FULL, QUICK = (5, 1.2), (1, 0.3)  # rounds, and seconds of a run
FULL_SWEEP, QUICK_SWEEP = (3, 0.5), (1, 0.1)
FULL_ACCOUNT, QUICK_ACCOUNT = 20_000_000, 2_000_000
FULL_BATCHES, QUICK_BATCHES = 4000, 200
FULL_SHAPES, QUICK_SHAPES = 2000, 200
QUICK_PREFIXES = 20_000
KEYS = [each.key for each in (*FIGURES, *SWEEPS)]


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="A look, in about two minutes; RESULTS.md stays as it is.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this figure; may be repeated. RESULTS.md stays as it is. {KEYS}"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=1000, help="Runs of each contender.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.05, max=60.0, help="Of each run.")] = None,
) -> None:
    """Compare with plain sockets, asyncio, other tools and C loops over a two-host lab, in alternating runs."""
    if reason := lab.why_unavailable():
        raise fs.CapabilityError(f"the figures need a two-host lab: {reason}")
    if unknown := set(only or ()) - set(KEYS):
        raise fs.ConfigError(f"--only {sorted(unknown)}: give one of {', '.join(KEYS)}")
    console = _cli.console()
    sweep_rounds, sweep_seconds = QUICK_SWEEP if quick else FULL_SWEEP
    if only:
        sweep_rounds, sweep_seconds = rounds or sweep_rounds, seconds or sweep_seconds
    rounds = rounds or (QUICK if quick else FULL)[0]
    seconds = seconds or (QUICK if quick else FULL)[1]
    # A figure that looks at another one's runs needs these.
    wanted = {each.part_of[0] for each in FIGURES if each.part_of and only and each.key in only} | set(only or KEYS)
    chosen = [figure for figure in FIGURES if figure.key in wanted]
    figures.build_references()
    cpus = fs.available_cpus()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ".gitignore").write_text("*\n")  # raw samples are this machine's; RESULTS.md is the record
    record: dict[str, Any] = {
        "taken": datetime.now(UTC).date().isoformat(),
        "machine": machine.describe(),
        "rounds": rounds,
        "seconds": seconds,
        "sweep_rounds": sweep_rounds,
        "sweep_seconds": sweep_seconds,
        "cpus": [cpus[0], cpus[-1]],
        "figures": {},
        "sweeps": {},
    }
    with ExitStack() as opened:
        progress = opened.enter_context(Progress(console=console, transient=True))
        labs = {}
        for queues in {1, *(figure.queues for figure in chosen)}:
            near, far = opened.enter_context(lab.two_hosts(queues=queues, static_neighbors=True))
            labs[queues] = Ends(near, far, str(far.interface.ipv4), cpus[0], cpus[-1])
        ends = labs[1]
        record["device"] = machine.describe_device(ends.near)
        taken: dict[str, tuple[dict[str, list[Sample]], dict[str, str]]] = {}
        for figure in chosen:
            if figure.part_of is None:
                taken[figure.key] = alternate(
                    figure.contenders, labs[figure.queues], rounds, seconds, progress, figure.key
                )
                samples, absent = taken[figure.key]
            else:
                of, detail = figure.part_of
                samples = {
                    name: [Sample(sample.details[detail], sample.details, sample.histogram) for sample in runs]
                    for name, runs in taken[of][0].items()
                }
                absent = taken[of][1]
            record["figures"][figure.key] = results.summary(figure, samples, absent)
            progress.console.print(table(record["figures"][figure.key]))
        for sweep in SWEEPS:
            if sweep.key in wanted:
                record["sweeps"][sweep.key] = sweep_taken(sweep, ends, sweep_rounds, sweep_seconds, progress)
                progress.console.print(sweep_table(record["sweeps"][sweep.key]))
        if not only:
            record["account"] = figures.account(ends, QUICK_ACCOUNT if quick else FULL_ACCOUNT)
            progress.console.print("account:", record["account"])
            record["import_ms"] = figures.import_times(rounds * 2)
            with fs.pinned(cpus[-1]):
                record["user_ns"] = user_time.user_times(QUICK_BATCHES if quick else FULL_BATCHES)
                record["api_shapes"] = api_shapes.shapes(QUICK_SHAPES if quick else FULL_SHAPES)
                prefixes = QUICK_PREFIXES if quick else prefix_lookup.PREFIXES
                record["prefix_lookup"] = prefix_lookup.compare(prefixes)
            progress.console.print("ns a packet by API shape:", api_shapes.rows(record["api_shapes"]))
            progress.console.print("prefix look-up:", record["prefix_lookup"])
            progress.console.print("user ns a packet:", user_time.rows(record["user_ns"]))
            progress.console.print(f"import fast_socket: {median(record['import_ms']):.0f} ms")
    name = "only" if only else "quick" if quick else "full"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / f"{name}.html").write_text(report.page(json.loads((RESULTS / f"{name}.json").read_text())))
    console.print(f"bench: samples in {(RESULTS / name).relative_to(ROOT)}.json, plots in {name}.html beside it")
    if name == "full":
        SUMMARY.write_text(results.markdown(record))
        console.print(f"bench: wrote {SUMMARY.relative_to(ROOT)}")


def alternate(
    contenders: Mapping[str, Measure], ends: Ends, rounds: int, seconds: float, progress: Progress, label: str
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """The samples of each contender, and why the others are absent: one that cannot run has no samples at all."""
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    absent: dict[str, str] = {}
    task = progress.add_task(label, total=rounds * len(contenders))
    for _ in range(rounds):
        for name, run in contenders.items():
            progress.advance(task)
            if name in absent:
                continue
            try:
                samples[name].append(run(ends, seconds))
            except Absent as reason:
                # Without ours, say because the other end is not built, there is nothing to compare.
                for each in contenders if name == OURS else (name,):
                    absent[each] = str(reason)
                    samples.pop(each, None)
    progress.remove_task(task)
    return samples, absent


def sweep_taken(sweep: Sweep, ends: Ends, rounds: int, seconds: float, progress: Progress) -> dict[str, Any]:
    by_line: dict[str, dict[str, Sequence[Sample]]] = {name: {} for name in sweep.lines}
    for point in sweep.points:
        contenders = {name: line(point) for name, line in sweep.lines.items()}
        samples, _ = alternate(contenders, ends, rounds, seconds, progress, f"{sweep.key} {point}")
        for name, runs in samples.items():
            by_line[name][str(point)] = runs
    return results.sweep_summary(sweep, by_line)


def table(taken: dict[str, Any]) -> Table:
    made = Table(*results.HEADERS, title=f"{taken['title']}, {taken['unit']}", title_justify="left")
    for row in results.rows(taken):
        made.add_row(*row, style="red" if row[-1] == "NO" else "")
    made.caption = "\n".join(f"{name}: {details}" for name, details in results.detail_rows(taken))
    made.caption_justify = "left"
    return made


def sweep_table(taken: dict[str, Any]) -> Table:
    made = Table(*results.sweep_headers(taken), title=f"{taken['title']}, {taken['unit']}", title_justify="left")
    for row in results.sweep_rows(taken):
        made.add_row(*row)
    return made
