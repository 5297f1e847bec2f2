"""Replays captured streams byte by byte. Pure: file text in, steps out.

A line is one request: a JSON list of objects (chunks, sent exactly as written), strings (raw bytes, so a stream can be
cut anywhere) and numbers (seconds to wait).
"""

import msgspec

from cortex.platform.fake_engine.script import BadScript
from cortex.platform.fake_engine.step import Step

Line = tuple[bytes | str | float, ...]

_line = msgspec.json.Decoder(list[msgspec.Raw])


def parse(text: str) -> list[Line]:
    """Return the lines of a replay file without blank ones. Raises BadScript."""
    lines = [_parse_line(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise BadScript("script: the file has no lines to replay")
    return lines


def stream(line: Line) -> list[Step]:
    """Return the steps of a streamed answer."""
    return _steps(line, b"data: %b\n\n")


def whole(line: Line) -> list[Step]:
    """Return the steps of an unstreamed answer: the objects without SSE framing."""
    return _steps(line, b"%b")


def _parse_line(number: int, line: str) -> Line:
    try:
        items = tuple(_item(bytes(raw)) for raw in _line.decode(line))
    except msgspec.DecodeError as error:
        raise BadScript(f"script: line {number}: {error}") from None
    if any(isinstance(item, float) and item < 0 for item in items):
        raise BadScript(f"script: line {number}: a wait cannot be negative")
    return items


def _item(raw: bytes) -> bytes | str | float:
    if raw.startswith(b"{"):
        return raw
    return msgspec.json.decode(raw, type=str | float)


def _steps(line: Line, frame: bytes) -> list[Step]:
    steps = []
    delay_s = 0.0
    for item in line:
        if isinstance(item, float):
            delay_s += item
            continue
        if isinstance(item, str):
            steps.append(Step(item.encode(), delay_s=delay_s))
        else:
            steps.append(Step(frame % item, tokens=1, delay_s=delay_s))
        delay_s = 0.0
    if delay_s:
        steps.append(Step(b"", delay_s=delay_s))
    return steps
