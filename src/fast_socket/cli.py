"""The `fast-socket` command: `doctor` says what this machine lacks, `info` what a device is.

Exit status: 0 done, whatever was found; 1 the system refused something; 2 the command line asks for what cannot be.
Needs the `cli` extra, and `info` the `xdp` extra; without them it says so.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum, Flag
from typing import TYPE_CHECKING, Annotated, Any

from fast_socket.core.capabilities import Support
from fast_socket.core.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    import typer

#: Of a report that no terminal shows: no line is broken.
PIPE_WIDTH = 8192

WORDS = {Support.YES: ("ok", "green"), Support.NO: ("missing", "red"), Support.UNKNOWN: ("could not tell", "yellow")}


def make_app() -> "typer.Typer":
    """The commands. ImportError without the `cli` extra."""
    import rich as _rich  # needed later, and missed here
    import typer

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="High-rate packet I/O: what this machine and its devices can do.",
    )
    as_one_line = typer.Option("--json", help="Print one JSON object as the last line.")

    @app.command()
    def doctor(
        device: Annotated[str | None, typer.Argument(metavar="DEV", help="Also look at this interface.")] = None,
        as_json: Annotated[bool, as_one_line] = False,
    ) -> None:
        """Say what this machine has, what it lacks and how to get it."""
        from fast_socket.doctor import check_device, check_machine

        checks = [*(check_device(device) if device else ()), *check_machine()]
        if as_json:
            rows = [plain(check) | {"answer": WORDS[check.answer][0]} for check in checks]
            typer.echo(json.dumps({"tool": "doctor", "device": device, "checks": rows}))
        else:
            show([WORDS[check.answer], (check.name, ""), (check.found, ""), (check.advice, "")] for check in checks)

    @app.command()
    def info(
        device: Annotated[str, typer.Argument(metavar="DEV", help="The interface.")],
        as_json: Annotated[bool, as_one_line] = False,
    ) -> None:
        """Print the facts of a network interface."""
        from fast_socket.xdp.interface import Interface

        facts = plain(Interface.read(device))
        if as_json:
            typer.echo(json.dumps({"tool": "info", **facts}))
        else:
            show([(name, "bold"), (words(value), "")] for name, value in facts.items())

    _ = _rich, doctor, info  # their decorators have registered them
    return app


def plain(value: Any) -> Any:
    """As JSON has it: records are objects, addresses are text, bytes are hexadecimal."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, Flag):
        return [flag.name for flag in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        named = getattr(value, "_asdict", None)
        return plain(named()) if named else [plain(each) for each in value]
    if isinstance(value, bytes):
        return value.hex(":")
    return value if value is None or isinstance(value, str | int) else str(value)


def words(value: Any) -> str:
    """One fact for a reader. Of the counters and features only those that are not zero or off."""
    if isinstance(value, dict):
        return "  ".join(f"{name} {words(each)}" for name, each in value.items() if each or name == "queue") or "-"
    if isinstance(value, list):
        return ", ".join(map(words, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "") else str(value)


def show(rows: Iterable[list[tuple[str, str]]]) -> None:
    """Columns of text and its style."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*(Text(text, style) for text, style in row))
    console.print(table)


def main() -> None:
    """The console script."""
    try:
        app = make_app()
    except ImportError:
        sys.exit('fast-socket: typer or rich cannot be imported: pip install "fast-socket[cli]"')
    try:
        app()
    except (ConfigError, CapabilityError) as error:
        fail(error, 2)
    except OSError as error:
        fail(error, 1)


def fail(error: OSError, status: int) -> None:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
