"""Installed packages that libraries import although cortex makes no use of them."""

import contextlib
import sys
from collections.abc import Iterator

NAMES = ("annotated_types", "httpx._main", "opentelemetry.sdk.metrics", "pydantic", "rich.traceback")
"""Imported by httpx, redis, Litestar and structlog: a quarter of the CPU time in which a router or agent starts."""


def leave_out() -> None:
    """Let this process's imports of these packages fail, which the libraries take for a package that is not
    installed."""
    for name in NAMES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # the import system's mark for "not there"


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Let imports of a package fail meanwhile, for a library that cortex wants without it. Other imports find it."""
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)
