"""The outcome of the nth request. Pure."""

import msgspec

from cortex.platform.fake_engine.script import Script


class Drop(msgspec.Struct, frozen=True):
    """Close the connection without sending anything."""


class Hang(msgspec.Struct, frozen=True):
    """Never answer, until the script changes."""


class Fail(msgspec.Struct, frozen=True):
    """Answer with this error."""

    status: int


class Serve(msgspec.Struct, frozen=True):
    """Answer; after a number of tokens, close the connection or die."""

    cut_after: int | None = None
    die_after: int | None = None


Outcome = Drop | Hang | Fail | Serve


def outcome(script: Script, nth: int) -> Outcome:
    """Return the outcome of the nth request since the last change of the script.

    (1) The engine refuses requests. (2) It hangs. (3) This request fails.
    (4) This request comes after the last one that is served completely, so the engine dies during it. (5) It serves.
    """
    if script.refuse:  # (1)
        return Drop()
    if script.hang == "serving":  # (2)
        return Hang()
    if script.fail_status is not None and nth % script.fail_every == 0:  # (3)
        return Fail(script.fail_status)
    if script.crash_mid_stream is not None and nth > (script.crash_after or 0):  # (4)
        return Serve(die_after=script.crash_mid_stream)
    return Serve(cut_after=script.cut_stream_after)  # (5)


def is_over(limit: int | None, tokens: int, step_tokens: int) -> bool:
    """Return whether the next step exceeds the limit. With a limit of 0, steps before the first token are sent."""
    return limit is not None and tokens >= limit and tokens + step_tokens > 0


def is_last(script: Script, served: int) -> bool:
    """Return whether the engine has served its last request."""
    return script.crash_mid_stream is None and script.crash_after is not None and served >= script.crash_after
