"""How far a starting worker has come, read off its own log. Only what a server says counts, and nothing is guessed.

A step begins with the line that announces it and lasts until the next. It is known by a text that servers have kept
from version to version; when one changes its words, a step is missing and its time is in the one before. `Startup`
is pure: bytes in, the step out. `Reading` is the edge.
"""

import contextlib
import re
from pathlib import Path

from msgspec import Struct

LONGEST_LINE = 8 * 1024
MOST_AT_ONCE = 1024 * 1024
BEGUN = "starting"
"""The first step: the process is there, and has not said that it does anything."""
_PER_CENT = re.compile(rb"(\d{1,3})%")


class Mark(Struct, frozen=True):
    """A line with this text begins a step; lines with `counts` say how far that is, in per cent."""

    text: bytes
    step: str
    counts: bytes = b""


LOADING, WARMING, OPENING = "loading weights", "warming up", "opening"
_LLAMA = (
    Mark(b"loading model", LOADING),
    Mark(b"warming up the model", WARMING),
    Mark(b"model loaded", OPENING),
)
MARKS: dict[str, tuple[Mark, ...]] = {
    "vllm": (
        Mark(b"Initializing a V1 LLM engine", "setting up"),
        Mark(b"Starting to load model", LOADING, b"checkpoint shards:"),
        Mark(b"Loading weights took", WARMING, b"Capturing CUDA graph"),
        Mark(b"init engine (", OPENING),
    ),
    "llama-server": _LLAMA,
    "xllamacpp": _LLAMA,
    "llama_cpp.server": (Mark(b"llama_model_loader:", LOADING), Mark(b"Started server process", OPENING)),
    "fake": (
        Mark(b"Loading weights", LOADING, b"Loading weights"),
        Mark(b"Application startup complete", OPENING),
    ),
}
"""By server. Of any other nothing is known but that it is starting."""

STEPS = frozenset({BEGUN, "importing", *(m.step for marks in MARKS.values() for m in marks)})


class Startup:
    """The step a worker is at, out of what it writes. Steps are never taken back."""

    def __init__(self, server: str, path: str) -> None:
        """A worker whose path is `warm` has been through its imports."""
        self._marks = MARKS.get(server, ())
        self._at = -1
        self._rest = b""
        self.step = "importing" if server == "vllm" and path != "warm" else BEGUN
        self.progress: float | None = None
        """Of the step, from 0 to 1, where the worker says so."""

    def feed(self, chunk: bytes) -> None:
        """Take what was written since."""
        # A bar that is drawn again and again ends its lines with a carriage return.
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        self._rest = self._rest[-LONGEST_LINE:]
        for line in lines:
            self._read(line[:LONGEST_LINE])

    def _read(self, line: bytes) -> None:
        for at in range(self._at + 1, len(self._marks)):
            if self._marks[at].text in line:
                self._at, self.step, self.progress = at, self._marks[at].step, None
                break
        counts = self._marks[self._at].counts if self._at >= 0 else b""
        if counts and counts in line and (found := _PER_CENT.search(line)):
            self.progress = min(100, int(found[1])) / 100


class Reading:
    """A worker's log, followed while it starts."""

    def __init__(self, log: Path, server: str, path: str) -> None:
        self.log, self._offset = log, 0
        self.startup = Startup(server, path)

    def grew(self) -> bool:
        """Read on, and say whether there was anything."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            if self.log.stat().st_size < self._offset:  # it was cut because it grew too large, and begins anew
                self._offset = 0
            file.seek(self._offset)
            chunk = file.read(MOST_AT_ONCE)
            self._offset += len(chunk)
            self.startup.feed(chunk)
            return bool(chunk)
        return False
