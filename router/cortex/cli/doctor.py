"""`cortex doctor`: checks this installation and suggests fixes.

Every check yields findings; a check that cannot run yields one that reports it. Nothing is changed.
"""

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
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
from cortex.functions.spec import Engine, Park
from cortex.platform import redis_clients
from cortex.platform import settings as settings_
from cortex.platform.keys import fleet_tokens, host_secrets
from cortex.platform.record import Tier
from cortex.platform.scheduling.parking import RAM_FACTOR
from cortex.platform.serving import address
from cortex.platform.serving.trust import trust
from cortex.platform.settings import Settings, SettingsError
from cortex.router.api_types import FunctionView, Health, HostView

LITTLE_DISK_GB, FULL_DISK_GB = 5.0, 0.1
SKEW_S = 1.0
SLOW_REDIS_S = 0.05
MOST_PATHS = 10_000
FOREIGN_MB = 1024
"""Memory of a device outside cortex that is worth a warning: a desktop takes less."""
MOST_HOLDERS = 5
MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


class Finding(Struct, frozen=True):
    """The result of a check. `do` is the suggested fix; empty if there is no problem."""

    level: Literal["ok", "warning", "problem"]
    about: str
    text: str
    do: str = ""


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The cortex.toml this machine uses.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(config: Path | None, as_json: bool) -> None:
    """Check settings, catalogue, Redis, agents, engines, clocks, ports, disks and permissions."""
    findings = list(run_checks(config))
    if as_json:
        click.echo(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        out = console()
        for f in findings:
            mark, colour = MARKS[f.level]
            out.print(f"[{colour}]{mark}[/] ", end="")
            out.print(f"{f.about}: {f.text}", markup=False)
            if f.do:
                out.print(f"    {f.do}", markup=False)
    if any(f.level == "problem" for f in findings):
        raise SystemExit(FAILED)


def run_checks(config: Path | None) -> Iterator[Finding]:
    """Run all checks."""
    try:
        settings, _ = settings_.from_environment(config)
    except SettingsError as error:
        yield Finding("problem", "settings", str(error), "Correct the line; no process starts with it.")
        return
    yield Finding("ok", "settings", str(config or os.environ.get("CORTEX_CONFIG") or "defaults and environment"))
    router = Router(timeout_s=5)
    hosts: tuple[HostView, ...] = ()
    answers = False
    with contextlib.suppress(Failed):
        hosts, answers = router.hosts().hosts, True
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: check_router(router),
        lambda: check_hosts(hosts),
        *((lambda: check_functions(router, hosts),) if hosts or not answers else ()),
        lambda: check_redis(settings, expected=bool(settings.redis.url)),
        lambda: check_agents(hosts, settings.ca_file),
        lambda: check_disks(settings),
        lambda: check_tokens(settings),
        lambda: check_folders(state_dir(), Path(settings.agent.state_dir), Path(settings.agent.log_dir)),
        lambda: check_ports(settings, used=answers),
    )
    reported = ""
    for check in checks:
        try:
            yield from check()
        except Failed as failed:
            message, _, do = str(failed).partition("\n")
            if message != reported:  # several checks use the router; report its failure once
                yield Finding("problem", "router", message, do)
            reported = message


def check_router(router: Router) -> Iterator[Finding]:
    """Check the router's health."""
    health = router.health()
    if health.record != "ok":
        yield Finding(
            "problem",
            "router",
            f"{router.url} cannot reach Redis: only warm functions are served",
            "Start Redis, or correct `[redis] url`; the router reconnects by itself.",
        )
    else:
        yield Finding("ok", "router", f"{router.url} answers: {health.status}")
    if health.catalogue != "ok":
        yield Finding("problem", "catalogue", health.catalogue, "`cortex check` lists all its problems.")
    yield from check_background(health)


def check_background(health: Health) -> Iterator[Finding]:
    """Check for silent hosts and failing background tasks."""
    for name, silence in health.silent.items():
        yield Finding(
            "problem",
            f"host {name}",
            f"has not reported for {silence.silent_s} s; {silence.serving} of its instances still serve, and "
            "nothing is started there",
            f"Start its agent, or check that it reaches Redis. If the host is removed: `cortex host cordon {name}`.",
        )
    for fault in health.background if isinstance(health.background, tuple) else ():
        yield Finding(
            "warning",
            "router",
            f"its background task '{fault.work}' raised {fault.error} {fault.failed_s_ago} s ago and "
            f"continues; {fault.count} times so far",
            "This is a bug in cortex; its log has the traceback under `background_work_broke`.",
        )


