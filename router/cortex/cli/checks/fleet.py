"""Checks of the fleet by what its router shows: router, hosts, functions, parking."""

from collections.abc import Iterable, Iterator, Sequence

from cortex.cli.checks.finding import Finding
from cortex.cli.client import Router
from cortex.functions.spec import SLEEPERS, Park
from cortex.platform.record import Tier
from cortex.platform.scheduling.parking import RAM_FACTOR
from cortex.router.api_types import FunctionView, Health, HostView
from cortex.router.overview.wording import trick_text

FOREIGN_MB = 1024
"""Memory of a device outside cortex that is worth a warning: a desktop takes less."""
MOST_HOLDERS = 5


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
            "This is a bug in cortex; its log has the traceback under `background_task_failed`.",
        )


def check_hosts(hosts: Iterable[HostView]) -> Iterator[Finding]:
    """Check that hosts report under unique names and can read their devices."""
    if not hosts:
        yield Finding(
            "problem", "hosts", "no host reports", "Run `cortex agent` on a host, with the same Redis and token."
        )
    for host in hosts:
        name = host.name
        yield _report_of(host)
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


def _report_of(host: HostView) -> Finding:
    """Return whether a host reports, and is open for new instances."""
    about, silent_s, count = f"host {host.name}", host.now - host.at, len(host.devices)
    if silent_s > 15:
        do = "See its agent's log: `journalctl -u cortex-agent` on that host."
        return Finding("warning", about, f"last reported {silent_s:.0f} s ago", do)
    if host.cordoned:
        do = f"`cortex host uncordon {host.name}`"
        return Finding("warning", about, "cordoned: nothing new is placed on it", do)
    return Finding("ok", about, f"{count} device{'' if count == 1 else 's'}")


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


def check_starts(functions: Iterable[FunctionView]) -> Iterator[Finding]:
    """Check that no trick of a start has failed."""
    for f in functions:
        for name, trick, why in f.tricks_off:
            yield Finding(
                "warning",
                f.id,
                f"its starts on {name} go {trick_text(trick)}, which failed once: {why}",
                f"`cortex fn forget {f.id}` tries again.",
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
    yield from check_starts(functions.values())
    yield from check_parking(functions.values(), hosts)
    if not nowhere:
        yield Finding("ok", "functions", f"{len(functions)}, each with a host that can run it")


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
        yield from _parked_ram(f, hosts)


def _parked_ram(f: FunctionView, hosts: Sequence[HostView]) -> Iterator[Finding]:
    """Check that a host that can park a function has the RAM: 1.5 times the weights for one that sleeps, all of its
    memory for one that can only be frozen."""
    sleeps = f.engine in SLEEPERS and f.park != Park.FREEZE
    tier, how = (Tier.SLEEP, "asleep") if sleeps else (Tier.FREEZE, "frozen")
    if f.park not in (Park.AUTO, tier):
        return
    needs = [
        (h, round(h.weights.get(f.id, 0) * RAM_FACTOR) if f.engine in SLEEPERS else f.vram_mb)
        for h in hosts
        if h.tiers.get(tier) == ""
    ]
    short = [(h, mb) for h, mb in needs if mb > h.park_ram_mb]
    if short and len(short) == len(needs):
        host, ram_mb = short[0]
        yield Finding(
            "warning",
            f.id,
            f"{how} it needs about {ram_mb} MiB of RAM, and {host.name} gives parked instances {host.park_ram_mb} MiB: "
            "its instances stop instead",
            "Raise `[agent] park_ram_mb` if that host has the RAM.",
        )
