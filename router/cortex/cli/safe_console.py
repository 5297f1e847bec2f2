"""Rich's console, for output of any origin."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cortex.cli.visible import visible


class SafeConsole(Console):
    """A console that escapes control characters on a terminal."""

    def render_str(self, text: str, **rest: Any) -> Text:
        """Return the text as printed, which table cells are measured by."""
        return super().render_str(visible(text) if self.is_terminal else text, **rest)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of any output, including progress bars and `top`."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control or not self.is_terminal else visible(text), style, control)
