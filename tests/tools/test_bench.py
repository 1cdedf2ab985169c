"""How figures are put together and shown, and one of them taken in a lab."""

import json

import pytest

from benchmarks import bench, prefix_lookup, results, user_time
from benchmarks.figures import Absent, Figure, Sample
from fast_socket.lab import why_unavailable
from tests.tools.conftest import BENCHMARKS, run
from tests.tools.records import made_up

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


ABSENT = {"missing": "not installed (apt-get install it)"}


def samples(*values: float) -> list[Sample]:
    return [Sample(value, {"sent": 1}) for value in values]


def test_ratios_are_of_the_runs_of_one_round():
    """The machine was slow in the third round, for both."""
    ran = {"fast_socket": samples(10, 12, 1), "other": samples(10, 10, 1)}
    taken = results.summary(figure(), ran, ABSENT)["contenders"]
    assert (taken["other"]["ratio"], taken["other"]["ratio_least"], taken["other"]["ratio_most"]) == (1.0, 1.0, 1.2)
    assert taken["other"]["reached"] is True
    assert taken["fast_socket"]["median"] == 10
    assert taken["missing"] == {"absent": ABSENT["missing"]}


@pytest.mark.parametrize(("ours", "less_is_better", "reached"), [(11, False, True), (9, False, False), (9, True, True)])
def test_targets(ours, less_is_better, reached):
    ran = {"fast_socket": samples(ours), "other": samples(10)}
    assert results.summary(figure(less_is_better), ran, ABSENT)["contenders"]["other"]["reached"] is reached


class Silent:
    """A progress bar that nobody looks at."""

    def add_task(self, *args, **options):
        return 0

    def advance(self, task):
        pass

    remove_task = advance


def test_contenders_run_in_turn_and_the_absent_say_why():
    order = []

    def contender(name, rounds=99):
        def run(ends, seconds):
            order.append(name)
            if order.count(name) > rounds:
                raise Absent(f"{name} is not installed")
            return Sample(1.0, {})

        return run

    contenders = {"fast_socket": contender("ours"), "a": contender("a"), "b": contender("b", 0)}
    taken, absent = bench.alternate(contenders, None, 3, 0.1, Silent(), "")
    assert order == ["ours", "a", "b", "ours", "a", "ours", "a"]
    assert {name: len(runs) for name, runs in taken.items()} == {"fast_socket": 3, "a": 3}
    assert absent == {"b": "b is not installed"}


def test_a_figure_that_cannot_run_at_all():
    def run(ends, seconds):
        raise Absent("the other end is not built")

    contenders = {"fast_socket": run, "other": run, "missing": run}
    taken, absent = bench.alternate(contenders, None, 2, 0.1, Silent(), "")
    assert taken == {}
    made = results.summary(figure(), taken, absent)
    assert [row[1] for row in results.rows(made)] == ["absent"] * 3
    assert ("other", "absent: the other end is not built") in results.detail_rows(made)


def test_round_trips_of_all_rounds_are_one_histogram():
    runs = [Sample(1.0, {}, [(10, 1), (11, 2)]), Sample(1.0, {}, [(9, 1), (11, 5)])]
    taken = results.summary(figure(), {"fast_socket": runs, "other": runs}, ABSENT)
    assert taken["contenders"]["fast_socket"]["histogram"] == [(9, 1), (10, 1), (11, 7)]


def test_the_summary_names_every_figure():
    record = made_up()
    text = results.markdown(record)
    for each in (*bench.FIGURES, *bench.SWEEPS):
        assert each.title in text
        assert f"--only {each.key}" in text
    assert "| CPU | <one> |" in text
    assert "| another | 50.0 | 10.0 times | 2.00 |  |" in text
    assert "| receive | 8.0 | 7.0 .. 9.0 | <= 8 | yes |" in text
    assert "absent: not installed (apt-get install it)" in text
    assert json.loads(json.dumps(record)) == record


def test_targets_are_of_contenders():
    for each in bench.FIGURES:
        assert set(each.targets) <= set(each.contenders), each.key
        assert results.OURS in each.contenders
        if each.part_of:
            assert each.part_of[0] in [other.key for other in bench.FIGURES]


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
