"""`cortex kept`: lists the conversations that hosts have saved, and removes them."""

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.tables import ago, print_rows, print_unavailable, size
from cortex.cli.visible import echo, echo_json
from cortex.router.context_types import RemoveContextsRequest

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_COLUMNS = ("ID", "FUNCTION", "HOST", "TOKENS", "SIZE", "SAVES", "SAVED", "BUILD")
_host = click.option("--host", default="", help="Only on this host.")
_function = click.option("--function", default="", help="Only of this function.")


@click.group("kept")
def contexts() -> None:
    """Show the conversations that hosts have saved; remove them."""


@contexts.command("ls")
@_function
@_host
@_json
def ls(function: str, host: str, as_json: bool) -> None:
    """List saved conversations: their length, their size, and the time that a restore saves."""
    result = Router().contexts(function, host)
    if as_json:
        echo_json(result, indent=2)
        return
    rows = [
        (
            c.id,
            c.function,
            c.host,
            f"{c.tokens:,}",
            size(c.size),
            f"{c.prefill_s:.1f} s" if c.prefill_s else "-",
            ago(c.at),
            c.build,
        )
        for c in result.contexts
    ]
    print_rows(_COLUMNS, rows, optional=("BUILD", "SAVED", "HOST"))
    for name, functions in result.off.items():
        for function_off, why in functions.items():
            echo(f"{name}: saves no conversations of {function_off}: {why}; `cortex kept rm --all` tries again")


@contexts.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them; hosts try again what they switched off.")
@_function
@_host
@_json
def rm(ids: tuple[str, ...], everything: bool, function: str, host: str, as_json: bool) -> None:
    """Remove saved conversations, by id or by function."""
    if not (ids or function or everything):
        raise click.UsageError("No saved conversations selected: give ids, --function or --all.")
    command = RemoveContextsRequest(ids=ids, function=function, all=everything, host=host)
    result = Router().remove_contexts(command)
    if as_json:
        echo_json(result, indent=2)
    else:
        for c in result.removed:
            echo(f"{c.host}: removed {c.id} of {c.function} ({c.tokens:,} tokens, {size(c.size)})")
        if not result.removed:
            echo("nothing to remove")
        print_unavailable(result.away)
    if missing := set(ids) - {c.id for c in result.removed}:
        raise Failed(f"no saved conversation {', '.join(sorted(missing))}: `cortex kept ls` lists them")
