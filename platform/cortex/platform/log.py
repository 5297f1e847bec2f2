"""Logging: events, not prose. JSON lines when nobody watches, colours when somebody does.

`[log]` (or `CORTEX_LOG`, the level alone) says how much and in which form. Prompts, completions, keys
and tokens are never given to a logger.
"""

import logging
import sys

import structlog

from cortex.platform.settings import Log


def configure(settings: Log) -> None:
    """Set up structlog for this process; logs go to stderr."""
    level = getattr(logging, settings.level.upper())
    tty = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if tty else "iso", utc=not tty),
            *(
                [structlog.dev.ConsoleRenderer()]
                if tty
                else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
