"""Background tasks continue after an exception in one round."""

import asyncio
import io
import sys
from types import SimpleNamespace
from typing import cast

import pytest
import structlog

from cortex.platform import log
from cortex.platform.cancel import cancelled
from cortex.platform.faults import Faults
from cortex.platform.registry import RecordUnavailable
from cortex.platform.settings import Log
from cortex.router import runtime
from cortex.router.runtime import Runtime


async def test_a_sweep_step_that_raises_does_not_stop_the_other_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[str] = []
    last_step = asyncio.Event()

    async def lease(router: str, ttl_s: float) -> bool:
        return True

    async def breaks() -> None:
        raise ValueError("a fault")

    async def away() -> None:
        raise RecordUnavailable("no answer")

    async def forget() -> None:
        last_step.set()

    monkeypatch.setattr(runtime, "SWEEP_S", 0.01)
    faults = Faults(counts.append)
    registry = SimpleNamespace(lease_sweep=lease)
    double = SimpleNamespace(
        id="r", registry=registry, faults=faults, _send_catalogue=breaks, _scale=away, _delete_stale_uses=forget
    )
    task = asyncio.create_task(Runtime._sweep(cast(Runtime, double)))
    async with asyncio.timeout(5):
        await last_step.wait()
    await cancelled([task])

    assert set(counts) == {"sweep"}
    assert [f.kind for f in faults.recent()] == ["ValueError"]


def test_a_traceback_on_the_console_shows_no_local_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(log, "_lines_from", None)  # restored by monkeypatch
    before = structlog.get_config()
    try:
        log.configure(Log(format="console"))
        prompt = "a secret question"
        try:
            raise ValueError("wrong")
        except ValueError as error:
            structlog.get_logger().error("broke", exc_info=error)
    finally:
        structlog.configure(**before)

    assert prompt not in out.getvalue()
    assert "ValueError: wrong" in out.getvalue()
