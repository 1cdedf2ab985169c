"""The command line: python -m benchmarks."""

import typer

from benchmarks import bench, demo, gates, listener, ping, sender
from examples import _cli

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Senders, listeners, the demo, the figures and the gates.",
)
app.add_typer(listener.app, name="os-listener")
app.add_typer(sender.app, name="os-sender")
app.command("os-ping")(ping.ping)
app.command("demo")(demo.demo)
app.command("bench")(bench.bench)
app.command("gates")(gates.gates)

ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("xdp-listener", context_settings=ANY_ARGUMENTS)
@app.command("xdp-sender", context_settings=ANY_ARGUMENTS)
def xdp() -> None:
    """Arrives with the AF_XDP backend."""
    _cli.require_os(_cli.Mode.XDP)


if __name__ == "__main__":
    _cli.main(app)
