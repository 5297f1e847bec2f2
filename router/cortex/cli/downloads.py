"""Lists, follows and awaits downloads on the hosts."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cortex.cli.client import Router
from cortex.cli.exits import FAILED, Failed
from cortex.cli.tables import bar, console, print_rows, size, span
from cortex.router.api_types import DownloadView

POLL_S = 0.3
_COLUMNS = ("WEIGHTS", "HOST", "FUNCTIONS", "STATE", "PROGRESS", "RATE", "LEFT", "JOB")


def print_downloads(downloads: tuple[DownloadView, ...]) -> None:
    """Print downloads as a table, and below it why one waits or failed."""
    rows = [
        (
            d.source,
            d.host,
            ", ".join(d.functions) or "-",
            d.state,
            f"{bar(d.fraction)} {size(d.done)}/{size(d.total)}" if d.total else "-",
            f"{size(d.rate)}/s" if d.rate else "-",
            _left(d),
            d.id,
        )
        for d in downloads
    ]
    notes = [(f"{d.source} on {d.host}", d.why) for d in downloads]
    print_rows(_COLUMNS, rows, optional=("FUNCTIONS", "RATE", "JOB", "LEFT"), notes=notes)


def follow(router: Router, host: str) -> None:
    """Show the progress of the downloads on one host or on all until none is active."""
    _watch(router, host, lambda d: d.active)


def wait_for(router: Router, host: str, job: str) -> DownloadView:
    """Show a download's progress and return it when done. Raises Failed if it fails or is cancelled."""
    missing = DownloadView(id=job, host=host, source=job, state="gone", active=False)
    last = _watch(router, host, lambda d: d.id == job).get(job, missing)
    if last.state != "done":
        why = last.why or ("it was cancelled" if last.state == "stopped" else "its job no longer exists")
        raise Failed(f"{last.source} was not fetched on {last.host}: {why}", code=FAILED)
    return last


def _watch(router: Router, host: str, selects: Callable[[DownloadView], bool]) -> dict[str, DownloadView]:
    """Show the selected downloads until none is active; return the last state of each by id."""
    out, latest, bars = console(), dict[str, DownloadView](), dict[str, TaskID]()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        while True:
            selected = [d for d in router.jobs(host).jobs if d.id in latest or selects(d)]
            for d in selected:
                latest[d.id] = d
                if d.id not in bars:
                    bars[d.id] = progress.add_task(f"{d.source} on {d.host}", total=None, detail="")
                # Without a total, the bar is indeterminate.
                progress.update(bars[d.id], total=d.total or None, completed=d.done, detail=_detail(d), refresh=True)
            if not any(d.active for d in selected):
                return latest
            time.sleep(POLL_S)


def _detail(download: DownloadView) -> str:
    """Return how far a download is, and why it waits."""
    if not download.active or download.state == "queued":
        return download.why or download.state
    parts = [f"{size(download.done)} of {size(download.total)}" if download.total else "reading the list of files"]
    if download.state == "waiting":
        return f"{parts[0]}, next attempt in {span(max(0.0, (download.retry_at or 0.0) - time.time()))}: {download.why}"
    if download.rate:
        parts.append(f"{size(download.rate)}/s")
    if download.ends_at is not None:
        parts.append(f"{_left(download)} left")
    return ", ".join(parts)


def _left(download: DownloadView) -> str:
    return "-" if download.ends_at is None else span(max(0.0, download.ends_at - time.time()))
