"""`cortex top`: the fleet, live."""

import json
import time
from typing import Any

import rich_click as click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import coming
from cortex.cli.tables import console, span, table

BAR = 24


@click.command()
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Show it once and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one look as JSON.")
def top(interval: float, once: bool, as_json: bool) -> None:
    """Watch the fleet: devices, functions, requests. Ctrl-C ends it."""
    router = Router()
    if as_json:
        click.echo(json.dumps(look(router)))
        return
    out = console()
    if once or not out.is_terminal:
        out.print(shown(router.url, look(router), time.time()))
        return
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(shown(router.url, look(router), time.time()), refresh=True)
            except Failed as failed:
                live.update(Text(str(failed)), refresh=True)
            time.sleep(interval)


def look(router: Router) -> dict[str, Any]:
    """Return all that is shown, as it is now."""
    return {
        "health": router.health(),
        "hosts": router.hosts(),
        "functions": router.functions(),
        "traffic": router.get("/admin/traffic"),
        "requests": router.get("/admin/requests")["requests"],
    }


def shown(url: str, seen: dict[str, Any], now: float) -> RenderableType:
    """Return a look as something to print."""
    hour = [b for b in seen["traffic"]["hour"] if b["at"] > now - 70]
    number, errors = sum(b["requests"] for b in hour), sum(b["errors"] for b in hour)
    tokens = sum(b["tokens_out"] for b in hour)
    head = Text(
        f"{url}  {seen['health']['status']}  {time.strftime('%H:%M:%S', time.localtime(now))}   "
        f"last minute: {number} requests, {errors} failed, {tokens} tokens; {len(seen['requests'])} under way"
    )
    if took := latency_line(seen["traffic"]["last_hour"]):
        head.append(f"\nlast hour: {took}")
    return Group(head, Text(), _devices(seen["hosts"]), Text(), _functions(seen), Text(), _requests(seen["requests"]))


def latency_line(bucket: dict[str, Any]) -> str:
    """Say how long answers took: half, 95 and 99 of a hundred."""
    named = (("first token", "first"), ("whole answer", "duration"))
    spreads = ((name, bucket["percentiles"][key]) for name, key in named)
    return ", ".join(
        f"{name} p50 {_ms(s['p50_s'])} p95 {_ms(s['p95_s'])} p99 {_ms(s['p99_s'])}" for name, s in spreads if s
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 9.9995 else span(seconds)


def _devices(hosts: list[dict[str, Any]]) -> RenderableType:
    rows = table("HOST", "DEVICE", "MEMORY", "MIB", "FOREIGN", "BUSY", "HOLDS", "NEXT OUT")
    for host in hosts:
        may_leave = [one for one in host["leaving"] if not one["protected"]]
        for device in host["devices"]:
            mine = [i for i in host["instances"] if device["id"] in i["devices"]]
            admitted = sum(i["memory_mb"] for i in mine)
            busy = device["utilization_pct"]
            rows.add_row(
                host["name"] + (" (cordoned)" if host["cordoned"] else ""),
                device["id"],
                bar(admitted, device["foreign_mb"], device["total_mb"]),
                f"{admitted}/{device['total_mb']}",
                str(device["foreign_mb"] or "-"),
                "-" if busy is None else f"{busy}%",
                ", ".join(i["function"] for i in mine) or "-",
                next((one["function"] for one in may_leave if one["instance"] in {i["id"] for i in mine}), "-"),
            )
    return rows


def _functions(seen: dict[str, Any]) -> RenderableType:
    rows = table("FUNCTION", "STATE", "INSTANCES", "IN FLIGHT", "WAITING", "TOKENS/S", "FIRST TOKEN", "IDLE IN")
    warm = [f for f in seen["functions"] if f["state"] != "cold" or f["waiting"]]
    for f in warm:
        lately = seen["traffic"]["functions"].get(f["id"], {})
        on_its_way = next((i for i in f["instances"] if i["left_s"] is not None or i["phase"]), None)
        idle = [i["idle_in_s"] for i in f["instances"] if i["idle_in_s"] is not None]
        first, rate = lately.get("first_s"), lately.get("tokens_per_s")
        rows.add_row(
            f["id"],
            coming(on_its_way) if on_its_way else f["state"],
            str(len(f["instances"])),
            str(f["in_flight"]),
            str(f["waiting"]),
            "-" if rate is None else f"{rate:.1f}",
            "-" if first is None else f"{first * 1000:.0f} ms",
            span(min(idle)) if idle else "-",
        )
    cold = len(seen["functions"]) - len(warm)
    return Group(rows, Text(f"and {cold} cold", style="dim"))


def _requests(requests: list[dict[str, Any]]) -> RenderableType:
    rows = table("REQUEST", "FUNCTION", "PHASE", "AGE", "TOKENS", "HOST")
    for r in requests[:15]:
        rows.add_row(r["id"], r["function"], r["phase"], span(r["age_s"]), str(r["tokens_out"]), r["host"] or "-")
    more = len(requests) - 15
    return Group(rows, Text(f"and {more} more", style="dim")) if more > 0 else rows


def bar(admitted: int, foreign: int, total: int) -> Text:
    """Return a bar of a device's memory: cortex's, foreign, free."""
    ours = min(BAR, round(BAR * admitted / total)) if total else 0
    theirs = min(BAR - ours, round(BAR * foreign / total)) if total else 0
    return Text.assemble(("█" * ours, "green"), ("▒" * theirs, "yellow"), ("·" * (BAR - ours - theirs), "dim"))
