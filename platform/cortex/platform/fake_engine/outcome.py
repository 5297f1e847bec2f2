"""The outcome of the nth request. Pure."""

import msgspec

from cortex.platform.fake_engine.script import Script

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
"""vLLM's answer after its engine died."""


class Drop(msgspec.Struct, frozen=True):
    """Close the connection without sending anything."""


class Hang(msgspec.Struct, frozen=True):
    """Never answer, until the script changes."""


class Fail(msgspec.Struct, frozen=True):
    """Answer with this error."""

    status: int
    message: str = "The script says so."


class Serve(msgspec.Struct, frozen=True):
    """Answer; after a number of tokens, close the connection or die."""

    cut_after: int | None = None
    die_after: int | None = None


Outcome = Drop | Hang | Fail | Serve


def outcome(script: Script, nth: int) -> Outcome:
    """Return the outcome of the nth request since the last change of the script.

    (1) The engine has died behind its server. (2) It refuses requests. (3) It hangs. (4) This request fails.
    (5) This request comes after the last one that is served completely, so the engine dies during it. (6) It serves.
    """
    if script.engine_dead:  # (1)
        return Fail(500, ENGINE_DEAD)
    if script.refuse:  # (2)
        return Drop()
    if script.hang == "serving":  # (3)
        return Hang()
    if script.fail_status is not None and nth % script.fail_every == 0:  # (4)
        return Fail(script.fail_status)
    if script.crash_mid_stream is not None and nth > (script.crash_after or 0):  # (5)
        return Serve(die_after=script.crash_mid_stream)
    return Serve(cut_after=script.cut_stream_after)  # (6)


def is_over(limit: int | None, tokens: int, step_tokens: int) -> bool:
    """Return whether the next step exceeds the limit. With a limit of 0, steps before the first token are sent."""
    return limit is not None and tokens >= limit and tokens + step_tokens > 0


def is_last(script: Script, served: int) -> bool:
    """Return whether the engine has served its last request."""
    return script.crash_mid_stream is None and script.crash_after is not None and served >= script.crash_after
