"""A starting worker's progress, from its own log; no step is guessed.

A step starts with the line that announces it and lasts until the next. The texts are stable across server versions; if
one changes, its step is missing and its time counts for the step before. `Startup` is pure: bytes in, step out.
`LogFollower` does the I/O.
"""

import contextlib
import re
from pathlib import Path

from msgspec import Struct

LONGEST_LINE = 8 * 1024
MOST_AT_ONCE = 1024 * 1024
INITIAL = "starting"
"""The first step: the process exists and has announced nothing."""
_PER_CENT = re.compile(rb"(\d{1,3})%")


class Mark(Struct, frozen=True):
    """A line with `text` starts a step; lines with `counts` give its progress in per cent."""

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
"""By server. Other servers have only the first step."""


class Startup:
    """A worker's current step, from its log. Steps only advance."""

    def __init__(self, server: str, *, warm: bool = False) -> None:
        """A `warm` worker has finished its imports."""
        self._marks = MARKS.get(server, ())
        self._at = -1
        self._rest = b""
        self.step = "importing" if server == "vllm" and not warm else INITIAL
        self.progress: float | None = None
        """Progress of the step, from 0 to 1, where the worker logs it."""

    def feed(self, chunk: bytes) -> None:
        """Process new log bytes."""
        # Progress bars end their lines with a carriage return.
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        self._rest = self._rest[-LONGEST_LINE:]
        for line in lines:
            self._read(line[:LONGEST_LINE])

    def _read(self, line: bytes) -> None:
        for index in range(self._at + 1, len(self._marks)):
            if self._marks[index].text in line:
                self._at, self.step, self.progress = index, self._marks[index].step, None
                break
        counts = self._marks[self._at].counts if self._at >= 0 else b""
        if counts and counts in line and (match := _PER_CENT.search(line)):
            self.progress = min(100, int(match[1])) / 100


class LogFollower:
    """Follows a worker's log during its start."""

    def __init__(self, log: Path, server: str, *, warm: bool = False) -> None:
        self.log, self._offset = log, 0
        self.startup = Startup(server, warm=warm)

    def read_new(self) -> bool:
        """Read new bytes; return whether there were any."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            if self.log.stat().st_size < self._offset:  # the log was rotated
                self._offset = 0
            file.seek(self._offset)
            chunk = file.read(MOST_AT_ONCE)
            self._offset += len(chunk)
            self.startup.feed(chunk)
            return bool(chunk)
        return False
