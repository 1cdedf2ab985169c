"""The page that `bench` makes of a record: complete, self-contained, and readable on a phone."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from benchmarks import bench
from tests.tools.conftest import BENCHMARKS, run
from tests.tools.records import REASON, made_up

pytest.importorskip("matplotlib")

from benchmarks import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

#: Shows the page in a frame of some width and writes down what a reader would meet.
FRAME = """<!doctype html><body><iframe id="frame" src="page.html" style="width:%dpx; height:4000px; border:0"></iframe>
<script>
addEventListener("load", () => {
  const page = document.getElementById("frame").contentDocument;
  const plots = [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
  const letters = [...page.querySelectorAll("figure svg text")].map(text => text.getBoundingClientRect().height);
  document.title = JSON.stringify({
    across: page.documentElement.scrollWidth, plots: plots.length,
    letters: Math.min(...letters.filter(size => size > 0)),
    widest: Math.max(...plots.map(box => box.right)), lowest: Math.min(...plots.map(box => box.height)),
    tables: page.querySelectorAll("table").length,
  });
});
</script></body>"""


@pytest.fixture(scope="module")
def record():
    return made_up()


@pytest.fixture(scope="module")
def page(record):
    return report.page(record)


class Outline(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects what the test asks for."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attributes if name == "id" and tag == "h3"]
        self.references += [value for name, value in attributes if name in ("href", "src", "xlink:href")]

    def handle_startendtag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_everything_is_on_it(page):
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    text = " ".join(outline.words)
    for each in (*bench.FIGURES, *bench.SWEEPS):
        assert each.title in text
    assert len(outline.ids) == len(set(outline.ids)) == len(bench.FIGURES) + len(bench.SWEEPS)
    assert f"absent: {REASON}" in text
    assert "<one>" in text, "what a machine says of itself is text, not markup"
    assert "abc" in text


def test_it_needs_nothing_from_elsewhere(page):
    outline = Outline()
    outline.feed(page)
    assert all(reference.startswith("#") for reference in outline.references)
    assert "<script" not in page
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_same_record_makes_the_same_page(page, record):
    assert report.page(record) == page


def test_parts_of_a_record_make_a_page(record):
    """What --only takes."""
    some = {key: value for key, value in record.items() if key not in ("api_shapes", "user_ns", "account", "import_ms")}
    some["figures"] = {"blast": record["figures"]["blast"]}
    some["sweeps"] = {}
    assert "Sending with GSO" in report.page(some)


def test_a_figure_without_any_contender(record):
    broken = json.loads(json.dumps(record))
    for name in broken["figures"]["xdp-blast"]["contenders"]:
        broken["figures"]["xdp-blast"]["contenders"][name] = {"absent": "no libxdp"}
    assert "no libxdp" in report.page(broken)


def dom(tmp_path, address, *options):
    """What Chromium makes of a page, once its scripts have run."""
    return subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=10000",
            *options, "--dump-dom", address,
        ],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Gives `dom`, where there is a browser that shows an empty page."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    try:
        dom(tmp_path_factory.mktemp("empty"), "about:blank")
    except subprocess.SubprocessError as error:
        pytest.skip(f"Chromium does not run here: {error}")
    return dom


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_it_fits_in_a_browser(browser, page, tmp_path, width):
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "frame.html").write_text(FRAME % width)
    shown = browser(tmp_path, f"file://{tmp_path}/frame.html", f"--window-size={width + 100},1000")
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title, shown
    found = json.loads(html.unescape(title[1]))
    assert found["across"] <= width, "nobody has to scroll sideways"
    assert found["widest"] <= width
    assert found["plots"] >= 15
    assert found["lowest"] > 50
    assert found["letters"] >= 9, "smaller letters cannot be read"
    assert found["tables"] >= len(bench.FIGURES)


def test_the_command(tmp_path, record):
    (tmp_path / "some.json").write_text(json.dumps(record))
    done = run(*BENCHMARKS, "report", str(tmp_path / "some.json"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "some.html").read_text().startswith("<!doctype html>")
    (tmp_path / "other.json").write_text("[]")
    done = run(*BENCHMARKS, "report", str(tmp_path / "other.json"))
    assert done.returncode == 2
    assert "no record of bench" in done.stderr
