"""`cortex fn show|plan|history|logs|pin|unpin|set|reset|forget`: one function in detail, its settings at run time."""

import json
import sys
import time
from typing import Any

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.decisions import decision_table
from cortex.cli.exits import Failed
from cortex.cli.fn import coming, show_plan
from cortex.cli.names import FUNCTION
from cortex.cli.tables import ago, console, span, table
from cortex.cli.top import latency_line
from cortex.cli.visible import echo, for_terminal

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def show(name: str, as_json: bool) -> None:
    """Show all there is to know of a function: settings, instances, last start, last failure."""
    router = Router()
    found = router.function(name)
    lately = router.get("/admin/traffic")["functions"].get(found["id"])
    if as_json:
        click.echo(json.dumps({**found, "last_five_minutes": lately}, indent=2))
        return
    out = console()
    out.print(f"[bold]{found['id']}[/]: {found['state']}")
    said = {
        "aliases": ", ".join(found["aliases"]),
        "engine": found["engine"],
        "instances": f"{len(found['instances'])} (at least {found['min']}, at most {found['max']})"
        + (", pinned" if found["pinned"] else ""),
        "set at run time": ", ".join(found["overridden"]),
        "in flight": f"{found['in_flight']}, {found['waiting']} waiting",
        "last used": ago(found["last_used"]),
        "last five minutes": _lately(lately),
        "last start": _start(found["last_start"]),
        "a start takes": span(found["expected_start_s"]) if found["expected_start_s"] else "",
        "memory": "; ".join(memory_lines(found)),
        "last failure": found["failure"] or "",
        "tried again in": _until(found["retry_at"]),
    }
    for key, value in said.items():
        if value:
            out.print(f"  {key:18} {value}", markup=False)
    for line in router.last_lines(found):
        out.print(f"  {'':18} {line}", markup=False)
    if found["instances"]:
        rows = table("INSTANCE", "HOST", "STATE", "DEVICES", "MEMORY MIB", "USED", "IN FLIGHT", "STARTED IN", "IDLE IN")
        for i in found["instances"]:
            rows.add_row(
                i["id"],
                i["host"],
                coming(i),
                ", ".join(i["devices"]) or "-",
                f"{i['memory_mb']} ({i['memory_from']})",
                "-" if i["used_mb"] is None else str(i["used_mb"]),
                str(i["in_flight"]),
                _started(i),
                span(i["idle_in_s"]),
            )
        out.print(rows)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def plan(name: str, as_json: bool) -> None:
    """Say what a start would do now: where it would go, and who would be evicted. Nothing is started."""
    show_plan(Router().plan(name), name, as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@click.option("-n", "--limit", type=click.IntRange(1, 5000), default=50, show_default=True, help="Receipts to show.")
@_json
def history(name: str, limit: int, as_json: bool) -> None:
    """Show what happened to a function lately: starts by phase, evictions, drains, failures."""
    router = Router()
    found = router.function(name)
    receipts = router.decisions(function=found["id"], limit=limit)
    if as_json:
        click.echo(json.dumps({"last_start": found["last_start"], "decisions": receipts}, indent=2))
        return
    if found["last_start"]:
        console().print(f"last start: {_start(found['last_start'])}", markup=False)
    console().print(decision_table(receipts, function=False))


@click.command()
@click.argument("name", type=FUNCTION)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written, until the worker is gone.")
@click.option("-n", "--lines", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Lines to show.")
@click.option(
    "--run", type=click.Choice(["current", "previous"]), default="current", show_default=True, help="Which run."
)
@click.option("--host", default="", help="Of the worker on this host.")
@click.option("--instance", default="", help="Of this instance.")
@click.option(
    "-g", "--grep", default="", metavar="TEXT", help="Only lines with this text; capitals count if it has some."
)
@click.option("--raw", is_flag=True, help="Send control characters to the terminal instead of showing them.")
def logs(name: str, follow: bool, lines: int, run: str, host: str, instance: str, grep: str, raw: bool) -> None:
    """Show what a function's worker wrote, from whatever host; also when it is gone by now."""
    asked: dict[str, Any] = {"lines": lines, "follow": int(follow), "run": run, "grep": grep}
    if not instance:
        asked |= {"function": name, **({"host": host} if host else {})}
    path = f"/admin/instances/{instance}/logs" if instance else "/admin/logs"
    for line in Router().lines(path, asked):
        sys.stdout.write((line if raw else for_terminal(line, sys.stdout)) + "\n")
        sys.stdout.flush()


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def pin(name: str, as_json: bool) -> None:
    """Keep a function: once it is up it is never let go for idling and never evicted."""
    _said(Router().set(name, "pin"), as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def unpin(name: str, as_json: bool) -> None:
    """Let a function be let go and evicted again. `pinned_on` in the catalogue stays."""
    _said(Router().set(name, "unpin"), as_json)


@click.command("set")
@click.argument("name", type=FUNCTION)
@click.option("--min", "least", type=click.IntRange(0, 1000), help="Instances kept warm.")
@click.option("--max", "most", type=click.IntRange(1, 1000), help="Instances at most.")
@_json
def set_(name: str, least: int | None, most: int | None, as_json: bool) -> None:
    """Set how many instances a function has, over the catalogue, until `reset`."""
    if least is None and most is None:
        raise Failed("nothing to set", hint="Say --min, --max or both.", code=2)
    wanted = {k: v for k, v in (("min", least), ("max", most)) if v is not None}
    _said(Router().set(name, "set", **wanted), as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def reset(name: str, as_json: bool) -> None:
    """Take back what was set at run time: as the catalogue says."""
    _said(Router().set(name, "reset"), as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def forget(name: str, as_json: bool) -> None:
    """Drop the memory and start times measured of a function, and its failures: the next start is placed anew.

    A worker that runs now is measured again: `cortex fn cool` it first if it is the one that takes too much.
    """
    answer = Router().forget(name)
    if as_json:
        click.echo(json.dumps(answer))
        return
    count = answer["entries"]
    echo(f"{answer['id']}: {count or 'no'} measured {'entry' if count == 1 else 'entries'} dropped")


def _said(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
        return
    pinned = ", pinned" if answer["pinned"] else ""
    echo(f"{answer['id']}: at least {answer['min']}, at most {answer['max']} instances{pinned}")


def _start(start: dict[str, Any] | None) -> str:
    if start is None:
        return ""
    phases = ", ".join(f"{phase} {seconds:.1f}s" for phase, seconds in start["phases"].items())
    return f"{ago(start['at'])}, {start['total_s']:.1f}s in all: {phases}"


def memory_lines(function: dict[str, Any]) -> list[str]:
    """Say by what memory the next start is placed, on each kind of device where something is known, with the readings
    of the last starts."""
    declared = f"declared {function['vram_mb']} MiB" if function["vram_mb"] else ""
    found = []
    for one in function["measured"]:
        readings = ", ".join(f"{r['memory_mb']}{'' if r['served'] else ' before it served'}" for r in one["readings"])
        starts = f", last starts: {readings}" if readings else ""
        known = f"measured {one['memory_mb']} MiB on {one['device']}{starts}"
        found.append(known if one["counts"] else f"{declared} ({known})")
    return found or ([declared] if declared else [])


def _started(instance: dict[str, Any]) -> str:
    """How long its start took, and by which way where that says something."""
    if instance["start_s"] is None:
        return "-"
    way = f", {instance['path']}" if instance["path"] not in ("", "plain") else ""
    return f"{instance['start_s']:.1f}s{way}"


def _lately(bucket: dict[str, Any] | None) -> str:
    if bucket is None:
        return ""
    said = f"{bucket['requests']} requests, {bucket['errors']} failed"
    if took := latency_line(bucket):
        said += f", {took}"
    if bucket["tokens_per_s"] is not None:
        said += f", {bucket['tokens_per_s']:.1f} tokens/s"
    return said


def _until(at: float | None) -> str:
    return span(at - time.time()) if at and at > time.time() else ""
