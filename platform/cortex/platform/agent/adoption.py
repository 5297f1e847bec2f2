"""Adoption: an agent takes over the workers that an earlier one left running.

It adopts only a worker whose process is the one in the state file: the same process of the same boot.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence

import structlog

from cortex.functions.lifecycle import COMING, PARKED, State
from cortex.platform.process import process_id
from cortex.platform.record import Instance
from cortex.platform.scheduling.events import Adopted, CoolRequest, Event
from cortex.platform.scheduling.saved_state import SavedWorker
from cortex.platform.workers.health import Examined
from cortex.platform.workers.supervisor import Supervisor

log = structlog.get_logger()

EXAMINE_S = 45.0
"""Time limit for learning whether a worker is parked: it may be parking at that moment."""
_MAY_BE_PARKED = frozenset({State.PARKING, *PARKED})


async def adopt(workers: Sequence[SavedWorker], supervisor: Supervisor, tell: Callable[[Event], None]) -> None:
    """Take over live workers: watched as if started here; ready if they served and still answer, parked if they are.

    Routers cannot use a worker that refuses this host's keys, but earlier requests may still run on it: it is drained.
    """
    alive = {w.instance.id for w in workers if w.instance.process and process_id.is_alive(w.instance.process)}
    up = (State.READY, State.DRAINING)
    workers, asleep = await _check_parked(workers, alive, supervisor)
    serving = [
        w.instance
        for w in workers
        if w.instance.id in alive and (w.instance.state in up or asleep.get(w.instance.id) is False)
    ]
    answers = await asyncio.gather(*(supervisor.health.examine(i) for i in serving))
    examined = dict(zip((i.id for i in serving), answers, strict=True))
    healthy = {i for i, answer in examined.items() if answer is not Examined.OTHER_MODEL}
    for worker in workers:
        is_alive, is_healthy = worker.instance.id in alive, worker.instance.id in healthy
        if is_alive:
            supervisor.adopt(worker)
        tell(Adopted(worker, is_alive, is_healthy, asleep.get(worker.instance.id)))
    for function in sorted({i.function for i in serving if examined[i.id] is Examined.REFUSES_KEY}):
        log.warning("worker_refuses_key", function=function)
        tell(CoolRequest(function))


async def _check_parked(
    workers: Sequence[SavedWorker], alive: Collection[str], supervisor: Supervisor
) -> tuple[list[SavedWorker], dict[str, bool | None]]:
    """Return the workers in the tier that they are in, and whether each that may be parked is."""
    moved = [w.instance.id for w in workers if w.instance.id in alive and _may_be_parked(w.instance)]
    answers = await asyncio.gather(*(_examine(w, supervisor) for w in workers if w.instance.id in moved))
    current = {worker.instance.id: worker for worker, _ in answers}
    return [current.get(w.instance.id, w) for w in workers], {w.instance.id: asleep for w, asleep in answers}


async def _examine(worker: SavedWorker, supervisor: Supervisor) -> tuple[SavedWorker, bool | None]:
    """Return a worker in its tier, and whether it is parked; None: no answer in time. The host waits for it."""
    try:
        async with asyncio.timeout(EXAMINE_S):
            return await supervisor.tiers.examine(worker)
    except Exception as error:  # no error may abort the agent's start
        log.warning("worker_not_examined", instance=worker.instance.id, error=type(error).__name__)
        return worker, None


def _may_be_parked(instance: Instance) -> bool:
    return instance.state in _MAY_BE_PARKED or (instance.state in COMING and instance.parks_to is not None)
