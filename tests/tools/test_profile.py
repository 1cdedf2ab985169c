"""Profiles: stacks become a picture that is true to them, and a folder says what is in it."""

import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

import fast_socket as fs
from benchmarks import flame, profile
from benchmarks.profile import Profiler
from fast_socket.lab import why_unavailable
from tests.tools.conftest import BENCHMARKS, run

UNAVAILABLE = why_unavailable()
FOLDED = ["main;send;copy 30", "main;send;route 10", "main;recv 60", "", "nonsense", "main;<lambda> & co 0"]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(folded):
    """Title, left edge, width and top of each box."""
    root = ET.fromstring(flame.svg(folded, "a <title>"))
    for group in root.iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        yield group.find(f"{SVG}title").text, *(float(box.get(key)) for key in ("x", "width", "y"))


def test_boxes_are_as_wide_as_their_share():
    boxes = {title.partition(":")[0]: (left, width, top) for title, left, width, top in drawn(FOLDED)}
    assert set(boxes) == {"main", "send", "copy", "route", "recv"}
    assert boxes["main"][1] == pytest.approx(flame.WIDTH, abs=1)
    assert boxes["recv"][1] == pytest.approx(0.6 * flame.WIDTH, abs=1)
    assert boxes["copy"][1] == pytest.approx(3 * boxes["route"][1], rel=0.02)
    assert boxes["copy"][2] < boxes["send"][2] < boxes["main"][2], "the root is at the bottom"
    left, width, _ = boxes["send"]
    assert left <= boxes["copy"][0] < boxes["route"][0] < left + width


def test_titles_tell_counts():
    assert "copy: 30 samples, 30.0 %" in [title for title, *_ in drawn(FOLDED)]


def test_no_samples_are_a_picture_too():
    assert "0 samples" in flame.svg([], "nothing")
    assert list(drawn([])) == []


SCRIPT = """python
\t    7f00 copy
\t    7f01 send;it

python
\t    7f00 copy
\t    7f01 send;it

python
\t    ffff [unknown]
\t    7f02 main

"""


def test_perf_blocks_are_folded():
    """Root first, equal stacks counted once; a semicolon is no boundary."""
    assert list(flame.folded_perf(SCRIPT)) == ["python;main;[unknown] 1", "python;send:it;copy 2"]


def test_only_what_changed_is_a_change():
    before = {"near": {"a": 1, "b": 2}, "far": {"a": 1}}
    after = {"near": {"a": 5, "b": 2}, "far": {"a": 1, "new": 3}}
    assert profile.changes(before, after) == {"near": {"a": 4}, "far": {"new": 3}}


def test_without_a_profiler_it_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(profile.shutil, "which", lambda name: None)
    monkeypatch.setattr(profile, "py_spy", lambda: None)
    with pytest.raises(fs.CapabilityError, match=r"linux-perf.*py-spy"):
        profile.choose(None)


def test_perf_that_may_not_record_says_so(monkeypatch):
    monkeypatch.setattr(profile.shutil, "which", lambda name: "/usr/bin/perf")
    denied = SimpleNamespace(returncode=1, stderr=b"Error:\nNo permission to enable cpu-clock event.\n")
    monkeypatch.setattr(profile.subprocess, "run", lambda *_, **__: denied)
    assert profile.why_not(Profiler.PERF) == "perf cannot record: No permission to enable cpu-clock event."


def usable(by):
    return pytest.param(
        by,
        marks=[
            pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE)),
            # Root only where it can run: a system without a profiler does not fail a run that requires root tests.
            *([pytest.mark.skip(reason=why)] if (why := profile.why_not(by)) else [pytest.mark.root]),
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("by", [usable(by) for by in Profiler])
@pytest.mark.parametrize("subject", ["os-blast", "os-count"])
def test_a_profile_in_a_lab(tmp_path, subject, by):
    done = run(*BENCHMARKS, "profile", subject, "--out", str(tmp_path), "--seconds", "0.3", "--by", by.value)
    assert done.returncode == 0, done.stderr
    there = {path.name for path in tmp_path.iterdir()}
    readme = (tmp_path / "README.md").read_text()
    assert set(re.findall(r"^- `(.+?)`", readme, re.MULTILINE)) == there - {"README.md"}
    assert {"flame.svg", "stacks.folded", "counters.json", "machine.json", "report.json"} <= there
    counters = json.loads((tmp_path / "counters.json").read_text())
    sent = json.loads((tmp_path / ("report.json" if subject == "os-blast" else "peer.json")).read_text())["sent"]
    assert sent > 0
    assert counters["changes"]["near"]["tx_packets"] > 0
    root = ET.fromstring((tmp_path / "flame.svg").read_text())
    assert len(list(root.iter(f"{SVG}g"))) > 10
