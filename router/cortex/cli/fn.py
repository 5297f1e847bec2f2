"""`cortex fn`: shows and controls functions."""

import fnmatch
import time
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

import rich_click as click
from msgspec.structs import asdict

from cortex.cli.client import Router
from cortex.cli.exits import USAGE, Failed
from cortex.cli.lazy import Later, LazyGroup
from cortex.cli.names import FUNCTION
from cortex.cli.tables import ago, console, print_rows, span
from cortex.cli.visible import echo, echo_json
from cortex.functions.lifecycle import PARKED, State
from cortex.functions.spec import Park
from cortex.router.api_types import FunctionView, InstanceView
from cortex.router.overview.wording import departure, eviction_reason, parked_lines, step, unparkable_lines
from cortex.router.plan_types import Effect, Plan

if TYPE_CHECKING:
    from rich.progress import Progress

POLL_S = 0.15
BEHIND_S = 5.0
"""How long a router may show what was before a command: it, or another of its processes, has not read the record."""
GONE = ("cold", "failing")
_COLUMNS = (
    "FUNCTION", "ALIASES", "ENGINE", "STATE", "INSTANCES", "HOST", "MEMORY MIB", "IN FLIGHT", "LAST USED", "IDLE IN",
)  # fmt: skip
_OPTIONAL = ("MEMORY MIB", "ALIASES", "ENGINE", "LAST USED", "INSTANCES", "HOST")


class Drain:
    """What a command looks for while the instances that it drained end."""

    def __init__(self, now: float) -> None:
        """`now` is a monotonic time after the drain began."""
        self._counts_from = now + BEHIND_S
        """When an instance that is shown as ready is so again, not still."""

    def was_cancelled(self, states: Collection[str], now: float) -> bool:
        """Whether all serve again, since requests outlasted the grace period, by their states at a time."""
        if any(state != State.READY for state in states):
            self._counts_from = now
            return False
        return bool(states) and now >= self._counts_from


@click.group(
    cls=LazyGroup,
    later={
        "show": Later(
            "cortex.cli.fn_show:show", "Show the details of a function: settings, instances, last start, last failure."
        ),
        "plan": Later("cortex.cli.fn_show:plan", "Show the plan of a start: the host, and the evictions."),
        "history": Later(
            "cortex.cli.fn_show:history",
            "Show a function's latest decisions: starts by phase, evictions, drains, failures.",
        ),
        "logs": Later(
            "cortex.cli.fn_show:logs", "Show the log of a function's worker on any host, including one that has exited."
        ),
        "pin": Later(
            "cortex.cli.fn_show:pin", "Pin a function: once it is ready, it is never reaped and never evicted."
        ),
        "unpin": Later("cortex.cli.fn_show:unpin", "Unpin a function: it may be reaped and evicted again."),
        "set": Later(
            "cortex.cli.fn_show:set_", "Override a function's minimum and maximum number of instances until `reset`."
        ),
        "reset": Later("cortex.cli.fn_show:reset", "Remove the runtime overrides of a function."),
        "forget": Later("cortex.cli.fn_show:forget", "Delete a function's measured memory, start times and failures."),
        "prefetch": Later(
            "cortex.cli.prefetch:prefetch",
            "Fetch a function's weights to a host without starting it; for a branch, its current commit.",
        ),
        "estimate": Later(
            "cortex.cli.prefetch:estimate",
            "Estimate a function's memory from its files and its model's configuration, without loading it.",
        ),
    },
)
def fn() -> None:
    """Show functions; warm and cool them."""


