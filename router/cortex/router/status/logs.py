"""The end of a worker's log for the page, from whichever host has it."""

import asyncio

from cortex.router.errors import InstanceNotFound, NoCapacity
from cortex.router.overview.worker_logs import LogQuery, OpenLog, Run, WorkerLogs
from cortex.router.status.model import Log

LINES = 500
MOST_BYTES = 256 * 1024
TIMEOUT_S = 15.0
"""Timeout for reading, including a search through the largest log."""


async def log(worker_logs: WorkerLogs, function: str, host: str, instance: str, run: Run, grep: str) -> Log:
    """Return the end of a log, or why there is none. Raises FunctionNotFound."""
    query = LogQuery(lines=LINES, run=run, grep=grep)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            if instance:
                log_stream = await worker_logs.of_instance(instance, query)
            else:
                log_stream = await worker_logs.of_function(function, host, query)
            text, cut = await _end(log_stream)
    except (InstanceNotFound, NoCapacity, TimeoutError) as error:
        problem = "its host did not answer in time" if isinstance(error, TimeoutError) else error.message
        return Log(function=function, host="", instance=instance, run=run, grep=grep, problem=problem)
    lines = text.count("\n") + bool(text and not text.endswith("\n"))
    return Log(
        function=function, host=log_stream.host, instance=instance, run=run, grep=grep, text=text, lines=lines, cut=cut
    )


async def _end(log_stream: OpenLog) -> tuple[str, bool]:
    """Return the end of the log, from the beginning of a line, and whether it was cut."""
    text, cut = b"", False
    async for chunk in log_stream.text():
        text += chunk
        if len(text) > 2 * MOST_BYTES:
            text, cut = text[-MOST_BYTES:], True
    if len(text) > MOST_BYTES:
        text, cut = text[-MOST_BYTES:], True
    if cut:
        text = text.partition(b"\n")[2] or text
    return text.decode(errors="replace"), cut
