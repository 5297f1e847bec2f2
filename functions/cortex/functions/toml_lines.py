"""Finds the line of a table or key in a TOML text, for error messages.

`tomllib` reports lines for syntax errors only. This module recognises `[table]` and `[[table]]` headers and `key =`
lines by their form. It only adds lines to messages; an unrecognised line gives None.
"""

import re

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*[.=]""")


class TomlLines:
    """An index of the lines of one TOML text. Tables of an array are counted from 0."""

    def __init__(self, text: str) -> None:
        self._at: dict[tuple[str, int, str | None], int] = {}
        table, nth = "", 0
        last: dict[str, int] = {}
        for number, line in enumerate(text.split("\n"), start=1):
            if header := _HEADER.match(line):
                table = header[2]
                nth = last.get(table, -1) + 1 if header[1] == "[[" else 0
                last[table] = nth
                self._at[table, nth, None] = number
            elif key := _KEY.match(line):
                self._at.setdefault((table, nth, key[1].strip("\"'")), number)

    def table(self, table: str, nth: int = 0) -> int | None:
        """Return the line of a table's header."""
        return self._at.get((table, nth, None))

    def key(self, table: str, key: str, nth: int = 0) -> int | None:
        """Return the line of a key, else that of its table. A key of the top table `""` may be a header."""
        return self._at.get((table, nth, key)) or self.table(table or key, nth)
