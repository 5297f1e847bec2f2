"""Writes and reads the audit record, the stream `cortex:audit`. It is bounded by count and by age."""

from collections.abc import Iterable
from typing import Any

import msgspec

from cortex.platform.audit import AuditRecord
from cortex.platform.record_codec import decode_as, text
from cortex.platform.registry import Registry

MOST_ENTRIES = 10_000
LONGEST_S = 400 * 86400
"""Age at which an entry is removed by the next write."""
READ_AT_ONCE = 500
CLOCKS_S = 3600.0
"""The largest difference between routers' clocks that a reader that stops at a time allows for."""

_APPEND = """
-- KEYS[1] the stream. ARGV: the maximum count, the maximum age in ms, and the entries as JSON.
local t = redis.call('TIME')
for i = 3, #ARGV do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'entry', ARGV[i]) end
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', t[1] * 1000 - ARGV[2]))
"""
_READ = """
-- KEYS[1] the stream. ARGV: the newest id, and how many. Return the entries before it, newest first.
return redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', ARGV[2])
"""


class AuditTrail:
    """Writes and reads the stream. Every call raises RecordUnavailable."""

    def __init__(self, registry: Registry) -> None:
        self._append, self._read = registry.script(_APPEND), registry.script(_READ)
        self._key = registry.names.audit

    async def append(self, entries: Iterable[AuditRecord]) -> None:
        """Add entries, and remove those beyond the bounds."""
        lines = [msgspec.json.encode(entry) for entry in entries]
        await self._append([self._key], [MOST_ENTRIES, LONGEST_S * 1000, *lines])

    async def read(self, limit: int, *, since: float = 0.0, by: str = "", what: str = "") -> list[AuditRecord]:
        """Return entries, newest first: since a time, by a key's id or name, and of an action or its noun."""
        entries: dict[str, AuditRecord] = {}
        before = "+"
        while len(entries) < limit:
            rows: Any = await self._read([self._key], [before, READ_AT_ONCE])
            for entry in (decode_as(_value(fields), AuditRecord) for _, fields in rows):
                if entry is not None and _matches(entry, since, by, what):
                    entries.setdefault(entry.id, entry)
            if len(rows) < READ_AT_ONCE or _written_at(rows[-1][0]) < since - CLOCKS_S:
                break
            before = f"({text(rows[-1][0])}"
        return sorted(entries.values(), key=lambda e: -e.at)[:limit]


def _matches(entry: AuditRecord, since: float, by: str, what: str) -> bool:
    return entry.at >= since and by in ("", entry.by, entry.name) and what in ("", entry.what, entry.what.split()[0])


def _value(fields: list[bytes]) -> bytes:
    return fields[1] if len(fields) > 1 else b""


def _written_at(id: bytes | str) -> float:
    return int(text(id).partition("-")[0]) / 1000
