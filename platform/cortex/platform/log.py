"""Logging: events, not prose. JSON lines when nobody watches, colours when somebody does.

`[log]` (or `CORTEX_LOG`, the level alone) says how much and in which form. Prompts, completions, keys
and tokens are never given to a logger; and since what an error says may quote a request, of one that broke a request
only the type is logged and where it came from (`whence`).
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from cortex.platform.settings import Log

_lines_from: int | None = None
"""The least level of JSON lines; None: somebody watches, and structlog paints."""


def line(event: str, fields: dict[str, object], level: int = logging.INFO) -> None:
    """Log an event of which there are many: what structlog would write, at a fifth of its cost."""
    if _lines_from is None:
        structlog.get_logger().log(level, event, **fields)
    elif level >= _lines_from:
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        named = {**fields, "event": event, "level": logging.getLevelName(level).lower(), "timestamp": at}
        sys.stderr.write(msgspec.json.format(msgspec.json.encode(named), indent=0).decode() + "\n")


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
    """Set up structlog for this process; logs go to stderr."""
    global _lines_from
    level = getattr(logging, settings.level.upper())
    tty = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
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
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
