"""Rules of this repository that no linter knows. Prints what breaks one, as file:line: why; the exit code is 1 then."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

# What examples, tools and the book may import: the reader must be able to do all that they do.
PUBLIC_MODULES = {"fast_socket", "fast_socket.lab", "fast_socket.numba"}

# The layers, as in .importlinter, which cannot see into extension modules.
LAYERS = {
    "core": {"core"},
    "os": {"core", "os"},
    "xdp": {"core", "xdp"},
    "lab": {"core", "lab"},
}

# Directories of one machine; the group keeps this line from matching itself.
MACHINE_PATH = re.compile(r"(?<![\w.~$}-])/(?:work|root|home)/")

CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))")


def own_files() -> list[Path]:
    """What git tracks or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def public_api_only(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            if node.module.split(".")[0] == "fast_socket":
                if node.module not in PUBLIC_MODULES:
                    yield node.lineno, f"imports {node.module}, which is not public"
                for alias in node.names:
                    if alias.name.startswith("_"):
                        yield node.lineno, f"imports {alias.name}, which is not public"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fast_socket" and alias.name not in PUBLIC_MODULES:
                    yield node.lineno, f"imports {alias.name}, which is not public"
        elif isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            # A tool may have private parts of its own, reached through self or cls.
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if not own:
                yield node.lineno, f"uses .{node.attr}, which is not public"


def layers(path: Path) -> Iterator[tuple[int, str]]:
    """Imports and cimports stay within the layers, in Cython sources and stubs as well."""
    parts: list[str] = [*path.relative_to(SOURCE).with_suffix("").parts]  # fast_socket, os, udp
    layer = parts[1]
    allowed = LAYERS.get(layer)
    if allowed is None:
        return
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not (match := CYTHON_IMPORT.match(line)):
            continue
        name = match[1] or match[2]
        if dots := len(name) - len(name.lstrip(".")):
            name = ".".join([*parts[: len(parts) - dots], *filter(None, [name[dots:]])])
        target = name.split(".")
        if target[0] == "fast_socket" and (len(target) == 1 or target[1] in LAYERS.keys() - allowed):
            yield number, f"{layer} may not import {name}"


def constraints(path: Path) -> Iterator[tuple[int, str]]:
    pinned = set()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        pin = line.partition("#")[0].strip()
        if match := re.fullmatch(r"([A-Za-z0-9._-]+)==[\w.+!]+(?: *; *[^:@]+)?", pin):
            pinned.add(normal(match[1]))
        elif pin:
            yield number, "is not of the form name==version (no URL, no option)"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
    wanted += project["project"]["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)
        if name and normal(name[0]) not in pinned:
            yield 1, f"{name[0]} (pyproject.toml) is not pinned"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def problems() -> Iterator[str]:
    for path in own_files():
        name = path.relative_to(ROOT)
        found: list[tuple[int, str]] = []
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append((number, "names a path of one machine"))
        if name.parts[0] in {"examples", "benchmarks"} and path.suffix == ".py":
            found += public_api_only(path)
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi"} and path.is_relative_to(SOURCE):
            found += layers(path)
        if path.suffix == ".pyx" and path.is_relative_to(SOURCE) and not path.with_suffix(".pyi").exists():
            found.append((1, "has no .pyi beside it"))
        if path.suffix == ".c" and text.startswith("/* Generated by Cython"):
            found.append((1, "is generated and must not be committed"))
        if path.name == "constraints.txt":
            found += constraints(path)
        for number, why in found:
            yield f"{name}:{number}: {why}"


def main() -> int:
    found = list(problems())
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
