"""Makes `docs/cli.md` from the commands: every command of `cortex` with its help."""

from collections.abc import Iterator

import click

from cortex.cli.exits import HELP
from cortex.cli.lazy import LazyGroup
from cortex.cli.main import cli


def page() -> str:
    """Return the page."""
    intro = (
        "# The command line\n\n"
        "Generated from the commands' own help: `just docs`. Commands find a `cortex up` of the same user by\n"
        "themselves; `CORTEX_URL` names another router. Everything that lists takes `--json`, with stable names.\n\n"
        f"{' '.join(HELP.split())}\n\n"
        "Shell completion, functions and hosts included: `cortex completion bash|zsh|fish` prints the script.\n"
    )
    return intro + "".join(_section(command, names) for command, names in commands(cli, ("cortex",)))


def commands(group: click.Group, names: tuple[str, ...]) -> Iterator[tuple[click.Command, tuple[str, ...]]]:
    """Yield every command with its names, those of groups included, but for hidden ones."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.load(context, name) if isinstance(group, LazyGroup) else group.get_command(context, name)
        if command is None or command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))
        else:
            yield command, (*names, name)


def _section(command: click.Command, names: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(names))
    usage = " ".join(command.collect_usage_pieces(context))
    help_text = "\n".join(line.strip() for line in (command.help or "").splitlines())
    lines = [f"\n## {' '.join(names)}\n", f"`{' '.join(names)} {usage}`\n", f"{help_text.strip()}\n"]
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        lines += ["| option | what | default |", "|---|---|---|"]
    for option in options:
        kind = "" if option.is_flag else f" {option.make_metavar(context)}"
        shown = str(option.default) if option.show_default and option.default not in (None, "") else "–"
        names_ = ", ".join(f"`{o}`" for o in option.opts)
        help_line = (option.help or "").replace("|", "\\|")
        kind = kind.replace("|", "\\|")
        lines.append(f"| {names_}{kind} | {help_line} | {shown} |")
    return "\n".join(lines) + "\n"
