"""Adoption of workers that may be parked."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cortex.functions.lifecycle import State
from cortex.platform.agent import adoption
from cortex.platform.process import process_id
from cortex.platform.record import Tier
from cortex.platform.scheduling.saved_state import LocalWeights, SavedWorker
from tests.support.factories import a_function, an_instance


async def hangs(_: Any) -> Any:
    await asyncio.Event().wait()


async def raises(_: Any) -> Any:
    raise OSError("a file of it cannot be read")


@pytest.mark.parametrize("examine", [hangs, raises])
async def test_a_parked_worker_that_cannot_be_examined_does_not_hold_up_the_agent(
    examine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "EXAMINE_S", 0.01)
    monkeypatch.setattr(process_id, "is_alive", lambda _: True)
    instance = an_instance(state=State.SLEEPING, pid=7, parked=Tier.SLEEP, parks_to=Tier.SLEEP)
    worker = SavedWorker(instance, a_function("f"), LocalWeights("/w", 1))
    events: list[Any] = []
    supervisor: Any = SimpleNamespace(tiers=SimpleNamespace(examine=examine), adopt=lambda _: None)

    await adoption.adopt([worker], supervisor, events.append)

    assert [(e.worker.instance.id, e.alive, e.asleep) for e in events] == [(instance.id, True, None)]
