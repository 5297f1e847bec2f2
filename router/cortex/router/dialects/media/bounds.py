"""Bounds on the fields of requests for audio and images, in forms and in JSON. Pure.

Only fields that may cost a worker much, or that mean the same everywhere, are checked. Voices, languages and formats
are left to the worker.
"""

import math
import re
from typing import Any

from cortex.router.dialects.core.errors import BadRequest

MAX_TEXT = 64 * 1024
"""Most characters of a text, such as a prompt or what to speak."""
MAX_SIDE = 4096
"""Most pixels of a side of an image."""
MAX_DIGITS = 40
"""Most characters of a number in a form."""
MAX_NAME = 256
"""Most characters of a name: a voice, a language, a format."""
NUMBERS: dict[str, tuple[float, float]] = {
    "n": (1, 10),
    "output_compression": (0, 100),
    "partial_images": (0, 3),
    "seed": (-(2**63), 2**63 - 1),
    "speed": (0.25, 4),
    "temperature": (0, 2),
}
"""Least and most of each number. `speed` and `temperature` may be fractions."""
_FRACTIONS = frozenset({"speed", "temperature"})
_TEXTS = frozenset({"prompt", "negative_prompt", "input", "instructions"})
_WORDS = frozenset(
    {
        "language", "to_language", "size", "quality", "style", "response_format", "stream_format", "output_format",
        "background", "moderation", "input_fidelity", "user",
    }
)  # fmt: skip
_LONG = frozenset({"chunking_strategy", "known_speaker_references"})
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_SWITCHES = frozenset({"stream", "stream_include_usage", "stream_continuous_usage_stats"})


def check(name: str, value: Any) -> None:
    """Check the value of a field, as decoded from JSON; None: the field is absent. Raises BadRequest."""
    if value is None:
        return
    if name in NUMBERS:
        _check_number(name, value)
    elif name in _SWITCHES and not isinstance(value, bool):
        raise BadRequest("expected true or false", name)
    elif name in _TEXTS | _WORDS and not isinstance(value, str):
        raise BadRequest("expected a text", name)
    elif isinstance(value, str):
        most = MAX_TEXT if name in _TEXTS else 16 * MAX_TEXT if name in _LONG else MAX_NAME
        if len(value) > most:
            raise BadRequest(f"has {len(value)} characters; expected at most {most}", name)
        if name == "size" and (sides := _SIZE.fullmatch(value)) and not _is_possible(sides):
            raise BadRequest(f"expected at most {MAX_SIDE}x{MAX_SIDE}", name)


def check_text(name: str, value: str) -> None:
    """Check the value of a form's field, which is text. Raises BadRequest."""
    if not value:
        return  # left out
    if name in NUMBERS:
        try:
            if len(value) > MAX_DIGITS:
                raise ValueError
            check(name, float(value) if name in _FRACTIONS else int(value))
        except ValueError:
            raise BadRequest("expected a number", name) from None
    elif name in _SWITCHES:
        check(name, _BOOLEANS.get(value.lower(), value))
    else:
        check(name, value)


def _check_number(name: str, value: Any) -> None:
    least, most = NUMBERS[name]
    kinds = int | float if name in _FRACTIONS else int
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        raise BadRequest("expected a number" if name in _FRACTIONS else "expected a whole number", name)
    if not least <= value <= most:
        raise BadRequest(f"expected a number from {least:g} to {most:g}", name)


def _is_possible(sides: re.Match[str]) -> bool:
    return all(1 <= int(side) <= MAX_SIDE for side in sides.groups())
