"""Where in a TOML text a table or key stands, so that an error can point at its line.

`tomllib` reports lines for syntax errors only. This finds `[table]` and `[[table]]` headers and `key =` lines
by their shape, which is enough to point: when nothing is found the answer is None, never a wrong refusal.
"""

import re

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*[.=]""")


class TomlLines:
    """An index of the lines of one TOML text. Tables of an array are counted from 0."""

    def __init__(self, text: str) -> None:
        self._at: dict[tuple[str, int, str | None], int] = {}
        table, nth = "", 0
        seen: dict[str, int] = {}
        for number, line in enumerate(text.split("\n"), start=1):
            if header := _HEADER.match(line):
                table = header[2]
                nth = seen.get(table, -1) + 1 if header[1] == "[[" else 0
                seen[table] = nth
                self._at[table, nth, None] = number
            elif key := _KEY.match(line):
                self._at.setdefault((table, nth, key[1].strip("\"'")), number)

    def table(self, table: str, nth: int = 0) -> int | None:
        """Return the line of a table's header."""
        return self._at.get((table, nth, None))

    def key(self, table: str, key: str, nth: int = 0) -> int | None:
        """Return the line of a key, else that of its table. A key of the top table `""` may be a header."""
        return self._at.get((table, nth, key)) or self.table(table or key, nth)