def check_hosts(hosts: Iterable[HostView]) -> Iterator[Finding]:
    """Check that hosts report under unique names and can read their devices."""
    if not hosts:
        yield Finding(
            "problem", "hosts", "no host reports", "Run `cortex agent` on a host, with the same Redis and token."
        )
    for host in hosts:
        name, silent_s = host.name, host.now - host.at
        if silent_s > 15:
            yield Finding(
                "warning",
                f"host {name}",
                f"last reported {silent_s:.0f} s ago",
                "See its agent's log: `journalctl -u cortex-agent` on that host.",
            )
        else:
            count = len(host.devices)
            devices = f"{count} device{'' if count == 1 else 's'}"
            state = "cordoned: nothing new is placed on it" if host.cordoned else devices
            yield Finding(
                "warning" if host.cordoned else "ok",
                f"host {name}",
                state,
                f"`cortex host uncordon {name}`" if host.cordoned else "",
            )
        if other := host.namesake:
            yield Finding(
                "problem",
                f"host {name}",
                f"two machines have this name: {host.address} is in the record, {other.address} is rejected",
                "Give each a unique name: `[agent] name`, or CORTEX_AGENT__NAME. Then restart its agent.",
            )
        if host.problem:
            yield Finding(
                "problem",
                f"host {name}",
                f"its devices cannot be read: {host.problem}",
                "`nvidia-smi` on that host shows more; a driver that was upgraded needs a reboot.",
            )
        yield from _foreign_memory(host)
        yield from _tiers(host)
        for path, since in host.silent.items():
            yield Finding(
                "problem",
                f"host {name}",
                f"{path} has not answered for {max(0.0, host.now - since):.0f} s",
                "Its mount may hang: see `mount` and `dmesg` on that host. Only functions with weights there cannot "
                "start.",
            )
        if not host.engines:
            yield Finding(
                "problem", f"host {name}", "it has no engine", "Install vllm, llama-server or xllamacpp there."
            )


def _foreign_memory(host: HostView) -> Iterator[Finding]:
    """Name the processes outside cortex that hold memory of a host's devices."""
    for device in host.devices:
        if device.foreign_mb < FOREIGN_MB:
            continue
        holders = sorted((h for h in host.foreign if h.device == device.id), key=lambda h: -(h.memory_mb or 0))
        names = [f"{h.command or 'unknown'} (pid {h.pid})" for h in holders[:MOST_HOLDERS]]
        yield Finding(
            "warning",
            f"host {host.name}",
            f"processes outside cortex hold {device.foreign_mb} MiB of {device.id}: {', '.join(names) or 'unknown'}",
            "End them if they are not needed: functions have only the rest. `cortex gpu ls` shows each one.",
        )


def _tiers(host: HostView) -> Iterator[Finding]:
    """Report whether idle and evicted instances can be parked on a host with GPUs."""
    possible = [tier for tier, why in host.tiers.items() if not why]
    for tier, why in host.tiers.items():
        if why:
            rest = possible[0] if possible else "stop"
            yield Finding("ok", f"host {host.name}", f"no instance can {tier}, they {rest} instead: {why}")
    if possible:
        held = sum(i.ram_mb for i in host.instances)
        text = f"instances that leave a GPU can {' or '.join(possible)}: {held}/{host.park_ram_mb} MiB of RAM held"
        yield Finding("ok", f"host {host.name}", text)


def check_parking(functions: Iterable[FunctionView], hosts: Sequence[HostView]) -> Iterator[Finding]:
    """Check that functions can be parked as their `park` requests, and that the RAM is enough."""
    hosts = [h for h in hosts if h.tiers]
    for f in functions:
        for name, tier, why in f.unparkable:
            yield Finding(
                "warning",
                f.id,
                f"its instances {tier} no longer on {name}, and stop instead: {why}",
                f"`cortex fn forget {f.id}` tries again.",
            )
        if f.park in (Tier.SLEEP, Tier.FREEZE) and hosts:
            refusals = [f"{h.name}: {h.tiers[Tier(f.park)]}" for h in hosts if h.tiers.get(Tier(f.park))]
            if len(refusals) == len(hosts):
                yield Finding(
                    "warning",
                    f.id,
                    f'park = "{f.park}", but no host can do that, so its instances stop: {"; ".join(refusals)}',
                    'Use park = "auto", or change the host.',
                )
        sleepers = [(h, round(h.weights.get(f.id, 0) * RAM_FACTOR)) for h in hosts if h.tiers.get(Tier.SLEEP) == ""]
        short = [(h, mb) for h, mb in sleepers if mb > h.park_ram_mb]
        if f.engine == Engine.VLLM and f.park in (Park.AUTO, Park.SLEEP) and short and len(short) == len(sleepers):
            host, asleep_mb = short[0]
            yield Finding(
                "warning",
                f.id,
                f"asleep it needs about {asleep_mb} MiB of RAM, and {host.name} gives parked instances "
                f"{host.park_ram_mb} MiB: its instances stop instead",
                "Raise `[agent] park_ram_mb` if that host has the RAM.",
            )


