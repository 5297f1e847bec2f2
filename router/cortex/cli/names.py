"""Arguments with shell completion: names of functions and hosts from the router."""

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from cortex.cli.client import Router
from cortex.cli.exits import Failed


class Name(click.ParamType[str]):
    """A name that the router can complete."""

    def __init__(self, name: str, candidates: Callable[[Router], list[str]]) -> None:
        self.name, self._candidates = name, candidates

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names with this prefix; none if no router answers."""
        try:
            names = self._candidates(Router(timeout_s=2))
        except Failed:
            return []
        return [CompletionItem(n) for n in names if n.startswith(incomplete)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


def _functions(router: Router) -> list[str]:
    return [n for f in router.functions() for n in (f.id, *f.aliases)]


FUNCTION = Name("function", _functions)
HOST = Name("host", lambda router: [h.name for h in router.hosts().every])
