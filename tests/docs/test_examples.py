"""The README and the book: every Python block runs, and the tables name what there is.

A block is a program of its own. A comment on the line before it may say otherwise (docs/src/testing.md explains it):

    <!-- continues -->      goes on from the block before it on the page
    <!-- needs root -->     as root only
    <!-- needs NAME -->     where the module NAME can be imported, or the program NAME is found
"""

import importlib
import importlib.util
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import fast_socket
import fast_socket.lab

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "src").glob("*.md"))]
BOOK = ROOT / "docs" / "src"

BLOCK = re.compile(r"(?:^<!-- (?P<note>.*?) -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 30


def programs(page: Path) -> Iterator[tuple[int, str, set[str]]]:
    """Line of the first block, source, and needs. Blank lines stand for the prose, so that a traceback names the page's
    own lines."""
    text = page.read_text()
    start, source, needs = 0, "", set[str]()
    for block in BLOCK.finditer(text):
        note, line = block["note"] or "", text.count("\n", 0, block.start("code"))
        if note != "continues":
            if source:
                yield start, source, needs
            start, source, needs = line + 1, "", set()
        source += "\n" * (line - source.count("\n")) + block["code"]
        if note.startswith("needs "):
            needs.add(note.removeprefix("needs "))
        elif note not in ("", "continues"):
            raise ValueError(f"{page.name}:{line}: no such note: {note}")
    if source:
        yield start, source, needs


def every_program():
    for page in PAGES:
        for line, source, needs in programs(page):
            marks = [pytest.mark.root] if "root" in needs else []
            yield pytest.param(page, source, needs - {"root"}, id=f"{page.stem}-{line}", marks=marks)


def stop(number, frame):
    raise TimeoutError(f"a block of the book ran for more than {SECONDS} s")


@pytest.mark.parametrize(("page", "source", "needs"), list(every_program()))
def test_block_runs(page, source, needs):
    for name in needs:
        if not (shutil.which(name) or importlib.util.find_spec(name)):
            pytest.skip(f"needs {name}")
    if "fast_socket.lab" in source and (reason := fast_socket.lab.why_unavailable()):
        pytest.skip(reason)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        exec(compile(source, str(page), "exec", dont_inherit=True), {"__name__": "__main__"})
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_readme_example_is_short():
    """It is to be read in one look."""
    _, source, _ = next(programs(ROOT / "README.md"))
    assert len([line for line in source.splitlines() if line.strip()]) <= 15


def first_column(page: str, heading: str) -> set[str]:
    """The names in the first column of the table below a heading, which may hold several."""
    section = (BOOK / page).read_text().partition(f"\n{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table, f"{page}: no table below {heading!r}"
    return {name for row in table[0].splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_option_is_in_the_table():
    assert first_column("os-backend.md", "## Options") == {*fast_socket.OsUdpOptions.__annotations__, "driver"}


def test_every_counter_is_in_the_table():
    assert first_column("os-backend.md", "## Counters") == set(fast_socket.UdpStats.__dataclass_fields__)


def test_every_option_of_af_xdp_is_in_the_table():
    assert first_column("af-xdp.md", "## Options") == {*fast_socket.XdpUdpOptions.__annotations__, "driver"}


def test_every_counter_of_a_queue_is_in_the_table():
    assert first_column("raw-device.md", "## Counters") == set(fast_socket.RawDeviceStats.__dataclass_fields__)


def test_every_layout_field_is_in_the_table():
    assert first_column("buffers.md", "## Layout") == set(fast_socket.BufferLayout.__dataclass_fields__)


@pytest.mark.parametrize(
    ("heading", "kind"), [("## Receive columns", "recv_batch"), ("## Transmit columns", "tx_batch")]
)
def test_every_column_is_in_the_table(heading, kind):
    """With its dtype and its number of dimensions."""
    import numpy as np

    m = fast_socket.Metadata
    found = {}
    for wanted in (m.ECN | m.LOCAL | m.TTL | m.TIMESTAMP, m.TXTIME):
        with fast_socket.OsUdpSocket.bind("127.0.0.1:0", gro=True, metadata=wanted) as sock:
            batch = getattr(sock, kind)(4)
            for name in dir(batch):
                try:
                    value = getattr(batch, name)
                except fast_socket.ConfigError:
                    continue
                if isinstance(value, np.ndarray):
                    found[name] = value
    assert first_column("batches.md", heading) == set(found)
    section = (BOOK / "batches.md").read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    for name, value in found.items():
        row = next(row for row in section.splitlines() if row.startswith(f"| `{name}`"))
        dtype, shape = row.split("|")[2].split()[0], row.split("|")[2].split("[", 1)[1].split("]")[0]
        assert (value.dtype.newbyteorder("=").name, value.ndim) == (dtype, shape.count(",") + 1), name
        assert ("big-endian" in row) == (value.dtype.byteorder == ">"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    """What the text calls fs.Something or fast_socket.something is there."""
    for name in re.findall(r"\bfs\.([A-Za-z]\w*)", page.read_text()):
        assert hasattr(fast_socket, name), f"fs.{name}"
    for name in re.findall(r"\bfast_socket\.([\w.]*\w)", page.read_text()):
        if name != "xdp" and not hasattr(fast_socket, name):
            module, _, rest = name.partition(".")
            thing = importlib.import_module(f"fast_socket.{module}")
            for part in filter(None, rest.split(".")):
                thing = getattr(thing, part, None) or importlib.import_module(f"{thing.__name__}.{part}")


def tools():
    """Heading in tools.md, and the command that it describes."""
    import typer
    from typer.main import get_command

    from benchmarks import listener, ping, sender
    from examples import blast, dns_responder, pong_server

    single = typer.Typer(add_completion=False)
    single.command()(ping.ping)
    return {
        "## examples/blast.py": get_command(blast.app),
        "## examples/pong_server.py": get_command(pong_server.app),
        "## examples/dns_responder.py": get_command(dns_responder.app),
        "### os-sender blast": get_command(sender.app).commands["blast"],
        "### os-listener count": get_command(listener.app).commands["count"],
        "### os-ping": get_command(single),
    }


def test_every_option_of_a_tool_is_in_its_table():
    text = (BOOK / "tools.md").read_text()
    for heading, command in tools().items():
        section = text.partition(f"\n{heading}\n")[2].partition("\n##")[0]
        written = {
            option for row in re.findall(r"^\| (`--.*)", section, re.M) for option in re.findall(r"--[\w-]+", row)
        }
        there = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
        assert written == there - {"--help"}, heading
