"""bench: take the figures in alternating runs, and write RESULTS.md."""

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
from benchmarks import aio_figures, figures, machine, prefix_lookup, user_time, xdp_peers
from benchmarks.figures import FIGURES as OS_FIGURES
from benchmarks.figures import Ends, Figure, Sample
from benchmarks.processes import ROOT
from benchmarks.scaling import SCALING_FIGURES
from benchmarks.xdp_figures import XDP_FIGURES
from examples import _cli
from fast_socket import lab

FIGURES = (*OS_FIGURES, *aio_figures.AIO_FIGURES, *XDP_FIGURES, *SCALING_FIGURES)
RESULTS = ROOT / "benchmarks" / "results"
SUMMARY = ROOT / "benchmarks" / "RESULTS.md"
OURS = "fast_socket"
IMPORT_TARGET_MS = 150.0
FULL, QUICK = (7, 2.0), (2, 0.3)  # rounds, and seconds of a run
FULL_ACCOUNT, QUICK_ACCOUNT = 20_000_000, 2_000_000
FULL_BATCHES, QUICK_BATCHES = 4000, 200
QUICK_PREFIXES = 20_000


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="A look, in about a minute; RESULTS.md stays as it is.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this figure; may be repeated. RESULTS.md stays as it is. {[f.key for f in FIGURES]}"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=1000, help="Runs of each contender.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.05, max=60.0, help="Of each run.")] = None,
) -> None:
    """Compare with plain sockets, iperf3 and C loops over a two-host lab, in alternating runs."""
    if reason := lab.why_unavailable():
        raise fs.CapabilityError(f"the figures need a two-host lab: {reason}")
    if unknown := set(only or ()) - {figure.key for figure in FIGURES}:
        raise fs.ConfigError(f"--only {sorted(unknown)}: give one of {', '.join(f.key for f in FIGURES)}")
    console = _cli.console()
    rounds = rounds or (QUICK if quick else FULL)[0]
    seconds = seconds or (QUICK if quick else FULL)[1]
    chosen = [figure for figure in FIGURES if not only or figure.key in only]
    figures.build_references()
    cpus = fs.available_cpus()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ".gitignore").write_text("*\n")  # raw samples are this machine's; RESULTS.md is the record
    record: dict[str, Any] = {
        "taken": datetime.now(UTC).date().isoformat(),
        "machine": machine.describe(),
        "rounds": rounds,
        "seconds": seconds,
        "cpus": [cpus[0], cpus[-1]],
        "figures": {},
    }
    with ExitStack() as opened:
        progress = opened.enter_context(Progress(console=console, transient=True))
        labs = {}
        for queues in {1, *(figure.queues for figure in chosen)}:
            near, far = opened.enter_context(lab.two_hosts(queues=queues, static_neighbors=True))
            labs[queues] = Ends(near, far, str(far.interface.ipv4), cpus[0], cpus[-1])
        ends = labs[1]
        absent = figures.missing_programs() | ({"dpdk-testpmd txonly"} if xdp_peers.testpmd_unavailable() else set())
        for figure in chosen:
            present = {name: run for name, run in figure.contenders.items() if name not in absent}
            task = progress.add_task(figure.key, total=rounds * len(present))
            samples: dict[str, list[Sample]] = {name: [] for name in present}
            for _ in range(rounds):
                for name, run in present.items():
                    samples[name].append(run(labs[figure.queues], seconds))
                    progress.advance(task)
            progress.remove_task(task)
            record["figures"][figure.key] = taken = summary(figure, samples)
            progress.console.print(table(figure, taken))
        if not only:
            record["account"] = figures.account(ends, QUICK_ACCOUNT if quick else FULL_ACCOUNT)
            progress.console.print("account:", record["account"])
            record["import_ms"] = figures.import_times(rounds * 2)
            with fs.pinned(cpus[-1]):
                record["user_ns"] = user_time.user_times(QUICK_BATCHES if quick else FULL_BATCHES)
                prefixes = QUICK_PREFIXES if quick else prefix_lookup.PREFIXES
                record["prefix_lookup"] = prefix_lookup.compare(prefixes)
            progress.console.print("prefix look-up:", record["prefix_lookup"])
            progress.console.print("user ns a packet:", user_time.rows(record["user_ns"]))
            progress.console.print(f"import fast_socket: {median(record['import_ms']):.0f} ms")
    name = "only" if only else "quick" if quick else "full"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"bench: samples in {(RESULTS / name).relative_to(ROOT)}.json")
    if name == "full":
        SUMMARY.write_text(markdown(record))
        console.print(f"bench: wrote {SUMMARY.relative_to(ROOT)}")


