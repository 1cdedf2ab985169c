"""The counts repeat, and a change of one is seen."""

import json
import shutil

import pytest

from benchmarks import gates
from benchmarks.gates_workload import STEPS

pytestmark = pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")


@pytest.fixture
def baseline(tmp_path, monkeypatch):
    """A baseline of our own, and counts that need no valgrind."""
    path = tmp_path / "gates.json"
    monkeypatch.setattr(gates, "BASELINE", path)
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    monkeypatch.setattr(gates, "toolchain", lambda: {"compiler": "one"})
    monkeypatch.setattr(gates, "measure", lambda: {"minimal/send": 100.0, "minimal/recv": 50.0})
    gates.gates(accept=True)
    return path


def test_equal_counts_pass(baseline, capsys):
    gates.gates(accept=False)
    assert "gates: passed" in capsys.readouterr().out


@pytest.mark.parametrize("count", [99.0, 101.0])
def test_a_changed_count_fails(baseline, monkeypatch, capsys, count):
    """The last table has what moved, and nothing else."""
    monkeypatch.setattr(gates, "measure", lambda: {"minimal/send": count, "minimal/recv": 50.2})
    with pytest.raises(SystemExit, match=r"1 of 2 counts moved.*--accept"):
        gates.gates(accept=False)
    moved = capsys.readouterr().out.rpartition("instructions per packet")[2]
    assert "minimal/send" in moved
    assert f"{count - 100:+.2f}" in moved
    assert "minimal/recv" not in moved


@pytest.mark.parametrize(
    ("counts", "word"),
    [({"minimal/send": 100.0}, "gone"), ({"minimal/send": 100.0, "minimal/recv": 50.0, "more": 1.0}, "new")],
)
def test_a_step_that_comes_or_goes_fails(baseline, monkeypatch, capsys, counts, word):
    monkeypatch.setattr(gates, "measure", lambda: counts)
    with pytest.raises(SystemExit, match="counts moved"):
        gates.gates(accept=False)
    assert word in capsys.readouterr().out


def test_another_toolchain_is_not_comparable(baseline, monkeypatch, capsys):
    monkeypatch.setattr(gates, "toolchain", lambda: {"compiler": "two"})
    monkeypatch.setattr(gates, "measure", lambda: {"minimal/send": 500.0})
    gates.gates(accept=False)
    assert "baseline one, here two" in capsys.readouterr().out


def test_the_record_can_be_read(baseline):
    assert json.loads(baseline.read_text())["instructions_per_packet"] == {"minimal/send": 100.0, "minimal/recv": 50.0}


@pytest.mark.slow
def test_the_counts_repeat():
    first, second = gates.measure(), gates.measure()
    assert first == second
    assert all(count > 0 for count in first.values())
    for step in STEPS:  # sockets that work beside cost nothing: nothing is shared
        assert first[f"xdp-v4-of-four/{step}"] == first[f"xdp-v4/{step}"]
