"""What a cold start costs beyond the engine's own time, by router and agent together, in a catalogue of many functions.

Each worker is a small program that writes when its process began and when it could answer; the clock is the machine's.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from tests.support.catalogues import entry
from tests.support.stack import Stack, own_redis

WORKER = Path(__file__).with_name("cold_worker.py")
RUN = 'date +%s%N > "$2.spawned"; exec "$0" "$1" "$3" "$4" "$5" "$2.ready"'
"""A shell notes when it was spawned, and becomes the worker."""


class ColdStart(Struct, frozen=True):
    """Milliseconds of one start: from the request to the worker's process, and from the moment at which the worker
    could answer to the first byte at the client."""

    to_spawn_ms: float
    to_first_byte_ms: float


def table(folder: Path, functions: int, starts: int) -> str:
    """Measure, and return the section's text."""
    measured = cold_starts(folder, functions, starts)
    times = {
        "from the request to the worker's process": [s.to_spawn_ms for s in measured],
        "from the worker's readiness to the first byte": [s.to_first_byte_ms for s in measured],
    }
    rows = (f"| {name} | {percentile(ms, 0.5):.1f} | {percentile(ms, 0.95):.1f} |" for name, ms in times.items())
    return "\n".join(
        [
            f"{starts} first requests for functions of a catalogue of {functions}, one after another, through router",
            "and agent. The worker is a small program that notes when it began and when it could answer.",
            "",
            "| time | p50 ms | p95 ms |",
            "|---|--:|--:|",
            *rows,
        ]
    )


def cold_starts(folder: Path, functions: int, starts: int) -> list[ColdStart]:
    """Request functions of a catalogue for the first time, one after another."""
    with own_redis(folder) as url:
        names = [f"bench/{number}" for number in range(functions)]
        catalogue = "\n".join(entry(name, **_function(folder, name)) for name in names)
        stack = Stack(folder, catalogue, env={"CORTEX_REDIS_URL": url})
        try:
            step = max(1, functions // starts)
            return [_start(stack, folder, name) for name in names[::step][:starts]]
        finally:
            stack.end()


def _function(folder: Path, name: str) -> dict[str, object]:
    program = ["sh", "-c", RUN, sys.executable, str(WORKER), _file(folder, name), "{model}", "{host}", "{port}"]
    return {"engine": "command", "command": program, "vram_mb": 20, "context": 1000, "idle_after_s": 600}


def _file(folder: Path, name: str) -> str:
    return str(folder / name.replace("/", "-"))


def _start(stack: Stack, folder: Path, name: str) -> ColdStart:
    body = {"model": name, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
    stack.http.get("/health")  # the connection is there
    began = time.time_ns()
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        first = next(at for piece in answer.iter_raw() if b"word" in piece for at in (time.time_ns(),))
    spawned, ready = (int(Path(f"{_file(folder, name)}.{what}").read_text()) for what in ("spawned", "ready"))
    stack.http.post(f"/admin/functions/{name}/cool")
    return ColdStart((spawned - began) / 1e6, (first - ready) / 1e6)


def percentile(values: Sequence[float], quantile: float) -> float:
    """Return a percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]
