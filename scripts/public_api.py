"""The public API as one text file, so that a change to it shows in a diff.

    scripts/public_api.py            print it
    scripts/public_api.py --write    write tests/api/public_api.txt
    scripts/public_api.py --check    compare, with a diff

The names are those of `__all__`; their signatures are read from the .pyi files and the Python sources, never from built
modules: an extension type does not tell its own, and the list must be the same on every interpreter.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTING = ROOT / "tests" / "api" / "public_api.txt"
PACKAGES = ["fast_socket", "fast_socket.os", "fast_socket.xdp", "fast_socket.lab", "fast_socket.workers",
            "fast_socket.aio", "fast_socket.numba"]  # fmt: skip

# Dunder methods that are part of how an object is used; the others are machinery.
DUNDERS = {
    "__init__", "__new__", "__call__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__await__",
    "__len__", "__getitem__", "__setitem__", "__iter__", "__next__", "__contains__", "__bool__", "__int__", "__index__",
    "__bytes__", "__buffer__", "__release_buffer__", "__eq__", "__hash__", "__reduce__",
}  # fmt: skip

SHOWN_DECORATORS = {"property", "setter", "classmethod", "staticmethod", "contextmanager"}

Definition = tuple[str, ast.stmt]  # the module that defines it, and its node


@functools.cache
def module(name: str, root: Path) -> tuple[ast.Module, bool] | None:
    """The parsed source of a module, and whether it is a package. A stub goes before the source that it describes."""
    base = root.joinpath(*name.split("."))
    for candidate in [base / "__init__.pyi", base / "__init__.py", base.with_suffix(".pyi"), base.with_suffix(".py")]:
        if candidate.exists():
            return ast.parse(candidate.read_text(), str(candidate)), candidate.stem == "__init__"
    return None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, those under `if TYPE_CHECKING:` and `try:` included."""
    for node in body:
        if isinstance(node, ast.If):
            yield from statements(node.body)
            yield from statements(node.orelse)
        elif isinstance(node, ast.Try):
            yield from statements(node.body)
        else:
            yield node


def exports(name: str, root: Path) -> list[str]:
    found = module(name, root)
    if found is None:
        return []
    for node in statements(found[0].body):
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value) if value is not None:
                return sorted(ast.literal_eval(value))
            case ast.AnnAssign(target=ast.Name(id="__all__"), value=value) if value is not None:
                return sorted(ast.literal_eval(value))
            case _:
                pass
    raise SystemExit(f"{name} has no __all__ that can be read without running it")


def resolve(name: str, wanted: str, root: Path) -> Definition | None:
    """Follows a name through imports to what defines it."""
    found = module(name, root)
    if found is None:
        return None
    tree, is_package = found
    for node in statements(tree.body):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == wanted:
                return name, node
            case ast.AnnAssign(target=ast.Name(id=target)) if target == wanted:
                return name, node
            case ast.Assign() if any(isinstance(t, ast.Name) and t.id == wanted for t in node.targets):
                return name, node
            case ast.ImportFrom():
                for alias in node.names:
                    if (alias.asname or alias.name) == wanted:
                        origin = absolute(name, is_package, node)
                        # A package may import its own submodule by its full name.
                        inside = None if origin == name else resolve(origin, alias.name, root)
                        return inside or submodule(f"{origin}.{alias.name}", root)
            case _:
                pass
    return submodule(f"{name}.{wanted}", root)


def submodule(name: str, root: Path) -> Definition | None:
    return (name, ast.Pass()) if module(name, root) else None


def absolute(name: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join(parts + ([node.module] if node.module else []))


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, keyword: str = "") -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    marks = [ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list]
    shown = "".join(f"@{mark} " for mark in marks if mark in SHOWN_DECORATORS)
    return f"{shown}{prefix}{keyword}{node.name}({ast.unparse(node.args)}){returns}"


def is_public(name: str) -> bool:
    return name in DUNDERS or not name.startswith("_")


