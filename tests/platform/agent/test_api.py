"""No route uses asyncio's default executor, whose few threads may be blocked."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from litestar import Litestar

from cortex.platform.agent import api
from cortex.platform.settings import Settings
from cortex.router.app import create_app
from cortex.router.dispatch import Dispatcher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("make", [api.create_app, create_app], ids=["agent", "router"])
async def test_every_handler_and_every_guard_runs_on_the_loop(
    make: Callable[[Settings], Litestar | Dispatcher], tmp_path: Path
) -> None:
    (tmp_path / "models.toml").write_text("")
    result = make(Settings(models_config=str(tmp_path / "models.toml"), token_file=str(tmp_path / "token")))
    app = result.rest if isinstance(result, Dispatcher) else result
    handlers = [handler for route in app.routes for handler in getattr(route, "route_handlers", [])]

    threaded = {str(h.fn) for h in handlers if not (h.sync_to_thread is False or inspect.iscoroutinefunction(h.fn))}
    threaded |= {str(g) for h in handlers for g in h.resolve_guards() if not inspect.iscoroutinefunction(g)}

    assert handlers
    assert threaded == set()
