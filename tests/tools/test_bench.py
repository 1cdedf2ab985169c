"""How figures are put together, and one of them taken in a lab."""

import pytest

from benchmarks import bench, prefix_lookup, user_time
from benchmarks.bench import FIGURES
from benchmarks.figures import Figure, Sample
from fast_socket.lab import why_unavailable
from tests.tools.conftest import BENCHMARKS, run

UNAVAILABLE = why_unavailable()


def figure(less_is_better: bool = False) -> Figure:
    def never(ends, seconds):
        raise AssertionError

    return Figure(
        "key",
        "A title",
        "units",
        {"fast_socket": never, "other": never, "missing": never},
        {"other": 1.0},
        less_is_better,
    )


def samples(*values: float) -> list[Sample]:
    return [Sample(value, {"sent": 1}) for value in values]


def test_ratios_are_of_the_runs_of_one_round():
    """The machine was slow in the third round, for both."""
    taken = bench.summary(figure(), {"fast_socket": samples(10, 12, 1), "other": samples(10, 10, 1)})
    assert (taken["other"]["ratio"], taken["other"]["ratio_least"], taken["other"]["ratio_most"]) == (1.0, 1.0, 1.2)
    assert taken["other"]["reached"] is True
    assert taken["fast_socket"]["median"] == 10
    assert taken["missing"] is None


@pytest.mark.parametrize(("ours", "less_is_better", "reached"), [(11, False, True), (9, False, False), (9, True, True)])
def test_targets(ours, less_is_better, reached):
    taken = bench.summary(figure(less_is_better), {"fast_socket": samples(ours), "other": samples(10)})
    assert taken["other"]["reached"] is reached


def test_the_summary_names_every_figure():
    taken = {each.key: bench.summary(each, {name: samples(1.0, 2.0) for name in each.contenders}) for each in FIGURES}
    record = {
        "taken": "2000-01-01", "machine": {"CPU": "one"}, "rounds": 2, "seconds": 1.0, "cpus": [0, 1],
        "figures": taken, "account": {"sent": 1000}, "import_ms": [1.0], "user_ns": {"receive": [7.0, 8.0, 9.0]},
        "prefix_lookup": [
            prefix_lookup.Row(contender=name, nanoseconds=ns, build_seconds=2.0, megabytes=None)
            for name, ns in (("fast_socket", 5.0), ("another", 50.0))
        ],
    }  # fmt: skip
    text = bench.markdown(record)
    for each in FIGURES:
        assert each.title in text
    assert "| CPU | one |" in text
    assert "| another | 50.0 | 10.0 times | 2.00 |  |" in text
    assert "| receive | 8.0 | 7.0 .. 9.0 | <= 8 | yes |" in text


def test_user_time_takes_a_sample_of_every_step_a_batch():
    taken = user_time.user_times(3)
    assert {len(samples) for samples in taken.values()} == {3}
    assert user_time.TARGETS.keys() <= taken.keys()
    assert all(sample > 0 for samples in taken.values() for sample in samples)


def test_prefix_tables_are_compared(monkeypatch):
    monkeypatch.setattr(prefix_lookup, "BATCHES", 3)
    found = prefix_lookup.compare(2000)
    assert found[0]["contender"] == "fast_socket"
    assert all(row["nanoseconds"] > 0 for row in found)


def test_without_a_lab_it_says_why():
    if UNAVAILABLE is None:
        pytest.skip("there is one here")
    done = run(*BENCHMARKS, "bench")
    assert done.returncode == 2
    assert "two-host lab" in done.stderr


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_a_figure_in_a_lab():
    done = run(*BENCHMARKS, "bench", "--only", "receive-gro", "--rounds", "1", "--seconds", "0.1")
    assert done.returncode == 0, done
    assert "C loop, GRO" in done.stdout
