"""Usage: what requests cost, per key, function, host and hour. Pure.

Hours are UTC. Money is in billionths of a US dollar, so that sums of whole numbers are exact.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal, TypeVar

from msgspec import Struct

from cortex.functions.capabilities import Cost

K = TypeVar("K")
By = Literal["key", "function", "host", "day", "hour"]
HOUR_S, DAY_S = 3600, 86400
OTHER = "other"
"""The key, function and host of what exceeds the maximum number of rows of a day."""


class Sums(Struct, kw_only=True):
    """What a number of requests used."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    """Of `tokens_in`, those that the worker had in its cache."""
    cold_starts: int = 0
    """Requests that waited for a start."""
    nano_usd: int = 0
    """Their cost in billionths of a US dollar, at the prices of that time; 0 where the function has no price."""
    gpu_ms: int = 0
    """The time of GPUs, in milliseconds: requests that share a GPU share its time, in proportion to their tokens."""
    mj: int = 0
    """The energy of GPUs, in millijoules, shared in the same way; 0 where the driver does not report it."""
    audio_ms: int = 0
    """Transcribed audio, in milliseconds."""
    characters: int = 0
    """Text that was turned into speech."""
    images: int = 0

    def add(self, other: "Sums") -> None:
        """Add other sums."""
        self.requests += other.requests
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.cached += other.cached
        self.cold_starts += other.cold_starts
        self.nano_usd += other.nano_usd
        self.gpu_ms += other.gpu_ms
        self.mj += other.mj
        self.audio_ms += other.audio_ms
        self.characters += other.characters
        self.images += other.images


class Place(Struct, frozen=True):
    """The dimensions by which usage is counted within an hour. `host` is empty for requests that reached no worker,
    `function` for those that were rejected before their body was read."""

    key: str
    function: str
    host: str


class Row(Struct, frozen=True, kw_only=True):
    """The usage of one place from a time on: in one hour, or in one day if its hours have expired."""

    at: int
    """Unix time of the beginning of the hour or day."""
    place: Place
    sums: Sums


def cost_nano_usd(cost: Cost, tokens_in: int, tokens_out: int, cached: int) -> int:
    """Return what a request costs. Prices are dollars per million tokens; cached tokens cost `cache_read` if that is
    set, otherwise as much as the others."""
    price_in, price_out = cost.input or 0.0, cost.output or 0.0
    price_cached = price_in if cost.cache_read is None else cost.cache_read
    return round(1000 * ((tokens_in - cached) * price_in + cached * price_cached + tokens_out * price_out))


def split(total: int, weights: Mapping[K, int]) -> dict[K, int]:
    """Return a total in whole parts in proportion to the weights; the parts add up to it. Without weights there are
    no parts."""
    whole, below, sum_so_far = sum(weights.values()), 0, 0
    parts: dict[K, int] = {}
    for key, weight in weights.items():
        below += weight
        parts[key], sum_so_far = total * below // whole - sum_so_far, total * below // whole
    return parts


def group(rows: Iterable[Row], by: By, names: Mapping[str, str]) -> dict[str, Sums]:
    """Return the sums by key (its name, if it is known), function, host, day or hour. Days and hours are in
    order of time; the others have the most tokens first."""
    groups: dict[str, Sums] = {}
    for row in rows:
        groups.setdefault(_group(row, by, names), Sums()).add(row.sums)
    if by in ("day", "hour"):
        return dict(sorted(groups.items()))
    return dict(sorted(groups.items(), key=lambda g: (-g[1].tokens_in - g[1].tokens_out, g[0])))


def _group(row: Row, by: By, names: Mapping[str, str]) -> str:
    match by:
        case "key":
            name = names.get(row.place.key, "")
            return f"{name} ({row.place.key})" if name and name != row.place.key else row.place.key
        case "function":
            return row.place.function or "-"
        case "host":
            return row.place.host or "-"
        case "day":
            return date(row.at)
        case "hour":
            return f"{datetime.fromtimestamp(row.at, UTC):%Y-%m-%d %H:00}"


def date(at: float) -> str:
    """Return the day of a time, in UTC, like 2026-01-31."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def days(since: float, until: float) -> list[int]:
    """Return the beginnings of the days, in UTC, from a time to another."""
    return list(range(int(since // DAY_S) * DAY_S, int(until) + 1, DAY_S))
