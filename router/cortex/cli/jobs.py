"""`cortex jobs`: a host's job worker, and the downloads on all hosts."""

import json
from pathlib import Path

import rich_click as click

from cortex.cli import downloads
from cortex.cli.client import Router
from cortex.cli.exits import NOT_FOUND, Failed
from cortex.cli.settings import config_option, refuse_another_fleets_record, settings_of
from cortex.cli.tables import console, say_away
from cortex.cli.visible import echo


@click.group(invoke_without_command=True)
@config_option
@click.pass_context
def jobs(context: click.Context, config: Path | None) -> None:
    """Run this host's job worker, which fetches weights; or, with a command, see and stop downloads."""
    if context.invoked_subcommand is not None:
        return
    from cortex.platform import log
    from cortex.platform.weights.jobs import AnotherWorker, work
    from cortex.platform.workers.worker_user import share_cache

    settings = settings_of(config)
    log.configure(settings.log)
    refuse_another_fleets_record(settings)
    share_cache(settings.agent)
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
    if follow and not as_json:
        downloads.follow(router, host)
        return
    told = router.jobs(host)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    out = console()
    out.print(downloads.listed(told["jobs"]))
    for j in told["jobs"]:
        if j["why"]:
            out.print(f"\n{j['source']}: {j['why']}", markup=False)
    say_away(told["away"])


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
        echo(f"{told['host']}: cancelled {one['source']}")
