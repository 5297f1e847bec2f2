"""Reads the hosts' records from Redis: only those that changed since this process last read them.

The records of a thousand hosts are megabytes, and every claim and every agent reads them. So a script in Redis returns
a digest of the beginning of each record (`comparable`), all in one string; a record whose digest is known is not read.
Heartbeats change no digest.
"""

import time
from collections.abc import Mapping
from hashlib import sha1

from cortex.platform.record import HostRecord, Namesake
from cortex.platform.record_codec import CHANGE, HEAD_BYTES, comparable, decode_as, host_record, names
from cortex.platform.record_connection import RecordConnection

_DIGESTS = """
-- ARGV: the index of hosts; the beginnings of the keys of records and of notes; the last byte of a record's beginning;
-- what comes before the value of its change.
-- Return digest and name of each host, with a zero byte between hosts, and the notes. A digest of 40 dashes: there is
-- no record, or it is of a wrong type. The keys are no KEYS: for those Redis demands the right to write, which hosts
-- do not have.
local lines, notes = {}, {}
for i, name in ipairs(redis.call('SMEMBERS', ARGV[1])) do
  local head = redis.pcall('GETRANGE', ARGV[2] .. name, 0, ARGV[4])
  local digest = string.rep('-', 40)
  if type(head) == 'string' and head ~= '' then
    local _, before = string.find(head, ARGV[5], 1, true)
    local _, last = string.find(head, '^[^"]+"', (before or #head) + 1)
    digest = redis.sha1hex(string.sub(head, 1, last and last - 1 or -1))
  end
  lines[i] = digest .. name
  local note = redis.pcall('GET', ARGV[3] .. name)
  if type(note) == 'string' then notes[#notes + 1] = note end
end
return {table.concat(lines, '\\0'), notes}
"""
DIGEST_LENGTH, NONE = 40, b"-" * 40


class RecordHosts:
    """The hosts' records of one process. Reads may overlap."""

    def __init__(self, connection: RecordConnection) -> None:
        self._names, self._script = connection.names, connection.script(_DIGESTS)
        self._known: dict[str, tuple[bytes, HostRecord]] = {}
        """By host, its record and the digest of that."""
        self._read_at = float("-inf")
        self.namesakes: list[Namesake] = []
        """Hosts that may not publish because another has their name."""

    def is_fresh(self, within_s: float) -> bool:
        """Whether the records were read less than this long ago."""
        return time.monotonic() - self._read_at < within_s

    async def digests(self) -> dict[str, bytes]:
        """Read which hosts there are, with the digests of their records. Raises RecordUnavailable."""
        keys = self._names
        lines, notes = await self._script([], [keys.hosts, keys.host(""), keys.namesake(""), HEAD_BYTES - 1, CHANGE])
        self.namesakes = [n for note in notes if (n := decode_as(note, Namesake))]
        entries = _bytes(lines).split(b"\0")
        return dict(sorted((name, e[:DIGEST_LENGTH]) for e in entries for name in names([e[DIGEST_LENGTH:]])))

    def outdated(self, digests: Mapping[str, bytes]) -> list[str]:
        """Return the hosts whose records are to be read."""
        return [h for h, digest in digests.items() if digest not in (NONE, self._known.get(h, (NONE,))[0])]

    def take(
        self, digests: Mapping[str, bytes], values: Mapping[str, bytes | str | None]
    ) -> dict[str, HostRecord | None]:
        """Return all hosts' records, those that are `outdated` by these values. One that cannot be read is None."""
        for host, value in values.items():
            self._known.pop(host, None)
            record = host_record(value, host)
            if record is not None and value is not None:
                part = comparable(_bytes(value)[:HEAD_BYTES])
                # Of an earlier release's record the beginning may stay the same: it is read again.
                digest = NONE if part is None else sha1(part, usedforsecurity=False).hexdigest().encode()
                self._known[host] = digest, record
        self._read_at = time.monotonic()
        there = {h: self._known[h] for h, digest in digests.items() if digest != NONE and h in self._known}
        self._known = there
        return {h: there[h][1] if h in there else None for h in digests}


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
