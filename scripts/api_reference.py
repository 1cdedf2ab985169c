"""The API reference: a page of the book for each public package, from stubs and docstrings, made with the book.

A hook of mkdocs (mkdocs.yml names it). Names and signatures are those of scripts/public_api.py; the docstrings are
those of the built package, for extension types have theirs nowhere else.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import public_api  # noqa: E402

SOURCES = ROOT / "src"
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
#: What `object` and the like say of these says nothing here.
SILENT = public_api.DUNDERS


def prose(docstring: str) -> str:
    """A docstring as Markdown: what stands between backticks is code already, and so is what is indented after `::`."""
    lines = []
    for line in inspect.cleandoc(docstring).splitlines():
        if line.startswith("    "):
            lines.append(line)
            continue
        pieces = CODE.split(line)
        pieces[::2] = [piece.replace("<", "&lt;").replace("*", r"\*") for piece in pieces[::2]]
        lines.append(re.sub(r"::$", ":", "".join(pieces)))
    return "\n".join(lines)


def own_docstring(thing: Any) -> str:
    """Not the one of a base that is not ours."""
    found = inspect.getdoc(thing) or ""
    kind = thing if isinstance(thing, type) else type(thing)
    if found in {inspect.getdoc(base) for base in kind.__mro__[1:] if not base.__module__.startswith("fast_socket")}:
        return ""
    # A dataclass without one is given its signature.
    return "" if isinstance(thing, type) and found.startswith(f"{thing.__name__}(") else found


def entry(package: str, name: str, exported: set[str]) -> Iterator[str]:
    """The section of one name."""
    found = public_api.resolve(package, name, SOURCES)
    described = list(public_api.describe(name, found, SOURCES, exported))
    thing = getattr(importlib.import_module(package), name)
    yield f"## {name}"
    yield f"    {described[0]}" if found and not isinstance(found[1], ast.Pass) else f"The module `{package}.{name}`."
    if (isinstance(thing, type) or callable(thing)) and (text := own_docstring(thing)):
        yield prose(text)
    members: dict[str, list[str]] = {}
    for line in described[1:]:
        members.setdefault(member_name(line), []).append(line)
    for member, lines in members.items():
        yield "\n".join(f"    {line.strip()}" for line in lines)
        text = "" if member in SILENT else inspect.getdoc(inspect.getattr_static(thing, member, None)) or ""
        if text and not lines[0].strip().startswith(f"{member}:") and not isinstance(thing, type(re)):
            yield prose(text)


def member_name(line: str) -> str:
    """Of a line of the listing."""
    match = re.match(r"\s*(?:@\w+ )*(?:async |class )?(\w+)", line)
    return match[1] if match else line.strip()


def page(package: str) -> str:
    exported = {name for each in public_api.PACKAGES for name in public_api.exports(each, SOURCES)}
    module = importlib.import_module(package)
    parts = [f"# {package}", prose(module.__doc__ or "")]
    for name in public_api.exports(package, SOURCES):
        parts += entry(package, name, exported)
    return "\n\n".join(part for part in parts if part) + "\n"


def pages() -> dict[str, str]:
    """For each page its path in the book and its text."""
    return {f"api/{package}.md": page(package) for package in public_api.PACKAGES}


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls this with the files of the book."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
