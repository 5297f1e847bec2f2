"""Logging: events, not prose. JSON lines when nobody watches, colours when somebody does.

`CORTEX_LOG` sets the level (debug, info, warning, error). Prompts, completions, keys and tokens are never
given to a logger.
"""

import logging
import os
import sys

import structlog


def configure() -> None:
    """Set up structlog for this process; logs go to stderr."""
    name = os.environ.get("CORTEX_LOG", "info").upper()
    level = getattr(logging, name, logging.INFO)
    tty = sys.stderr.isatty()
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
