"""`cortex weights`: lists the weights on the hosts' disks and removes unused ones."""

from collections.abc import Mapping

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.tables import ago, print_rows, print_unavailable, size
from cortex.cli.visible import echo, echo_json
from cortex.router.api_types import RemoveRequest

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_COLUMNS = ("WEIGHTS", "HOST", "KIND", "SIZE", "FUNCTIONS", "IN USE", "FETCHED", "FROM", "PATH")
_host = click.option("--host", default="", help="Only on this host.")


@click.group()
def weights() -> None:
    """Show the weights on the hosts' disks; remove unused ones."""


@weights.command("ls")
@_host
@_json
def ls(host: str, as_json: bool) -> None:
    """List the weights on every host, their size and the functions that use them."""
    result = Router().list_weights(host)
    if as_json:
        echo_json(result, indent=2)
        return
    rows = [
        (
            w.name,
            w.host,
            w.kind,
            size(w.size),
            ", ".join(w.functions) or "-",
            "yes" if w.in_use else "-",
            ago(w.at),
            origins(w.origins),
            w.path,
        )
        for w in result.weights
    ]
    print_rows(_COLUMNS, rows, optional=("PATH", "FUNCTIONS", "KIND", "FETCHED", "FROM"))
    print_unavailable(result.away)


def origins(count: Mapping[str, int]) -> str:
    """Say where weights came from: the hub, hosts, or each with its share."""
    total = sum(count.values())
    by_size = sorted(count.items(), key=lambda pair: -pair[1])
    shares = [(host or "hub", f" {round(100 * size / total)}%" if size < total else "") for host, size in by_size]
    return ", ".join(f"{name}{share}" for name, share in shares) or "-"


@weights.command()
@click.argument("names", nargs=-1)
@click.option("--unused", is_flag=True, help="All weights that no function of the catalogue uses.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@_host
@_json
def rm(names: tuple[str, ...], unused: bool, dry_run: bool, host: str, as_json: bool) -> None:
    """Remove weights, by function or by the name in `cortex weights ls`.

    Only weights that cortex fetched or wrote, and never those of a running instance.
    """
    if not names and not unused:
        raise click.UsageError("No weights selected: give names, or --unused.")
    result = Router().remove_weights(RemoveRequest(names=names, unused=unused, dry_run=dry_run, host=host))
    if as_json:
        echo_json(result, indent=2)
    else:
        verb = "would remove" if dry_run else "removed"
        for w in result.removed:
            echo(f"{w.host}: {verb} {w.name} ({size(w.size)})")
        if not result.removed and not result.remaining:
            echo("nothing to remove")
        print_unavailable(result.away)
    removed = {n for w in result.removed for n in (w.name, *w.functions)}
    if remaining := [r for r in result.remaining if r.name not in removed]:
        raise Failed("\n".join(f"{r.host}: {r.name} stays: {r.why}" for r in remaining))
