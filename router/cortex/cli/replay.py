"""`cortex replay`: what would have happened with other hosts or another catalogue."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import rich_click as click
from msgspec import Struct
from msgspec.structs import replace
from rich.progress import Progress

from cortex.cli.client import Router
from cortex.cli.durations import Span
from cortex.cli.exits import NOT_FOUND, Failed
from cortex.cli.tables import console, print_rows, quantity, span
from cortex.cli.visible import echo, echo_json
from cortex.cli.what_if.fleet import ReplayFleet
from cortex.cli.what_if.past import Measured, Past, Tally, read_past
from cortex.functions.catalogue import Catalogue, CatalogueError
from cortex.functions.names import did_you_mean
from cortex.functions.spec import revision
from cortex.functions.variants import fold, with_instances
from cortex.platform.record import Device, HostRecord
from cortex.platform.settings_file import declared_devices
from cortex.router.api_types import FunctionView, HostView
from cortex.router.live_catalogue import load

MOST_DECISIONS = 5000
SHOW_PROGRESS_S = 2.0
ASSUMPTIONS = (
    "Requests to a ready instance leave no decision: an instance that stayed ready counts as in use at half its "
    "`idle_after_s`, until its last use.",
    "A start takes as long as the function's last one; one without any, as the middle one of all functions.",
    "Weights are on every host.",
)


class Row(Struct, frozen=True):
    """One function."""

    function: str
    did: Tally
    would: Tally


class ReplayAnswer(Struct, frozen=True, kw_only=True):
    """The JSON of `cortex replay`. Times are Unix seconds."""

    since: float
    until: float
    complete: bool
    """Whether the decisions reach back to the time that `--since` names."""
    hosts: tuple[str, ...]
    functions: tuple[Row, ...]
    assumptions: tuple[str, ...] = ASSUMPTIONS


@click.command()
@click.option("--since", "since_s", type=Span(), default="7d", show_default=True, help="How far back to begin.")
@click.option(
    "--models", type=click.Path(path_type=Path), default=Path("models.toml"), show_default=True,
    help="The catalogue that the fleet would have had.",
)  # fmt: skip
@click.option("--add-host", "added", multiple=True, metavar="[NAME=]2x24GB", help="One more host, with these GPUs.")
@click.option("--remove-host", "removed", multiple=True, metavar="NAME", help="One host less.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def replay(since_s: float, models: Path, added: Sequence[str], removed: Sequence[str], as_json: bool) -> None:
    """Show what would have happened with another catalogue or other hosts, beside what did.

    The decisions of the past are read from the router, and their requests are sent to the same scheduler on a virtual
    clock. The fleet itself is not touched.
    """
    if since_s <= 0:
        raise click.BadParameter("is not more than 0: write for example 7d or 12h", param_hint="--since")
    catalogue = _catalogue(models)
    router = Router()
    views = router.hosts()
    hosts = _hosts(views.hosts, added, removed)
    decisions = router.decisions(MOST_DECISIONS)
    now = time.time()
    begin = now - since_s
    complete = len(decisions) < MOST_DECISIONS or decisions[-1].at <= begin
    if decisions:
        begin = max(begin, decisions[-1].at)
    if not decisions or decisions[0].at < now - since_s:
        raise Failed(
            f"there is no decision in the last {span(since_s)}", hint="`cortex events` shows the last ones; see --since"
        )
    functions = [f for f in router.functions() if not f.variant_of]
    base_ids = {f.id: f.base_id for f in catalogue.functions.values()}
    catalogue = replace(catalogue, functions=with_instances(fold(catalogue.functions)))
    past = read_past(
        (replace(d, function=base_ids.get(d.function, d.function)) for d in decisions),
        begin,
        now,
        idle_after_s=lambda f: catalogue.functions[f].idle_after_s if f in catalogue.functions else 300.0,
        last_used={f.id: f.last_used for f in functions if f.last_used is not None},
    )
    cordoned = frozenset(h.name for h in views.hosts if h.cordoned)
    fleet = ReplayFleet(catalogue.functions, hosts, cordoned, _add_measurements(past, functions, catalogue))
    would = _with_progress(fleet.run)
    names = sorted(past.did.keys() | would.keys())
    answer = ReplayAnswer(
        since=round(begin, 3),
        until=round(now, 3),
        complete=complete,
        hosts=tuple(h.name for h in hosts),
        functions=tuple(Row(n, past.did.get(n, Tally()), would.get(n, Tally())) for n in names),
    )
    if as_json:
        echo_json(answer, indent=2)
    else:
        _print(answer, catalogue)


def _catalogue(path: Path) -> Catalogue:
    try:
        return load(path, strict=True)
    except CatalogueError as error:
        raise Failed(str(error), hint=f"{quantity(len(error.problems), 'problem')} in {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{path}: cannot be read: {error}", hint="`--models FILE` names a catalogue.") from None


def _hosts(views: Sequence[HostView], added: Sequence[str], removed: Sequence[str]) -> list[HostRecord]:
    """Return the hosts of the replay. Raises Failed or BadParameter."""
    present = [v.name for v in views]
    for name in removed:
        if name not in present:
            raise Failed(f"no host is named '{name}'{did_you_mean(name, present)}", code=NOT_FOUND)
    hosts = [_bare(v) for v in views if v.name not in removed]
    engines = {k: v for h in views for k, v in h.engines.items()}
    servers = tuple(sorted({s for h in views for s in h.servers}))
    for number, text in enumerate(added, 1):
        name, _, gpus = text.rpartition("=")
        declared = declared_devices(gpus)
        if declared is None:
            raise click.BadParameter(f"'{text}' is not like 2x24GB or big=1x80GB,2x24GB", param_hint="--add-host")
        name = name or f"added-{number}"
        if name in {h.name for h in hosts}:
            raise click.BadParameter(
                f"there is a host '{name}' already: write {name}-2={gpus}", param_hint="--add-host"
            )
        devices = tuple(
            Device(id=f"{name} GPU {n}", name=d.name, kind="gpu", total_mb=d.vram_mb) for n, d in enumerate(declared)
        )
        hosts.append(HostRecord(name=name, address="", engines=engines, servers=servers, devices=devices))
    if not hosts:
        raise Failed("no host is left to replay on", hint="`--add-host 2x24GB` adds one.")
    return hosts


def _bare(view: HostView) -> HostRecord:
    """Return a host as its agent publishes it, without what runs there."""
    devices = tuple(
        Device(id=d.id, name=d.name, kind=d.kind, total_mb=d.total_mb, reserve_mb=d.reserve_mb, note=d.note)
        for d in view.devices
    )
    return HostRecord(
        name=view.name, address=view.address, labels=view.labels, engines=view.engines, servers=view.servers,
        devices=devices, weights=view.weights,
    )  # fmt: skip


def _add_measurements(past: Past, views: Sequence[FunctionView], catalogue: Catalogue) -> Past:
    """Return the past with what the ledger has: start times of functions that did not start in it, and the memory of
    those whose worker's command the catalogue does not change."""
    measured = dict(past.measured)
    for view in views:
        known = measured.get(view.id) or Measured(start_s=view.expected_start_s or 0.0)
        function = catalogue.functions.get(view.id)
        if function is not None and revision(function) == view.revision:
            known = replace(known, memory_mb=max((m.memory_mb for m in view.measured if m.counts), default=0))
        measured[view.id] = known
    return replace(past, measured=measured)


