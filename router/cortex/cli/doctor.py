"""`cortex doctor`: what is wrong with this installation, and what to do about it.

Every check returns findings and never raises: one that cannot look says so. Nothing is changed.
"""

import contextlib
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import redis
import rich_click as click
from msgspec import Struct
from msgspec.structs import asdict

from cortex.cli.client import Router
from cortex.cli.exits import FAILED, Failed
from cortex.cli.local import state_dir
from cortex.cli.tables import console
from cortex.platform import redis_clients
from cortex.platform import settings as settings_
from cortex.platform.serving.trust import trust
from cortex.platform.settings import Settings, SettingsError

LITTLE_DISK_GB, FULL_DISK_GB = 5.0, 0.1
SKEW_S = 1.0
SLOW_REDIS_S = 0.05
MOST_LOOKED_AT = 10_000
MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


class Finding(Struct, frozen=True):
    """What one check saw. `do` is what helps; empty when nothing is wrong."""

    level: Literal["ok", "warning", "problem"]
    about: str
    said: str
    do: str = ""


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The cortex.toml this machine uses.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(config: Path | None, as_json: bool) -> None:
    """Look for what is wrong: settings, catalogue, Redis, agents, engines, clocks, ports, disk, permissions."""
    found = list(examined(config))
    if as_json:
        click.echo(json.dumps([asdict(f) for f in found], indent=2))
    else:
        out = console()
        for f in found:
            mark, colour = MARKS[f.level]
            out.print(f"[{colour}]{mark}[/] ", end="")
            out.print(f"{f.about}: {f.said}", markup=False)
            if f.do:
                out.print(f"    {f.do}", markup=False)
    if any(f.level == "problem" for f in found):
        raise SystemExit(FAILED)


def examined(config: Path | None) -> Iterator[Finding]:
    """Run every check."""
    try:
        settings, _ = settings_.from_environment(config)
    except SettingsError as error:
        yield Finding("problem", "settings", str(error), "Mend the line; every process refuses to start with it.")
        return
    yield Finding("ok", "settings", str(config or os.environ.get("CORTEX_CONFIG") or "defaults and environment"))
    router = Router(timeout_s=5)
    hosts: list[dict[str, Any]] = []
    answers, now = False, 0.0
    with contextlib.suppress(Failed):
        seen = router.get("/admin/hosts")
        hosts, now, answers = seen["hosts"], seen.get("now", time.time()), True
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: the_router(router),
        lambda: the_hosts(hosts, now),
        *((lambda: the_functions(router),) if hosts or not answers else ()),
        lambda: the_redis(settings, expected=bool(settings.redis.url)),
        lambda: the_agents(hosts, settings.ca_file),
        lambda: the_disks(settings),
        lambda: the_token(Path(settings.token_file).expanduser()),
        lambda: the_folders(state_dir(), Path(settings.agent.state_dir), Path(settings.agent.log_dir)),
        lambda: the_ports(settings, used=answers),
    )
    away = ""
    for check in checks:
        try:
            yield from check()
        except Failed as failed:
            said, _, do = str(failed).partition("\n")
            if said != away:  # several checks ask the router; that it is away is said once
                yield Finding("problem", "router", said, do)
            away = said


def the_router(router: Router) -> Iterator[Finding]:
    """Whether one answers, and what it says of itself."""
    health = router.health()
    if health["record"] != "ok":
        yield Finding(
            "problem",
            "router",
            f"{router.url} cannot reach Redis: only what is warm is served",
            "Start Redis, or mend `[redis] url`; the router finds it again by itself.",
        )
    else:
        yield Finding("ok", "router", f"{router.url} answers: {health['status']}")
    if health["catalogue"] != "ok":
        yield Finding("problem", "catalogue", health["catalogue"], "`cortex check` says all that is wrong with it.")
    yield from what_router_lacks(health)


def what_router_lacks(health: dict[str, Any]) -> Iterator[Finding]:
    """Whether hosts do not report to a router any more, and whether its background work fails."""
    for name, silence in health.get("silent", {}).items():
        yield Finding(
            "problem",
            f"host {name}",
            f"has not reported for {silence['silent_s']} s; {silence['serving']} of its instances still answer and "
            "serve, and nothing is started there",
            f"Start its agent, or see that it reaches Redis. Gone for good: `cortex host cordon {name}`.",
        )
    faults = health.get("background", "ok")
    for fault in faults if faults != "ok" else ():
        yield Finding(
            "warning",
            "router",
            f"its background work '{fault['work']}' raised {fault['error']} {fault['failed_s_ago']} s ago and goes on; "
            f"{fault['count']} times so far",
            "Its log has the traceback under `background_work_broke`: it is a fault of cortex's.",
        )


