"""The whole status page, decided: a pure function of what a router knows at one moment."""

from cortex.router.status.failures import troubles
from cortex.router.status.format import some
from cortex.router.status.functions import rows
from cortex.router.status.hosts import departures, hosts
from cortex.router.status.model import Attention, Figures, Host, Picture, Row, Verdict
from cortex.router.status.snapshot import FleetSnapshot, Index
from cortex.router.status.starts import starts

MOST_ATTENTION = 6
MOST_DECISIONS = 40
MOST_JOBS = 40


def picture(known: FleetSnapshot) -> Picture:
    """Return everything the page shows."""
    index = Index(known.fleet)
    machines, functions, coming = hosts(known, index), rows(known, index), starts(known, index)
    figures = _figures(known, index, functions)
    return Picture(
        now=known.now,
        verdict=verdict(known, figures, machines, functions),
        figures=figures,
        flow=known.flow,
        starts=coming,
        hosts=machines,
        rows=functions,
        departures=departures(known, index),
        decisions=tuple(known.decisions[:MOST_DECISIONS]),
        jobs=None if known.jobs is None else tuple(known.jobs[:MOST_JOBS]),
        troubles=troubles(index),
    )


def _figures(known: FleetSnapshot, index: Index, functions: tuple[Row, ...]) -> Figures:
    tones = [r.tone for r in functions]
    devices = [(d, h) for h in known.fleet.hosts.values() for d in h.devices]
    return Figures(
        functions=len(functions),
        serving=tones.count("busy") + tones.count("idle"),
        coming=tones.count("coming"),
        failing=tones.count("failing"),
        hosts=len(known.fleet.hosts),
        cordoned=len(known.fleet.cordoned),
        in_flight=sum(index.usage.in_flight.values()),
        waiting=sum(index.usage.waiting.values()),
        used_mb=sum(d.foreign_mb + sum(i.memory_mb for i in h.instances if d.id in i.devices) for d, h in devices),
        total_mb=sum(d.total_mb for d, _ in devices),
    )


def verdict(known: FleetSnapshot, figures: Figures, machines: tuple[Host, ...], functions: tuple[Row, ...]) -> Verdict:
    """Say how things stand, gravest first:

    (1) the record is away: what is shown may be old, and nothing can be started;
    (2) no host is there;
    (3) the catalogue's file does not stand;
    (4) functions that keep failing;
    (5) hosts whose devices cannot be read, or that are late with their report;
    (6) requests that wait although nothing comes up for them.
    """
    points: list[Attention] = []
    if known.away:  # (1)
        points.append(Attention(grave=True, text="Redis does not answer", detail="What is warm goes on serving."))
    elif not machines:  # (2)
        points.append(Attention(grave=True, text="No host is there", detail="Start `cortex agent` on one."))
    if known.problem:  # (3)
        points.append(Attention(grave=True, text="The catalogue does not stand", detail=known.problem))
    points += [  # (4)
        Attention(grave=True, text=f"{r.id} does not start", detail=r.failure, to=r.key)
        for r in functions
        if r.tone == "failing"
    ]
    for host in machines:  # (5)
        if host.problem:
            points.append(Attention(grave=True, text=f"{host.name} has a problem", detail=host.problem, to=host.key))
        elif host.silent_since is not None:
            points.append(Attention(grave=False, text=f"{host.name} is late with its report", to=host.key))
    for r in functions:  # (6)
        if r.waiting and (r.tone == "cold" or r.in_line):
            held = some(r.waiting, "request")
            detail = f"{held} held" + (f": it {r.in_line}" if r.in_line else "")
            points.append(Attention(grave=False, text=f"{r.id} has no place yet", detail=detail, to=r.key))
    points.sort(key=lambda p: not p.grave)
    return Verdict(
        well=not any(p.grave for p in points),
        text=_said(figures),
        attention=tuple(points[:MOST_ATTENTION]),
        more=max(0, len(points) - MOST_ATTENTION),
    )


def _said(figures: Figures) -> str:
    on = f"on {some(figures.hosts, 'host')}"
    verb = "is" if 1 in (figures.serving, figures.functions) else "are"
    warm = f"{figures.serving} of {some(figures.functions, 'function')} {verb} warm"
    coming = f", {figures.coming} coming up" if figures.coming else ""
    return f"{warm} {on}{coming}"
