"""One write to the client. A stream is a list of them, and the server only paces and sends."""

import msgspec


class Step(msgspec.Struct, frozen=True):
    """Bytes to send, the tokens they stand for, and the time to wait before them besides the script's pace."""

    data: bytes
    tokens: int = 0
    delay_s: float = 0.0


DONE = Step(b"data: [DONE]\n\n")


def event(payload: dict[str, object], *, tokens: int = 0) -> Step:
    """A server-sent event with JSON data."""
    return Step(b"data: %b\n\n" % msgspec.json.encode(payload), tokens)
