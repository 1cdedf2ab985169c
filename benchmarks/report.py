"""report: a record of `bench` as one HTML page with plots. Nothing is fetched: the plots are SVG in the page."""

import html
import io
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

import fast_socket as fs
from benchmarks import api_shapes, prefix_lookup, user_time
from benchmarks.results import (
    HEADERS,
    OURS,
    Record,
    Row,
    account_rows,
    detail_rows,
    how_taken,
    rows,
    sweep_headers,
    sweep_rows,
)

#: Ours is orange everywhere, C is grey: what is left of the distance is the eye's first question.
COLOURS = {OURS: "#d9480f", "C": "#868e96"}
OTHERS = ("#1971c2", "#2f9e44", "#9c36b5", "#5f3dc4", "#0c8599", "#f08c00")
WIDTH, HEIGHT = 4.8, 3.0  # inches: at this width the letters are about as large as the page's on a phone

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 0 1rem 4rem; color: #212529; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #dee2e6; } h3 { margin-bottom: .3rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; } figure b { font-weight: 600; font-size: .95rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; color: #495057; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #dee2e6; vertical-align: top; }
th { white-space: nowrap; } td.no { color: #c92a2a; font-weight: 600; } td.absent { color: #868e96; }
code { font-size: .9em; background: #f1f3f5; padding: 0 .2em; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; color: #495057; }
"""

Draw = Callable[[Any], None]
Bars = dict[str, tuple[float, float, float]]


# ---- pieces of the page ----


def text(value: object) -> str:
    return html.escape(str(value))


def table(headers: Sequence[str], body: Iterable[Row]) -> str:
    def cell(value: str) -> str:
        kind = {"NO": ' class="no"', "absent": ' class="absent"'}.get(value, "")
        return f"<td{kind}>{text(value)}</td>"

    head = "".join(f"<th>{text(name)}</th>" for name in headers)
    lines = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in body)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def plot(title: str, draw: Draw, caption: str = "", height: float = HEIGHT) -> str:
    """A figure of matplotlib as SVG, its letters as letters. The title is the page's, which breaks lines."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10, "font.family": "sans-serif",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e9ecef",
        "legend.frameon": False, "legend.fontsize": 9,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure((WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{text(title)}" ', 1)
    return f"<figure><b>{text(title)}</b>\n{svg}\n<figcaption>{text(caption)}</figcaption></figure>"


def colours(names: Iterable[str]) -> dict[str, str]:
    others = iter(OTHERS)
    return {
        name: COLOURS[OURS] if name == OURS else COLOURS["C"] if name.startswith("C ") else next(others, "#495057")
        for name in names
    }


def present(taken: Record) -> dict[str, Any]:
    return {name: entry for name, entry in taken["contenders"].items() if "absent" not in entry}


# ---- plots ----


def lines(taken: Record) -> Draw:
    """Medians over the points, ranges as bands."""

    def draw(axes: Any) -> None:
        chosen = colours(taken["lines"])
        for name, line in taken["lines"].items():
            if not line:
                continue
            points = [entry["point"] for entry in line]
            values, least, most = (
                [entry[key] * taken["scale"] for entry in line] for key in ("median", "least", "most")
            )
            axes.plot(points, values, marker="o", markersize=4, color=chosen[name], label=name)
            axes.fill_between(points, least, most, color=chosen[name], alpha=0.15, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(points, [str(point) for point in points])
            axes.minorticks_off()
        logarithmic(axes, [entry["median"] for line in taken["lines"].values() for entry in line])
        axes.set_xlabel(taken["axis"])
        axes.set_ylabel(taken["unit"])
        axes.legend()

    return draw


def logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Where the largest is more than ten times the least, bars and lines from zero show nothing of the least."""
    if values and max(values) > 10 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def bars(values: Bars, unit: str) -> Draw:
    """Horizontal, from median, least and most; with the numbers, on a logarithmic axis where they are far apart."""

    def draw(axes: Any) -> None:
        chosen = colours(values)
        names = list(values)[::-1]
        middles = [values[name][0] for name in names]
        ranges = [[values[name][0] - values[name][1] for name in names],
                  [values[name][2] - values[name][0] for name in names]]  # fmt: skip
        axes.barh(
            range(len(names)),
            middles,
            xerr=ranges,
            color=[chosen[name] for name in names],
            height=0.6,
            ecolor="#343a40",
        )
        far_apart = max(middles) > 10 * min(middles)
        if far_apart:
            axes.set_xscale("log")
            axes.set_xlim(min(middles) / 3, max(middles) * 5)
        else:
            axes.set_xlim(0, max(values[name][2] for name in names) * 1.25)
        axes.set_yticks(range(len(names)), ["\n".join(textwrap.wrap(name, 20)) for name in names])
        for place, name in enumerate(names):
            label = f"{values[name][0]:.3g}" if values[name][0] < 100 else f"{values[name][0]:.0f}"
            axes.annotate(
                label, (values[name][2], place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)

    return draw


def plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10 on a logarithmic axis of one or two decades, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def bar_plot(title: str, values: Bars, unit: str, caption: str = "") -> str:
    return plot(title, bars(values, unit), caption, height=0.7 + 0.4 * len(values))


def figure_plot(taken: Record, caption: str = "") -> str:
    scale = taken["scale"]
    values = {name: (e["median"] * scale, e["least"] * scale, e["most"] * scale) for name, e in present(taken).items()}
    return bar_plot(taken["title"], values, taken["unit"], caption)


def percentiles(taken: Record) -> Draw:
    """Of round trips, the median of the rounds for each."""
    names = ("min", "p50", "p90", "p99", "max")

    def draw(axes: Any) -> None:
        chosen = colours(present(taken))
        for name, entry in present(taken).items():
            values = [median(each[key] for each in entry["details"]) / 1e3 for key in names]
            axes.plot(names, values, marker="o", markersize=4, color=chosen[name], label=name)
        axes.set_yscale("log")
        axes.set_ylabel("us")
        axes.legend()

    return draw


def histogram(taken: Record) -> Draw:
    """Shares of all round trips, by bucket; without the first and the last thousandth."""

    def draw(axes: Any) -> None:
        chosen, inner = colours(present(taken)), list[float]()
        for name, entry in present(taken).items():
            total = sum(count for _, count in entry["histogram"])
            buckets = [bucket / 1e3 for bucket, _ in entry["histogram"]]
            shares = [100 * count / total for _, count in entry["histogram"]]
            axes.step(buckets, shares, where="post", color=chosen[name], label=name)
            seen = [sum(shares[: place + 1]) for place in range(len(shares))]
            inner += [bucket for bucket, share in zip(buckets, seen, strict=True) if 0.1 < share < 99.9]
        axes.set_xscale("log")
        axes.set_xlim(min(inner, default=1.0) / 1.2, max(inner, default=10.0) * 1.2)
        plain_ticks(axes.xaxis)
        axes.set_xlabel("us (eight buckets an octave)")
        axes.set_ylabel("% of round trips")
        axes.legend()

    return draw


def plots(*made: str) -> str:
    return f'<div class="plots">\n{"".join(each for each in made if each)}\n</div>'


# ---- the page ----


def figure_section(key: str, taken: Record) -> str:
    return "\n".join(
        [
            f'<h3 id="{text(key)}">{text(taken["title"])}</h3>',
            f"<p>In {text(taken['unit'])} (<code>--only {text(key)}</code>). {text(taken['note'])}</p>",
            table(HEADERS, rows(taken)),
            "<details><summary>What else was measured</summary>",
            table(("contender", "medians of the rest"), detail_rows(taken)),
            "</details>",
        ]
    )


def sweep_section(key: str, taken: Record) -> str:
    return "\n".join(
        [
            f'<h3 id="{text(key)}">{text(taken["title"])}</h3>',
            f"<p>In {text(taken['unit'])} (<code>--only {text(key)}</code>). {text(taken['note'])}</p>",
            table(sweep_headers(taken), sweep_rows(taken)),
        ]
    )


HEADLINES = ("blast", "drain-gro", "dns", "aio-echo", "aio-echo-batches", "xdp-blast", "xdp-count", "xdp-pong")
ROUND_TRIPS = ("ping-poll", "ping-spin", "xdp-ping-poll-p50", "xdp-ping-spin-p50")


def page(record: Record) -> str:
    """The whole page. Raises `CapabilityError` without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise fs.CapabilityError(f"plots need matplotlib: {error}; pip install 'fast-socket[plots]'") from error
    mpl.use("svg")
    taken, sweeps = record["figures"], record["sweeps"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Fast Socket: figures of {text(record['taken'])}</title><style>{STYLE}</style></head><body>",
        "<h1>Fast Socket: what was measured</h1>",
        f"<p>Taken on {text(record['taken'])} at commit <code>{text(record['machine']['commit'])}</code>, on "
        f"{text(record['machine']['CPU'])}. {text(how_taken(record))}</p>",
        "<p>Again: <code>make bench</code> takes all of it, <code>make bench-quick</code> a look at all of it, "
        "<code>python -m benchmarks bench --only KEY</code> one figure. The numbers behind this page are in the JSON "
        "file beside it.</p>",
    ]
    if rates := [key for key in HEADLINES if key in taken and present(taken[key])]:
        parts += ["<h2>Rates</h2>", plots(*(figure_plot(taken[key]) for key in rates))]
    series = {key: each for key, each in sweeps.items() if key != "by-waiting"}
    if series:
        made = (plot(each["title"], lines(each), "Bands are the ranges over the rounds.") for each in series.values())
        parts += ["<h2>By batch and payload size</h2>", plots(*made)]
    if trips := [key for key in ROUND_TRIPS if key in taken and present(taken[key])]:
        parts += ["<h2>Round trips</h2>"]
        for key in trips:
            title = taken[key]["title"].replace(" (median)", "").replace(" (p50)", "")
            drawn = [plot(f"{title}: percentiles", percentiles(taken[key]))]
            drawn += [plot(f"{title}: all", histogram(taken[key]))]
            parts += [plots(*drawn)]
    if "api_shapes" in record:
        parts += ["<h2>By the way packets are looked at</h2>", shapes_section(record)]
    others = []
    if "xdp-workers" in taken and present(taken["xdp-workers"]):
        caption = "Two workers share two cores with the sender's two: twice one worker is what could be."
        others.append(figure_plot(taken["xdp-workers"], caption))
    if "by-waiting" in sweeps:
        others += waiting_plots(sweeps["by-waiting"])
    if others:
        parts += ["<h2>Workers and waiting</h2>", plots(*others)]
    parts += ["<h2>Every figure</h2>", *(figure_section(key, each) for key, each in taken.items())]
    parts += [sweep_section(key, each) for key, each in sweeps.items()]
    parts += rest(record)
    parts += ["<h2>Where</h2>", table(("machine", ""), record["machine"].items())]
    parts += [table(("device of each host", ""), record["device"].items()), "</body></html>"]
    return "\n".join(parts) + "\n"


def shapes_section(record: Record) -> str:
    shapes = record["api_shapes"]
    made = []
    for size in api_shapes.BATCHES:
        values = {name: by[str(size)] for name, by in shapes.items() if by[str(size)] is not None}
        named = {
            name.partition(":")[0].partition(", receive")[0]: (value, value, value) for name, value in values.items()
        }
        made.append(bar_plot(f"Batch of {size}", named, "ns a packet"))
    headers = ("ns a packet", *(f"batch of {size}" for size in api_shapes.BATCHES))
    note = "<p><code>python -m benchmarks api-shapes</code> takes these alone.</p>"
    return plots(*made) + note + table(headers, api_shapes.rows(shapes))


def waiting_plots(taken: Record) -> list[str]:
    (line,) = taken["lines"].values()
    found = {entry["point"]: (entry["median"], entry["least"], entry["most"]) for entry in line}
    costs = {entry["point"]: [each["cpu_ns"] for each in entry["details"]] for entry in line}
    return [
        bar_plot(taken["title"], found, taken["unit"], "While a C loop sends 64 datagrams a call."),
        bar_plot(
            "CPU time for each datagram",
            {point: (median(values), min(values), max(values)) for point, values in costs.items()},
            "ns a datagram",
            "Spinning counts as CPU time.",
        ),
    ]


def rest(record: Record) -> list[str]:
    parts = []
    if "user_ns" in record:
        headers = ("ns a packet", "median", "middle nine tenths", "target", "reached")
        parts += ["<h3>AF_XDP: user time of a packet, without the kernel</h3>"]
        parts += [table(headers, user_time.rows(record["user_ns"]))]
    if "prefix_lookup" in record:
        headers = ("table", "ns an address", "ours is quicker by", "built in s", "MB")
        parts += ["<h3>Longest-prefix match</h3>", table(headers, prefix_lookup.rows(record["prefix_lookup"]))]
    if "account" in record:
        parts += ["<h3>Every datagram counted or reported</h3>", table(("", "datagrams"), account_rows(record))]
    if "import_ms" in record:
        parts += [f"<p><code>import fast_socket</code>: {median(record['import_ms']):.0f} ms.</p>"]
    return parts


def report(
    record: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON file that bench wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to; beside the record unless told otherwise.")] = None,
) -> None:
    """Make the page of a record again."""
    try:
        taken = json.loads(record.read_text())
        made = page(taken)
    except (ValueError, KeyError, TypeError) as error:
        raise fs.ConfigError(f"{record} is no record of bench: {error!r}") from None
    target = out or record.with_suffix(".html")
    target.write_text(made)
    print(f"report: wrote {target}")
