"""`cortex fn`: shows and controls functions."""

import json
import time
from typing import Any

import rich_click as click
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.lazy import LazyGroup
from cortex.cli.names import FUNCTION
from cortex.cli.tables import ago, console, span, table
from cortex.cli.visible import echo

POLL_S = 0.15
GONE = ("cold", "failing")


@click.group(
    cls=LazyGroup,
    later={
        "show": "cortex.cli.fn_show:show",
        "plan": "cortex.cli.fn_show:plan",
        "history": "cortex.cli.fn_show:history",
        "logs": "cortex.cli.fn_show:logs",
        "pin": "cortex.cli.fn_show:pin",
        "unpin": "cortex.cli.fn_show:unpin",
        "set": "cortex.cli.fn_show:set_",
        "reset": "cortex.cli.fn_show:reset",
        "forget": "cortex.cli.fn_show:forget",
        "prefetch": "cortex.cli.prefetch:prefetch",
        "estimate": "cortex.cli.prefetch:estimate",
    },
)
def fn() -> None:
    """Show functions; warm and cool them."""


@fn.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(as_json: bool) -> None:
    """List every function with its state and instances."""
    functions = Router().functions()
    if as_json:
        click.echo(json.dumps(functions, indent=2))
        return
    rows = table(
        "FUNCTION", "ALIASES", "ENGINE", "STATE", "INSTANCES", "HOST", "MEMORY MIB", "IN FLIGHT", "LAST USED", "IDLE IN"
    )
    for f in functions:
        rows.add_row(
            f["id"],
            ", ".join(f["aliases"]) or "-",
            f["engine"],
            state(f),
            str(len(f["instances"])),
            ", ".join(sorted({_host(i) for i in f["instances"]})) or "-",
            _memory(f),
            f"{f['in_flight']}" + (f" (+{f['waiting']} waiting)" if f["waiting"] else ""),
            ago(f["last_used"]),
            _countdown(f),
        )
    out = console()
    out.print(rows)
    for f in functions:
        if f["failure"] and f["state"] in GONE:
            out.print(f"\n{f['id']}: {f['failure']}", markup=False)
        if f.get("blocked"):
            out.print(f"\n{f['id']} cannot start: {f['blocked']}", markup=False)


