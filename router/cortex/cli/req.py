"""`cortex req`: shows and cancels live requests."""

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.tables import print_rows, span
from cortex.cli.visible import echo, echo_json


@click.group()
def req() -> None:
    """Show live requests; cancel one."""


@req.command("ls")
@click.option("--function", default="", help="Only of this function.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(function: str, as_json: bool) -> None:
    """List the live requests of all routers, oldest first."""
    requests = Router().requests(function)
    if as_json:
        echo_json(requests, indent=2)
        return
    rows = [
        (
            r.id,
            r.function,
            r.dialect + (" stream" if r.stream else ""),
            r.phase,
            span(r.age_s),
            f"{r.queued_ms} ms" if r.queued_ms else "-",
            str(r.tokens_out),
            r.host or "-",
            r.instance or "-",
            r.who or "-",
        )
        for r in requests
    ]
    columns = ("REQUEST", "FUNCTION", "DIALECT", "PHASE", "AGE", "QUEUED", "TOKENS", "HOST", "INSTANCE", "KEY")
    print_rows(columns, rows, optional=("INSTANCE", "DIALECT", "KEY", "QUEUED", "HOST"))


@req.command()
@click.argument("id")
@click.option("--key", default="", help="The request of this API key, if requests of several keys have the id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def cancel(id: str, key: str, as_json: bool) -> None:
    """Cancel a request: its client receives an error, and the worker stops."""
    number = Router().cancel_request(id, key)
    if as_json:
        echo_json({"id": id, "cancelled": number})
        return
    echo(f"{id}: cancelled" + (f" ({number} requests)" if number > 1 else ""))
