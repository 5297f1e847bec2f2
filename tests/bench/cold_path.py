"""What a cold start costs beyond the engine's own time, by router and agent together, in a catalogue of many functions.

The agent's log says when it had spawned each worker, and the worker, a small program, when it could answer; the clock
is the machine's.
"""

import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from tests.support.catalogues import entry
from tests.support.stack import Stack, own_redis

WORKER = Path(__file__).with_name("cold_worker.py")


class ColdStart(Struct, frozen=True):
    """Milliseconds of one start: from the request until the worker's process runs, and from the moment at which the
    worker could answer to the first byte at the client."""

    to_spawn_ms: float
    to_first_byte_ms: float


def table(folder: Path, functions: int, starts: int) -> str:
    """Measure, and return the section's text."""
    measured = cold_starts(folder, functions, starts)
    times = {
        "from the request until the worker's process runs": [s.to_spawn_ms for s in measured],
        "from the worker's readiness to the first byte": [s.to_first_byte_ms for s in measured],
    }
    rows = (f"| {name} | {percentile(ms, 0.5):.1f} | {percentile(ms, 0.95):.1f} |" for name, ms in times.items())
    return "\n".join(
        [
            f"{starts} first requests for functions of a catalogue of {functions}, one after another, through router",
            "and agent. The worker is a small program that notes when it could answer.",
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
    program = [sys.executable, str(WORKER), "{model}", "{host}", "{port}", str(_file(folder, name))]
    return {"engine": "command", "command": program, "vram_mb": 20, "context": 1000, "idle_after_s": 600}


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '-')}.ready"


def _spawned_at(stack: Stack, name: str) -> float:
    """Return when the agent had spawned a function's worker."""
    for line in stack.log("agent").splitlines():
        if '"worker_spawned"' in line and f'"function": "{name}"' in line:
            return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
    raise AssertionError(f"the agent's log has no start of {name}")


def _start(stack: Stack, folder: Path, name: str) -> ColdStart:
    body = {"model": name, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
    stack.http.get("/health")  # the connection is there
    began = time.time()
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        first = next(at for piece in answer.iter_raw() if b"word" in piece for at in (time.time(),))
    spawned, ready = _spawned_at(stack, name), int(_file(folder, name).read_text()) / 1e9
    stack.http.post(f"/admin/functions/{name}/cool")
    stack.until(name, "cold")  # and not beside the next start
    return ColdStart((spawned - began) * 1000, (first - ready) * 1000)


def percentile(values: Sequence[float], quantile: float) -> float:
    """Return a percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]
