"""`cortex host` and `cortex gpu`: shows hosts, devices and events; cordons and drains hosts; derives their tokens."""

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.exits import NOT_FOUND, USAGE, Failed
from cortex.cli.fn import POLL_S, progress_bar
from cortex.cli.names import HOST
from cortex.cli.settings import config_option, settings_of
from cortex.cli.tables import ago, console, span, table
from cortex.cli.visible import echo
from cortex.platform.settings import SettingsError

READINGS = frozenset({"FleetChange", "Reported", "HostRead", "LedgerRead", "MemoryRead"})
"""Events that come at intervals, whether or not anything changed."""

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
    hosts = Router().every_host()
    if as_json:
        click.echo(json.dumps(hosts, indent=2))
        return
    rows = table(
        "HOST", "STATE", "DEVICES", "MEMORY MIB", "INSTANCES", "IN FLIGHT", "NEXT OUT", "ENGINES", "VERSION", "SEEN"
    )
    for h in hosts:
        rows.add_row(
            h["name"],
            _state(h),
            str(len(h["devices"])),
            f"{_used_mb(h)}/{sum(d['total_mb'] for d in h['devices'])}",
            str(len(h["instances"])),
            str(h["in_flight"]),
            _next_out(h),
            _engines(h),
            h["version"],
            ago(h["at"]),
        )
    out = console()
    out.print(rows)
    for h in hosts:
        if other := h.get("namesake"):
            out.print(
                f"{h['name']}: {other['address']} also has this name and is rejected; {h['address']} is in the hosts",
                markup=False,
            )


@host.command()
@click.argument("name", type=HOST)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def show(name: str, as_json: bool) -> None:
    """Show the details of a host: devices, instances, eviction order, failures."""
    record = next((h for h in Router().every_host() if h["name"] == name), None)
    if record is None:
        raise Failed(
            f"no live or silent host is named '{name}'", code=NOT_FOUND, hint="`cortex host ls` lists every host."
        )
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    out = console()
    out.print(
        f"{name}: {_state(record)}, at {record['address']}, version {record['version']}, "
        f"last report {ago(record['at'])}",
        markup=False,
    )
    out.print(f"engines: {', '.join(record['engines']) or 'none'}", markup=False)
    if record["labels"]:
        out.print(f"labels: {', '.join(record['labels'])}", markup=False)
    for d in record["devices"]:
        holders = ", ".join(_holders(record, d["id"])) or "nothing"
        note = f" ({d['note']})" if d["note"] else ""
        out.print(f"{d['id']}: {d['name']}, {_on(record, d['id'])}/{d['total_mb']} MiB: {holders}{note}", markup=False)
    rows = table("INSTANCE", "FUNCTION", "STATE", "SINCE", "DEVICES", "PID", "WHY")
    for i in record["instances"]:
        where = ", ".join(i["devices"]) or "-"
        rows.add_row(i["id"], i["function"], i["state"], ago(i["since"]), where, str(i["pid"] or "-"), i["why"] or "-")
    if record["instances"]:
        out.print(rows)
    if record["leaving"]:
        out.print("eviction order:", markup=False)
    for entry in record["leaving"]:
        out.print(f"  {_eviction(entry)}", markup=False)
    for f in record["failures"]:
        out.print(f"failed: {f['function']}, {ago(f['at'])}: {f['reason']}", markup=False)


@host.command()
@click.argument("name")
@config_option
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write it to this file instead (mode 0600).")
def token(name: str, config: Path | None, output: Path | None) -> None:
    """Print a host's own token, derived from this machine's fleet token: the file that `[agent] token_file` of that
    host names. The host then needs no fleet token."""
    from cortex.platform.keys import fleet_tokens, host_file

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
    result = Router().on_host(name, "cordon")
    click.echo(json.dumps(result) if as_json else f"{name}: cordoned")


@host.command()
@click.argument("name", type=HOST)
@_json
def uncordon(name: str, as_json: bool) -> None:
    """Include a host in new placements again."""
    result = Router().on_host(name, "uncordon")
    click.echo(json.dumps(result) if as_json else f"{name}: open")