@fn.command()
@click.argument("name", type=FUNCTION)
@click.option("--plan", is_flag=True, help="Only show the plan: the host, and the evictions.")
@click.option("--wait", is_flag=True, help="Wait until it is ready; exit 0 only then.")
@click.option("--timeout", "timeout_s", type=float, default=3600, show_default=True, help="Longest wait, seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def warm(name: str, plan: bool, wait: bool, timeout_s: float, as_json: bool) -> None:
    """Start a function now, ignoring back-off."""
    router = Router()
    if plan:
        show_plan(router.plan(name), name, as_json)
        return
    instance = router.warm(name)
    function = _follow(router, name, instance, timeout_s) if wait else router.function(name)
    if as_json:
        click.echo(json.dumps({"instance": instance, **function}))
    else:
        echo(f"{function['id']}: {function['state']}")


@fn.command()
@click.argument("name", type=FUNCTION)
@click.option("--now", is_flag=True, help="At once: requests in flight are cut.")
@click.option("--timeout", "timeout_s", type=float, default=120, show_default=True, help="Longest wait, seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def cool(name: str, now: bool, timeout_s: float, as_json: bool) -> None:
    """Drain a function's instances after the requests in flight, and wait until they have stopped."""
    router = Router()
    draining = set(router.cool(name, now=now))
    deadline = time.monotonic() + timeout_s
    with progress_bar() as progress:
        task = progress.add_task(f"cooling {name}", total=None)
        while True:
            function = router.function(name)
            remaining = [i for i in function["instances"] if i["id"] in draining]
            if not remaining:
                break
            if all(i["state"] == "ready" for i in remaining):
                busy = sum(i["in_flight"] for i in remaining)
                raise Failed(
                    f"{function['id']} stays warm: {busy} requests were still in flight after the grace period",
                    hint="`--now` cuts them.",
                )
            if time.monotonic() > deadline:
                raise Failed(f"{function['id']} is still {remaining[0]['state']} after {timeout_s:g} s")
            progress.update(
                task, description=f"{function['id']}: {remaining[0]['state']}, {remaining[0]['in_flight']} in flight"
            )
            time.sleep(POLL_S)
    if as_json:
        click.echo(json.dumps({"cooled": sorted(draining), **function}))
    else:
        echo(f"{function['id']}: {function['state']}" + ("" if draining else " (nothing was warm)"))


def show_plan(answer: dict[str, Any], name: str, as_json: bool) -> None:
    """Print the plan of a start. Raises Failed if no host can run it."""
    planned = answer["plan"]
    if as_json:
        click.echo(json.dumps(answer))
    elif planned and planned["there"]:
        echo(f"{name} is ready or starting on {planned['host']} already ({planned['there']})")
    elif planned:
        where = f"{planned['host']}, {', '.join(planned['devices'])}"
        echo(f"{name} would start on {where}: {planned['memory_mb']} MiB each ({planned['memory_from']})")
        order = {entry["instance"]: entry for entry in answer["leaving"]}
        for victim in planned["evict"]:
            echo(f"  evicting {victim['function']} (idle for {span(victim['idle_s'])}){_reason(order, victim)}")
        for entry in (e for e in answer["leaving"] if e["protected"] and planned["evict"]):
            echo(f"  {entry['function']} stays: {entry['protected']}")
        if planned["retry_at"]:
            echo("  its starts keep failing; warming ignores the back-off")
    if not as_json:
        for host, reason in answer["refused"].items():
            echo(f"  not {host}: {reason}")
    if not planned:
        raise Failed(
            f"{name} cannot be placed now",
            hint="`cortex host show NAME` shows its memory and protected instances.",
        )


def _reason(order: dict[str, dict[str, Any]], victim: dict[str, Any]) -> str:
    """Return why this instance is evicted; empty if the order has changed since."""
    entry = order.get(victim["instance"])
    if entry is None or entry["protected"]:
        return ""
    return f": {entry['why']}" + ("; earlier ones do not free enough memory" if entry["rank"] > 1 else "")


def _follow(router: Router, name: str, instance: str, timeout_s: float) -> dict[str, Any]:
    """Show a start's progress until it is ready. Raises Failed."""
    deadline = time.monotonic() + timeout_s
    revision = ""
    with progress_bar() as progress:
        task = progress.add_task(f"warming {name}", total=None)
        while True:
            function = router.function(name)
            if function["revision"] != revision:
                # The entry or the alias has changed since, so the instance has an old revision.
                instance = router.warm(name) if revision else instance
                revision = function["revision"]
                continue
            mine = next((i for i in function["instances"] if i["id"] == instance), None)
            if mine is not None and mine["state"] == "ready":
                return function
            # A start that ran out of memory is retried with more memory, under another id.
            retry = next((i for i in function["instances"] if i["id"].startswith(f"{instance}-")), None)
            if mine is None and retry is not None:
                instance = retry["id"]
                continue
            if mine is None and function["failure"]:
                last = "".join(f"\n  {line}" for line in router.last_lines(function))
                raise Failed(f"{function['id']} did not start: {function['failure']}{last}")
            if time.monotonic() > deadline:
                raise Failed(f"{function['id']} is still {function['state']} after {timeout_s:g} s")
            if mine is not None:
                progress.update(task, description=f"{function['id']} on {mine['host']}: {progress_text(mine)}")
            time.sleep(POLL_S)


def progress_bar() -> Progress:
    """Return a progress line; silent in a pipe."""
    out = console()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )


def progress_text(instance: dict[str, Any]) -> str:
    """Return an instance's state and, while it starts, its phase, progress and remaining time."""
    text = str(instance["state"])
    if instance["phase"] and instance["phase"] != instance["state"]:
        text += f", {instance['phase']}"
    if instance["progress"] is not None:
        text += f" {instance['progress']:.0%}"
    if instance["left_s"] is not None:
        text += f" ({span(instance['left_s'])} left)"
    return text


def _host(instance: dict[str, Any]) -> str:
    """Return an instance's host, with the time since its last report if it is silent."""
    silent_s = instance.get("silent_s")
    return str(instance["host"]) if silent_s is None else f"{instance['host']} (silent for {span(silent_s)})"


def _memory(function: dict[str, Any]) -> str:
    """Return the memory of one instance per device, with its source."""
    values = [f"{i['memory_mb']} ({i['memory_from']})" for i in function["instances"] if i["memory_mb"]]
    return values[0] if values else "-"


def state(function: dict[str, Any]) -> str:
    """Return a function's state, with the progress of its start or the time of its next attempt."""
    if function["state"] == "failing" and function["retry_at"]:
        return f"failing (retry in {span(function['retry_at'] - time.time())})"
    starting = [i for i in function["instances"] if i["state"] == function["state"] and i["phase"]]
    return progress_text(starting[0]) if starting else str(function["state"])


def _countdown(function: dict[str, Any]) -> str:
    times = [i["idle_in_s"] for i in function["instances"] if i["idle_in_s"] is not None]
    return span(min(times)) if times else "-"
