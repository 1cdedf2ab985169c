"""A record of `bench` as it would be, with numbers that nobody measured."""

import json
from typing import Any

from benchmarks import api_shapes, bench, prefix_lookup, results
from benchmarks.figures import Figure, Sample

REASON = "not installed (apt-get install it)"
RTT = {"min": 900, "p50": 1000, "p90": 1100, "p99": 1200, "max": 9000, "count": 3, "lost": 0}


def runs(*values: float) -> list[Sample]:
    details = {**RTT, "cpu_ns": 10.0, "sent": 1}
    return [Sample(value, details, [(960, 1), (1024, 2)]) for value in values]


def taken(figure: Figure) -> dict[str, Any]:
    """Of all contenders but the last of several."""
    names = list(figure.contenders)
    missing = {names[-1]: REASON} if len(names) > 2 else {}
    return results.summary(figure, {name: runs(1e6, 2e6) for name in names if name not in missing}, missing)


def made_up() -> dict[str, Any]:
    record = {
        "taken": "2000-01-01", "machine": {"commit": "abc", "CPU": "<one>"}, "device": {"driver": "veth"},
        "rounds": 2, "seconds": 1.0, "sweep_rounds": 2, "sweep_seconds": 0.5, "cpus": [0, 1],
        "figures": {each.key: taken(each) for each in bench.FIGURES},
        "sweeps": {
            each.key: results.sweep_summary(
                each,
                {name: {str(point): runs(1e6 * (n + 1)) for n, point in enumerate(each.points)} for name in each.lines},
            )
            for each in bench.SWEEPS
        },
        "account": {"sent": 1000}, "import_ms": [1.0], "user_ns": {"receive": [7.0, 8.0, 9.0]},
        "api_shapes": {
            name: {str(size): value for size in api_shapes.BATCHES}
            for name, value in (("handler in C: rx.run", 5.0), ("numba", None), ("asyncio", 5000.0))
        },
        "prefix_lookup": [
            prefix_lookup.Row(contender=name, nanoseconds=ns, build_seconds=2.0, megabytes=None)
            for name, ns in (("fast_socket", 5.0), ("another", 50.0))
        ],
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain
