"""A step of an answer: one write to the client."""

import msgspec


class Step(msgspec.Struct, frozen=True):
    """Bytes to send, their number of tokens, and the delay before them in addition to the script's pace."""

    data: bytes
    tokens: int = 0
    delay_s: float = 0.0


DONE = Step(b"data: [DONE]\n\n")


def event(payload: dict[str, object], *, tokens: int = 0) -> Step:
    """Return a server-sent event with JSON data."""
    return Step(b"data: %b\n\n" % msgspec.json.encode(payload), tokens)
