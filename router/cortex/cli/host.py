"""`cortex host` and `cortex gpu`: the machines, and taking one out of service."""

import json
import time
from typing import Any
from urllib.parse import quote

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.exits import NOT_FOUND, Failed
from cortex.cli.fn import POLL_S, progress_bar
from cortex.cli.names import HOST
from cortex.cli.tables import ago, console, span, table
from cortex.cli.visible import echo

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")


@click.group()
def host() -> None:
    """See the hosts; take one out of service and back."""


@click.group()
def gpu() -> None:
    """See the devices and who holds their memory."""


@host.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(as_json: bool) -> None:
    """List the hosts with their devices and engines, those that do not report any more last."""
    found = Router().every_host()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = table(
        "HOST", "STATE", "DEVICES", "MEMORY MIB", "INSTANCES", "IN FLIGHT", "NEXT OUT", "ENGINES", "VERSION", "SEEN"
    )
    for h in found:
        rows.add_row(
            h["name"],
            _state(h),
            str(len(h["devices"])),
            f"{_taken(h)}/{sum(d['total_mb'] for d in h['devices'])}",
            str(len(h["instances"])),
            str(h["in_flight"]),
            _next_out(h),
            _engines(h),
            h["version"],
            ago(h["at"]),
        )
    out = console()
    out.print(rows)
    for h in found:
        if other := h.get("namesake"):
            out.print(
                f"{h['name']}: {other['address']} has this name, too, and is refused; {h['address']} is in the record",
                markup=False,
            )


@host.command()
@click.argument("name", type=HOST)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def show(name: str, as_json: bool) -> None:
    """Show all there is to know of a host: devices, instances, who is evicted next and why, failures."""
    found = next((h for h in Router().every_host() if h["name"] == name), None)
    if found is None:
        raise Failed(
            f"no host '{name}' reports, or has lately", code=NOT_FOUND, hint="`cortex host ls` lists every host."
        )
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    out = console()
    out.print(
        f"{name}: {_state(found)}, at {found['address']}, version {found['version']}, seen {ago(found['at'])}",
        markup=False,
    )
    out.print(f"engines: {', '.join(found['engines']) or 'none'}", markup=False)
    if found["labels"]:
        out.print(f"labels: {', '.join(found['labels'])}", markup=False)
    for d in found["devices"]:
        held = ", ".join(_holders(found, d["id"])) or "nothing"
        note = f" ({d['note']})" if d["note"] else ""
        out.print(f"{d['id']}: {d['name']}, {_on(found, d['id'])}/{d['total_mb']} MiB: {held}{note}", markup=False)
    rows = table("INSTANCE", "FUNCTION", "STATE", "SINCE", "DEVICES", "PID", "WHY")
    for i in found["instances"]:
        where = ", ".join(i["devices"]) or "-"
        rows.add_row(i["id"], i["function"], i["state"], ago(i["since"]), where, str(i["pid"] or "-"), i["why"] or "-")
    if found["instances"]:
        out.print(rows)
    if found["leaving"]:
        out.print("evicted when room is needed, in this order:", markup=False)
    for one in found["leaving"]:
        out.print(f"  {_leaving(one)}", markup=False)
    for f in found["failures"]:
        out.print(f"failed: {f['function']}, {ago(f['at'])}: {f['reason']}", markup=False)


@host.command()
@click.argument("name", type=HOST)
@_json
def cordon(name: str, as_json: bool) -> None:
    """Have a host take no new work. What runs there goes on. It is remembered over restarts."""
    told = Router().on_host(name, "cordon")
    click.echo(json.dumps(told) if as_json else f"{name}: cordoned")


@host.command()
@click.argument("name", type=HOST)
@_json
def uncordon(name: str, as_json: bool) -> None:
    """Have a host take new work again."""
    told = Router().on_host(name, "uncordon")
    click.echo(json.dumps(told) if as_json else f"{name}: open")


