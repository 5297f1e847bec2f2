"""`cortex fn prefetch` and `cortex fn estimate`: a function's weights before its start."""

import rich_click as click
from msgspec.structs import asdict

from cortex.cli import downloads
from cortex.cli.client import Router
from cortex.cli.tables import size
from cortex.cli.visible import echo, echo_json


@click.command()
@click.argument("name")
@click.option("--host", default="", help="Target host [default: where it would start].")
@click.option("--no-wait", is_flag=True, help="Return at once; `cortex jobs ls` shows the progress.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def prefetch(name: str, host: str, no_wait: bool, as_json: bool) -> None:
    """Fetch a function's weights to a host without starting it; for a branch, its current commit."""
    router = Router()
    result = router.prefetch(name, host)
    if no_wait:
        echo_json(result) if as_json else echo(f"{result.host}: fetching the weights of {result.function}")
        return
    download = downloads.wait_for(router, result.host, result.job)
    if as_json:
        echo_json({**asdict(result), **asdict(download)})
    else:
        echo(f"{result.host}: has {download.source} ({size(download.total)})")


@click.command()
@click.argument("name")
@click.option("--host", default="", help="Host to query [default: where it would start].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(name: str, host: str, as_json: bool) -> None:
    """Estimate a function's memory from its files and its model's configuration, without loading it."""
    result = Router().estimate(name, host)
    if as_json:
        echo_json(result)
        return
    each = f", {result.per_device_mb} MiB on each of {result.devices} devices" if result.devices > 1 else ""
    echo(f"{result.function}: about {result.total_mb} MiB{each}")
    echo(f"  {result.formula}")
    echo(f"  weights: {'on ' + result.host if result.here else 'not on ' + result.host + ' yet'}")
    if result.declared_mb:
        echo(f"  vram_mb declares {result.declared_mb} MiB, which applies until a measurement exists")
