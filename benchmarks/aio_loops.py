"""Which endpoint an asyncio tool takes, on whose loop, and when its run is over."""

import asyncio
import signal
from enum import StrEnum
from typing import Any

import fast_socket as fs
from fast_socket import aio


class Endpoint(StrEnum):
    STANDARD = "asyncio"
    OURS = "fast_socket"
    BATCHES = "batches"


class Loop(StrEnum):
    STANDARD = "asyncio"
    UVLOOP = "uvloop"


def factory(loop: Loop) -> Any:
    if loop is Loop.STANDARD:
        return asyncio.SelectorEventLoop
    try:
        import uvloop
    except ImportError:
        raise fs.ConfigError("--loop uvloop: it is not installed: pip install uvloop") from None
    return uvloop.new_event_loop


def creator(endpoint: Endpoint) -> Any:
    """`create_datagram_endpoint`, ours or that of the running loop."""
    if endpoint is Endpoint.STANDARD:
        return asyncio.get_running_loop().create_datagram_endpoint
    return aio.create_datagram_endpoint


def end_of_run() -> asyncio.Event:
    """Set by SIGINT and SIGTERM."""
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    return over
