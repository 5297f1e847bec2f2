"""Terminal output: the console, tables, durations and sizes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich_click as click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cortex.cli.visible import echo, visible


class SafeConsole(Console):
    """A console that escapes control characters on a terminal."""

    def render_str(self, text: str, **rest: Any) -> Text:
        """Return the text as printed, which table cells are measured by."""
        return super().render_str(visible(text) if self.is_terminal else text, **rest)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of any output, including progress bars and `top`."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control or not self.is_terminal else visible(text), style, control)


def console() -> Console:
    """Return the console; in a pipe it is wide and has no escape codes."""
    out = SafeConsole(highlight=False)
    return out if out.is_terminal else SafeConsole(highlight=False, width=1000, color_system=None)


def table(*columns: str) -> Table:
    """Return an empty table in cortex's style."""
    empty = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        empty.add_column(column, no_wrap=True)
    return empty


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as `table` does, in a fraction of its time: for tables of thousands of rows. A terminal cuts lines
    that are longer than it is wide."""
    out = console()
    if out.is_terminal:
        rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        line = "  ".join(cells)
        if out.is_terminal:
            line = line.rstrip()[: out.width]
        lines.append(line)
    if out.is_terminal:
        lines[0] = click.style(lines[0], bold=True)
    click.echo("\n".join(lines))


def _width(cell: str) -> int:
    return len(cell) if cell.isascii() else cell_len(cell)


def print_unavailable(away: Mapping[str, str]) -> None:
    """Print the hosts that did not answer."""
    for host, why in away.items():
        echo(f"{host} did not answer: {why}", err=True)


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
