"""What a dialect costs per chunk, beside passing bytes on: `just bench-dialects`.

A worker's stream of many small chunks goes through each way a client may be answered, a chunk at a time, as it would
come from the network; the best of several runs counts, because a shared machine only ever adds time. The ratio to
passing chat on is what a release should not lose; the microseconds are this machine's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from cortex.router.dialects import native
from tests.router.dialects import workers
from tests.router.dialects.request_builders import chat_request, messages_request, responses_request

RUNS = 7


def text(count: int) -> list[bytes]:
    """An answer in words."""
    words = [workers.wire(workers.chunk(content=f" word{n % 10}"), done=False) for n in range(count)]
    return [workers.wire(workers.chunk(role="assistant", content=""), done=False), *words, *_end("stop")]


def calls(count: int) -> list[bytes]:
    """A tool call with long arguments."""
    opening = workers.wire(workers.chunk(**workers.call(0, "c1", "write", '{"text": "')), done=False)
    pieces = [
        workers.wire(workers.chunk(**workers.call(0, arguments=f"word{n % 10} ")), done=False) for n in range(count)
    ]
    closing = workers.wire(workers.chunk(**workers.call(0, arguments='"}')), done=False)
    return [opening, *pieces, closing, *_end("tool_calls")]


def _end(finish: str) -> list[bytes]:
    return [workers.wire(workers.chunk(finish), done=False), workers.wire(workers.usage_chunk())]


def events(count: int) -> list[bytes]:
    """The same words from a worker that speaks Anthropic's dialect itself."""
    stream = messages_request(stream=True).answer("1", 0).stream()
    return [output for piece in text(count) if (output := stream.feed(piece))]


class Bytes:
    """Passing bytes on without a look: the floor."""

    over = False

    def feed(self, data: bytes) -> bytes:
        return data


def measured(make: Callable[[], Any], pieces: list[bytes]) -> float:
    """Return microseconds per chunk, of one run."""
    stream = make()
    began = time.perf_counter()
    for piece in pieces:
        stream.feed(piece)
    took_s = time.perf_counter() - began
    assert getattr(stream, "fault", None) is None, stream.fault
    return took_s / len(pieces) * 1e6


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="just bench-dialects", description=__doc__)
    parser.add_argument("--chunks", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    words, called, own = text(options.chunks), calls(options.chunks), events(options.chunks)
    ways: dict[str, tuple[Callable[[], Any], list[bytes]]] = {
        "bytes untouched": (Bytes, words),
        "chat, passed on": (chat_request(stream=True).answer("1", 0).stream, words),
        "messages, engine's own": (native.Reply("messages").stream, own),
        "messages": (messages_request(stream=True).answer("1", 0).stream, words),
        "responses": (responses_request(stream=True).answer("1", 0).stream, words),
        "chat, a tool call": (chat_request(stream=True).answer("1", 0).stream, called),
        "messages, a tool call": (messages_request(stream=True).answer("1", 0).stream, called),
        "responses, a tool call": (responses_request(stream=True).answer("1", 0).stream, called),
    }
    # In turns, so that a slow moment of the machine affects all of them.
    runs = [{name: measured(make, pieces) for name, (make, pieces) in ways.items()} for _ in range(RUNS)]
    took = {name: min(run[name] for run in runs) for name in ways}
    passed = took["chat, passed on"]
    matches = {n: {"us_per_chunk": round(us, 3), "beside_chat": round(us / passed, 2)} for n, us in took.items()}
    if options.json:
        print(json.dumps(matches))
        return 0
    table = Table(title=f"{options.chunks} chunks, best of {RUNS}")
    for head in ("a client's dialect", "µs per chunk", "beside chat passed on"):
        table.add_column(head, justify="left" if head.startswith("a") else "right")
    for name, row in matches.items():
        table.add_row(name, f"{row['us_per_chunk']:.2f}", f"{row['beside_chat']:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
