"""Sizes, durations and counts as text, and ids of elements. Pure. The browser's script has the same durations."""

import hashlib


def key(kind: str, name: str) -> str:
    """Return an element's id, with a hash because names may have characters that ids may not."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def mib(mb: float) -> str:
    """Format memory as GiB with one decimal, or as MiB or KiB if smaller."""
    if mb >= 1024:
        return f"{gib(mb)} GiB"
    return f"{mb:.0f} MiB" if mb >= 9.95 or mb == round(mb) else f"{mb:.1f} MiB" if mb >= 1 else f"{mb * 1024:.0f} KiB"


def gib(mb: float) -> str:
    """Format memory as GiB without the unit."""
    size = mb / 1024
    return f"{size:.0f}" if size >= 99.5 else f"{size:.1f}"


def span(seconds: float) -> str:
    """Format a duration in one or two units."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 5 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d"


def clock(seconds: float) -> str:
    """Format a running duration: whole seconds, then minutes."""
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d"


def ago(seconds: float) -> str:
    """Format the age of an event."""
    if 60 <= seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    return "now" if seconds < 1 else f"{clock(seconds)} ago"


def millis(ms: float | None) -> str:
    """Format a latency."""
    if ms is None:
        return "–"
    return f"{ms:.0f} ms" if ms < 999.5 else f"{ms / 1000:.1f} s" if ms < 99_950 else f"{ms / 1000:.0f} s"


def rate(value: float | None) -> str:
    """Format a rate with its significant digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def some(count: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}".replace(",", "\u202f")
