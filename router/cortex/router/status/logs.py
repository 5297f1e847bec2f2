"""What a worker wrote, for the page: so much of its end as a person looks at, wherever the worker is or was."""

import asyncio

from cortex.router.errors import InstanceNotFound, NoCapacity
from cortex.router.routes.instances import LogQuery, Opened, Run, log_of_function, log_of_instance
from cortex.router.runtime import Runtime
from cortex.router.status.model import Log

LINES = 500
MOST_BYTES = 256 * 1024
WITHIN_S = 15.0
"""How long reading may take, a search through the largest log included."""


async def log(runtime: Runtime, function: str, host: str, instance: str, run: Run, grep: str) -> Log:
    """Return the end of a log, or why there is none. Raises FunctionNotFound."""
    asked = LogQuery(lines=LINES, run=run, grep=grep)
    try:
        async with asyncio.timeout(WITHIN_S):
            if instance:
                opened = await log_of_instance(runtime, instance, asked)
            else:
                opened = await log_of_function(runtime, function, host, asked)
            text, cut = await _end(opened)
    except (InstanceNotFound, NoCapacity, TimeoutError) as error:
        problem = "its host did not answer in time" if isinstance(error, TimeoutError) else error.message
        return Log(function=function, host="", instance=instance, run=run, grep=grep, problem=problem)
    lines = text.count("\n") + bool(text and not text.endswith("\n"))
    return Log(
        function=function, host=opened.host, instance=instance, run=run, grep=grep, text=text, lines=lines, cut=cut
    )


async def _end(opened: Opened) -> tuple[str, bool]:
    """Return the last of it, from the beginning of a line on, and whether anything was left out."""
    kept, cut = b"", False
    async for chunk in opened.text():
        kept += chunk
        if len(kept) > 2 * MOST_BYTES:
            kept, cut = kept[-MOST_BYTES:], True
    if len(kept) > MOST_BYTES:
        kept, cut = kept[-MOST_BYTES:], True
    if cut:
        kept = kept.partition(b"\n")[2] or kept
    return kept.decode(errors="replace"), cut
