"""`cortex jobs`: a host's job worker, and the downloads on all hosts."""

import json
import time
from pathlib import Path
from typing import Any

import rich_click as click
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cortex.cli.client import Router
from cortex.cli.exits import FAILED, NOT_FOUND, Failed
from cortex.cli.settings import config_option, settings_of
from cortex.cli.tables import bar, console, size, span, table

POLL_S = 0.3


@click.group(invoke_without_command=True)
@config_option
@click.pass_context
def jobs(context: click.Context, config: Path | None) -> None:
    """Run this host's job worker, which fetches weights; or, with a command, see and stop downloads."""
    if context.invoked_subcommand is not None:
        return
    from cortex.platform import log
    from cortex.platform.weights.jobs import AnotherWorker, work

    settings = settings_of(config)
    log.configure(settings.log)
    try:
        work(settings)
    except AnotherWorker as error:
        raise Failed(str(error)) from None


@jobs.command("ls")
@click.option("--host", default="", help="Only on this host.")
@click.option("--follow", "-f", is_flag=True, help="Go on until no download is left, with progress bars.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(host: str, follow: bool, as_json: bool) -> None:
    """List the downloads: how far, how fast, how long still."""
    router = Router()
    told = router.jobs(host)
    if follow and not as_json:
        watched(router, lambda j: not host or j["host"] == host)
        return
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    rows = table("HOST", "WEIGHTS", "FUNCTIONS", "STATE", "PROGRESS", "RATE", "LEFT", "JOB")
    for j in told["jobs"]:
        rows.add_row(
            j["host"],
            j["source"],
            ", ".join(j["functions"]) or "-",
            j["state"],
            f"{bar(j['fraction'])} {size(j['done'])}/{size(j['total'])}" if j["total"] else "-",
            f"{size(j['rate'])}/s" if j["rate"] else "-",
            span(j["remaining_s"]),
            j["id"],
        )
    out = console()
    out.print(rows)
    for j in told["jobs"]:
        if j["why"]:
            out.print(f"\n{j['source']}: {j['why']}", markup=False)
    for name, why in told["away"].items():
        click.echo(f"{name} did not answer: {why}", err=True)


@jobs.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Stop a download, by its id or by what it fetches. What has come stays, for the next time."""
    router = Router()
    alive = [j for j in router.jobs("")["jobs"] if j["alive"]]
    named = [j for j in alive if job in (j["id"], j["source"], *j["functions"])]
    if not named:
        raise Failed(f"no download '{job}' is going on", code=NOT_FOUND, hint="`cortex jobs ls` lists them.")
    for one in named:
        told = router.cancel_job(one["id"])
        click.echo(f"{told['host']}: cancelled {one['source']}")


def watched(router: Router, mine: Any) -> list[dict[str, Any]]:
    """Show the downloads that are going on until none is; return them as they ended."""
    out = console()
    seen: dict[str, dict[str, Any]] = {}
    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        while True:
            found = [j for j in router.jobs("")["jobs"] if mine(j) and (j["alive"] or j["id"] in seen)]
            for j in found:
                seen[j["id"]] = j
                if j["id"] not in bars:
                    bars[j["id"]] = progress.add_task(f"{j['source']} on {j['host']}", total=None, said="")
                # A size that is not known yet is a bar that only moves.
                progress.update(
                    bars[j["id"]], total=j["total"] or None, completed=j["done"], said=j["said"] or j["state"]
                )
            if not any(j["alive"] for j in found):
                return list(seen.values())
            time.sleep(POLL_S)


def ended(job: dict[str, Any]) -> None:
    """Raise Failed unless a download came to its end."""
    if job["state"] != "done":
        why = job["why"] or ("it was cancelled" if job["state"] == "stopped" else "its job is gone")
        raise Failed(f"{job['source']} was not fetched on {job['host']}: {why}", code=FAILED)
