"""Logging: events, not prose. JSON lines for a collector, colours for a terminal.

`[log]` (or `CORTEX_LOG`, the level alone) says how much and in which form. Prompts, completions, keys
and tokens are never given to a logger; and since what an error says may quote a request, of one that broke a request
only the type is logged and where it came from (`whence`).
"""

import logging
import os
import select
import stat
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import msgspec
import structlog

from cortex.platform.settings import Log

_lines_from: int | None = None
"""The least level of JSON lines; None: somebody watches, and structlog paints."""


PIPE_BUFFER = 4096
"""A pipe that can be written at all takes this much without blocking (pipe(7), PIPE_BUF)."""


class Output:
    """A text stream that a logger writes to: it never raises and, into a pipe, never blocks.

    The reader of a pipe may be gone or stand still, a disk may be full, and standard error may be closed. None of that
    may cost a request or a decision: what cannot be written is dropped, and how much is said when writing works again.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._descriptor = -1
        self._poll: select.poll | None = None
        self.dropped = 0
        try:
            self._descriptor = stream.fileno() if stream is not None else -1
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                self._poll = select.poll()
                self._poll.register(self._descriptor, select.POLLOUT)
        except (OSError, ValueError):
            self._descriptor = -1  # closed, or a buffer in memory

    def isatty(self) -> bool:
        """Whether a person watches."""
        return self._descriptor >= 0 and os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Write a line, or drop it."""
        if self.dropped and self._written(f'{{"event": "log_lines_dropped", "lines": {self.dropped}}}\n'):
            self.dropped = 0
        if self.dropped or not self._written(text):
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line is written at once."""

    def _written(self, text: str) -> bool:
        try:
            if self._descriptor < 0:
                return self._stream is not None and bool(self._stream.write(text) or True)
            data = text.encode(errors="replace")
            while data:
                if self._poll is not None and not self._can_write():
                    return False
                data = data[os.write(self._descriptor, data[:PIPE_BUFFER]) :]
        except (OSError, ValueError):
            return False
        return True

    def _can_write(self) -> bool:
        assert self._poll is not None
        return any(event & select.POLLOUT for _, event in self._poll.poll(0))


_output = Output(sys.stderr)


def line(event: str, fields: dict[str, object], level: int = logging.INFO) -> None:
    """Log an event of which there are many: what structlog would write, at a fifth of its cost."""
    if _lines_from is None:
        structlog.get_logger().log(level, event, **fields)
    elif level >= _lines_from:
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        named = {**fields, "event": event, "level": logging.getLevelName(level).lower(), "timestamp": at}
        _output.write(msgspec.json.format(msgspec.json.encode(named), indent=0).decode() + "\n")


def whence(error: BaseException) -> str:
    """Return the types of an error and of those behind it, and the lines they came through: nothing they say.

    >>> whence(KeyError("a secret"))
    'KeyError'
    """
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [type(error).__name__, *(f"  {f.filename}:{f.lineno} in {f.name}" for f in reversed(frames))]
    return "\n".join(lines) + (f"\nafter {whence(behind)}" if behind else "")


class _Formatter(logging.Formatter):
    """What libraries log about a request that broke, uvicorn above all."""

    def formatException(self, ei: Any) -> str:
        return whence(ei[1])


def configure(settings: Log) -> None:
    """Set up structlog for this process; logs go to stderr, as far as it takes them."""
    global _lines_from, _output
    _output = Output(sys.stderr)
    logging.raiseExceptions = False
    level = getattr(logging, settings.level.upper())
    tty = settings.format == "console" or (settings.format == "auto" and _output.isatty())
    _lines_from = None if tty else level
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if tty else "iso", utc=not tty),
            *(
                # Not the default formatter: it prints local variables, and prompts are among them.
                [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
                if tty
                else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _output)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_output)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
