"""What becomes of the nth request. Pure: the server asks once per request, then does it."""

import msgspec

from cortex.platform.fake_engine.script import Script


class Drop(msgspec.Struct, frozen=True):
    """Close the connection without a byte."""


class Hang(msgspec.Struct, frozen=True):
    """Never answer, until the script changes."""


class Fail(msgspec.Struct, frozen=True):
    """Answer with this error."""

    status: int


class Serve(msgspec.Struct, frozen=True):
    """Answer, unless cut short by the connection or by death once so many tokens were sent."""

    cut_after: int | None = None
    die_after: int | None = None


Outcome = Drop | Hang | Fail | Serve


def outcome(script: Script, nth: int) -> Outcome:
    """The fate of the nth request since the script was last changed.

    1. The engine refuses work. 2. It hangs. 3. It is this request's turn to fail.
    4. It is past the last request to be served whole, so it dies in this one. 5. It serves.
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


def is_over(limit: int | None, sent: int, step_tokens: int) -> bool:
    """Whether the next step is one too many. At a limit of 0 what comes before the first token still goes out."""
    return limit is not None and sent >= limit and sent + step_tokens > 0


def is_last(script: Script, served: int) -> bool:
    """Whether the engine has served all it was going to."""
    return script.crash_mid_stream is None and script.crash_after is not None and served >= script.crash_after
