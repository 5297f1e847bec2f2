"""`cortex status`: a summary of the fleet."""

import rich_click as click

from cortex.cli.browser import open_page
from cortex.cli.client import Router, api_key
from cortex.cli.fn import state
from cortex.cli.tables import ago, console, table
from cortex.cli.visible import echo, echo_json


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
    rows = table("HOST", "DEVICE", "MEMORY MIB", "IN USE BY CORTEX", "INSTANCES", "SEEN")
    for host in hosts:
        for device in host.devices:
            instances = sum(device.id in i.devices for i in host.instances)
            memory = (str(device.total_mb), str(device.admitted_mb))
            rows.add_row(host.name, device.name, *memory, str(instances), ago(host.at))
    if hosts:
        out.print(rows)
    warm = [f for f in functions if f.state != "cold"]
    out.print(f"{len(functions)} functions, {len(warm)} not cold" + (":" if warm else ""), markup=False)
    for f in warm:
        waiting = f", {f.waiting} waiting" if f.waiting else ""
        out.print(f"  {f.id}: {state(f)}, {f.in_flight} in flight{waiting}", markup=False)