@fn.command()
@click.argument("pattern", default="")
@click.option("--state", "wanted", default="", help="Only functions in this state, such as ready, cold or failing.")
@click.option("--host", default="", help="Only functions with an instance on this host.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(pattern: str, wanted: str, host: str, as_json: bool) -> None:
    """List functions with their state and instances.

    PATTERN is a part of an id or alias, or a pattern with `*` and `?` for the whole of one.
    """
    every = Router().functions()
    functions = [f for f in every if _is_listed(f, pattern, wanted, host)]
    if as_json:
        echo_json(functions, indent=2)
        return
    if every and not functions:
        counts = Counter(f.state for f in every)
        echo(
            "No function matches; now there are " + ", ".join(f"{n} {state}" for state, n in counts.most_common()) + "."
        )
        return
    rows: list[tuple[str, ...]] = [
        (
            f.id,
            ", ".join(f.aliases) or "-",
            f.engine,
            brief_state(f),
            str(len(f.instances)),
            ", ".join(sorted({i.host for i in f.instances})) or "-",
            _memory(f),
            f"{f.in_flight}" + (f" (+{f.waiting} waiting)" if f.waiting else ""),
            ago(f.last_used),
            idle_in(f),
        )
        for f in functions
    ]
    notes = [(f.id, long_state(f)) for f in functions]
    if any(f.variant_of for f in functions):
        bases = (f.variant_of or "-" for f in functions)
        rows = [(id, base, *rest) for (id, *rest), base in zip(rows, bases, strict=True)]
        columns = (_COLUMNS[0], "VARIANT OF", *_COLUMNS[1:])
        print_rows(columns, rows, optional=(*_OPTIONAL, "VARIANT OF"), notes=notes)
        return
    print_rows(_COLUMNS, rows, optional=_OPTIONAL, notes=notes)


def _is_listed(function: FunctionView, pattern: str, wanted: str, host: str) -> bool:
    """Whether a function matches what is to be listed; empty texts match all."""
    if wanted and function.state != wanted:
        return False
    if host and not any(i.host == host for i in function.instances):
        return False
    names = (function.id, *function.aliases)
    if any(c in pattern for c in "*?["):
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)
    return any(pattern in name for name in names)


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
        show_plan(router.plan_warm(name), as_json)
        return
    instance = router.warm(name)
    function = _follow(router, name, instance, timeout_s) if wait else router.function(name)
    if as_json:
        echo_json({"instance": instance, **asdict(function)})
    else:
        echo(f"{function.id}: {function.state}")


