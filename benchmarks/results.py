"""What runs come to: medians, ranges and paired ratios; as rows of tables, and as RESULTS.md. A record is plain data,
all of it: what reads one needs nothing of what made it."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks import api_shapes, prefix_lookup, user_time
from benchmarks.figures import PAYLOAD_LEN, Figure, Sample
from benchmarks.sweeps import Sweep

OURS = "fast_socket"
IMPORT_TARGET_MS = 150.0

Record = Mapping[str, Any]
Row = tuple[str, ...]


def summary(figure: Figure, samples: Mapping[str, Sequence[Sample]], absent: Mapping[str, str]) -> dict[str, Any]:
    """For each contender its samples, and what they come to, or why it is absent. Ratios are of the runs of one round:
    what disturbs the machine for a while disturbs both."""
    contenders: dict[str, Any] = {}
    ours = [sample.value for sample in samples.get(OURS, ())]
    for name in figure.contenders:
        if name in absent:
            contenders[name] = {"absent": absent[name]}
            continue
        values = [sample.value for sample in samples[name]]
        ratios = [mine / theirs if theirs else 0.0 for mine, theirs in zip(ours, values, strict=True)]
        target = figure.targets.get(name)
        ratio = median(ratios)
        contenders[name] = {
            **spread(values),
            "ratio": None if name == OURS else ratio,
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "target": target,
            "reached": None if target is None else ratio <= target if figure.less_is_better else ratio >= target,
            "details": [dict(sample.details) for sample in samples[name]],
            "histogram": merged(samples[name]),
        }
    return {
        "title": figure.title,
        "unit": figure.unit,
        "scale": figure.scale,
        "note": figure.note,
        "less_is_better": figure.less_is_better,
        "queues": figure.queues,
        "contenders": contenders,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "least": min(values), "most": max(values), "values": list(values)}


def merged(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """The round trips of all rounds in one histogram."""
    counts: dict[int, int] = {}
    for sample in samples:
        for bucket, count in sample.histogram:
            counts[bucket] = counts.get(bucket, 0) + count
    return sorted(counts.items())


def sweep_summary(sweep: Sweep, samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> dict[str, Any]:
    """`samples` by line and point; a line that cannot run here has no points."""
    return {
        "title": sweep.title,
        "axis": sweep.axis,
        "unit": sweep.unit,
        "scale": sweep.scale,
        "note": sweep.note,
        "lines": {
            name: [
                {
                    "point": point,
                    **spread([sample.value for sample in points[str(point)]]),
                    "details": [dict(sample.details) for sample in points[str(point)]],
                }
                for point in sweep.points
                if points.get(str(point))
            ]
            for name, points in samples.items()
        },
    }


# ---- rows of tables ----


HEADERS = ("contender", "median", "range", "ours / it", "range", "target", "reached")


def number(value: float, scale: float) -> str:
    return f"{value * scale:.3g}" if value * scale < 100 else f"{value * scale:.0f}"


def rows(taken: Record) -> list[Row]:
    made: list[Row] = []
    for name, entry in taken["contenders"].items():
        if "absent" in entry:
            made.append((name, "absent", "", "", "", "", ""))
            continue
        target = ""
        if entry["target"] is not None:
            target = f"{'<=' if taken['less_is_better'] else '>='} {entry['target']:g}"
        ratio = ("", "") if entry["ratio"] is None else (
            f"{entry['ratio']:.3g}", f"{entry['ratio_least']:.3g} .. {entry['ratio_most']:.3g}",
        )  # fmt: skip
        reached = {None: "", True: "yes", False: "NO"}[entry["reached"]]
        least, most = (number(entry[key], taken["scale"]) for key in ("least", "most"))
        made.append((name, number(entry["median"], taken["scale"]), f"{least} .. {most}", *ratio, target, reached))
    return made


def detail_rows(taken: Record) -> list[Row]:
    """Medians of what was measured beside the value; for the absent why they are."""
    made: list[Row] = []
    for name, entry in taken["contenders"].items():
        if "absent" in entry:
            made.append((name, f"absent: {entry['absent']}"))
            continue
        first = entry["details"][0]
        cells = (f"{median(float(each[key]) for each in entry['details']):,.6g}" for key in first)
        made.append((name, ", ".join(f"{key} {cell}" for key, cell in zip(first, cells, strict=True))))
    return made


def sweep_headers(taken: Record) -> Row:
    details: dict[str, Any] = next((line[0]["details"][0] for line in taken["lines"].values() if line), {})
    return (taken["axis"], *taken["lines"], *(details if len(taken["lines"]) == 1 else ()))


def sweep_rows(taken: Record) -> list[Row]:
    """A row for each point. A sweep of one line has its details beside it."""
    by_point: dict[str, dict[str, Any]] = {}
    for name, line in taken["lines"].items():
        for entry in line:
            by_point.setdefault(str(entry["point"]), {})[name] = entry
    made: list[Row] = []
    for point, entries in by_point.items():
        cells = []
        for name in taken["lines"]:
            entry = entries.get(name)
            if entry is None:
                cells.append("absent")
                continue
            middle, least, most = (number(entry[key], taken["scale"]) for key in ("median", "least", "most"))
            cells.append(f"{middle} ({least} .. {most})")
        if len(taken["lines"]) == 1:
            details = next(iter(entries.values()))["details"]
            cells += [f"{median(float(each[key]) for each in details):,.4g}" for key in details[0]]
        made.append((point, *cells))
    return made


def account_rows(record: Record) -> list[Row]:
    return [(key.replace("_", " "), f"{value:,}") for key, value in record["account"].items()]


# ---- RESULTS.md ----


def how_taken(record: Record) -> str:
    return (
        f"Each figure is {record['rounds']} rounds of {record['seconds']:g} s, each series along an axis "
        f"{record['sweep_rounds']} of {record['sweep_seconds']:g} s; in a round every contender runs once, in turn. A "
        "ratio is ours divided by the other's of the same round; medians are shown, and ranges over the rounds. Sender "
        f"and receiver are a process each, pinned to CPU {record['cpus'][0]} and CPU {record['cpus'][1]}, on the two "
        "hosts of a lab (network namespaces joined by veth). Payloads are "
        f"{PAYLOAD_LEN} bytes where nothing else is said."
    )


def markdown(record: Record) -> str:
    lines = [
        "# Results",
        "",
        f"Written by `make bench` on {record['taken']}; `python -m benchmarks bench` takes the same figures again, "
        "`--only KEY` one of them. The same commands as single tools: `python -m benchmarks --help`, "
        "`python examples/blast.py --help`, and the reference loops in `benchmarks/reference/`. The page with plots is "
        "`benchmarks/results/full.html`.",
        "",
        how_taken(record),
        "",
        *markdown_table(("machine", ""), list(record["machine"].items())),
        "",
        *markdown_table(("device of each host", ""), list(record["device"].items())),
    ]
    for key, taken in record["figures"].items():
        lines += ["", f"## {taken['title']}", "", f"In {taken['unit']} (`--only {key}`). {taken['note']}".rstrip(), ""]
        lines += [*markdown_table(HEADERS, rows(taken)), ""]
        lines += markdown_table(("contender", "medians of the rest"), detail_rows(taken))
    for key, taken in record["sweeps"].items():
        lines += ["", f"## {taken['title']}", "", f"In {taken['unit']} (`--only {key}`). {taken['note']}".rstrip(), ""]
        lines += markdown_table(sweep_headers(taken), sweep_rows(taken))
    lines += [
        "",
        "## API shapes",
        "",
        "Nanoseconds a packet to look at each one of a received batch (`python -m benchmarks api-shapes`).",
        "",
        *markdown_table(
            ("shape", *(f"batch of {size}" for size in api_shapes.BATCHES)), api_shapes.rows(record["api_shapes"])
        ),
        "",
        "## Every datagram counted or reported",
        "",
        "A flood with GSO into a listener with a small buffer. The kernel counts a coalesced buffer as one drop, so "
        "the loss in datagrams comes from their numbers; what is lost after the last one that arrived only the sender "
        "knows.",
        "",
        *markdown_table(("", "datagrams"), account_rows(record)),
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


def markdown_table(headers: Sequence[str], body: Sequence[Row]) -> list[str]:
    return [
        f"| {' | '.join(headers)} |",
        f"|{'---|' * len(headers)}",
        *(f"| {' | '.join(row)} |" for row in body),
    ]