@host.command()
@click.argument("name", type=HOST)
@click.option("--plan", is_flag=True, help="Only show the plan: what would move where, and what would go cold.")
@click.option("--timeout", "timeout_s", type=float, default=600, show_default=True, help="Longest wait, seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def drain(name: str, plan: bool, timeout_s: float, as_json: bool) -> None:
    """Cordon a host, move its functions to hosts that have room, and wait until it is empty."""
    router = Router()
    if plan:
        planned = router.post(f"/admin/hosts/{quote(name, safe='')}/drain?plan=1")["plan"]
        lines = [planned["says"], *(f"  {loss}" for loss in planned["losses"])]
        click.echo(json.dumps(planned) if as_json else "\n".join(lines))
        return
    deadline = time.monotonic() + timeout_s
    with progress_bar() as progress:
        task = progress.add_task(f"{name}: starting its functions elsewhere", total=None)
        result = router.on_host(name, "drain")
        while remaining := _remaining(router, name, result["going"]):
            if all(i["state"] == "ready" for i in remaining):
                raise Failed(
                    f"{name} still serves {', '.join(sorted({i['function'] for i in remaining}))}: requests were in "
                    "flight after the grace period",
                    hint="It stays cordoned. Drain it again, or `cortex fn cool NAME --now`.",
                )
            if time.monotonic() > deadline:
                raise Failed(f"{name} is not empty after {timeout_s:g} s", hint="It stays cordoned.")
            progress.update(task, description=f"{name}: {len(remaining)} instances left")
            time.sleep(POLL_S)
    if as_json:
        click.echo(json.dumps({"host": name, **result}))
    else:
        moved = f"; moved {', '.join(result['moved'])}" if result["moved"] else ""
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
        names = [h["name"] for h in router.every_host()]
        if len(names) != 1:
            raise Failed(f"there are {len(names)} hosts: {', '.join(names)}", hint="Name one of them.")
        name = str(names[0])
    lines = router.lines(f"/admin/hosts/{quote(name, safe='')}/events", {})
    if path is not None:
        count = _export(lines, path)
        result = {"host": name, "file": str(path), "events": count}
        click.echo(json.dumps(result) if as_json else f"{name}: {count} events in {path}")
        return
    entries = [entry for line in lines if (entry := json.loads(line))["line"] == "event"]
    if as_json:
        click.echo(json.dumps(entries[-limit:], indent=2))
        return
    rows = table("WHEN", "EVENT", "ABOUT", "WHAT FOLLOWED")
    shown = [e for e in entries if e["event"]["type"] not in READINGS or e.get("effects")]
    for entry in shown[-limit:]:
        event = entry["event"]
        about = event.get("instance") or event.get("function") or ""
        effects = ", ".join(map(_effect, entry.get("effects", ()))) or "-"
        rows.add_row(ago(entry["now"]), event["type"], str(about) or "-", effects)
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


def _effect(effect: dict[str, Any]) -> str:
    if effect["type"] == "Decision":
        return f"{effect['what']}: {effect['why']}"
    return str(effect["type"]).lower()


@gpu.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def gpu_ls(as_json: bool) -> None:
    """List the devices of all hosts and the use of their memory."""
    hosts = Router().hosts()
    devices = [
        {**d, "host": h["name"], "admitted_mb": _on(h, d["id"]), "holders": _holders(h, d["id"])}
        for h in hosts
        for d in h["devices"]
    ]
    if as_json:
        click.echo(json.dumps(devices, indent=2))
        return
    rows = table("HOST", "DEVICE", "NAME", "TOTAL MIB", "ADMITTED", "USED", "HELD BY")
    for d in devices:
        used = "-" if d["used_mb"] is None else str(d["used_mb"])
        holders = ", ".join(d["holders"]) or "-"
        rows.add_row(d["host"], d["id"], d["name"], str(d["total_mb"]), str(d["admitted_mb"]), used, holders)
    out = console()
    out.print(rows)
    for h in hosts:
        if h["problem"]:
            out.print(f"{h['name']}: the devices cannot be read: {h['problem']}", markup=False)
        for path, since in h.get("silent", {}).items():
            out.print(f"{h['name']}: {path} has not answered for {span(time.time() - since)}", markup=False)


def _state(host: dict[str, Any]) -> str:
    """Return whether a host is open, cordoned or silent."""
    silent_s = host.get("silent_s")
    state = "cordoned" if host["cordoned"] else "open"
    return state if silent_s is None else f"silent for {span(silent_s)}" + (", cordoned" if host["cordoned"] else "")


def _eviction(entry: dict[str, Any]) -> str:
    text = f"{entry['rank']}. {entry['function']}, {entry['mb']} MiB: "
    if entry["protected"]:
        return text + str(entry["why"])
    reaped = f"; reaped anyway in {span(entry['reaped_at'] - time.time())}" if entry["reaped_at"] else ""
    return f"{text}idle for {span(time.time() - entry['idle_since'])}, {entry['why']}{reaped}"


def _next_out(host: dict[str, Any]) -> str:
    return next((str(entry["function"]) for entry in host["leaving"] if not entry["protected"]), "-")


def _engines(host: dict[str, Any]) -> str:
    versions = ((e, ", ".join([*([v] if v != e else []), *_launcher(host, e)])) for e, v in host["engines"].items())
    return ", ".join(f"{e} ({more})" if more else e for e, more in versions)


def _launcher(host: dict[str, Any], engine: str) -> list[str]:
    """Return how an engine's launcher stands, and the RAM it takes."""
    state = host.get("launchers", {}).get(engine)
    memory_mb = host.get("launcher_mb", {}).get(engine)
    taken = [f"{memory_mb} MiB of RAM"] if memory_mb else []
    return [f"launcher {state}", *taken] if state else []


def _used_mb(host: dict[str, Any]) -> int:
    return sum(i["memory_mb"] * len(i["devices"]) for i in host["instances"])


def _on(host: dict[str, Any], device: str) -> int:
    return sum(i["memory_mb"] for i in host["instances"] if device in i["devices"])


def _holders(host: dict[str, Any], device: str) -> list[str]:
    ours = [f"{i['function']} {i['memory_mb']}" for i in host["instances"] if device in i["devices"]]
    foreign = [
        f"{h['command'] or '?'} (pid {h['pid']}) {h['memory_mb']}" for h in host["foreign"] if h["device"] == device
    ]
    return ours + foreign


def _remaining(router: Router, name: str, going: list[str]) -> list[dict[str, Any]]:
    for host in router.hosts():
        if host["name"] == name:
            return [i for i in host["instances"] if i["id"] in going]
    raise Failed(f"{name} is unavailable: its agent does not report", hint="It stays cordoned.")