def the_hosts(hosts: list[dict[str, Any]], now: float) -> Iterator[Finding]:
    """Whether hosts report, under names of their own, and can read their devices. `now` is by the router's clock."""
    if not hosts:
        yield Finding(
            "problem", "hosts", "no host reports", "Run `cortex agent` on one, with the same Redis and token."
        )
    for host in hosts:
        name, silent_s = host["name"], now - host["at"]
        if silent_s > 15:
            yield Finding(
                "warning",
                f"host {name}",
                f"last reported {silent_s:.0f} s ago",
                "Look at its agent's log: `journalctl -u cortex-agent` on that host.",
            )
        else:
            count = len(host["devices"])
            devices = f"{count} device{'' if count == 1 else 's'}"
            state = "cordoned: it takes no new work" if host["cordoned"] else devices
            yield Finding(
                "warning" if host["cordoned"] else "ok",
                f"host {name}",
                state,
                f"`cortex host uncordon {name}`" if host["cordoned"] else "",
            )
        if other := host.get("namesake"):
            yield Finding(
                "problem",
                f"host {name}",
                f"two machines have this name: {host['address']} is in the record, {other['address']} is refused",
                "Give each a name of its own: `[agent] name`, or CORTEX_AGENT__NAME. Then restart its agent.",
            )
        if host["problem"]:
            yield Finding(
                "problem",
                f"host {name}",
                f"its devices cannot be read: {host['problem']}",
                "`nvidia-smi` on that host shows more; a driver that was upgraded needs a reboot.",
            )
        for path, since in host.get("silent", {}).items():
            yield Finding(
                "problem",
                f"host {name}",
                f"{path} has not answered for {max(0.0, now - since):.0f} s",
                "Its mount may hang: see `mount` and `dmesg` on that host. Functions whose weights are there are not "
                "started; all others are.",
            )
        if not host["engines"]:
            yield Finding(
                "problem", f"host {name}", "it has no engine", "Install vllm, llama-server or xllamacpp there."
            )


def the_functions(router: Router) -> Iterator[Finding]:
    """Whether every function could run somewhere, and what keeps failing."""
    functions = {f["id"]: f for f in router.functions()}
    models = router.get("/v1/models")["data"]
    nowhere = [m["id"] for m in models if m["id"] in functions and not m["feasible_on"]]
    if nowhere:
        yield Finding(
            "warning",
            "functions",
            f"no host could ever run {', '.join(nowhere[:10])}",
            f"`cortex fn plan {nowhere[0]}` says why, host by host.",
        )
    for f in functions.values():
        if f["state"] == "failing":
            yield Finding(
                "problem",
                f["id"],
                "\n    ".join([f"keeps failing: {f['failure']}", *router.last_lines(f)]),
                f"`cortex fn logs {f['id']} --run previous`, then `cortex fn warm {f['id']} --wait`",
            )
    if not nowhere:
        yield Finding("ok", "functions", f"{len(functions)}, each with a host that could run it")


def the_redis(settings: Settings, *, expected: bool) -> Iterator[Finding]:
    """Whether it answers from here, fast enough, and keeps what it is given."""
    url, where = settings.redis_url, settings.redis_shown
    try:
        with redis_clients.client(url, 3.0) as client:
            began = time.monotonic()
            client.ping()
            took = time.monotonic() - began
            said: Any = client.info()
            skew = float(said["server_time_usec"]) / 1e6 - time.time() if "server_time_usec" in said else 0.0
    except (redis.RedisError, OSError) as error:
        if expected:
            yield Finding(
                "problem",
                "redis",
                f"{where} does not answer: {error}",
                "Start it, or mend `[redis] url`.",
            )
        else:
            yield Finding("ok", "redis", "none is configured: `cortex up` runs its own")
        return
    yield Finding("ok", "redis", f"{where} answers in {took * 1000:.1f} ms, version {said['redis_version']}")
    if took > SLOW_REDIS_S:
        yield Finding("warning", "redis", f"it takes {took * 1000:.0f} ms", "Starts wait for it; warm requests do not.")
    if said.get("maxmemory_policy", "noeviction") != "noeviction":
        yield Finding(
            "problem",
            "redis",
            f"it throws keys away when full ({said['maxmemory_policy']})",
            "Set maxmemory-policy noeviction: API keys and cordons are kept there.",
        )
    if said.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding("problem", "redis", "its last save failed", "Look at its log: the disk may be full.")
    if abs(skew) > SKEW_S:
        yield Finding(
            "warning",
            "redis",
            f"its clock is {skew:+.1f} s from this machine's",
            "Run an NTP client on both: the expiry of API keys and the times in logs are by the wall clock.",
        )


