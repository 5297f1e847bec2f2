"""`cortex usage`: what requests used, by key, function, host or time."""

import csv
import io
import time
from collections.abc import Sequence
from typing import Any

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.durations import Span
from cortex.cli.tables import print_rows
from cortex.cli.visible import echo, echo_json
from cortex.router.api_types import UsageGroup

COLUMNS = (
    "requests", "tokens_in", "tokens_out", "cached", "cold_starts", "usd", "gpu_s", "joules", "audio_s", "characters",
    "images",
)  # fmt: skip
MEDIA = ("audio_s", "characters", "images")
"""Columns of the table only where they have a number."""


@click.group(invoke_without_command=True)
@click.option("--by", type=click.Choice(["key", "function", "host", "day", "hour"]), default="key", show_default=True)
@click.option("--since", "since_s", type=Span(), default="30d", show_default=True, help="Begin this long ago.")
@click.option("--until", "until_s", type=Span(), default="0s", show_default=True, help="End this long ago.")
@click.option("--key", "key_id", default="", metavar="ID", help="Only this key, by id.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def usage(ctx: click.Context, by: str, since_s: int, until_s: int, key_id: str, as_csv: bool, as_json: bool) -> None:
    """Show requests, tokens, cold starts, cost, and the time and energy of GPUs.

    Hours and days are UTC; dollars are at the prices of that time. Requests that share a GPU share its time and energy,
    in proportion to their tokens.
    """
    if ctx.invoked_subcommand is not None:
        return
    if until_s > since_s:
        raise click.UsageError("--until is before --since")
    now = time.time()
    answer = Router().usage(by, now - since_s, now - until_s, key_id)
    if as_json:
        echo_json(answer, indent=2)
    elif as_csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([(by, *COLUMNS), *((g.name, *(getattr(g, c) for c in COLUMNS)) for g in answer.groups)])
        echo(text.getvalue().rstrip("\n"))
    elif not answer.groups:
        echo("No usage in this period.")
    else:
        media = [c for c in MEDIA if getattr(answer.total, c)]
        columns = (by.upper(), "REQUESTS", "IN", "OUT", "CACHED", "COLD", "USD", "GPU-S", "JOULES", *map(_title, media))
        rows = [_row(group, media) for group in (*answer.groups, answer.total)]
        print_rows(columns, rows, optional=("CACHED", "COLD", *map(_title, media), "JOULES", "GPU-S"))


@usage.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget(key: str, as_json: bool) -> None:
    """Delete the usage of a key, by id or name. The key may be revoked."""
    answer = Router().forget_usage(key)
    echo_json(answer) if as_json else echo(f"{', '.join(answer.keys)}: {answer.rows} rows deleted")


def _title(column: str) -> str:
    return column.upper().replace("_", "-")


def _row(group: UsageGroup, media: Sequence[str]) -> tuple[str, ...]:
    numbers: Any = (getattr(group, c) for c in COLUMNS[:5])
    used: Any = (getattr(group, c) for c in ("gpu_s", "joules", *media))
    usd = f"{group.usd:.4f}" if group.usd else "-"
    return (group.name, *(f"{n:,}" for n in numbers), usd, *(f"{n:,.0f}" if n else "-" for n in used))
