"""Text and numbers from outside (a worker's answers and log, a file's fields), made fit for the record. Pure.

What leaves here can be encoded as UTF-8 JSON, has no control character and is no longer than the caller allows. A
character that is replaced stays visible as U+FFFD: a name that was changed never equals one that was not.
"""

import re

REPLACEMENT = "\ufffd"
CUT = "…"
_UNFIT = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters but tab and newline, what reverses the direction of text, and halves of a character."""
_UNFIT_IN_TEXT = re.compile(f"[{_UNFIT}]")
_UNFIT_IN_A_LINE = re.compile(rf"[{_UNFIT}\t\n]")
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""Sequences that colour a terminal's text, move its cursor or name its window."""


def text(value: object, longest: int) -> str:
    """Return text of one or several lines without the sequences meant for a terminal, at most `longest` characters of
    it; "" for anything but a string."""
    if not isinstance(value, str):
        return ""
    # A long value is cut before it is searched, with room for what "\r\n" and escape sequences take away.
    value = _TERMINAL.sub("", value[: 4 * longest]).replace("\r\n", "\n")
    return _cut(_UNFIT_IN_TEXT.sub(REPLACEMENT, value), longest)


def line(value: object, longest: int) -> str:
    """Return text as one line: a newline is a space, a tab is four."""
    return _cut(text(value, longest).replace("\n", " ").expandtabs(4), longest)


def name(value: object, longest: int) -> str:
    """Return a name as it is, or visibly changed: nothing is taken out of it."""
    if not isinstance(value, str):
        return ""
    return _cut(_UNFIT_IN_A_LINE.sub(REPLACEMENT, value[: longest + 1]), longest)


def positive(value: object, most: int) -> int:
    """Return a whole number from 1 to `most`; 0 for anything else."""
    return value if type(value) is int and 0 < value <= most else 0


def _cut(value: str, longest: int) -> str:
    return value if len(value) <= longest else value[: longest - 1] + CUT
