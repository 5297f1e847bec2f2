"""Lists, follows and awaits downloads on the hosts."""

import time
from collections.abc import Callable
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from cortex.cli.client import Router
from cortex.cli.exits import FAILED, Failed
from cortex.cli.tables import bar, console, size, span, table

Download = dict[str, Any]
POLL_S = 0.3


def download_table(downloads: list[Download]) -> Table:
    """Return downloads as a table."""
    rows = table("HOST", "WEIGHTS", "FUNCTIONS", "STATE", "PROGRESS", "RATE", "LEFT", "JOB")
    for d in downloads:
        rows.add_row(
            d["host"],
            d["source"],
            ", ".join(d["functions"]) or "-",
            d["state"],
            f"{bar(d['fraction'])} {size(d['done'])}/{size(d['total'])}" if d["total"] else "-",
            f"{size(d['rate'])}/s" if d["rate"] else "-",
            span(d["remaining_s"]),
            d["id"],
        )
    return rows


def follow(router: Router, host: str) -> None:
    """Show the progress of the downloads on one host or on all until none is active."""
    _watch(router, host, lambda d: bool(d["alive"]))


def wait_for(router: Router, host: str, job: str) -> Download:
    """Show a download's progress and return it when done. Raises Failed if it fails or is cancelled."""
    missing = {"source": job, "host": host, "state": "gone", "why": ""}
    last = _watch(router, host, lambda d: d["id"] == job).get(job, missing)
    if last["state"] != "done":
        why = last["why"] or ("it was cancelled" if last["state"] == "stopped" else "its job no longer exists")
        raise Failed(f"{last['source']} was not fetched on {last['host']}: {why}", code=FAILED)
    return last


def _watch(router: Router, host: str, selects: Callable[[Download], bool]) -> dict[str, Download]:
    """Show the selected downloads until none is active; return the last state of each by id."""
    out, latest, bars = console(), dict[str, Download](), dict[str, TaskID]()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        while True:
            selected = [d for d in router.jobs(host)["jobs"] if d["id"] in latest or selects(d)]
            for d in selected:
                latest[d["id"]] = d
                if d["id"] not in bars:
                    bars[d["id"]] = progress.add_task(f"{d['source']} on {d['host']}", total=None, detail="")
                detail = d["said"] or d["state"]
                # Without a total, the bar is indeterminate.
                progress.update(
                    bars[d["id"]], total=d["total"] or None, completed=d["done"], detail=detail, refresh=True
                )
            if not any(d["alive"] for d in selected):
                return latest
            time.sleep(POLL_S)
