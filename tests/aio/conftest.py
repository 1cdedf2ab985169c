"""Each test of the contract runs over asyncio's own endpoint, and over ours on the standard loop and on uvloop.
(uvloop's own differs in places: it takes None for data, say.)"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fast_socket import aio

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

LOOPS: dict[str, Any] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop and uvloop.new_event_loop}


@pytest.fixture(params=["asyncio, its own", "asyncio, ours", "uvloop, ours"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def run(kind: str) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on the loop; what a callback raised fails the test unless it asks for it."""
    factory = LOOPS[kind.partition(",")[0]]
    if factory is None:
        pytest.skip("needs uvloop")

    def start(coroutine: Coroutine[Any, Any, Any], *, errors: list[Any] | None = None, seconds: float = 20) -> Any:
        seen: list[Any] = [] if errors is None else errors

        async def watched() -> Any:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: seen.append(context))
            return await asyncio.wait_for(coroutine, seconds)

        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(watched())
        assert errors is not None or not seen, seen
        return result

    return start


async def standard(factory: Any, *arguments: Any, **options: Any) -> Any:
    return await asyncio.get_running_loop().create_datagram_endpoint(factory, *arguments, **options)


@pytest.fixture
def create(kind: str) -> Any:
    """`create_datagram_endpoint`, as a coroutine function."""
    return standard if kind.endswith("its own") else aio.create_datagram_endpoint
