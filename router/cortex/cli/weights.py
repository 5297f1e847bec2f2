"""`cortex weights`: what every host keeps on its disks, and taking away what nobody uses."""

import json

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.tables import ago, console, say_away, size, table
from cortex.cli.visible import echo

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_host = click.option("--host", default="", help="Only on this host.")


@click.group()
def weights() -> None:
    """See the weights on the hosts' disks; remove those that nobody uses."""


@weights.command("ls")
@_host
@_json
def ls(host: str, as_json: bool) -> None:
    """List the weights on every host, what they take and which functions use them."""
    told = Router().stored(host)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    rows = table("HOST", "WEIGHTS", "KIND", "SIZE", "FUNCTIONS", "IN USE", "FETCHED", "PATH")
    for w in told["weights"]:
        rows.add_row(
            w["host"],
            w["name"],
            w["kind"],
            size(w["size"]),
            ", ".join(w["functions"]) or "-",
            "yes" if w["in_use"] else "-",
            ago(w["at"]),
            w["path"],
        )
    console().print(rows)
    say_away(told["away"])


@weights.command()
@click.argument("names", nargs=-1)
@click.option("--unused", is_flag=True, help="All that no function of the catalogue uses.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_host
@_json
def rm(names: tuple[str, ...], unused: bool, dry_run: bool, host: str, as_json: bool) -> None:
    """Remove weights, by function or as `cortex weights ls` names them.

    Only what cortex fetched or wrote itself, and never what an instance runs from.
    """
    if not names and not unused:
        raise click.UsageError("Say which: names, or --unused.")
    told = Router().remove_weights({"names": names, "unused": unused, "dry_run": dry_run, "host": host})
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        word = "would remove" if dry_run else "removed"
        for w in told["removed"]:
            echo(f"{w['host']}: {word} {w['name']} ({size(w['size'])})")
        if not told["removed"] and not told["kept"]:
            echo("nothing to remove")
        say_away(told["away"])
    missing = {k["name"] for k in told["kept"]} - {n for w in told["removed"] for n in (w["name"], *w["functions"])}
    stays = [k for k in told["kept"] if k["name"] in missing]
    if stays:
        raise Failed("\n".join(f"{k['host']}: {k['name']} stays: {k['why']}" for k in stays))
