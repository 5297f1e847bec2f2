"""`cortex fn show|plan|history|logs|pin|unpin|set|reset|forget`: one function in detail, its settings at run time."""

import sys

import rich_click as click
from msgspec.structs import asdict

from cortex.cli.client import Router
from cortex.cli.decisions import decision_table
from cortex.cli.exits import Failed
from cortex.cli.fn import progress_text, show_plan
from cortex.cli.names import FUNCTION
from cortex.cli.tables import ago, console, print_rows, span
from cortex.cli.top import latency_line
from cortex.cli.visible import echo, echo_json, for_terminal
from cortex.functions.lifecycle import PARKED
from cortex.router.api_types import FunctionSettings, FunctionView, InstanceView, LastStart, TrafficTotal
from cortex.router.overview.wording import parked_lines, retention, start_lines, start_text, unparkable_lines

_INSTANCES = ("INSTANCE", "HOST", "STATE", "DEVICES", "MEMORY MIB", "USED", "IN FLIGHT", "STARTED IN", "IDLE IN")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def show(name: str, as_json: bool) -> None:
    """Show the details of a function: settings, instances, last start, last failure."""
    router = Router()
    function = router.function(name)
    recent = router.traffic().functions.get(function.id)
    if as_json:
        echo_json({**asdict(function), "last_five_minutes": recent}, indent=2)
        return
    out = console()
    out.print(f"[bold]{function.id}[/]: {function.state}")
    facts = {
        "aliases": ", ".join(function.aliases),
        "variant of": function.variant_of and f"{function.variant_of}, whose instances serve it",
        "shared with": ", ".join(function.variants),
        "engine": function.engine,
        "instances": f"{len(function.instances)} (at least {function.min}, at most {function.max})"
        + (", pinned" if function.pinned else ""),
        "kept warm": retention(function),
        "hours change in": _until(function.hours_change, function.now),
        "set at run time": ", ".join(function.overridden),
        "in flight": f"{function.in_flight}, {function.waiting} waiting",
        "in line": "; ".join(f"it {wait}" for wait in function.in_line),
        "last used": ago(function.last_used),
        "last five minutes": _recent(recent),
        "last start": _start(function.last_start),
        "a start takes": span(function.expected_start_s) if function.expected_start_s else "",
        "starts": "; ".join(start_lines(function)),
        "memory": "; ".join(memory_lines(function)),
        "parked": "; ".join(parked_lines(function)),
        "not parked": "; ".join(unparkable_lines(function)),
        "last failure": function.failure or "",
        "next attempt in": _until(function.retry_at, function.now),
    }
    for key, value in facts.items():
        if value:
            out.print(f"  {key:18} {value}", markup=False)
    for line in router.last_lines(function):
        out.print(f"  {'':18} {line}", markup=False)
    if function.instances:
        rows = [
            (
                i.id,
                i.host,
                i.state if i.progress is None else f"{i.state} {i.progress:.0%}",
                ", ".join(i.devices) or "-",
                f"{i.held_mb} ({i.state if i.state in PARKED else i.memory_from})",
                "-" if i.used_mb is None else str(i.used_mb),
                str(i.in_flight),
                _duration(i),
                span(None if i.reap_at is None else max(0.0, i.reap_at - function.now)),
            )
            for i in function.instances
        ]
        long = [(i.id, progress_text(i, function.now)) for i in function.instances if i.phase]
        print_rows(_INSTANCES, rows, optional=("USED", "STARTED IN", "DEVICES", "MEMORY MIB"), notes=long)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def plan(name: str, as_json: bool) -> None:
    """Show the plan of a start: the host, and the evictions. Nothing is started."""
    show_plan(Router().plan_warm(name), as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@click.option("-n", "--limit", type=click.IntRange(1, 5000), default=50, show_default=True, help="Decisions to show.")
@_json
def history(name: str, limit: int, as_json: bool) -> None:
    """Show a function's latest decisions: starts by phase, evictions, drains, failures."""
    router = Router()
    function = router.function(name)
    decisions = router.decisions(limit, function=function.id)
    if as_json:
        echo_json({"last_start": function.last_start, "decisions": decisions}, indent=2)
        return
    if function.last_start:
        console().print(f"last start: {_start(function.last_start)}", markup=False)
    console().print(decision_table(decisions, function=False))


@click.command()
@click.argument("name", type=FUNCTION)
@click.option("-f", "--follow", is_flag=True, help="Stream new lines until the worker exits.")
@click.option("-n", "--lines", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Lines to show.")
@click.option(
    "--run", type=click.Choice(["current", "previous"]), default="current", show_default=True, help="Which run."
)
@click.option("--host", default="", help="Of the worker on this host.")
@click.option("--instance", default="", help="Of this instance.")
@click.option(
    "-g", "--grep", default="", metavar="TEXT", help="Only lines with this text; case-sensitive if it has capitals."
)
@click.option("--raw", is_flag=True, help="Send control characters to the terminal instead of showing them.")
def logs(name: str, follow: bool, lines: int, run: str, host: str, instance: str, grep: str, raw: bool) -> None:
    """Show the log of a function's worker on any host, including one that has exited."""
    query: dict[str, str | int] = {"lines": lines, "follow": int(follow), "run": run, "grep": grep}
    if not instance:
        query |= {"function": name, **({"host": host} if host else {})}
    path = f"/admin/instances/{instance}/logs" if instance else "/admin/logs"
    for line in Router().lines(path, query):
        sys.stdout.write((line if raw else for_terminal(line, sys.stdout)) + "\n")
        sys.stdout.flush()


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def pin(name: str, as_json: bool) -> None:
    """Pin a function: once it is ready, it is never reaped and never evicted."""
    _print_settings(Router().override(name, "pin"), as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def unpin(name: str, as_json: bool) -> None:
    """Unpin a function: it may be reaped and evicted again. `pinned_on` in the catalogue still applies."""
    _print_settings(Router().override(name, "unpin"), as_json)


@click.command("set")
@click.argument("name", type=FUNCTION)
@click.option("--min", "least", type=click.IntRange(0, 1000), help="Minimum number of warm instances.")
@click.option("--max", "most", type=click.IntRange(1, 1000), help="Maximum number of instances.")
@_json
def set_(name: str, least: int | None, most: int | None, as_json: bool) -> None:
    """Override a function's minimum and maximum number of instances until `reset`."""
    if least is None and most is None:
        raise Failed("nothing to set", hint="Add --min, --max or both.", code=2)
    values = {k: v for k, v in (("min", least), ("max", most)) if v is not None}
    _print_settings(Router().override(name, "set", **values), as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def reset(name: str, as_json: bool) -> None:
    """Remove the runtime overrides of a function."""
    _print_settings(Router().override(name, "reset"), as_json)


@click.command()
@click.argument("name", type=FUNCTION)
@_json
def forget(name: str, as_json: bool) -> None:
    """Delete a function's measured memory, start times and failures.

    A running worker is measured again: `cortex fn cool` it first if it uses too much memory.
    """
    answer = Router().forget(name)
    if as_json:
        echo_json(answer)
        return
    count = answer.entries
    echo(f"{answer.id}: {count or 'no'} measured {'entry' if count == 1 else 'entries'} deleted")


def _print_settings(answer: FunctionSettings, as_json: bool) -> None:
    if as_json:
        echo_json(answer)
        return
    pinned = ", pinned" if answer.pinned else ""
    echo(f"{answer.id}: at least {answer.min}, at most {answer.max} instances{pinned}")


def _start(start: LastStart | None) -> str:
    if start is None:
        return ""
    phases = ", ".join(f"{phase} {seconds:.1f}s" for phase, seconds in start.phases.items())
    return f"{ago(start.at)}, {start.total_s:.1f}s in all: {phases}"


def memory_lines(function: FunctionView) -> list[str]:
    """Return the memory that the next placement uses, by kind of device, with the readings of the last starts."""
    declared = f"declared {function.vram_mb} MiB" if function.vram_mb else ""
    lines = []
    for entry in function.measured:
        readings = ", ".join(f"{r.memory_mb}{'' if r.served else ' before serving'}" for r in entry.readings)
        starts = f", last starts: {readings}" if readings else ""
        measured = f"measured {entry.memory_mb} MiB on {entry.device}{starts}"
        lines.append(measured if entry.counts else f"{declared} ({measured})")
    return lines or ([declared] if declared else [])


def _duration(instance: InstanceView) -> str:
    """Return the duration of an instance's start, its path unless it was plain, and its mode."""
    if instance.start_s is None:
        return start_text(instance) or "-"
    path = instance.path if instance.path not in ("", "plain") else ""
    return ", ".join(filter(None, (f"{instance.start_s:.1f}s", path, start_text(instance))))


def _recent(bucket: TrafficTotal | None) -> str:
    if bucket is None:
        return ""
    text = f"{bucket.requests} requests, {bucket.errors} failed"
    if latency := latency_line(bucket):
        text += f", {latency}"
    if bucket.tokens_per_s is not None:
        text += f", {bucket.tokens_per_s:.1f} tokens/s"
    return text


def _until(at: float | None, now: float) -> str:
    return span(at - now) if at and at > now else ""
