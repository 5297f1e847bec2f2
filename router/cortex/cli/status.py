"""`cortex status`: a summary of the fleet."""

import rich_click as click

from cortex.cli.browser import open_page
from cortex.cli.client import Router, api_key
from cortex.cli.fn import state
from cortex.cli.tables import ago, console, print_rows, quantity
from cortex.cli.visible import echo, echo_json
from cortex.router.api_types import HostView


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--open", "opens", is_flag=True, help="Open the status page in a browser, logged in.")
def status(as_json: bool, opens: bool) -> None:
    """Show the router's health, the hosts and the warm functions."""
    router = Router()
    if opens:
        echo(f"{router.url}/status")
        open_page(router.url, api_key(router.url))
        return
    health, hosts, functions = router.health(), router.hosts().every, router.functions()
    if as_json:
        echo_json({"url": router.url, "health": health, "hosts": hosts, "functions": functions}, indent=2)
        return
    out = console()
    out.print(f"{router.url}: {health.status} (record {health.record})", markup=False)
    if health.catalogue != "ok":
        out.print(f"catalogue: {health.catalogue}", markup=False)
    for name, silence in health.silent.items():
        out.print(f"{name}: silent for {silence.silent_s} s, {silence.serving} instances answer", markup=False)
    if not hosts:
        out.print("No host reports: start `cortex agent` on one.", markup=False)
    rows = [
        (host.name, d.name, str(d.total_mb), str(d.admitted_mb), _instances(host, d.id), ago(host.at))
        for host in hosts
        for d in host.devices
    ]
    if rows:
        columns = ("HOST", "DEVICE", "MEMORY MIB", "IN USE BY CORTEX", "INSTANCES", "SEEN")
        print_rows(columns, rows, optional=("SEEN", "DEVICE"))
    warm = [f for f in functions if f.state != "cold"]
    out.print(f"{quantity(len(functions), 'function')}, {len(warm)} not cold{':' * bool(warm)}", markup=False)
    for f in warm:
        waiting = f", {f.waiting} waiting" if f.waiting else ""
        out.print(f"  {f.id}: {state(f)}, {f.in_flight} in flight{waiting}", markup=False)
    for f in (f for f in functions if f.state == "cold" and f.waiting):
        why = f": it {f.in_line[0]}" if f.in_line else ""
        out.print(f"  {f.id}: cold, {f.waiting} waiting{why}", markup=False)


def _instances(host: HostView, device: str) -> str:
    return str(sum(device in i.devices for i in host.instances))
