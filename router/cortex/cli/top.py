"""`cortex top`: a live view of the fleet."""

import time

import rich_click as click
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import brief_state, idle_in, long_state
from cortex.cli.tables import console, span, table
from cortex.cli.visible import echo_json
from cortex.router import api_types as api

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
        echo_json(read(router))
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


class Fleet(Struct, frozen=True, kw_only=True):
    """The data of one rendering."""

    health: api.Health
    hosts: tuple[api.HostView, ...]
    functions: tuple[api.FunctionView, ...]
    traffic: api.TrafficAnswer
    requests: tuple[api.RequestSummary, ...]


def read(router: Router) -> Fleet:
    """Return the current data."""
    return Fleet(
        health=router.health(),
        hosts=router.hosts().hosts,
        functions=router.functions(),
        traffic=router.traffic(),
        requests=router.requests(),
    )


def render(url: str, fleet: Fleet, now: float) -> RenderableType:
    """Return the data as a renderable."""
    hour = [b for b in fleet.traffic.hour if b.at > fleet.traffic.now - 70]
    number, errors = sum(b.requests for b in hour), sum(b.errors for b in hour)
    tokens = sum(b.tokens_out for b in hour)
    head = Text(
        f"{url}  {fleet.health.status}  {time.strftime('%H:%M:%S', time.localtime(now))}   "
        f"last minute: {number} requests, {errors} failed, {tokens} tokens; {len(fleet.requests)} live"
    )
    if latency := latency_line(fleet.traffic.last_hour):
        head.append(f"\nlast hour: {latency}")
    return Group(head, Text(), _devices(fleet.hosts), Text(), _functions(fleet), Text(), _requests(fleet.requests))


def latency_line(traffic: api.TrafficTotal) -> str:
    """Return the latency percentiles as one line."""
    latencies = (("first token", traffic.percentiles.first), ("whole answer", traffic.percentiles.duration))
    return ", ".join(f"{name} p50 {_ms(p.p50_s)} p95 {_ms(p.p95_s)} p99 {_ms(p.p99_s)}" for name, p in latencies if p)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 9.9995 else span(seconds)


def _devices(hosts: tuple[api.HostView, ...]) -> RenderableType:
    rows = table("HOST", "DEVICE", "MEMORY", "MIB", "FOREIGN", "BUSY", "HOLDS", "NEXT OUT")
    for host in hosts:
        evictable = [c for c in host.eviction_order if not c.protection]
        for device in host.devices:
            instances = [i for i in host.instances if device.id in i.devices]
            busy = device.utilization_pct
            rows.add_row(
                host.name + (" (cordoned)" if host.cordoned else ""),
                device.id,
                bar(device.admitted_mb, device.foreign_mb, device.total_mb),
                f"{device.admitted_mb}/{device.total_mb}",
                str(device.foreign_mb or "-"),
                "-" if busy is None else f"{busy}%",
                ", ".join(i.function for i in instances) or "-",
                next((c.function for c in evictable if c.instance in {i.id for i in instances}), "-"),
            )
    return rows


def _functions(fleet: Fleet) -> RenderableType:
    rows = table("FUNCTION", "STATE", "INSTANCES", "IN FLIGHT", "WAITING", "TOKENS/S", "FIRST TOKEN", "IDLE IN")
    warm = [f for f in fleet.functions if f.state != "cold" or f.waiting]
    for f in warm:
        recent = fleet.traffic.functions.get(f.id)
        first, rate = (recent.percentiles.first, recent.tokens_per_s) if recent else (None, None)
        rows.add_row(
            f.id,
            brief_state(f),
            str(len(f.instances)),
            str(f.in_flight),
            str(f.waiting),
            "-" if rate is None else f"{rate:.1f}",
            _ms(first.p50_s) if first else "-",
            idle_in(f),
        )
    cold = len(fleet.functions) - len(warm)
    notes = [Text(f"{f.id}: {text}") for f in fleet.functions if (text := long_state(f))]
    return Group(rows, *notes, Text(f"and {cold} cold", style="dim"))


def _requests(requests: tuple[api.RequestSummary, ...]) -> RenderableType:
    rows = table("REQUEST", "FUNCTION", "PHASE", "AGE", "TOKENS", "HOST")
    for r in requests[:15]:
        rows.add_row(r.id, r.function, r.phase, span(r.age_s), str(r.tokens_out), r.host or "-")
    more = len(requests) - 15
    return Group(rows, Text(f"and {more} more", style="dim")) if more > 0 else rows


def bar(admitted: int, foreign: int, total: int) -> Text:
    """Return a bar of a device's memory: cortex, foreign, free."""
    ours = min(BAR, round(BAR * admitted / total)) if total else 0
    theirs = min(BAR - ours, round(BAR * foreign / total)) if total else 0
    return Text.assemble(("█" * ours, "green"), ("▒" * theirs, "yellow"), ("·" * (BAR - ours - theirs), "dim"))
