"""How values look in a terminal: tables, times, sizes. Pure, but for the console they are printed to."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cortex.cli.visible import echo, visible


class SafeConsole(Console):
    """A console that shows the control characters of what it prints on a terminal."""

    def render_str(self, text: str, **rest: Any) -> Text:
        """Return a text as it is printed; cells of tables are measured by it."""
        return super().render_str(visible(text) if self.is_terminal else text, **rest)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield what is printed, whatever it was made of: also progress bars and what `top` draws."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control or not self.is_terminal else visible(text), style, control)


def console() -> Console:
    """Return the console: in a pipe as wide as it takes and without escape codes."""
    out = SafeConsole(highlight=False)
    return out if out.is_terminal else SafeConsole(highlight=False, width=1000, color_system=None)


def table(*columns: str) -> Table:
    """Return an empty table in the house style."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=True)
    return made


def say_away(away: Mapping[str, str]) -> None:
    """Say which hosts did not answer, beside the answers of the others."""
    for host, why in away.items():
        echo(f"{host} did not answer: {why}", err=True)


def ago(at: float | None) -> str:
    """Say how long ago a time was."""
    return "-" if not at else f"{span(max(0.0, time.time() - at))} ago"


def span(seconds: float | None) -> str:
    """Say a length of time in its two largest units."""
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
    """Say a number of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def bar(fraction: float | None, width: int = 16) -> str:
    """Draw how much of something is done."""
    full = round((fraction or 0.0) * width)
    return "█" * full + "░" * (width - full)
