"""The command line: python -m benchmarks."""

import typer

from benchmarks import (
    aio_echo,
    api_shapes,
    bench,
    demo,
    gates,
    listener,
    ping,
    profile,
    report,
    sender,
    waiting,
    xdp_listener,
    xdp_sender,
    xdp_tools,
)
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
app.add_typer(xdp_listener.app, name="xdp-listener")
app.add_typer(xdp_sender.app, name="xdp-sender")
app.command("aio-echo")(aio_echo.aio_echo)
app.command("xdp-count")(xdp_tools.count)
app.command("xdp-pong")(xdp_tools.pong)
app.command("xdp-ping")(xdp_tools.ping)
app.command("waiting")(waiting.waiting)
app.command("api-shapes")(api_shapes.api_shapes)
app.command("demo")(demo.demo)
app.command("bench")(bench.bench)
app.command("profile")(profile.profile)
app.command("report")(report.report)
app.command("gates")(gates.gates)

if __name__ == "__main__":
    _cli.main(app)
