"""Checks of this machine: Redis and agents as it reaches them, disks, tokens, private files and ports."""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis

from cortex.cli.checks.finding import Finding
from cortex.platform import redis_clients
from cortex.platform.keys import fleet_tokens, host_secrets
from cortex.platform.serving import address
from cortex.platform.serving.trust import trust
from cortex.platform.settings import Settings, SettingsError
from cortex.router.api_types import HostView

LITTLE_DISK_GB, FULL_DISK_GB = 5.0, 0.1
SKEW_S = 1.0
SLOW_REDIS_S = 0.05
MOST_PATHS = 10_000


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
