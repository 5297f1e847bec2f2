"""The whole status page, decided: a pure function of what a router knows at one moment."""

from cortex.functions.lifecycle import COMING
from cortex.platform.record import HostRecord, Instance
from cortex.router.status.hosts import departures, hosts
from cortex.router.status.known import Index, Known, key
from cortex.router.status.model import Attention, Figures, Host, Picture, Row, Start, Verdict
from cortex.router.status.rows import rows
from cortex.router.status.troubles import troubles
from cortex.router.status.words import some

MOST_ATTENTION = 6
MOST_DECISIONS = 40
MOST_JOBS = 40
SILENT_START_S = 20.0
"""A start without a sign of life for so long is shown as silent, long before it counts as failed."""


def picture(known: Known) -> Picture:
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


def starts(known: Known, index: Index) -> tuple[Start, ...]:
    """Return every start in progress, the oldest first."""
    found = [
        (instance.created, instance.id, _start(host, instance, known, index))
        for pairs in index.placed.values()
        for host, instance in pairs
        if instance.state in COMING
    ]
    return tuple(start for *_, start in sorted(found, key=lambda f: f[:2]))


def _start(host: HostRecord, instance: Instance, known: Known, index: Index) -> Start:
    entry = known.starts.get(instance.revision)
    signs = max(instance.last_sign, instance.since, instance.started)
    victims = (index.instances.get(i) for i in instance.waits_for)
    return Start(
        key=key("start", instance.id),
        function=instance.function,
        instance=instance.id,
        host=host.name,
        state=str(instance.state),
        phase=instance.phase if instance.phase != instance.state else "",
        share=instance.progress,
        since=instance.started or instance.created,
        expected_s=(entry.start_s or None) if entry else None,
        waiting=index.usage.waiting.get(instance.function, 0),
        waits_for=tuple(dict.fromkeys(v.function for v in victims if v is not None)),
        silent_since=signs if known.now - signs > SILENT_START_S else None,
    )


def _figures(known: Known, index: Index, functions: tuple[Row, ...]) -> Figures:
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


def verdict(known: Known, figures: Figures, machines: tuple[Host, ...], functions: tuple[Row, ...]) -> Verdict:
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
        if r.waiting and r.tone == "cold":
            held = some(r.waiting, "request")
            points.append(Attention(grave=False, text=f"{r.id} has no place yet", detail=f"{held} held", to=r.key))
    points.sort(key=lambda p: not p.grave)
    return Verdict(
        well=not any(p.grave for p in points),
        text=_said(figures),
        attention=tuple(points[:MOST_ATTENTION]),
        more=max(0, len(points) - MOST_ATTENTION),
    )


def _said(figures: Figures) -> str:
    on = f"on {some(figures.hosts, 'host')}"
    warm = f"{figures.serving} of {some(figures.functions, 'function')} {'is' if figures.serving == 1 else 'are'} warm"
    coming = f", {figures.coming} coming up" if figures.coming else ""
    return f"{warm} {on}{coming}"
