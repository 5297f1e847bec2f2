"""Command groups that import a command only when it runs: `cortex --help` needs no web framework."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import rich_click as click


class Later(NamedTuple):
    """A command in another module."""

    path: str
    """"module:attribute"."""
    summary: str
    """The first sentence of its help, for lists of commands."""
    hidden: bool = False


class LazyGroup(click.RichGroup):
    """A group whose commands are in other modules: `later` has them by name."""

    def __init__(self, *args: Any, later: Mapping[str, Later] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._later = later or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *self._later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command to list: one of another module has a name and a summary only."""
        later = self._later.get(cmd_name)
        if later is None:
            return super().get_command(ctx, cmd_name)
        return click.RichCommand(name=cmd_name, help=later.summary, hidden=later.hidden)

    def load(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command to run, importing what it needs."""
        if cmd_name not in self._later:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._later[cmd_name].path.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command to run, with its name and arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and self.load(ctx, name or ""), rest
