"""`cortex batch`: batches of requests that run when nothing else needs the hosts."""

import json
import os
import time
from pathlib import Path

import rich_click as click
from rich.progress import BarColumn, Progress, TextColumn

from cortex.cli.client import OwnBatch, Router
from cortex.cli.exits import FAILED, USAGE, Failed
from cortex.cli.tables import bar, console, print_rows, size, span
from cortex.cli.visible import echo, echo_json
from cortex.router.batches.batch import ENDPOINTS, Batch

POLL_S = 0.5
MOST = 1000
OPEN = ("validating", "in_progress", "finalizing", "cancelling")


@click.group()
def batch() -> None:
    """Show, cancel and submit batches."""


@batch.command("ls")
@click.option("--limit", type=click.IntRange(1, MOST), default=20, show_default=True, help="Number of batches.")
@click.option("--after", default="", metavar="ID", help="Show the next ones after this batch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(limit: int, after: str, as_json: bool) -> None:
    """List the batches of all keys, the newest first."""
    batches = Router().batches(limit, after)
    if as_json:
        echo_json(batches, indent=2)
        return
    rows = [
        (
            b.id,
            b.who,
            b.status,
            f"{bar(_share(b))} {b.counts.done:,}/{b.counts.total:,}" if b.counts.total else "-",
            f"{b.counts.failed:,}" if b.counts.failed else "-",
            span(time.time() - b.created),
            span(max(0.0, b.finish_at - time.time())) if b.finish_at else "-",
        )
        for b in batches
    ]
    notes = [(b.id, b.waits_for) for b in batches]
    print_rows(("BATCH", "KEY", "STATUS", "LINES", "FAILED", "AGE", "LEFT"), rows, optional=("AGE",), notes=notes)


@batch.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(id: str, as_json: bool) -> None:
    """Show one batch."""
    match = Router().batch(id)
    if as_json:
        echo_json(match, indent=2)
        return
    counts = match.counts
    left = span(max(0.0, match.finish_at - time.time())) if match.finish_at else ""
    facts = {
        "key": f"{match.who} ({match.key})",
        "status": match.status,
        "endpoint": match.endpoint,
        "lines": f"{counts.done:,} of {counts.total:,} have results: {counts.succeeded:,} succeeded, "
        f"{counts.failed:,} failed, {counts.cancelled:,} cancelled, {counts.expired:,} expired",
        "left": f"{left}, at the rate of the last minutes" if left else "",
        "waits for": match.waits_for,
        "input": match.input_file,
        "results": match.output_file if match.has_output else "",
        "errors": match.error_file if match.has_errors else "",
    }
    for name, fact in facts.items():
        if fact:
            echo(f"{name:<10} {fact}")
    for problem in match.problems:
        echo(f"{'problem':<10} {f'line {problem.line}: ' if problem.line else ''}{problem.message}")


@batch.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cancel(id: str, as_json: bool) -> None:
    """Cancel a batch of any key. Lines with results keep them."""
    cancelled = Router().cancel_batch(id)
    echo_json(cancelled, indent=2) if as_json else echo(f"{id}: {cancelled.status}")


@batch.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--endpoint", type=click.Choice(ENDPOINTS), help="Path of all requests [default: the first line's url].")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Wait, and write the results to this file."
)
@click.option("--wait", is_flag=True, help="Wait for the end, and show the progress.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def submit(file: Path, endpoint: str | None, output: Path | None, wait: bool, as_json: bool) -> None:
    """Submit a file of requests in the format of OpenAI's Batch API, one JSON object a line.

    Ctrl-C does not cancel the batch. Errors are written to the file `--output` plus `.errors`.
    """
    if output and not os.access(output.parent, os.W_OK):
        raise Failed(f"{output.parent} is no folder that can be written: the results would be lost", code=USAGE)
    router = Router()
    endpoint = endpoint or _endpoint(file)
    stored = router.upload(file)
    submitted = router.new_batch(stored.id, endpoint)
    if not (wait or output):
        echo_json(submitted, indent=2) if as_json else echo(
            f"{submitted.id}: submitted, {size(stored.bytes)}; `cortex batch show {submitted.id}` shows its progress"
        )
        return
    ended = _follow(router, submitted)
    written = _write(router, ended, output) if output else []
    if as_json:
        echo_json(ended, indent=2)
    else:
        counts = ended.request_counts
        echo(f"{ended.id}: {ended.status}, {counts.completed:,} answers, {counts.failed:,} errors")
        for path in written:
            echo(f"written: {path}")
    if ended.status != "completed":
        problems = ended.errors.data if ended.errors else ()
        why = "; ".join(f"line {p.line}: {p.message}" if p.line else p.message for p in problems[:5])
        raise Failed(f"the batch is {ended.status}{f': {why}' if why else ''}", code=FAILED)


def _endpoint(file: Path) -> str:
    """Return the `url` of the first line of a file."""
    with file.open("rb") as lines:
        first = lines.readline(1 << 24)
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if url not in ENDPOINTS:
        raise Failed(f"{file}: the first line has no `url` that is one of {', '.join(ENDPOINTS)}")
    return str(url)


def _follow(router: Router, batch: OwnBatch) -> OwnBatch:
    """Show the progress of a batch until it has ended."""
    out = console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        task = progress.add_task(batch.id, total=None, detail="")
        while batch.status in OPEN:
            time.sleep(POLL_S)
            batch = router.own_batch(batch.id)
            counts = batch.request_counts
            left = f", {span(max(0.0, batch.finish_at - time.time()))} left" if batch.finish_at else ""
            why = f": {batch.waits_for}" if batch.waits_for else ""
            done = counts.completed + counts.failed
            detail = f"{done:,} of {counts.total:,}{left}{why}" if counts.total else batch.status
            progress.update(task, total=counts.total or None, completed=done, detail=detail, refresh=True)
    return batch


def _write(router: Router, batch: OwnBatch, output: Path) -> list[Path]:
    """Write the results of a batch."""
    written = []
    for id, path in (
        (batch.output_file_id, output),
        (batch.error_file_id, output.with_name(f"{output.name}.errors")),
    ):
        if id:
            router.download(id, path)
            written.append(path)
    return written


def _share(batch: Batch) -> float:
    return batch.counts.done / batch.counts.total if batch.counts.total else 0.0
