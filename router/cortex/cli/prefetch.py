"""`cortex fn prefetch` and `cortex fn estimate`: a function's weights before it is started."""

import json

import rich_click as click

from cortex.cli import downloads
from cortex.cli.client import Router
from cortex.cli.tables import size
from cortex.cli.visible import echo


@click.command()
@click.argument("name")
@click.option("--host", default="", help="Where to [default: where it would be started].")
@click.option("--no-wait", is_flag=True, help="Only begin; `cortex jobs ls` shows how it goes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def prefetch(name: str, host: str, no_wait: bool, as_json: bool) -> None:
    """Fetch a function's weights to a host without starting it; of a branch, what it is at now."""
    router = Router()
    told = router.prefetch(name, host)
    if no_wait:
        click.echo(json.dumps(told) if as_json else f"{told['host']}: fetching the weights of {told['function']}")
        return
    found = downloads.wait_for(router, told["host"], told["job"])
    if as_json:
        click.echo(json.dumps({**told, **found}))
    else:
        echo(f"{told['host']}: has {found['source']} ({size(found['total'])})")


@click.command()
@click.argument("name")
@click.option("--host", default="", help="Which host to ask [default: where it would be started].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(name: str, host: str, as_json: bool) -> None:
    """Say how much memory a function will take, from its files and its model's configuration, without loading it."""
    told = Router().estimate(name, host)
    if as_json:
        click.echo(json.dumps(told))
        return
    each = f", {told['per_device_mb']} MiB on each of {told['devices']} devices" if told["devices"] > 1 else ""
    echo(f"{told['function']}: about {told['total_mb']} MiB{each}")
    echo(f"  {told['formula']}")
    echo(f"  weights: {'on ' + told['host'] if told['here'] else 'not on ' + told['host'] + ' yet'}")
    if told["declared_mb"]:
        echo(f"  vram_mb says {told['declared_mb']} MiB, which is used until it has been measured")
