"""`/admin/instances`: the worker processes of all hosts, and their logs.

Logs may contain prompts, so only admins may read them.
"""

from typing import Annotated

from litestar import MediaType, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from cortex.router.api_types import InstancesAnswer
from cortex.router.overview.functions import instance_views
from cortex.router.overview.snapshot import Index
from cortex.router.overview.sources import Sources
from cortex.router.overview.worker_logs import Grep, LogQuery, OpenLog, Run, WorkerLogs
from cortex.router.routes import long_lists

Lines = Annotated[int, QueryParameter(ge=1, le=10_000)]


def routes(sources: Sources, worker_logs: WorkerLogs) -> list[HTTPRouteHandler]:
    """Return the routes about instances."""

    @get("/admin/instances", opt={"needs": "status", "answer": InstancesAnswer})
    async def instances() -> Stream:
        """List the instances of all hosts."""
        snapshot = await sources.functions()
        placed = [(h, i) for h in snapshot.fleet.records() for i in h.instances]
        return long_lists.answer("instances", instance_views(placed, snapshot, Index(snapshot)))

    @get("/admin/instances/{instance:str}/logs", opt={"needs": "admin"})
    async def instance_logs(
        instance: FromPath[str],
        lines: Lines = 200,
        follow: FromQuery[bool] = False,
        run: FromQuery[Run] = "current",
        grep: Grep = "",
    ) -> Stream:
        """Return a worker's log, or its lines that contain `grep`; `follow` streams until the worker exits."""
        query = LogQuery(lines=lines, follow=follow, run=run, grep=grep)
        return _stream(await worker_logs.of_instance(instance, query))

    @get("/admin/logs", opt={"needs": "admin"})
    async def function_logs(
        function: FromQuery[str],
        host: FromQuery[str] = "",
        lines: Lines = 200,
        follow: FromQuery[bool] = False,
        run: FromQuery[Run] = "current",
        grep: Grep = "",
    ) -> Stream:
        """Return the log of a function's newest worker, including one that has exited."""
        query = LogQuery(lines=lines, follow=follow, run=run, grep=grep)
        return _stream(await worker_logs.of_function(function, host, query))

    return [instances, instance_logs, function_logs]


def _stream(log: OpenLog) -> Stream:
    headers = {"x-cortex-host": log.host, "x-accel-buffering": "no"}
    return Stream(log.text(), media_type=MediaType.TEXT, headers=headers)