def check_functions(router: Router, hosts: Sequence[HostView] = ()) -> Iterator[Finding]:
    """Check that every function fits some host, and that none keeps failing."""
    functions = {f.id: f for f in router.functions() if f.declared}
    models = router.models()
    nowhere = [m.id for m in models if m.id in functions and not m.feasible_on]
    if nowhere:
        yield Finding(
            "warning",
            "functions",
            f"no host can run {', '.join(nowhere[:10])}",
            f"`cortex fn plan {nowhere[0]}` shows the reason for each host.",
        )
    for f in functions.values():
        if f.blocked:
            yield Finding(
                "problem",
                f.id,
                f"cannot start: {f.blocked}",
                "End the processes that hold the memory, or declare a smaller `vram_mb` or `context`.",
            )
        if f.state == "failing":
            yield Finding(
                "problem",
                f.id,
                "\n    ".join([f"keeps failing: {f.failure}", *router.last_lines(f)]),
                f"`cortex fn logs {f.id} --run previous`, then `cortex fn warm {f.id} --wait`",
            )
    yield from check_parking(functions.values(), hosts)
    if not nowhere:
        yield Finding("ok", "functions", f"{len(functions)}, each with a host that can run it")


def check_redis(settings: Settings, *, expected: bool) -> Iterator[Finding]:
    """Check that Redis answers fast, does not evict keys, saves, and has the right time."""
    url, where = settings.redis_url, settings.redis_shown
    try:
        with redis_clients.client(url, 3.0) as client:
            started = time.monotonic()
            client.ping()
            ping_s = time.monotonic() - started
            info: Any = client.info()
            skew = float(info["server_time_usec"]) / 1e6 - time.time() if "server_time_usec" in info else 0.0
    except (redis.RedisError, OSError) as error:
        if expected:
            yield Finding(
                "problem",
                "redis",
                f"{where} does not answer: {error}",
                "Start it, or correct `[redis] url`.",
            )
        else:
            yield Finding("ok", "redis", "not configured: `cortex up` runs its own")
        return
    yield Finding("ok", "redis", f"{where} answers in {ping_s * 1000:.1f} ms, version {info['redis_version']}")
    if ping_s > SLOW_REDIS_S:
        yield Finding(
            "warning",
            "redis",
            f"it takes {ping_s * 1000:.0f} ms to answer",
            "Starts wait for it; warm requests do not.",
        )
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        yield Finding(
            "problem",
            "redis",
            f"it evicts keys when full ({info['maxmemory_policy']})",
            "Set maxmemory-policy noeviction: API keys and cordons are stored there.",
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding("problem", "redis", "its last save failed", "See its log: the disk may be full.")
    if abs(skew) > SKEW_S:
        yield Finding(
            "warning",
            "redis",
            f"its clock is {skew:+.1f} s from this machine's",
            "Run an NTP client on both: the expiry of API keys and the times in logs are by the wall clock.",
        )


def check_agents(hosts: Iterable[HostView], ca_file: str) -> Iterator[Finding]:
    """Check that agents can be reached from this machine."""
    for host in hosts:
        try:
            httpx.get(f"{host.address}/health", timeout=3, trust_env=False, verify=trust(ca_file)).raise_for_status()
        except httpx.HTTPError as error:
            yield Finding(
                "warning",
                f"agent {host.name}",
                f"{host.address} does not answer from here: {error}",
                "Routers must reach it: check `[agent] listen`, `address` and the firewall.",
            )
        else:
            yield Finding("ok", f"agent {host.name}", f"{host.address} answers")


def check_disks(settings: Settings) -> Iterator[Finding]:
    """Check free space and write permission."""
    for about, folder in (
        ("cache", settings.agent.cache_dir),
        ("state", settings.agent.state_dir),
        ("worker logs", settings.agent.log_dir),
    ):
        path = Path(folder).expanduser()
        existing = next(p for p in (path, *path.parents) if p.exists())
        if not os.access(existing, os.W_OK):
            yield Finding(
                "problem", about, f"this user cannot write to {path}", f"chown it, or set another {about}_dir."
            )
            continue
        yield check_space(about, path, shutil.disk_usage(existing).free / 1e9)


def check_space(about: str, path: Path, free_gb: float) -> Finding:
    """Return the finding for a disk's free space."""
    if free_gb < FULL_DISK_GB:
        do = "Free space: nothing can be written there. `cortex weights rm --unused --dry-run`"
        return Finding("problem", about, f"the disk of {path} is full: {free_gb * 1000:.0f} MB free", do)
    if free_gb < LITTLE_DISK_GB:
        do = "Weights need room: `cortex weights rm --unused --dry-run` lists removable ones; or move the folder."
        return Finding("warning", about, f"{free_gb:.1f} GB free at {path}", do)
    return Finding("ok", about, f"{free_gb:.0f} GB free at {path}")


def check_tokens(settings: Settings) -> Iterator[Finding]:
    """Check the token files of this machine: the fleet's, and the host's own. A host with its own needs no other."""
    fleet = Path(settings.token_file).expanduser()
    if fleet.exists() or not settings.agent.token_file:
        yield check_token("fleet token", fleet, fleet_tokens)
    if settings.agent.token_file:
        own = Path(settings.agent.token_file).expanduser()
        yield check_token("host token", own, partial(host_secrets, host=settings.host_name))


def check_token(about: str, path: Path, read: Callable[[Path], object]) -> Finding:
    """Check that a token file is there, is private, and is what it has to be. A group of root's file may read it."""
    if not path.exists() and about == "fleet token":
        return Finding("ok", about, f"{path} will be created on first use")
    if path.exists() and not os.access(path, os.R_OK):
        return Finding("problem", about, f"this user cannot read {path}", "Run as the user who owns it.")
    try:
        read(path)
    except SettingsError as error:
        return Finding("problem", about, str(error))
    status = path.stat()
    readers, bits = ("o", 0o007) if status.st_uid == 0 else ("go", 0o077)
    if status.st_mode & bits:
        return Finding("problem", about, f"others can read {path}", f"chmod {readers}= {path}")
    return Finding("ok", about, str(path))


def check_folders(*folders: Path) -> Iterator[Finding]:
    """Check that other users of this machine cannot read cortex's files: state and logs."""
    for folder in dict.fromkeys(f.expanduser() for f in folders):
        if any(other != folder and other in folder.parents for other in folders) or not folder.is_dir():
            continue
        try:
            readable = list(readable_by_others(folder))
        except OSError as error:
            yield Finding("warning", "private files", f"{folder} cannot be read: {error}")
            continue
        if not readable:
            yield Finding("ok", "private files", f"only this user can read {folder}")
            continue
        more = f" and {len(readable) - 1} more" if len(readable) > 1 else ""
        yield Finding("problem", "private files", f"others can read {readable[0]}{more}", f"chmod -R go-rwx {folder}")


def readable_by_others(folder: Path) -> Iterator[Path]:
    """Yield the folders and files in a folder, itself included, that other users of the machine can read."""
    if not all(parent.stat().st_mode & 0o001 for parent in folder.parents):
        return
    pending, remaining = [folder], MOST_PATHS
    while pending and remaining:
        path, remaining = pending.pop(), remaining - 1
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            continue
        if mode & 0o004:
            yield path
        if stat.S_ISDIR(mode) and mode & 0o001:
            pending.extend(path.iterdir())


def check_ports(settings: Settings, *, used: bool) -> Iterator[Finding]:
    """Check that the ports are free, unless cortex runs here."""
    if used:
        return
    for about, listen in (
        ("router port", settings.gateway.listen),
        ("metrics port", settings.gateway.metrics_listen),
        ("agent port", settings.agent.listen),
    ):
        if not listen:
            continue
        host, port = address.split(listen)
        try:
            with address.create_server(host, port):
                yield Finding("ok", about, f"{listen} is free")
        except OSError as error:
            yield Finding(
                "problem",
                about,
                f"{listen} is not available: {error}",
                f"`ss -ltnp sport = :{port}` names its user.",
            )
