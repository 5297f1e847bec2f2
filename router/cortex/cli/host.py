"""`cortex host` and `cortex gpu`: shows hosts, devices and events; cordons and drains hosts; derives their tokens."""

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import rich_click as click
from msgspec import Struct
from msgspec.structs import asdict

from cortex.cli.client import Router
from cortex.cli.exits import NOT_FOUND, USAGE, Failed
from cortex.cli.fn import POLL_S, Drain, progress_bar
from cortex.cli.names import HOST
from cortex.cli.settings import config_option, settings_of
from cortex.cli.tables import ago, console, print_rows, span, table
from cortex.cli.visible import echo, echo_json
from cortex.functions.lifecycle import PARKED
from cortex.platform.record import Instance
from cortex.router.api_types import EvictionCandidate, HostView
from cortex.router.overview.wording import outcome, reason, trick_text
from cortex.router.plan_types import Effect, Plan

READINGS = frozenset({"FleetChange", "Reported", "HostRead", "LedgerRead", "MemoryRead"})
"""Events that come at intervals, whether or not anything changed."""

_HOSTS = (
    "HOST", "STATE", "DEVICES", "MEMORY MIB", "PARK RAM", "INSTANCES", "IN FLIGHT", "NEXT OUT", "ENGINES",
    "VERSION", "SEEN",
)  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")


@click.group()
def host() -> None:
    """Show hosts; cordon, uncordon and drain them."""


@click.group()
def gpu() -> None:
    """Show devices and the use of their memory."""


@host.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(as_json: bool) -> None:
    """List the hosts with their devices and engines, silent ones last."""
    hosts = Router().hosts().every
    if as_json:
        echo_json(hosts, indent=2)
        return
    rows = [
        (
            h.name,
            "silent" if h.silent_since is not None else _state(h),
            str(len(h.devices)),
            f"{sum(d.admitted_mb for d in h.devices)}/{sum(d.total_mb for d in h.devices)}",
            _park_ram(h),
            str(len(h.instances)),
            str(h.in_flight),
            h.evicted_next.function if h.evicted_next else "-",
            _engines(h),
            h.version,
            ago(h.at),
        )
        for h in hosts
    ]
    notes = [(h.name, _state(h)) for h in hosts if h.silent_since is not None]
    notes += [
        (h.name, f"{other.address} also has this name and is rejected; {h.address} is in the hosts")
        for h in hosts
        if (other := h.namesake)
    ]
    print_rows(_HOSTS, rows, optional=("ENGINES", "NEXT OUT", "VERSION", "DEVICES", "PARK RAM"), notes=notes)


@host.command()
@click.argument("name", type=HOST)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def show(name: str, as_json: bool) -> None:
    """Show the details of a host: devices, instances, eviction order, failures."""
    record = next((h for h in Router().hosts().every if h.name == name), None)
    if record is None:
        raise Failed(
            f"no live or silent host is named '{name}'", code=NOT_FOUND, hint="`cortex host ls` lists every host."
        )
    if as_json:
        echo_json(record, indent=2)
        return
    out = console()
    out.print(
        f"{name}: {_state(record)}, at {record.address}, version {record.version}, last report {ago(record.at)}",
        markup=False,
    )
    out.print(f"engines: {', '.join(record.engines) or 'none'}", markup=False)
    if record.labels:
        out.print(f"labels: {', '.join(record.labels)}", markup=False)
    for line in (*tier_lines(record), *trick_lines(record)):
        out.print(line, markup=False)
    for d in record.devices:
        holders = ", ".join(_holders(record, d.id)) or "nothing"
        note = f" ({d.note})" if d.note else ""
        out.print(f"{d.id}: {d.name}, {d.admitted_mb}/{d.total_mb} MiB: {holders}{note}", markup=False)
    rows = [
        (i.id, i.function, i.state, ago(i.since), ", ".join(i.devices) or "-", str(i.pid or "-"))
        for i in record.instances
    ]
    if rows:
        columns = ("INSTANCE", "FUNCTION", "STATE", "SINCE", "DEVICES", "PID")
        print_rows(columns, rows, optional=("PID", "DEVICES", "SINCE"), notes=[(i.id, i.why) for i in record.instances])
    if record.eviction_order:
        out.print("eviction order:", markup=False)
    for candidate in record.eviction_order:
        out.print(f"  {_candidate(candidate, record)}", markup=False)
    for f in record.failures:
        out.print(f"failed: {f.function}, {ago(f.at)}: {f.reason}", markup=False)