def _with_progress(run: Callable[[Callable[[float], None]], dict[str, Tally]]) -> dict[str, Tally]:
    """Run, and show the progress of what takes longer than `SHOW_PROGRESS_S`."""
    began = time.monotonic()
    with Progress(console=console(), transient=True, disable=not console().is_terminal) as bar:
        task = bar.add_task("replaying", total=1.0, visible=False)

        def show(share: float) -> None:
            bar.update(task, completed=share, visible=time.monotonic() - began > SHOW_PROGRESS_S)

        return run(show)


def _print(answer: ReplayAnswer, catalogue: Catalogue) -> None:
    rows = [
        [
            row.function if row.function in catalogue.functions else f"{row.function} (not in the catalogue)",
            f"{row.did.starts} → {row.would.starts}",
            f"{row.did.waits} → {row.would.waits}",
            f"{span(row.did.wait_s)} → {span(row.would.wait_s)}",
            f"{span(row.did.longest_wait_s)} → {span(row.would.longest_wait_s)}",
            f"{row.did.evictions} → {row.would.evictions}",
            f"{row.did.not_served} → {row.would.not_served}",
        ]
        for row in answer.functions
    ]
    print_rows(("FUNCTION", "STARTS", "WAITS", "WAITED", "LONGEST", "EVICTED", "NOT SERVED"), rows)
    echo(f"\nDid → would, over the last {span(answer.until - answer.since)}, on {', '.join(answer.hosts)}.")
    if not answer.complete:
        echo(f"The decisions reach no further back: the record keeps the last {MOST_DECISIONS}.")
    for line in answer.assumptions:
        echo(line)
