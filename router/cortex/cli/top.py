"""`cortex top`: a live view of the fleet."""

import json
import time
from typing import Any

import rich_click as click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import progress_text
from cortex.cli.tables import console, span, table

BAR = 24


@click.command()
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between updates."
)
@click.option("--once", is_flag=True, help="Print once and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print the data once as JSON.")
def top(interval: float, once: bool, as_json: bool) -> None:
    """Watch the fleet: devices, functions, requests. Ctrl-C ends it."""
    router = Router()
    if as_json:
        click.echo(json.dumps(read(router)))
        return
    out = console()
    if once or not out.is_terminal:
        out.print(render(router.url, read(router), time.time()))
        return
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(render(router.url, read(router), time.time()), refresh=True)
            except Failed as failed:
                live.update(Text(str(failed)), refresh=True)
            time.sleep(interval)


def read(router: Router) -> dict[str, Any]:
    """Return the current data."""
    return {
        "health": router.health(),
        "hosts": router.hosts(),
        "functions": router.functions(),
        "traffic": router.get("/admin/traffic"),
        "requests": router.get("/admin/requests")["requests"],
    }


def render(url: str, data: dict[str, Any], now: float) -> RenderableType:
    """Return the data as a renderable."""
    hour = [b for b in data["traffic"]["hour"] if b["at"] > now - 70]
    number, errors = sum(b["requests"] for b in hour), sum(b["errors"] for b in hour)
    tokens = sum(b["tokens_out"] for b in hour)
    head = Text(
        f"{url}  {data['health']['status']}  {time.strftime('%H:%M:%S', time.localtime(now))}   "
        f"last minute: {number} requests, {errors} failed, {tokens} tokens; {len(data['requests'])} live"
    )
    if latency := latency_line(data["traffic"]["last_hour"]):
        head.append(f"\nlast hour: {latency}")
    return Group(head, Text(), _devices(data["hosts"]), Text(), _functions(data), Text(), _requests(data["requests"]))


def latency_line(bucket: dict[str, Any]) -> str:
    """Return the latency percentiles as one line."""
    fields = (("first token", "first"), ("whole answer", "duration"))
    percentiles = ((name, bucket["percentiles"][key]) for name, key in fields)
    return ", ".join(
        f"{name} p50 {_ms(s['p50_s'])} p95 {_ms(s['p95_s'])} p99 {_ms(s['p99_s'])}" for name, s in percentiles if s
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 9.9995 else span(seconds)


def _devices(hosts: list[dict[str, Any]]) -> RenderableType:
    rows = table("HOST", "DEVICE", "MEMORY", "MIB", "FOREIGN", "BUSY", "HOLDS", "NEXT OUT")
    for host in hosts:
        evictable = [entry for entry in host["leaving"] if not entry["protected"]]
        for device in host["devices"]:
            instances = [i for i in host["instances"] if device["id"] in i["devices"]]
            admitted = sum(i["memory_mb"] for i in instances)
            busy = device["utilization_pct"]
            rows.add_row(
                host["name"] + (" (cordoned)" if host["cordoned"] else ""),
                device["id"],
                bar(admitted, device["foreign_mb"], device["total_mb"]),
                f"{admitted}/{device['total_mb']}",
                str(device["foreign_mb"] or "-"),
                "-" if busy is None else f"{busy}%",
                ", ".join(i["function"] for i in instances) or "-",
                next((e["function"] for e in evictable if e["instance"] in {i["id"] for i in instances}), "-"),
            )
    return rows


def _functions(data: dict[str, Any]) -> RenderableType:
    rows = table("FUNCTION", "STATE", "INSTANCES", "IN FLIGHT", "WAITING", "TOKENS/S", "FIRST TOKEN", "IDLE IN")
    warm = [f for f in data["functions"] if f["state"] != "cold" or f["waiting"]]
    for f in warm:
        recent = data["traffic"]["functions"].get(f["id"], {})
        starting = next((i for i in f["instances"] if i["left_s"] is not None or i["phase"]), None)
        idle = [i["idle_in_s"] for i in f["instances"] if i["idle_in_s"] is not None]
        first, rate = recent.get("first_s"), recent.get("tokens_per_s")
        rows.add_row(
            f["id"],
            progress_text(starting) if starting else f["state"],
            str(len(f["instances"])),
            str(f["in_flight"]),
            str(f["waiting"]),
            "-" if rate is None else f"{rate:.1f}",
            "-" if first is None else f"{first * 1000:.0f} ms",
            span(min(idle)) if idle else "-",
        )
    cold = len(data["functions"]) - len(warm)
    return Group(rows, Text(f"and {cold} cold", style="dim"))


def _requests(requests: list[dict[str, Any]]) -> RenderableType:
    rows = table("REQUEST", "FUNCTION", "PHASE", "AGE", "TOKENS", "HOST")
    for r in requests[:15]:
        rows.add_row(r["id"], r["function"], r["phase"], span(r["age_s"]), str(r["tokens_out"]), r["host"] or "-")
    more = len(requests) - 15
    return Group(rows, Text(f"and {more} more", style="dim")) if more > 0 else rows


def bar(admitted: int, foreign: int, total: int) -> Text:
    """Return a bar of a device's memory: cortex, foreign, free."""
    ours = min(BAR, round(BAR * admitted / total)) if total else 0
    theirs = min(BAR - ours, round(BAR * foreign / total)) if total else 0
    return Text.assemble(("█" * ours, "green"), ("▒" * theirs, "yellow"), ("·" * (BAR - ours - theirs), "dim"))