@host.command()
@click.argument("name")
@config_option
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write it to this file instead (mode 0600).")
def token(name: str, config: Path | None, output: Path | None) -> None:
    """Print a host's own token, derived from this machine's fleet token: the file that `[agent] token_file` of that
    host names. The host then needs no fleet token."""
    import tempfile

    from cortex.platform.keys import fleet_tokens, host_file
    from cortex.platform.settings import SettingsError

    if name.splitlines() != [name] or not name.strip():
        raise Failed("a host's name is one line of text", code=USAGE)
    try:
        text = host_file(fleet_tokens(Path(settings_of(config).token_file).expanduser()), name)
    except SettingsError as error:
        hint = "Run this where a router runs, as a user who can read the fleet token (`token_file`)."
        raise Failed(str(error), hint=hint) from None
    if output is None:
        echo(text.removesuffix("\n"))
        return
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".token-") as folder:
            fresh = Path(folder) / "token"
            fresh.touch(0o600)
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(output)
    except OSError as error:
        raise Failed(f"{output}: cannot be written: {error.strerror}") from None
    echo(f"{output}: the token of host '{name}'. Only {name} may have it.")


@host.command()
@click.argument("name", type=HOST)
@_json
def cordon(name: str, as_json: bool) -> None:
    """Exclude a host from new placements. Its instances keep serving. The cordon survives restarts."""
    result = Router().cordon(name, "cordon")
    echo_json(result) if as_json else echo(f"{name}: cordoned")


@host.command()
@click.argument("name", type=HOST)
@_json
def uncordon(name: str, as_json: bool) -> None:
    """Include a host in new placements again."""
    result = Router().cordon(name, "uncordon")
    echo_json(result) if as_json else echo(f"{name}: open")