def the_agents(hosts: list[dict[str, Any]], ca_file: str) -> Iterator[Finding]:
    """Whether agents can be reached from this machine."""
    for host in hosts:
        try:
            httpx.get(f"{host['address']}/health", timeout=3, trust_env=False, verify=trust(ca_file)).raise_for_status()
        except httpx.HTTPError as error:
            yield Finding(
                "warning",
                f"agent {host['name']}",
                f"{host['address']} does not answer from here: {error}",
                "Routers must reach it: check `[agent] listen`, `address` and the firewall.",
            )
        else:
            yield Finding("ok", f"agent {host['name']}", f"{host['address']} answers")


def the_disks(settings: Settings) -> Iterator[Finding]:
    """Whether there is room, and whether we may write."""
    for about, folder in (
        ("cache", settings.agent.cache_dir),
        ("state", settings.agent.state_dir),
        ("worker logs", settings.agent.log_dir),
    ):
        path = Path(folder).expanduser()
        there = next(p for p in (path, *path.parents) if p.exists())
        if not os.access(there, os.W_OK):
            yield Finding(
                "problem", about, f"{path} cannot be written to by this user", f"chown it, or set another {about}_dir."
            )
            continue
        yield room(about, path, shutil.disk_usage(there).free / 1e9)


def room(about: str, path: Path, free_gb: float) -> Finding:
    """Judge what is left on a disk."""
    if free_gb < FULL_DISK_GB:
        do = "Make room: nothing can be fetched, logged or kept there. `cortex weights rm --unused --dry-run`"
        return Finding("problem", about, f"the disk of {path} is full: {free_gb * 1000:.0f} MB are left", do)
    if free_gb < LITTLE_DISK_GB:
        do = "Weights need room: `cortex weights rm --unused --dry-run` says what could go; or move it."
        return Finding("warning", about, f"{free_gb:.1f} GB are left at {path}", do)
    return Finding("ok", about, f"{free_gb:.0f} GB are left at {path}")


def the_token(path: Path) -> Iterator[Finding]:
    """Whether the fleet token is there, readable, and private."""
    if not path.exists():
        yield Finding("ok", "fleet token", f"{path} will be made on first use")
        return
    if not os.access(path, os.R_OK):
        yield Finding("problem", "fleet token", f"{path} cannot be read by this user", "Run as the user who owns it.")
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("problem", "fleet token", f"others can read {path}", f"chmod 600 {path}")
        return
    yield Finding("ok", "fleet token", str(path))


def the_folders(*folders: Path) -> Iterator[Finding]:
    """Whether other users of this machine can look into what cortex keeps: the record, logs, workers' output."""
    for folder in dict.fromkeys(f.expanduser() for f in folders):
        if any(other != folder and other in folder.parents for other in folders) or not folder.is_dir():
            continue
        try:
            seen = list(readable_by_others(folder))
        except OSError as error:
            yield Finding("warning", "private files", f"{folder} cannot be looked into: {error}")
            continue
        if not seen:
            yield Finding("ok", "private files", f"{folder} is this user's alone")
            continue
        more = f" and {len(seen) - 1} more" if len(seen) > 1 else ""
        yield Finding("problem", "private files", f"others can read {seen[0]}{more}", f"chmod -R go-rwx {folder}")


def readable_by_others(folder: Path) -> Iterator[Path]:
    """Yield the folders and files in a folder, itself included, that other users of the machine can read."""
    if not all(parent.stat().st_mode & 0o001 for parent in folder.parents):
        return
    looked, left = [folder], MOST_LOOKED_AT
    while looked and left:
        path, left = looked.pop(), left - 1
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            continue
        if mode & 0o004:
            yield path
        if stat.S_ISDIR(mode) and mode & 0o001:
            looked.extend(path.iterdir())


def the_ports(settings: Settings, *, used: bool) -> Iterator[Finding]:
    """Whether our ports are ours to take, when nothing of cortex runs here."""
    if used:
        return
    for about, listen in (
        ("router port", settings.gateway.listen),
        ("metrics port", settings.gateway.metrics_listen),
        ("agent port", settings.agent.listen),
    ):
        if not listen:
            continue
        host, _, port = listen.rpartition(":")
        try:
            with socket.create_server((host.strip("[]"), int(port))):
                yield Finding("ok", about, f"{listen} is free")
        except OSError as error:
            yield Finding(
                "problem", about, f"{listen} cannot be taken: {error}", f"`ss -ltnp sport = :{port}` names the holder."
            )
