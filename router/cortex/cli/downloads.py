"""Downloads on the hosts, for every command that lists them, follows them or waits for one."""

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


def listed(downloads: list[Download]) -> Table:
    """Return them as a table."""
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
    """Show how the downloads get on, on one host or on all, until none does any more."""
    _watched(router, host, lambda d: bool(d["alive"]))


def wait_for(router: Router, host: str, job: str) -> Download:
    """Show how a download gets on; return it when it has come to its end. Raises Failed when it comes to another."""
    gone = {"source": job, "host": host, "state": "gone", "why": ""}
    last = _watched(router, host, lambda d: d["id"] == job).get(job, gone)
    if last["state"] != "done":
        why = last["why"] or ("it was cancelled" if last["state"] == "stopped" else "its job is gone")
        raise Failed(f"{last['source']} was not fetched on {last['host']}: {why}", code=FAILED)
    return last


def _watched(router: Router, host: str, mine: Callable[[Download], bool]) -> dict[str, Download]:
    """Show the downloads that are meant, until none of them gets on; return by id how each was seen last."""
    out, seen, bars = console(), dict[str, Download](), dict[str, TaskID]()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        while True:
            found = [d for d in router.jobs(host)["jobs"] if d["id"] in seen or mine(d)]
            for d in found:
                seen[d["id"]] = d
                if d["id"] not in bars:
                    bars[d["id"]] = progress.add_task(f"{d['source']} on {d['host']}", total=None, said="")
                said = d["said"] or d["state"]
                # A size that is not known yet is a bar that only moves.
                progress.update(bars[d["id"]], total=d["total"] or None, completed=d["done"], said=said, refresh=True)
            if not any(d["alive"] for d in found):
                return seen
            time.sleep(POLL_S)
