"""Durations as command-line arguments."""

import re
from typing import Any

import rich_click as click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Span(click.ParamType[int]):
    """A duration such as 30d, 12h or 90m."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the duration in seconds."""
        match = re.fullmatch(r"(\d{1,6})([smhdw])", str(value))
        if match is None:
            self.fail(f"'{value}' is not like 30d, 12h or 90m", param, ctx)
        return int(match[1]) * _UNITS[match[2]]
