"""Text from outside on a terminal: control characters are shown, not sent.

A worker's log, an answer, a name or an error may hold escape sequences, which move the cursor, change the title or
answer for the user. On a terminal they are written as `\\x1b`; a file or a pipe gets the text as it is. Commands write
text with `echo`, or through the console of `tables.py`, which does the same; JSON escapes such characters itself.
"""

import re
import sys
from typing import Protocol

import rich_click as click

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""All of C0, C1 and DEL but tab and newline, and what changes the direction of writing."""


class Output(Protocol):
    """What is written to."""

    def isatty(self) -> bool: ...


def visible(text: str) -> str:
    """Return a text with its control characters written out. The return of a line's end is dropped."""
    return _CONTROL.sub(_written, text.replace("\r\n", "\n"))


def for_terminal(text: str, to: Output) -> str:
    """Return a text as it may be written to a stream: visible on a terminal, unchanged elsewhere."""
    return visible(text) if to.isatty() else text


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, on a terminal with its control characters shown."""
    click.echo(for_terminal(text, sys.stderr if err else sys.stdout), err=err)


def _written(match: "re.Match[str]") -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
