"""The RQ job of a batch worker: the engine, until no batch is open.

A job has no API key. For each line it makes a pass with the fleet token, which contains the key's id
(`access/batch_pass.py`). The router looks that key up for each line, so revoking a key stops its batches.
"""

import asyncio
import signal
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rq.job import Job
from rq.serializers import JSONSerializer

from cortex.platform.keys import FleetToken
from cortex.platform.process.parent_death import die_with_parent
from cortex.platform.settings import Gateway, Settings
from cortex.router.batches.client import RouterClient
from cortex.router.batches.engine import Bounds, Engine
from cortex.router.batches.folder import Folder

settings: ContextVar[Settings] = ContextVar("settings")
"""The batch worker's settings, inherited through the fork, since RQ calls jobs by name."""


def run() -> None:
    """Run the open batches until none is left."""
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    own = settings.get()
    asyncio.run(_run(own.gateway, FleetToken(Path(own.token_file).expanduser())))


async def _run(gateway: Gateway, token: FleetToken) -> None:
    bounds = Bounds(
        most_lines=gateway.batch_max_lines,
        longest_line=gateway.max_body_mb * 1024 * 1024,
        ttl_s=gateway.batch_ttl_s,
    )
    async with RouterClient(gateway, token) as client:
        await Engine(Folder.of(gateway), client.send, bounds).run()


class RunJob(Job):
    """An RQ job of which nothing in Redis is trusted."""

    func = property(lambda _: run)
    args = property(lambda _: ())
    kwargs = property(lambda _: {})
    success_callback = failure_callback = stopped_callback = property(lambda _: None)

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:
        super().__init__(id, connection, JSONSerializer)