def members(where: str, node: ast.ClassDef, root: Path, exported: set[str]) -> Iterator[tuple[str, str]]:
    """(name, line) of a class's own members, then those that it has from bases which are not public themselves."""
    for item in statements(node.body):
        match item:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if is_public(item.name):
                yield item.name, signature(item)
            case ast.AnnAssign(target=ast.Name(id=name)) if is_public(name):
                default = " = ..." if item.value is not None else ""
                yield name, f"{name}: {ast.unparse(item.annotation)}{default}"
            case ast.Assign(targets=[ast.Name(id=name)]) if is_public(name):
                yield name, f"{name} = {ast.unparse(item.value)}"
            case ast.ClassDef() if is_public(item.name):
                yield item.name, f"class {item.name}"
            case _:
                pass
    for written in node.bases:
        base = written.value if isinstance(written, ast.Subscript) else written  # Base[T] is Base
        if isinstance(base, ast.Name) and base.id not in exported:
            found = resolve(where, base.id, root)
            if found and isinstance(found[1], ast.ClassDef):
                yield from members(found[0], found[1], root, exported)


def describe(name: str, found: Definition | None, root: Path, exported: set[str]) -> Iterator[str]:
    if found is None:
        yield f"{name}: ?"
        return
    where, node = found
    match node:
        case ast.ClassDef():
            bases = ", ".join(ast.unparse(base) for base in [*node.bases, *(k.value for k in node.keywords)])
            marks = [ast.unparse(d) for d in node.decorator_list if "dataclass" in ast.unparse(d)]
            yield "".join(f"@{mark} " for mark in marks) + f"class {name}" + (f"({bases})" if bases else "")
            seen: dict[str, list[str]] = {}
            owner: dict[str, int] = {}
            for order, (member, line) in enumerate(members(where, node, root, exported)):
                # Overloads and setters share a name and stand together; an overridden name of a base comes too late.
                if member not in seen or order == owner[member] + 1:
                    seen.setdefault(member, []).append(line)
                    owner[member] = order
            is_enum = any("Enum" in ast.unparse(base) or "Flag" in ast.unparse(base) for base in node.bases)
            for member in seen if is_enum else sorted(seen):
                yield from (f"    {line}" for line in seen[member])
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield signature(node, "def ")
        case ast.AnnAssign():
            yield f"{name}: {ast.unparse(node.annotation)}"
        case ast.Assign():
            value = ast.unparse(node.value)
            yield f"{name} = {value if len(value) <= 200 else '...'}"
        case _:
            yield f"module {where}"


def render(root: Path = ROOT / "src") -> str:
    """The whole listing. A name that a package only passes on from elsewhere is listed at both, described once."""
    exported = {name for package in PACKAGES for name in exports(package, root)}
    lines: list[str] = []
    home: dict[tuple[str, str], str] = {}
    for package in PACKAGES:
        if module(package, root) is None:
            continue
        lines += [f"# {package}", ""]
        for name in exports(package, root):
            found = resolve(package, name, root)
            key = (found[0], name) if found else (package, name)
            if key in home:
                lines += [f"{name}: as {home[key]}.{name}", ""]
                continue
            home[key] = package
            lines += [*describe(name, found, root, exported), ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="The public API as one text file.")
    parser.add_argument("--write", action="store_true", help=f"write {LISTING.relative_to(ROOT)}")
    parser.add_argument("--check", action="store_true", help="compare with it and show the difference")
    options = parser.parse_args()
    current = render()
    if options.write:
        LISTING.write_text(current)
    elif options.check:
        diff = difference(current)
        print(diff, end="")
        return 1 if diff else 0
    else:
        print(current, end="")
    return 0


def difference(current: str) -> str:
    committed = LISTING.read_text() if LISTING.exists() else ""
    return "".join(
        difflib.unified_diff(
            committed.splitlines(keepends=True), current.splitlines(keepends=True), "committed", "as in the sources"
        )
    )


if __name__ == "__main__":
    sys.exit(main())
