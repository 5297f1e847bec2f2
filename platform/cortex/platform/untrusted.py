"""Sanitises text and numbers from outside (a worker's answers and log, a file's fields) for the record. Pure.

Sanitised text can be encoded as UTF-8 JSON, has no control characters and has at most the caller's length. Replaced
characters become U+FFFD, so a changed name never equals an unchanged one.
"""

import re

REPLACEMENT = "\ufffd"
CUT = "…"
_UNFIT = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters except tab and newline, characters that change the direction of text, and lone surrogates."""
_UNFIT_IN_TEXT = re.compile(f"[{_UNFIT}]")
_UNFIT_IN_A_LINE = re.compile(rf"[{_UNFIT}\t\n]")
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""Escape sequences that colour text, move the cursor or set the title of a terminal."""


def text(value: object, longest: int) -> str:
    """Return text of one or more lines without terminal sequences, at most `longest` characters; "" for no string."""
    if not isinstance(value, str):
        return ""
    # Cut a long value before the search, with room for removed "\r" and escape sequences.
    value = _TERMINAL.sub("", value[: 4 * longest]).replace("\r\n", "\n")
    return _cut(_UNFIT_IN_TEXT.sub(REPLACEMENT, value), longest)


def line(value: object, longest: int) -> str:
    """Return text as one line: a newline becomes a space, a tab up to four."""
    return _cut(text(value, longest).replace("\n", " ").expandtabs(4), longest)


def name(value: object, longest: int) -> str:
    """Return a name, unchanged or visibly changed: characters are replaced, never removed."""
    if not isinstance(value, str):
        return ""
    return _cut(_UNFIT_IN_A_LINE.sub(REPLACEMENT, value[: longest + 1]), longest)


def positive(value: object, most: int) -> int:
    """Return an integer from 1 to `most`; 0 for anything else."""
    return value if type(value) is int and 0 < value <= most else 0


def _cut(value: str, longest: int) -> str:
    return value if len(value) <= longest else value[: longest - 1] + CUT
