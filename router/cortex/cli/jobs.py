"""`cortex jobs`: a host's job worker, and the downloads of all hosts."""

from pathlib import Path

import rich_click as click

from cortex.cli.exits import NOT_FOUND, Failed
from cortex.cli.settings import config_option, refuse_another_fleets_record, settings_of
from cortex.cli.visible import echo, echo_json


@click.group(invoke_without_command=True)
@config_option
@click.pass_context
def jobs(context: click.Context, config: Path | None) -> None:
    """Run this host's job worker, which fetches weights; or, with a command, show and cancel downloads."""
    if context.invoked_subcommand is not None:
        return
    from cortex.platform import log
    from cortex.platform.process import garbage
    from cortex.platform.weights.job_worker import AnotherWorker, work
    from cortex.platform.workers.worker_user import share_cache

    settings = settings_of(config)
    log.configure(settings.log)
    refuse_another_fleets_record(settings, of_host=True)
    share_cache(settings.agent)
    garbage.settle()
    try:
        work(settings)
    except AnotherWorker as error:
        raise Failed(str(error)) from None


@jobs.command("ls")
@click.option("--host", default="", help="Only on this host.")
@click.option("--follow", "-f", is_flag=True, help="Show progress bars until no download is active.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(host: str, follow: bool, as_json: bool) -> None:
    """List the downloads with progress, rate and remaining time."""
    from cortex.cli import downloads
    from cortex.cli.client import Router
    from cortex.cli.tables import print_unavailable

    router = Router()
    if follow and not as_json:
        downloads.follow(router, host)
        return
    result = router.jobs(host)
    if as_json:
        echo_json(result, indent=2)
        return
    downloads.print_downloads(result.jobs)
    print_unavailable(result.away)


@jobs.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Cancel a download by its id, source or function. The part that was fetched stays."""
    from cortex.cli.client import Router

    router = Router()
    active = [j for j in router.jobs("").jobs if j.active]
    matches = [j for j in active if job in (j.id, j.source, *j.functions)]
    if not matches:
        raise Failed(f"no download '{job}' is running", code=NOT_FOUND, hint="`cortex jobs ls` lists them.")
    for match in matches:
        echo(f"{router.cancel_job(match.id).host}: cancelled {match.source}")
