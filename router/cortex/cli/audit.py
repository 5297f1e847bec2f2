"""`cortex audit`: what operators did."""

import time

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.durations import Span
from cortex.cli.tables import ago, print_rows
from cortex.cli.visible import echo, echo_json
from cortex.platform.audit import AuditRecord


@click.command()
@click.option("--since", "since_s", type=Span(), help="Only the last 30d, 12h or 90m [default: 400 days].")
@click.option(
    "--by", default="", metavar="KEY", help="Only by this key (id or name), or by local, anonymous or record."
)
@click.option("--what", default="", help="Only this action ('key revoke'), or all of a noun ('key').")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Entries to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def audit(since_s: int | None, by: str, what: str, limit: int, as_json: bool) -> None:
    """Show what operators did: who, what, to what, from where, and how it ended. Needs an admin key."""
    since = time.time() - since_s if since_s is not None else 0.0
    entries = Router().audit(limit, since=since, by=by, what=what)
    if as_json:
        echo_json(entries, indent=2)
    elif not entries:
        echo("No matching entries. They expire after 400 days.")
    else:
        rows = [_row(entry) for entry in entries]
        print_rows(("TARGET", "WHAT", "BY", "WHEN", "RESULT", "FROM", "DETAIL"), rows, optional=("DETAIL", "FROM"))


def _row(entry: AuditRecord) -> tuple[str, ...]:
    detail = ", ".join(f"{k} {v}" for k, v in entry.detail.items())
    by = (entry.name or entry.by)[:16] + (" (page)" if entry.session else "")
    return (entry.target or "-", entry.what, by, ago(entry.at), _result(entry), entry.address, detail)


def _result(entry: AuditRecord) -> str:
    return "done" if entry.succeeded else f"failed: {entry.status}" if entry.status else "cut off"
