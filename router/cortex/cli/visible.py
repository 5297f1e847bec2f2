"""Escapes control characters of external text on a terminal.

A worker's log, an answer, a name or an error may contain escape sequences that move the cursor, change the title or
send input. A terminal gets them as `\\x1b`; a file or a pipe gets the text unchanged. Commands print text with `echo`
or with the console of `tables.py`, which does the same, and JSON with `echo_json`.
"""

import codecs
import io
import json
import re
import sys
from typing import Protocol

import msgspec
import rich_click as click

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0, C1 and DEL except tab and newline, and the characters that change the writing direction."""


_ASCII = {"✓": "+", "✗": "x", "·": "-", "…": "...", "–": "-", "—": "-", "→": "->", "█": "#", "░": "."}
"""What stands for a character of cortex's own output that a terminal's encoding lacks."""
_READABLE = "cortex-readable"


def write_any_text() -> None:
    """Let the standard streams write every text, whatever their encoding: an encoding that lacks a character gets a
    similar one, or its code."""
    codecs.register_error(_READABLE, _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_READABLE)


def _readable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or _escape_code(ord(c)) for c in text), error.end


class Output(Protocol):
    """An output stream."""

    def isatty(self) -> bool: ...


def visible(text: str) -> str:
    """Return a text with its control characters escaped, and CRLF as LF."""
    return _CONTROL.sub(_escape, text.replace("\r\n", "\n"))


def for_terminal(text: str, to: Output) -> str:
    """Return a text for a stream: escaped on a terminal, unchanged elsewhere."""
    return visible(text) if to.isatty() else text


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, with control characters escaped on a terminal."""
    click.echo(for_terminal(text, sys.stderr if err else sys.stdout), err=err)


def echo_json(value: object, indent: int | None = None) -> None:
    """Print a value as JSON; its strings have no control characters."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=indent))


def _escape(match: "re.Match[str]") -> str:
    return _escape_code(ord(match[0]))


def _escape_code(code: int) -> str:
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
