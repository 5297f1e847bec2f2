"""Arguments that a shell can complete: names of functions and hosts, asked of the router."""

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from cortex.cli.client import Router
from cortex.cli.exits import Failed


class Name(click.ParamType[str]):
    """A name that the router knows."""

    def __init__(self, name: str, known: Callable[[Router], list[str]]) -> None:
        self.name, self._known = name, known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so; none when no router answers."""
        try:
            names = self._known(Router(timeout_s=2))
        except Failed:
            return []
        return [CompletionItem(n) for n in names if n.startswith(incomplete)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


def _functions(router: Router) -> list[str]:
    return [n for f in router.functions() for n in (f["id"], *f["aliases"])]


FUNCTION = Name("function", _functions)
HOST = Name("host", lambda router: [h["name"] for h in router.every_host()])