@host.command()
@click.argument("name", type=HOST)
@click.option("--plan", is_flag=True, help="Only say what would move where, and what would go cold.")
@click.option("--timeout", "timeout_s", type=float, default=600, show_default=True, help="Longest wait, seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON when done.")
def drain(name: str, plan: bool, timeout_s: float, as_json: bool) -> None:
    """Cordon a host, move what it serves to others where there is room, and wait until it is empty."""
    router = Router()
    if plan:
        planned = router.post(f"/admin/hosts/{quote(name, safe='')}/drain?plan=1")["plan"]
        said = [planned["says"], *(f"  {one}" for one in planned["losses"])]
        click.echo(json.dumps(planned) if as_json else "\n".join(said))
        return
    deadline = time.monotonic() + timeout_s
    with progress_bar() as progress:
        task = progress.add_task(f"{name}: starting elsewhere what it serves", total=None)
        told = router.on_host(name, "drain")
        while left := _left(router, name, told["going"]):
            if all(i["state"] == "ready" for i in left):
                raise Failed(
                    f"{name} still serves {', '.join(sorted({i['function'] for i in left}))}: requests were in "
                    "flight after the grace",
                    hint="It takes no new work. Drain it again, or `cortex fn cool NAME --now`.",
                )
            if time.monotonic() > deadline:
                raise Failed(f"{name} is not empty after {timeout_s:g} s", hint="It takes no new work meanwhile.")
            progress.update(task, description=f"{name}: {len(left)} instances left")
            time.sleep(POLL_S)
    if as_json:
        click.echo(json.dumps({"host": name, **told}))
    else:
        moved = f"; moved {', '.join(told['moved'])}" if told["moved"] else ""
        echo(f"{name}: drained{moved}")


@gpu.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def gpu_ls(as_json: bool) -> None:
    """List the devices of all hosts and what takes their memory."""
    hosts = Router().hosts()
    found = [
        {**d, "host": h["name"], "admitted_mb": _on(h, d["id"]), "holders": _holders(h, d["id"])}
        for h in hosts
        for d in h["devices"]
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = table("HOST", "DEVICE", "NAME", "TOTAL MIB", "ADMITTED", "USED", "HELD BY")
    for d in found:
        used = "-" if d["used_mb"] is None else str(d["used_mb"])
        held = ", ".join(d["holders"]) or "-"
        rows.add_row(d["host"], d["id"], d["name"], str(d["total_mb"]), str(d["admitted_mb"]), used, held)
    out = console()
    out.print(rows)
    for h in hosts:
        if h["problem"]:
            out.print(f"{h['name']}: the devices cannot be read: {h['problem']}", markup=False)
        for path, since in h.get("silent", {}).items():
            out.print(f"{h['name']}: {path} has not answered for {span(time.time() - since)}", markup=False)


def _state(host: dict[str, Any]) -> str:
    """Say whether a host takes new work, or for how long it has not reported."""
    silent_s = host.get("silent_s")
    state = "cordoned" if host["cordoned"] else "open"
    return state if silent_s is None else f"silent for {span(silent_s)}" + (", cordoned" if host["cordoned"] else "")


def _leaving(one: dict[str, Any]) -> str:
    said = f"{one['rank']}. {one['function']}, {one['mb']} MiB: "
    if one["protected"]:
        return said + str(one["why"])
    anyway = f"; let go anyway in {span(one['reaped_at'] - time.time())}" if one["reaped_at"] else ""
    return f"{said}idle for {span(time.time() - one['idle_since'])}, {one['why']}{anyway}"


def _next_out(host: dict[str, Any]) -> str:
    return next((str(one["function"]) for one in host["leaving"] if not one["protected"]), "-")


def _engines(host: dict[str, Any]) -> str:
    launchers = host.get("launchers", {})
    said = (
        (e, ", ".join([*([v] if v != e else []), *([f"launcher {launchers[e]}"] if e in launchers else [])]))
        for e, v in host["engines"].items()
    )
    return ", ".join(f"{e} ({more})" if more else e for e, more in said)


def _taken(host: dict[str, Any]) -> int:
    return sum(i["memory_mb"] * len(i["devices"]) for i in host["instances"])


def _on(host: dict[str, Any], device: str) -> int:
    return sum(i["memory_mb"] for i in host["instances"] if device in i["devices"])


def _holders(host: dict[str, Any], device: str) -> list[str]:
    ours = [f"{i['function']} {i['memory_mb']}" for i in host["instances"] if device in i["devices"]]
    foreign = [
        f"{h['command'] or '?'} (pid {h['pid']}) {h['memory_mb']}" for h in host["foreign"] if h["device"] == device
    ]
    return ours + foreign


def _left(router: Router, name: str, going: list[str]) -> list[dict[str, Any]]:
    for host in router.hosts():
        if host["name"] == name:
            return [i for i in host["instances"] if i["id"] in going]
    raise Failed(f"{name} is away: its agent does not report", hint="It stays cordoned.")
