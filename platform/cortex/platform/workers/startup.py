"""A starting worker's progress, from its own log; no step is guessed.

A step starts with the line that announces it and lasts until the next. The texts are data: a mark lists the wordings of
all versions. A wording that no mark lists leaves its step out, and its time counts for the step before; a version that
was never compared with the marks claims no step before its first mark. `Startup` is pure: bytes in, step out.
`LogFollower` does the I/O.
"""

import contextlib
import re
from pathlib import Path

from msgspec import Struct

from cortex.functions.launch import vllm

LONGEST_LINE = 8 * 1024
MOST_AT_ONCE = 1024 * 1024
INITIAL = "starting"
"""The first step: the process exists and has announced nothing."""
_PER_CENT = re.compile(rb"(\d{1,3})%")


class Mark(Struct, frozen=True):
    """A line with any of `texts` starts a step; lines with `counts` give its progress in per cent."""

    texts: tuple[bytes, ...]
    step: str
    counts: bytes = b""


LOADING, WARMING, OPENING = "loading weights", "warming up", "opening"
_LLAMA = (
    Mark((b"loading model",), LOADING),
    Mark((b"warming up the model",), WARMING),
    Mark((b"model loaded",), OPENING),
)
MARKS: dict[str, tuple[Mark, ...]] = {
    "vllm": (
        Mark((b"Initializing a V1 LLM engine",), "setting up"),
        # The first is the CPU's and GPU's first model runner, the second is its successor (0.26 on).
        Mark((b"Starting to load model", b"Loading model from scratch"), LOADING, b"checkpoint shards:"),
        # Loaders that stream the weights have only the second.
        Mark((b"Loading weights took", b"Model loading took"), WARMING, b"Capturing CUDA graph"),
        Mark((b"init engine (",), OPENING),
    ),
    "llama-server": _LLAMA,
    "xllamacpp": _LLAMA,
    "llama_cpp.server": (Mark((b"llama_model_loader:",), LOADING), Mark((b"Started server process",), OPENING)),
    "fake": (
        Mark((b"Loading weights",), LOADING, b"Loading weights"),
        Mark((b"Application startup complete",), OPENING),
    ),
}
"""By server. Other servers have only the first step."""

CACHE_SIZES = {
    "vllm": re.compile(
        rb"(?:Available KV cache memory: (?P<profiled>\d+\.?\d*) GiB"
        # Named by `--kv-cache-memory-bytes`.
        rb"|reserved (?P<named>\d+\.?\d*) GiB memory for KV Cache)"
    )
}
"""How a server logs the size of its KV cache on each device."""
MIB_PER_GIB = 1024
MOST_CACHE_MB = 1 << 24
"""A larger number is invalid."""

VLLM_VERSIONS = ((0, 11), (0, 33))
"""The oldest and the newest vLLM whose log was compared with the marks."""


class Startup:
    """A worker's current step, from its log. Steps only advance."""

    def __init__(self, server: str, *, warm: bool = False, version: str = "") -> None:
        """A `warm` worker has finished its imports. `version` is the engine's."""
        self._marks = MARKS.get(server, ())
        self._at = -1
        self._rest = b""
        imports = server == "vllm" and not warm and _is_compared(version)
        self.step = "importing" if imports else INITIAL
        self.progress: float | None = None
        """Progress of the step, from 0 to 1, where the worker logs it."""
        self._cache_size = CACHE_SIZES.get(server)
        self.cache_mb = 0
        """The KV cache on each device, where the worker logs its size."""

    def feed(self, chunk: bytes) -> None:
        """Process new log bytes."""
        # Progress bars end their lines with a carriage return.
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        self._rest = self._rest[-LONGEST_LINE:]
        for line in lines:
            self._read(line[:LONGEST_LINE])

    def _read(self, line: bytes) -> None:
        if self._cache_size and (size := self._cache_size.search(line)):
            cache_mb = round(float(size["profiled"] or size["named"]) * MIB_PER_GIB)
            self.cache_mb = cache_mb if cache_mb <= MOST_CACHE_MB else 0
        for index in range(self._at + 1, len(self._marks)):
            if any(text in line for text in self._marks[index].texts):
                self._at, self.step, self.progress = index, self._marks[index].step, None
                break
        counts = self._marks[self._at].counts if self._at >= 0 else b""
        if counts and counts in line and (match := _PER_CENT.search(line)):
            self.progress = min(100, int(match[1])) / 100


def _is_compared(version: str) -> bool:
    """Whether a version of vLLM was compared with the marks."""
    oldest, newest = VLLM_VERSIONS
    return oldest <= vllm.release(version) <= newest


class LogFollower:
    """Follows a worker's log during its start."""

    def __init__(self, log: Path, server: str, *, warm: bool = False, version: str = "") -> None:
        self.log, self._offset = log, 0
        self.startup = Startup(server, warm=warm, version=version)

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
