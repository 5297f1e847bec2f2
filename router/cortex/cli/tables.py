"""Terminal output: the console, tables, durations and sizes. Rich is imported by what uses it: lists do not."""

import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import rich_click as click

from cortex.cli.visible import echo, visible

if TYPE_CHECKING:
    from rich.table import Table

    from cortex.cli.safe_console import SafeConsole

GAP = "  "
SHORTEST = 12
"""Columns that the first cell of a row has at least."""


def console() -> "SafeConsole":
    """Return the console; in a pipe it is wide and has no escape codes."""
    from cortex.cli.safe_console import SafeConsole

    out = SafeConsole(highlight=False)
    return out if out.is_terminal else SafeConsole(highlight=False, width=1000, color_system=None)


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(*columns: str) -> "Table":
    """Return an empty table in cortex's style."""
    from rich.table import Table

    empty = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        empty.add_column(column, no_wrap=True)
    return empty


def print_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    optional: Sequence[str] = (),
    notes: Iterable[tuple[str, str]] = (),
) -> None:
    """Print a list as a table, and below it a line for each of `notes`: a name, and what is too long for a cell.

    On a terminal that is too narrow, the columns of `optional` are left out, in this order, until the rest fits; then
    cells of the first column are shortened in their middle. A pipe gets everything. It takes a fraction of the time of
    `table`, for thousands of rows.
    """
    most = terminal_width()
    if most is not None:
        rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(columns, *rows, strict=True)]
    chosen = list(range(len(columns)))
    if most is not None:
        chosen = _fitting(columns, widths, optional, most)
        room = max(SHORTEST, most - sum(widths[c] + len(GAP) for c in chosen[1:]))
        widths[0] = min(widths[0], room)
    lines = []
    for row in (columns, *rows):
        first = _shorten(row[0], widths[0])
        cells = [first, *(row[c] for c in chosen[1:])]
        line = GAP.join(cell + " " * (widths[c] - _width(cell)) for cell, c in zip(cells, chosen, strict=True))
        if most is not None:
            line = _cut(line.rstrip(), most)
        lines.append(line)
    if most is not None:
        lines[0] = click.style(lines[0], bold=True)
    click.echo("\n".join(lines))
    below = [f"{name}: {' '.join(text.split())}" for name, text in notes if text]
    if below:
        echo("\n" + "\n".join(below))


def _fitting(columns: Sequence[str], widths: Sequence[int], optional: Sequence[str], room: int) -> list[int]:
    """Return the indexes of the columns to print."""
    chosen = list(range(len(columns)))
    for name in optional:
        if sum(widths[c] + len(GAP) for c in chosen) - len(GAP) <= room:
            break
        chosen.remove(columns.index(name))
    return chosen


def _shorten(text: str, width: int) -> str:
    """Return a text with an ellipsis in its middle if it is wider than `width`."""
    if _width(text) <= width:
        return text
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    while _width(head) + _width(tail) + 1 > width:
        head, tail = (head[:-1], tail) if len(head) >= len(tail) else (head, tail[1:])
    return f"{head}…{tail}"


def _width(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(cell)


def _cut(line: str, width: int) -> str:
    """Return the start of a line that is wider than `width`."""
    if _width(line) <= width:
        return line
    from rich.cells import set_cell_size

    return set_cell_size(line, width)


def print_unavailable(away: Mapping[str, str]) -> None:
    """Print the hosts that did not answer."""
    for host, why in away.items():
        echo(f"{host} did not answer: {why}", err=True)


def quantity(number: int, noun: str) -> str:
    """Return a number of things: `1 function`, `2 aliases`."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def ago(at: float | None) -> str:
    """Format the age of a time."""
    return "-" if not at else f"{span(max(0.0, time.time() - at))} ago"


def span(seconds: float | None) -> str:
    """Format a duration in its two largest units."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, second = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{second:02}s"
    hours, minute = divmod(minutes, 60)
    return f"{hours}h{minute:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def size(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def bar(fraction: float | None, width: int = 16) -> str:
    """Return a progress bar."""
    full = round((fraction or 0.0) * width)
    return "█" * full + "░" * (width - full)
