"""Whether this process's server is shutting down; uvicorn reports it only after all connections have closed.

A router that hands over may finish its requests for minutes while the next one serves. Endless streams stop at once,
and fleet-wide work is left to the next router.
"""

import signal


def stopping() -> bool:
    """Whether this process has received a stop signal. False without a server."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
