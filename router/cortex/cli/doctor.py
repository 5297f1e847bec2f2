"""`cortex doctor`: checks this installation and suggests fixes.

`checks/` has them: every check yields findings, and one that cannot run yields a finding too. Nothing is changed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import rich_click as click

from cortex.cli.checks.finding import Finding
from cortex.cli.checks.fleet import check_functions, check_hosts, check_router
from cortex.cli.checks.machine import (
    check_agents,
    check_disks,
    check_folders,
    check_ports,
    check_redis,
    check_tokens,
)
from cortex.cli.client import Router
from cortex.cli.exits import FAILED, Failed
from cortex.cli.local import state_dir
from cortex.cli.tables import console
from cortex.cli.visible import echo_json
from cortex.platform import settings_file
from cortex.platform.settings import SettingsError
from cortex.router.api_types import HostView

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The cortex.toml this machine uses.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(config: Path | None, as_json: bool) -> None:
    """Check settings, catalogue, Redis, agents, engines, clocks, ports, disks and permissions."""
    findings = list(run_checks(config))
    if as_json:
        echo_json(findings, indent=2)
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
        settings, _ = settings_file.from_environment(config)
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