@fn.command()
@click.argument("name", type=FUNCTION)
@click.option("--now", is_flag=True, help="At once: requests in flight are cut.")
@click.option("--park", is_flag=True, help="Park them where that is possible, instead of stopping them.")
@click.option("--timeout", "timeout_s", type=float, default=120, show_default=True, help="Longest wait, seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def cool(name: str, now: bool, park: bool, timeout_s: float, as_json: bool) -> None:
    """Drain a function's instances after the requests in flight, and wait until they have stopped or are parked."""
    if now and park:
        raise Failed("--now cuts requests and --park waits for them", hint="Use one of them.", code=USAGE)
    router = Router()
    draining = set(router.cool(name, now=now, park=park))
    drain, deadline = Drain(time.monotonic()), time.monotonic() + timeout_s
    with progress_bar() as progress:
        task = progress.add_task(f"cooling {name}", total=None)
        while True:
            function = router.function(name)
            remaining = [i for i in function.instances if i.id in draining and not (park and i.state in PARKED)]
            if not remaining:
                break
            if drain.was_cancelled([i.state for i in remaining], time.monotonic()):
                busy = sum(i.in_flight for i in remaining)
                raise Failed(
                    f"{function.id} stays warm: {busy} requests were still in flight after the grace period",
                    hint="`--now` cuts them.",
                )
            if time.monotonic() > deadline:
                raise Failed(f"{function.id} is still {remaining[0].state} after {timeout_s:g} s")
            progress.update(
                task, description=f"{function.id}: {remaining[0].state}, {remaining[0].in_flight} in flight"
            )
            time.sleep(POLL_S)
    if as_json:
        echo_json({"cooled": sorted(draining), **asdict(function)})
    else:
        echo(f"{function.id}: {function.state}" + ("" if draining else " (nothing was warm)"))
        stopped = draining - {i.id for i in function.instances}
        if park and stopped:
            echo(f"stopped instead of parked: {_why_stopped(function)}")


def _why_stopped(function: FunctionView) -> str:
    """Say why an instance that was to be parked has stopped."""
    if function.park == Park.STOP:
        return 'its `park` is "stop"'
    return "; ".join(unparkable_lines(function)) or "`cortex doctor` says what its host can do"


def show_plan(plan: Plan, as_json: bool) -> None:
    """Print the plan of a start. Raises Failed if no host can run it."""
    if as_json:
        echo_json(plan)
    else:
        _print_plan(plan)
    if plan.effect is Effect.IMPOSSIBLE:
        raise Failed(
            f"{plan.function} cannot be placed now",
            hint="`cortex host show NAME` shows its memory and protected instances.",
        )


def _print_plan(plan: Plan) -> None:
    start = plan.start
    if start is not None and plan.effect is Effect.NOTHING:
        echo(f"{plan.function} is ready or starting on {start.host} already ({start.instance})")
    elif start is not None:
        where = f"{start.host}, {', '.join(start.devices)}"
        verb = f"return from {start.tier}" if start.tier else "start"
        echo(f"{plan.function} would {verb} on {where}: {start.memory_mb} MiB each ({start.memory_from})")
        for victim in plan.evictions:
            why = eviction_reason(victim, plan.strategy)
            facts = ", ".join(filter(None, (f"idle for {span(victim.idle_s)}", departure(victim))))
            echo(f"  evicting {victim.function} ({facts}){why and f': {why}'}")
        for candidate in plan.stays:
            echo(f"  {candidate.function} stays: {candidate.protection}")
        if start.retry_at is not None:
            echo("  its starts keep failing; warming ignores the back-off")
    for host, reason in plan.refusals.items():
        echo(f"  not {host}: {reason}")


def _follow(router: Router, name: str, instance: str, timeout_s: float) -> FunctionView:
    """Show a start's progress until it is ready. Raises Failed."""
    deadline = time.monotonic() + timeout_s
    revision = ""
    with progress_bar() as progress:
        task = progress.add_task(f"warming {name}", total=None)
        while True:
            function = router.function(name)
            if function.revision != revision:
                # The entry or the alias has changed since, so the instance has an old revision.
                instance = router.warm(name) if revision else instance
                revision = function.revision
                continue
            mine = next((i for i in function.instances if i.id == instance), None)
            if mine is not None and mine.state == "ready":
                return function
            # A start that ran out of memory is retried with more memory, under another id.
            retry = next((i for i in function.instances if i.id.startswith(f"{instance}-")), None)
            if mine is None and retry is not None:
                instance = retry.id
                continue
            if mine is None and function.failure:
                last = "".join(f"\n  {line}" for line in router.last_lines(function))
                raise Failed(f"{function.id} did not start: {function.failure}{last}")
            if time.monotonic() > deadline:
                raise Failed(f"{function.id} is still {function.state} after {timeout_s:g} s")
            if mine is not None:
                progress.update(task, description=f"{function.id} on {mine.host}: {progress_text(mine, function.now)}")
            time.sleep(POLL_S)


def progress_bar() -> "Progress":
    """Return a progress line; silent in a pipe."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    out = console()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )


def progress_text(instance: InstanceView, now: float) -> str:
    """Return an instance's state and, while it starts, its phase, progress and remaining time."""
    text = str(instance.state)
    if phase := step(instance):
        text += f", {phase}"
    if instance.progress is not None:
        text += f" {instance.progress:.0%}"
    if instance.ready_at is not None:
        text += f" ({span(max(0.0, instance.ready_at - now))} left)"
    elif instance.fetched_at is not None:
        text += f" (fetched in {span(max(0.0, instance.fetched_at - now))})"
    return text


def _memory(function: FunctionView) -> str:
    """Return the memory of one instance per device, with its source."""
    values = [f"{i.memory_mb} ({i.memory_from})" for i in function.instances if i.memory_mb and i.state not in PARKED]
    parked = [f"{i.held_mb} ({i.state})" for i in function.instances if i.state in PARKED]
    return next(iter(values + parked), "-")


def brief_state(function: FunctionView) -> str:
    """Return a function's state as one word, with the progress of its start."""
    shares = [i.progress for i in function.instances if i.state == function.state and i.progress is not None]
    return f"{function.state} {shares[0]:.0%}" if shares else function.state


def long_state(function: FunctionView) -> str:
    """Return what there is to say of a function's state beyond a word, as one line; empty: nothing."""
    text = state(function)
    parts = [text] if text not in (function.state, brief_state(function)) else []
    parts += parked_lines(function)
    if function.failure and function.state in GONE:
        parts.append(function.failure)
    if function.blocked:
        parts.append(f"cannot start: {function.blocked}")
    silent = {i.host: i.silent_since for i in function.instances if i.silent_since is not None}
    parts += [f"{host} has been silent for {span(function.now - since)}" for host, since in silent.items()]
    return "; ".join(parts)


def state(function: FunctionView) -> str:
    """Return a function's state, with the progress of its start or the time of its next attempt."""
    if function.state == "failing" and function.retry_at:
        return f"failing (retry in {span(function.retry_at - function.now)})"
    steps = [i.adapter_steps[function.id] for i in function.instances if function.id in i.adapter_steps]
    if steps and function.state == "starting":
        return f"starting, adapter: {steps[0]}"
    starting = [i for i in function.instances if i.state == function.state and i.phase]
    return progress_text(starting[0], function.now) if starting else function.state


def idle_in(function: FunctionView) -> str:
    """Return when the first instance of a function is reaped."""
    times = [i.reap_at for i in function.instances if i.reap_at is not None]
    return span(max(0.0, min(times) - function.now)) if times else "-"
