"""`cortex fn`: what the functions are doing, and telling them what to do."""

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
    """See the functions; warm them, cool them."""


@fn.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(as_json: bool) -> None:
    """List every function with its state and instances."""
    found = Router().functions()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = table(
        "FUNCTION", "ALIASES", "ENGINE", "STATE", "INSTANCES", "HOST", "MEMORY MIB", "IN FLIGHT", "LAST USED", "IDLE IN"
    )
    for f in found:
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
    for f in found:
        if f["failure"] and f["state"] in GONE:
            out.print(f"\n{f['id']}: {f['failure']}", markup=False)


@fn.command()
@click.argument("name", type=FUNCTION)
@click.option("--plan", is_flag=True, help="Only say what it would do: where, and who would be evicted.")
@click.option("--wait", is_flag=True, help="Wait until it is ready; exit 0 only then.")
@click.option("--timeout", "timeout_s", type=float, default=3600, show_default=True, help="Longest wait, seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def warm(name: str, plan: bool, wait: bool, timeout_s: float, as_json: bool) -> None:
    """Bring a function up now, whatever failed before."""
    router = Router()
    if plan:
        show_plan(router.plan(name), name, as_json)
        return
    instance = router.warm(name)
    function = _followed(router, name, instance, timeout_s) if wait else router.function(name)
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
    """Let a function's instances go, after the requests in flight, and wait until they are gone."""
    router = Router()
    going = set(router.cool(name, now=now))
    deadline = time.monotonic() + timeout_s
    with progress_bar() as progress:
        task = progress.add_task(f"cooling {name}", total=None)
        while True:
            function = router.function(name)
            left = [i for i in function["instances"] if i["id"] in going]
            if not left:
                break
            if all(i["state"] == "ready" for i in left):
                busy = sum(i["in_flight"] for i in left)
                raise Failed(
                    f"{function['id']} stays: {busy} requests were still in flight after the grace",
                    hint="`--now` cuts them.",
                )
            if time.monotonic() > deadline:
                raise Failed(f"{function['id']} is still {left[0]['state']} after {timeout_s:g} s")
            progress.update(task, description=f"{function['id']}: {left[0]['state']}, {left[0]['in_flight']} in flight")
            time.sleep(POLL_S)
    if as_json:
        click.echo(json.dumps({"cooled": sorted(going), **function}))
    else:
        echo(f"{function['id']}: {function['state']}" + ("" if going else " (nothing was warm)"))


def show_plan(answer: dict[str, Any], name: str, as_json: bool) -> None:
    """Print what a start would do. Raises Failed when it cannot be done."""
    planned = answer["plan"]
    if as_json:
        click.echo(json.dumps(answer))
    elif planned and planned["there"]:
        echo(f"{name} is up or coming on {planned['host']} already ({planned['there']})")
    elif planned:
        where = f"{planned['host']}, {', '.join(planned['devices'])}"
        echo(f"{name} would go to {where}: {planned['memory_mb']} MiB each ({planned['memory_from']})")
        order = {one["instance"]: one for one in answer["leaving"]}
        for victim in planned["evict"]:
            echo(f"  evicting {victim['function']} (idle for {span(victim['idle_s'])}){_chosen(order, victim)}")
        for stays in (one for one in answer["leaving"] if one["protected"] and planned["evict"]):
            echo(f"  {stays['function']} stays: {stays['protected']}")
        if planned["retry_at"]:
            echo("  although its starts keep failing")
    if not as_json:
        for host, reason in answer["refused"].items():
            echo(f"  not {host}: {reason}")
    if not planned:
        raise Failed(
            f"{name} cannot be placed now", hint="`cortex host show NAME` says who holds its memory, and why they stay."
        )


def _chosen(order: dict[str, dict[str, Any]], victim: dict[str, Any]) -> str:
    """Say why it is this one that leaves."""
    found = order.get(victim["instance"])
    if found is None or found["protected"]:
        return ""
    return f": {found['why']}" + ("; those before it do not free enough" if found["rank"] > 1 else "")


def _followed(router: Router, name: str, instance: str, timeout_s: float) -> dict[str, Any]:
    """Follow a start to its end, showing how far it has come."""
    deadline = time.monotonic() + timeout_s
    revision = ""
    with progress_bar() as progress:
        task = progress.add_task(f"warming {name}", total=None)
        while True:
            function = router.function(name)
            if function["revision"] != revision:
                # The entry was edited meanwhile, or the alias leads elsewhere: what was started is not what is meant.
                instance = router.warm(name) if revision else instance
                revision = function["revision"]
                continue
            mine = next((i for i in function["instances"] if i["id"] == instance), None)
            if mine is not None and mine["state"] == "ready":
                return function
            # A start that ran out of memory is made again, with more of it, under another id.
            again = next((i for i in function["instances"] if i["id"].startswith(f"{instance}-")), None)
            if mine is None and again is not None:
                instance = again["id"]
                continue
            if mine is None and function["failure"]:
                last = "".join(f"\n  {line}" for line in router.last_lines(function))
                raise Failed(f"{function['id']} did not start: {function['failure']}{last}")
            if time.monotonic() > deadline:
                raise Failed(f"{function['id']} is still {function['state']} after {timeout_s:g} s")
            if mine is not None:
                progress.update(task, description=f"{function['id']} on {mine['host']}: {coming(mine)}")
            time.sleep(POLL_S)


def progress_bar() -> Progress:
    """Return a line that shows what is being waited for; silent in a pipe."""
    out = console()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )


def coming(instance: dict[str, Any]) -> str:
    """Say an instance's state and, on its way up, its step, how far that is, and how long the start still takes."""
    said = str(instance["state"])
    if instance["phase"] and instance["phase"] != instance["state"]:
        said += f", {instance['phase']}"
    if instance["progress"] is not None:
        said += f" {instance['progress']:.0%}"
    if instance["left_s"] is not None:
        said += f" ({span(instance['left_s'])} left)"
    return said


def _host(instance: dict[str, Any]) -> str:
    """Say where an instance is, and whether that is known only from before its host fell silent."""
    silent_s = instance.get("silent_s")
    return str(instance["host"]) if silent_s is None else f"{instance['host']} (silent for {span(silent_s)})"


def _memory(function: dict[str, Any]) -> str:
    """What one instance takes on each of its devices, and where that number comes from."""
    found = [f"{i['memory_mb']} ({i['memory_from']})" for i in function["instances"] if i["memory_mb"]]
    return found[0] if found else "-"


def state(function: dict[str, Any]) -> str:
    """Say a function's state: how far its start is, or when it is tried again."""
    if function["state"] == "failing" and function["retry_at"]:
        return f"failing (retry in {span(function['retry_at'] - time.time())})"
    on_its_way = [i for i in function["instances"] if i["state"] == function["state"] and i["phase"]]
    return coming(on_its_way[0]) if on_its_way else str(function["state"])


def _countdown(function: dict[str, Any]) -> str:
    times = [i["idle_in_s"] for i in function["instances"] if i["idle_in_s"] is not None]
    return span(min(times)) if times else "-"