def summary(figure: Figure, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """For each contender its samples, and what they come to. Ratios are of the runs of one round: what disturbs the
    machine for a while disturbs both."""
    result: dict[str, Any] = {}
    ours = [sample.value for sample in samples[OURS]]
    for name in figure.contenders:
        if name not in samples:
            result[name] = None
            continue
        values = [sample.value for sample in samples[name]]
        ratios = [mine / theirs if theirs else 0.0 for mine, theirs in zip(ours, values, strict=True)]
        target = figure.targets.get(name)
        ratio = median(ratios)
        result[name] = {
            "median": median(values),
            "least": min(values),
            "most": max(values),
            "ratio": None if name == OURS else ratio,
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "target": target,
            "reached": None if target is None else ratio <= target if figure.less_is_better else ratio >= target,
            "values": values,
            "details": [dict(sample.details) for sample in samples[name]],
        }
    return result


HEADERS = ("contender", "median", "range", "ours / it", "range", "target", "reached")


def rows(figure: Figure, taken: Mapping[str, Any]) -> list[tuple[str, ...]]:
    def number(value: float) -> str:
        return f"{value * figure.scale:.3g}" if value * figure.scale < 100 else f"{value * figure.scale:.0f}"

    made: list[tuple[str, ...]] = []
    for name, entry in taken.items():
        if entry is None:
            made.append((name, "absent", "", "", "", "", ""))
            continue
        target = ""
        if entry["target"] is not None:
            target = f"{'<=' if figure.less_is_better else '>='} {entry['target']:g}"
        ratio = ("", "") if entry["ratio"] is None else (
            f"{entry['ratio']:.3g}", f"{entry['ratio_least']:.3g} .. {entry['ratio_most']:.3g}",
        )  # fmt: skip
        reached = {None: "", True: "yes", False: "NO"}[entry["reached"]]
        spread = f"{number(entry['least'])} .. {number(entry['most'])}"
        made.append((name, number(entry["median"]), spread, *ratio, target, reached))
    return made


def detail_rows(taken: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Medians of what was measured beside the value."""
    made: list[tuple[str, ...]] = []
    for name, entry in taken.items():
        if entry:
            first = entry["details"][0]
            cells = (f"{median(float(each[key]) for each in entry['details']):,.6g}" for key in first)
            made.append((name, ", ".join(f"{key} {cell}" for key, cell in zip(first, cells, strict=True))))
    return made


def table(figure: Figure, taken: Mapping[str, Any]) -> Table:
    made = Table(*HEADERS, title=f"{figure.title}, {figure.unit}", title_justify="left")
    for row in rows(figure, taken):
        made.add_row(*row, style="red" if row[-1] == "NO" else "")
    made.caption = "\n".join(f"{name}: {details}" for name, details in detail_rows(taken))
    made.caption_justify = "left"
    return made


def markdown(record: Mapping[str, Any]) -> str:
    lines = [
        "# Results",
        "",
        f"Written by `make bench` on {record['taken']}; `python -m benchmarks bench` takes the same figures again, "
        "`--only KEY` one of them. The same commands as single tools: `python -m benchmarks --help`, "
        "`python examples/blast.py --help`, and the reference loops in `benchmarks/reference/`.",
        "",
        f"Each figure is {record['rounds']} rounds of {record['seconds']:g} s; in a round every contender runs once, "
        "in turn. A ratio is ours divided by the other's of the same round; medians are shown. Sender and receiver are "
        f"a process each, pinned to CPU {record['cpus'][0]} and CPU {record['cpus'][1]}, on the two hosts of a lab "
        f"(network namespaces joined by veth). Payloads are {figures.PAYLOAD_LEN} bytes.",
        "",
        *markdown_table(("machine", ""), list(record["machine"].items())),
    ]
    for figure in FIGURES:
        taken = record["figures"][figure.key]
        lines += ["", f"## {figure.title}", "", f"In {figure.unit} (`--only {figure.key}`). {figure.note}".rstrip(), ""]
        lines += [*markdown_table(HEADERS, rows(figure, taken)), ""]
        lines += markdown_table(("contender", "medians of the rest"), detail_rows(taken))
    account = record["account"]
    lines += [
        "",
        "## Every datagram counted or reported",
        "",
        "A flood with GSO into a listener with a small buffer. The kernel counts a coalesced buffer as one drop, so "
        "the loss in datagrams comes from their numbers; what is lost after the last one that arrived only the sender "
        "knows.",
        "",
        *markdown_table(("", "datagrams"), [(key.replace("_", " "), f"{value:,}") for key, value in account.items()]),
        "",
        "## AF_XDP: user time of a packet",
        "",
        f"What sockets and rings take of {user_time.BATCH} packets of {len(user_time.PAYLOAD)} bytes a call, without "
        "the kernel: on a simulated device, in ns a packet (benchmarks/user_time.py). Headers and checksums are "
        "written for every packet, and received ones come with their source.",
        "",
        *markdown_table(
            ("step", "median", "middle nine tenths", "target", "reached"), user_time.rows(record["user_ns"])
        ),
        "",
        "## Longest-prefix match",
        "",
        f"{prefix_lookup.PREFIXES:,} made-up IPv4 prefixes, batches of {prefix_lookup.BATCH} addresses from anywhere, "
        f"the best of five passes (benchmarks/prefix_lookup.py). Targets: {prefix_lookup.TARGET_NS:g} ns an address, "
        f"and {prefix_lookup.TARGET_TIMES:g} times as quick as the others.",
        "",
        *markdown_table(
            ("table", "ns an address", "ours is quicker by", "built in s", "MB"),
            prefix_lookup.rows(record["prefix_lookup"]),
        ),
        "",
        "## import fast_socket",
        "",
        f"{median(record['import_ms']):.0f} ms, from {min(record['import_ms']):.0f} to {max(record['import_ms']):.0f}, "
        f"in a fresh interpreter, installed without the editable hook (target: {IMPORT_TARGET_MS:.0f} ms).",
        "",
        "## Instructions per packet",
        "",
        "`make gates` counts them; they are in [gates.json](gates.json).",
    ]
    return "\n".join(lines) + "\n"


def markdown_table(headers: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(headers)} |",
        f"|{'---|' * len(headers)}",
        *(f"| {' | '.join(row)} |" for row in body),
    ]
