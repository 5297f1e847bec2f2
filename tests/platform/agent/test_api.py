"""What holds for all routes of the agent and of the router."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar

from cortex.platform.agent import api
from cortex.platform.settings import Settings
from cortex.router.app import create_app
from cortex.router.dispatch import Dispatcher

pytestmark = pytest.mark.parametrize("make", [api.create_app, create_app], ids=["agent", "router"])
Make = Callable[[Settings], Litestar | Dispatcher]


def handlers_of(make: Make, folder: Path) -> list[Any]:
    (folder / "models.toml").write_text("")
    result = make(Settings(models_config=str(folder / "models.toml"), token_file=str(folder / "token")))
    app = result.rest if isinstance(result, Dispatcher) else result
    handlers = [handler for route in app.routes for handler in getattr(route, "route_handlers", [])]
    assert handlers
    return handlers


async def test_every_handler_and_every_guard_runs_on_the_loop(make: Make, tmp_path: Path) -> None:
    """asyncio's default executor has few threads, which may be blocked."""
    handlers = handlers_of(make, tmp_path)

    threaded = {str(h.fn) for h in handlers if not (h.sync_to_thread is False or inspect.iscoroutinefunction(h.fn))}
    threaded |= {str(g) for h in handlers for g in h.resolve_guards() if not inspect.iscoroutinefunction(g)}

    assert threaded == set()


async def test_no_route_has_the_framework_read_its_body(make: Make, tmp_path: Path) -> None:
    """It answers 500 for text that is not UTF-8, and for JSON that is nested deeply."""
    handlers = handlers_of(make, tmp_path)

    assert {str(h.fn) for h in handlers if "data" in inspect.signature(h.fn).parameters} == set()
