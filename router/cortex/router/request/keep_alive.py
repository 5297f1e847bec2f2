"""How long a request lets its instance stay idle afterwards: the one rule for every client. Pure.

The header `x-cortex-keep-alive`, or the body's field `keep_alive`, which the worker does not get: seconds, or a
duration such as `5m` or `1h30m`, as Ollama's clients send it; a negative one is as long as the catalogue allows. The
last request decides, and one that says nothing restores the function's `idle_after_s`.
"""

import math
import re
from typing import Any

from cortex.functions.spec import Function
from cortex.router.dialects.core.errors import BadRequest

HEADER, FIELD = b"x-cortex-keep-alive", "keep_alive"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+)")
_LONGEST = 40
_MOST_S = 2.0**31


def keep_s(header: bytes | None, field: Any, function: Function) -> float | None:
    """Return the seconds that a request lets its instance stay idle, within the function's bound; None: it says
    nothing. The header takes precedence. Raises BadRequest with the name of what is no duration."""
    if header is not None:
        seconds = _seconds(header.decode("latin-1"), HEADER.decode())
    elif field is not None:
        seconds = _seconds(field, FIELD)
    else:
        return None
    most_s = function.longest_idle_s
    return most_s if seconds < 0 else min(seconds, most_s)


def _seconds(value: Any, name: str) -> float:
    """Return a duration in seconds. Raises BadRequest."""
    if isinstance(value, str) and len(value) <= _LONGEST:
        text = value.strip()
        if match := _DURATION.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(match[2]))
            return -seconds if match[1] == "-" else seconds
        try:
            value = float(text)
        except ValueError:
            value = None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf:
        return float(max(-1, min(value, _MOST_S)))  # a whole number may be too large for a float
    raise BadRequest("expected a duration: seconds, or a text such as '5m'; negative is as long as allowed", name)
