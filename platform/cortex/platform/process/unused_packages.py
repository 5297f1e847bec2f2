"""Installed packages that libraries import although cortex makes no use of them."""

import sys

NAMES = ("httpx._main", "opentelemetry.sdk.metrics", "pydantic", "rich.traceback")
"""Imported by httpx, redis, Litestar and structlog: a quarter of the CPU time in which a router or agent starts."""


def leave_out() -> None:
    """Let this process's imports of these packages fail, which the libraries take for a package that is not
    installed."""
    for name in NAMES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # the import system's mark for "not there"
