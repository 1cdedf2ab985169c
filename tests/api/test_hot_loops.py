"""What runs per packet calls no Python: no loop of a `noexcept` function has a call into CPython or Cython's runtime.

Read from the C that Cython made, which lies beside the modules of an editable install. A `nogil` function cannot have
such a call; one that runs under the GIL could, and a temporary reference to an attribute is easily overlooked.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "fast_socket"
MODULES = sorted(path.relative_to(SOURCES).with_suffix("") for path in SOURCES.rglob("*.pyx"))

FUNCTION = re.compile(r"^static [^\n;{]*?\b(__pyx_f_\w+)\([^;{]*\{\n(.*?)^\}\n", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"\b(_?Py[A-Z]\w*|__Pyx_\w+)\s*\(")
NOEXCEPT = re.compile(r"\b(\w+)\([^()]*(?:\([^()]*\)[^()]*)*\)\s*noexcept")

#: Not on the packet path of a device: the wire in memory, and what no route leads to, handed to an OS socket.
ELSEWHERE = {"xdp/sim": {"carry", "transmit"}, "xdp/udp": {"hand_over"}}


def generated(module: Path) -> Path:
    spec = importlib.util.find_spec("fast_socket." + ".".join(module.parts))
    assert spec is not None and spec.origin is not None
    found = Path(spec.origin + ".p") / f"{module.name}.pyx.c"
    if not found.exists():
        pytest.skip("not an editable install: there is no C source beside the module")
    return found


def closing(text: str, start: int, pair: str) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == pair[0]) - (text[at] == pair[1])
        if not depth:
            return at + 1
    raise ValueError("no end")


def loops(body: str) -> Iterator[str]:
    for match in re.finditer(r"\b(?:for|while) \(", body):
        behind = closing(body, match.end() - 1, "()")
        block = body.find("{", behind)
        if block >= 0 and not body[behind:block].strip():
            yield body[block : closing(body, block, "{}")]


def calls_in_loops(source: str, names: set[str]) -> dict[str, set[str]]:
    """For each function of these names what its loops call of Python."""
    found: dict[str, set[str]] = {}
    for match in FUNCTION.finditer(source):
        name = next((name for name in names if re.search(rf"[_\d]{name}$", match[1])), None)
        if name:
            for loop in loops(match[2]):
                found.setdefault(name, set()).update(CALL.findall(loop))
    return found


def noexcept_functions(module: Path) -> set[str]:
    sources = [(SOURCES / module).with_suffix(suffix) for suffix in (".pyx", ".pxd")]
    return {name for path in sources if path.exists() for name in NOEXCEPT.findall(path.read_text())}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_python_in_a_loop(module: Path) -> None:
    found = calls_in_loops(generated(module).read_text(), noexcept_functions(module))
    offending = {name: calls for name, calls in found.items() if calls and name not in ELSEWHERE.get(str(module), ())}
    assert offending == {}


def test_what_it_reads_has_loops() -> None:
    """The patterns still meet what Cython writes: the loops that matter are among those looked at."""
    looked_at = {
        (str(module), name)
        for module in MODULES
        for name in calls_in_loops(generated(module).read_text(), noexcept_functions(module))
    }
    expected = {("core/batch", "accept"), ("os/messages", "read_control"), ("os/plan", "plan_messages"),
                ("os/udp", "receive"), ("os/udp", "transmit"), ("xdp/queue", "drain"), ("xdp/udp", "receive"),
                ("xdp/udp", "build")}  # fmt: skip
    assert expected <= looked_at, sorted(looked_at)


def test_it_would_be_seen() -> None:
    source = (
        "static void __pyx_f_1a_4Kind_accept(int x) {\n  for (;;) {\n    __Pyx_INCREF(x);\n  }\n  Py_DECREF(x);\n}\n"
        "static void __pyx_f_1a_good(int x) {\n  while (1) {\n    put(x);\n  }\n  Py_DECREF(x);\n}\n"
    )
    assert calls_in_loops(source, {"accept", "good", "absent"}) == {"accept": {"__Pyx_INCREF"}, "good": set()}
