"""Whether the server of this process stops: uvicorn waits for what is open before it says so to anybody.

A router that hands over stops while the next one serves, and may go on for minutes with what it holds. What is never
over by itself ends at once, and what one router does for all is left to the next.
"""

import signal


def stopping() -> bool:
    """Whether this process was told to stop. False where no server runs."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
