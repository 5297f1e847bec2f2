"""Logging: events, not prose. JSON lines for a collector, colours for a terminal.

`[log]` (or `CORTEX_LOG`, the level alone) sets the level and the format. Prompts, completions, keys and tokens are
never logged. The text of an error may quote a request, so only its type and origin are logged (`whence`).
"""

import functools
import logging
import os
import select
import stat
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import msgspec

from cortex.platform.process import unused_packages
from cortex.platform.settings import Log

with unused_packages.without("rich"):  # for tracebacks of a kind that cortex does not write: a fifteenth of a start
    import structlog

_lines_from: int | None = None
"""The lowest level of JSON lines; None: structlog writes for a terminal."""


PIPE_BUFFER = 4096
"""A writable pipe takes at least this much without blocking (pipe(7), PIPE_BUF)."""


class Output:
    """A text stream that a logger writes to: it never raises and, into a pipe, never blocks.

    The reader of a pipe may be gone or stuck, a disk may be full, and standard error may be closed. None of that may
    fail a request or a decision: lines that cannot be written are dropped, and their number is logged later.
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
        """Return whether it is a terminal."""
        return self._descriptor >= 0 and os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Write whole lines, or drop them."""
        if self.dropped and self._try_write(f'{{"event": "log_lines_dropped", "lines": {self.dropped}}}\n'):
            self.dropped = 0
        if self.dropped or not self._try_write(text):
            self.dropped += text.count("\n")
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line is written at once."""

    def _try_write(self, text: str) -> bool:
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


def lines(event: str, entries: Iterable[tuple[int, dict[str, object]]]) -> None:
    """Log a frequent event several times, each with its level and fields: the same lines as structlog's, at a fifth of
    their cost."""
    if _lines_from is None:
        for level, fields in entries:
            structlog.get_logger().log(level, event, **fields)
        return
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    text = ""
    for level, fields in entries:
        if level >= _lines_from:
            entry = {**fields, "event": event, "level": _level_name(level), "timestamp": at}
            line = msgspec.json.format(msgspec.json.encode(entry), indent=0).decode() + "\n"
            if len(text) + len(line) > PIPE_BUFFER and text:
                _output.write(text)
                text = ""
            text += line
    if text:
        _output.write(text)


@functools.cache
def _level_name(level: int) -> str:
    return logging.getLevelName(level).lower()


def whence(error: BaseException) -> str:
    """Return the types and the stack of an error and its causes, without their texts.

    >>> whence(KeyError("a secret"))
    'KeyError'
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [type(error).__name__, *(f"  {f.filename}:{f.lineno} in {f.name}" for f in reversed(frames))]
    return "\n".join(lines) + (f"\nafter {whence(cause)}" if cause else "")


class _Formatter(logging.Formatter):
    """Formats exceptions that libraries log, uvicorn above all."""

    def formatException(self, ei: Any) -> str:
        return whence(ei[1])


def configure(settings: Log) -> None:
    """Set up structlog for this process; logs go to stderr."""
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