@host.command()
@click.argument("name", type=HOST)
@click.option("--plan", is_flag=True, help="Only show the plan: what would move where, and what would go cold.")
@click.option("--timeout", "timeout_s", type=float, default=600, show_default=True, help="Longest wait, seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def drain(name: str, plan: bool, timeout_s: float, as_json: bool) -> None:
    """Cordon a host, move its functions to hosts that have room, and wait until it is empty."""
    router = Router()
    if plan:
        planned = router.plan_drain(name)
        echo_json(planned) if as_json else _print_plan(planned)
        return
    deadline = time.monotonic() + timeout_s
    with progress_bar() as progress:
        task = progress.add_task(f"{name}: starting its functions elsewhere", total=None)
        result = router.drain(name)
        ends = Drain(time.monotonic())
        while remaining := _remaining(router, name, result.draining):
            if ends.was_cancelled([i.state for i in remaining], time.monotonic()):
                raise Failed(
                    f"{name} still serves {', '.join(sorted({i.function for i in remaining}))}: requests were in "
                    "flight after the grace period",
                    hint="It stays cordoned. Drain it again, or `cortex fn cool NAME --now`.",
                )
            if time.monotonic() > deadline:
                raise Failed(f"{name} is not empty after {timeout_s:g} s", hint="It stays cordoned.")
            progress.update(task, description=f"{name}: {len(remaining)} instances left")
            time.sleep(POLL_S)
    if as_json:
        echo_json({"host": name, **asdict(result)})
    else:
        moved = f"; moved {', '.join(result.moved)}" if result.moved else ""
        echo(f"{name}: drained{moved}")


@host.command()
@click.argument("name", type=HOST, required=False)
@click.option(
    "--export",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write them to this file, with the state they began from: a bug report that can be replayed.",
)
@click.option("-n", "--limit", type=click.IntRange(1, 5000), default=50, show_default=True, help="Events to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def events(name: str | None, path: Path | None, limit: int, as_json: bool) -> None:
    """Show the last events of a host's scheduler, and what followed from each. Without NAME: of the only host.

    The table leaves out readings from which nothing followed. Neither it nor the file has prompts or secrets.
    """
    router = Router()
    if name is None:
        names = [h.name for h in router.hosts().every]
        if len(names) != 1:
            raise Failed(f"there are {len(names)} hosts: {', '.join(names)}", hint="Name one of them.")
        name = names[0]
    lines = router.host_events(name)
    if path is not None:
        count = _export(lines, path)
        result = {"host": name, "file": str(path), "events": count}
        echo_json(result) if as_json else echo(f"{name}: {count} events in {path}")
        return
    logged = [(line, entry) for line in lines if (entry := msgspec.json.decode(line, type=_Logged)).line == "event"]
    if as_json:
        echo_json([msgspec.json.decode(line) for line, _ in logged[-limit:]], indent=2)
        return
    rows = table("WHEN", "EVENT", "ABOUT", "WHAT FOLLOWED")
    followed = [entry for _, entry in logged if entry.event.type not in READINGS or entry.effects]
    for entry in followed[-limit:]:
        about, effects = entry.event.instance or entry.event.function, ", ".join(map(_effect, entry.effects))
        rows.add_row(ago(entry.now), entry.event.type, str(about or "-"), effects or "-")
    console().print(rows)


def _export(lines: Iterable[str], path: Path) -> int:
    """Write all lines, or none; return the number of events. Raises Failed."""
    part = path.with_name(f"{path.name}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(f"{line}\n")
                count += not line.startswith('{"line":"checkpoint"')
        part.replace(path)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return count


class _Event(Struct, frozen=True):
    type: str = ""
    instance: object = None
    function: object = None


class _Effect(Struct, frozen=True):
    type: str
    what: str = ""
    why: str = ""


class _Logged(Struct, frozen=True):
    """What the CLI reads of a line of a host's events."""

    line: str
    now: float = 0.0
    event: _Event = _Event()
    effects: tuple[_Effect, ...] = ()


def _effect(effect: _Effect) -> str:
    return f"{effect.what}: {effect.why}" if effect.type == "Decision" else effect.type.lower()


@gpu.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def gpu_ls(as_json: bool) -> None:
    """List the devices of all hosts and the use of their memory."""
    hosts = Router().hosts().hosts
    devices = [(h, d, _holders(h, d.id)) for h in hosts for d in h.devices]
    if as_json:
        echo_json([{**asdict(d), "host": h.name, "holders": holders} for h, d, holders in devices], indent=2)
        return
    rows = [
        (h.name, d.id, d.name, str(d.total_mb), str(d.admitted_mb), "-" if d.used_mb is None else str(d.used_mb))
        for h, d, _ in devices
    ]
    notes = [(f"{h.name} {d.id}", f"held by {', '.join(holders)}") for h, d, holders in devices if holders]
    notes += [(h.name, f"the devices cannot be read: {h.problem}") for h in hosts if h.problem]
    silent = ((h, path, since) for h in hosts for path, since in h.silent.items())
    notes += [(h.name, f"{path} has not answered for {span(h.now - since)}") for h, path, since in silent]
    print_rows(("HOST", "DEVICE", "NAME", "TOTAL MIB", "ADMITTED", "USED"), rows, optional=("NAME",), notes=notes)


def _print_plan(plan: Plan) -> None:
    """Print the plan of a drain."""
    verb = "is already cordoned" if plan.effect is Effect.NOTHING else "would be cordoned"
    rest = ", and these functions leave it:" if plan.moves else "; nothing runs on it"
    echo(f"{plan.host} {verb}{rest}")
    for move in plan.moves:
        echo(f"  {move.function}: {outcome(move)}")


def _state(host: HostView) -> str:
    """Return whether a host is open, cordoned or silent."""
    if host.silent_since is None:
        return "cordoned" if host.cordoned else "open"
    return f"silent for {span(host.now - host.silent_since)}{', cordoned' if host.cordoned else ''}"


def _candidate(candidate: EvictionCandidate, host: HostView) -> str:
    text = f"{candidate.rank}. {candidate.function}, {candidate.memory_mb} MiB: "
    if candidate.protection:
        return f"{text}not now: {candidate.protection}"
    text += f"idle for {span(host.now - candidate.idle_since)}, {reason(candidate, host.strategy)}"
    return text + (f"; reaped anyway in {span(candidate.reap_at - host.now)}" if candidate.reap_at else "")


def _engines(host: HostView) -> str:
    versions = ((e, ", ".join([*([v] if v != e else []), *_launcher(host, e)])) for e, v in host.engines.items())
    return ", ".join(f"{e} ({more})" if more else e for e, more in versions)


def _launcher(host: HostView, engine: str) -> list[str]:
    """Return how an engine's launcher stands, and the RAM it takes."""
    state, memory_mb = host.launchers.get(engine), host.launcher_mb.get(engine)
    taken = [f"{memory_mb} MiB of RAM"] if memory_mb else []
    return [f"launcher {state}", *taken] if state else []


def _holders(host: HostView, device: str) -> list[str]:
    ours = [_holder(i) for i in host.instances if device in i.devices]
    foreign = [f"{h.command or '?'} (pid {h.pid}) {h.memory_mb}" for h in host.foreign if h.device == device]
    return ours + foreign


def _holder(instance: Instance) -> str:
    parked = f" ({instance.state})" if instance.state in PARKED else ""
    return f"{instance.function} {instance.held_mb}{parked}"


def _park_ram(host: HostView) -> str:
    return f"{sum(i.ram_mb for i in host.instances)}/{host.park_ram_mb}" if host.tiers else "-"


def trick_lines(host: HostView) -> list[str]:
    """Return the tricks of starts that failed once on a host."""
    return [
        f"started {trick_text(trick)}: revision {revision}: {why}"
        for revision, failed in host.tricks_off.items()
        for trick, why in failed.items()
    ]


def tier_lines(host: HostView) -> list[str]:
    """Return the RAM for parked instances, and which tiers the host has; nothing for a host without GPUs."""
    if not host.tiers:
        return []
    tiers = "; ".join(f"{tier}: {why or 'possible'}" for tier, why in host.tiers.items())
    held = sum(i.ram_mb for i in host.instances)
    failed = [
        f"no longer parked by {tier}: revision {revision}: {why}"
        for revision, reasons in host.unparkable.items()
        for tier, why in reasons.items()
    ]
    return [f"parked instances: {held}/{host.park_ram_mb} MiB of RAM; {tiers}", *failed]


def _remaining(router: Router, name: str, draining: tuple[str, ...]) -> list[Instance]:
    for host in router.hosts().hosts:
        if host.name == name:
            return [i for i in host.instances if i.id in draining]
    raise Failed(f"{name} is unavailable: its agent does not report", hint="It stays cordoned.")
