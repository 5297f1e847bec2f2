"""Measures how long a large body blocks a router worker's event loop: `python -m tests.support.stalls`.

Each hostile shape is read as a route reads it, while a task on the same loop notes how late it is woken. Beside it
stands what decoding the same bytes costs, so that a slow machine is told from a slow router.
"""

import asyncio
import contextlib
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from cortex.router.dialects.chat import request as chat
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request as messages
from cortex.router.request.intake import Intake, repair

TICK_S = 0.002


def _chat(inside: bytes, more: bytes = b"") -> bytes:
    return b'{"model":"short","max_tokens":1,"messages":[{"role":"user","content":%b}]%b}' % (inside, more)


SHAPES: dict[str, Callable[[int], bytes]] = {
    "one long text": lambda size: _chat(b'"' + b"a" * size + b'"'),
    "brackets": lambda size: _chat(b'"x"', b',"x":[' + b",".join([b"[]"] * (size // 3)) + b"]"),
    "tools without anything": lambda size: _chat(b'"x"', b',"tools":[' + b",".join([b"{}"] * (size // 3)) + b"]"),
    "empty texts": lambda size: _chat(b'"x"', b',"stop":[' + b",".join([b'""'] * (size // 3)) + b"]"),
    "escaped quotes": lambda size: _chat(b'"' + b'\\"' * (size // 2) + b'"'),
    "parts of a megabyte": lambda size: _chat(
        b"[" + b",".join([b'{"type":"text","text":"' + b"a" * (1 << 20) + b'"}'] * (size >> 20)) + b"]"
    ),
}


def _read_chat(body: bytes) -> Body:
    body = repair(body)
    return chat.read(body, Traits()).body("worker")


def _read_messages(body: bytes) -> Body:
    body = repair(body)
    return messages.read(body, Traits()).body("worker")


@contextlib.asynccontextmanager
async def held(*, own: bool = False) -> AsyncIterator[Callable[[], float]]:
    """Provide the longest time so far for which the loop was held, in seconds; `own`: in CPU time of its own thread,
    without the time that other processes and threads took."""
    longest, over = 0.0, False
    clock, tick_s = (time.thread_time, 0.0) if own else (time.perf_counter, TICK_S)

    async def watch() -> None:
        nonlocal longest
        while not over:
            began = clock()
            await asyncio.sleep(TICK_S)
            longest = max(longest, clock() - began - tick_s)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(5 * TICK_S)
    try:
        yield lambda: longest
    finally:
        over = True
        await watching


async def measure(body: bytes, read: Callable[[bytes], Body]) -> float:
    """Return the longest time that the loop was held while a body was read, in seconds."""
    intake = Intake(len(body))
    async with held() as longest:
        with contextlib.suppress(BadRequest):
            await intake.work(len(body), read, body)
    intake.close()
    return longest()


def decode(body: bytes) -> float:
    """Return how long a single pass over the same bytes takes that makes their texts, in seconds."""
    began = time.perf_counter()
    msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    str(body, "ascii")
    return time.perf_counter() - began


def main() -> None:
    """Measure every shape, each in this one process; the peak of memory is of one shape alone if one is named."""
    size, names = int(sys.argv[1]), sys.argv[2:] or list(SHAPES)
    matches = {}
    for name in names:
        body = SHAPES[name](size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stalls = {
            kind: round(asyncio.run(measure(body, read)), 4)
            for kind, read in (("chat", _read_chat), ("messages", _read_messages))
        }
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        matches[name] = {**stalls, "decoding": round(decode(body), 4), "grown_mb": grown >> 10}
    print(json.dumps(matches))


if __name__ == "__main__":
    main()
