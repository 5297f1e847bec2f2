"""The whole status page as a pure function of a fleet snapshot."""

from cortex.router.api_types import DownloadView, HostsAnswer
from cortex.router.batches.batch import Batch
from cortex.router.overview.functions import function_views
from cortex.router.overview.hosts import host_views
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.status.failures import troubles
from cortex.router.status.flow import flow
from cortex.router.status.format import mib, some
from cortex.router.status.functions import rows
from cortex.router.status.hosts import departures, hosts
from cortex.router.status.model import Attention, Figures, Host, Job, Picture, Row, Verdict
from cortex.router.status.starts import starts

MOST_ATTENTION = 6
MOST_DECISIONS = 40
MOST_JOBS = 40


def picture(snapshot: FleetSnapshot) -> Picture:
    """Return the content of the page."""
    index = Index(snapshot)
    machine_views, views = host_views(snapshot, index), tuple(function_views(snapshot, index))
    machines, functions = hosts(machine_views, index), rows(views, snapshot)
    figures = _figures(snapshot, index, machine_views, functions)
    return Picture(
        now=snapshot.now,
        verdict=verdict(snapshot, figures, machines, functions),
        figures=figures,
        flow=flow(snapshot.hour, snapshot.now),
        starts=starts(views, snapshot, index),
        hosts=machines,
        rows=functions,
        departures=departures(machine_views, snapshot.strategy, index),
        decisions=tuple(snapshot.decisions[:MOST_DECISIONS]),
        batches=tuple(batch_job(b) for b in snapshot.batches[:MOST_JOBS]),
        jobs=None if snapshot.downloads is None else tuple(job(d) for d in snapshot.downloads[:MOST_JOBS]),
        troubles=troubles(index),
    )


def _figures(snapshot: FleetSnapshot, index: Index, machines: HostsAnswer, functions: tuple[Row, ...]) -> Figures:
    tones = [r.tone for r in functions]
    devices = [d for h in machines.hosts for d in h.devices]
    return Figures(
        functions=len(functions),
        serving=tones.count("busy") + tones.count("idle"),
        coming=tones.count("coming"),
        failing=tones.count("failing"),
        hosts=len(machines.hosts),
        cordoned=len(snapshot.fleet.cordoned),
        in_flight=sum(index.usage.in_flight.values()),
        waiting=sum(index.usage.waiting.values()),
        used_mb=sum(d.foreign_mb + d.admitted_mb for d in devices),
        total_mb=sum(d.total_mb for d in devices),
    )


def verdict(
    snapshot: FleetSnapshot, figures: Figures, machines: tuple[Host, ...], functions: tuple[Row, ...]
) -> Verdict:
    """Return the fleet's state and its problems, most severe first:

    (1) the record is unavailable: the data may be stale, and no function can start;
    (2) no host reports;
    (3) the catalogue file is invalid;
    (4) functions that keep failing, and those whose memory processes outside cortex hold;
    (5) hosts with a problem, or whose report is late;
    (6) requests that wait for a function without a starting instance;
    (7) keys whose budget is spent, or nearly so.
    """
    points: list[Attention] = []
    if snapshot.away:  # (1)
        points.append(Attention(grave=True, text="Redis does not answer", detail="Warm functions keep serving."))
    elif not machines:  # (2)
        points.append(Attention(grave=True, text="No host reports", detail="Start `cortex agent` on a host."))
    if snapshot.problem:  # (3)
        points.append(Attention(grave=True, text="The catalogue is invalid", detail=snapshot.problem))
    points += [  # (4)
        Attention(
            grave=True,
            text=f"{r.id} {'does not' if r.tone == 'failing' else 'cannot'} start",
            detail=r.failure,
            to=r.key,
        )
        for r in functions
        if r.failure
    ]
    for host in machines:  # (5)
        if host.problem:
            points.append(Attention(grave=True, text=f"{host.name} has a problem", detail=host.problem, to=host.key))
        elif host.silent_since is not None:
            points.append(Attention(grave=False, text=f"{host.name} is late with its report", to=host.key))
    for r in functions:  # (6)
        if r.waiting and (r.tone == "cold" or r.in_line):
            count = some(r.waiting, "request")
            detail = f"{count} waiting" + (f": it {r.in_line}" if r.in_line else "")
            points.append(Attention(grave=False, text=f"{r.id} has no instance yet", detail=detail, to=r.key))
    for low in snapshot.low_budgets:  # (7)
        text = f"The key {low.name} has spent {low.share:.0%} of its budget"
        points.append(Attention(grave=False, text=text, detail=low.budget))
    points.sort(key=lambda p: not p.grave)
    return Verdict(
        well=not any(p.grave for p in points),
        text=_summary(figures),
        attention=tuple(points[:MOST_ATTENTION]),
        more=max(0, len(points) - MOST_ATTENTION),
    )


def _summary(figures: Figures) -> str:
    on = f"on {some(figures.hosts, 'host')}"
    verb = "is" if 1 in (figures.serving, figures.functions) else "are"
    warm = f"{figures.serving} of {some(figures.functions, 'function')} {verb} warm"
    coming = f", {figures.coming} coming up" if figures.coming else ""
    return f"{warm} {on}{coming}"


def job(download: DownloadView) -> Job:
    """Return a download as the page shows it."""
    detail = " · ".join(s for s in (", ".join(download.functions), _progress(download), download.why) if s)
    return Job(
        id=download.id,
        host=download.host,
        what=download.source,
        state=download.state,
        share=download.fraction if download.active else None,
        detail=detail,
        at=download.requested_at,
        ends=download.ends_at,
    )


def batch_job(batch: Batch) -> Job:
    """Return a batch as the page shows it."""
    counts, is_open = batch.counts, batch.status.is_open
    lines = f"{counts.done:,} of {some(counts.total, 'line')}" if counts.total else ""
    failed = f"{counts.failed:,} failed" if counts.failed else ""
    why = batch.waits_for if is_open else "".join(p.message for p in batch.problems[:1])
    return Job(
        id=batch.id,
        host=batch.who,
        what=batch.id,
        state=batch.status.replace("_", " "),
        share=counts.done / counts.total if is_open and counts.total else None,
        detail=" · ".join(s for s in (batch.endpoint, lines, failed, why) if s),
        at=batch.created,
        ends=batch.finish_at if is_open and batch.finish_at else None,
    )


def _progress(download: DownloadView) -> str:
    if not download.total:
        return ""
    total = mib(download.total / 2**20)
    rate = f", {mib(download.rate / 2**20)}/s" if download.rate and download.active else ""
    return total if download.done >= download.total else f"{mib(download.done / 2**20)} of {total}{rate}"
