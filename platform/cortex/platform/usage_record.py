"""Usage in Redis: two hashes a day, of its hours and of the whole day.

A script adds a batch of rows, unless it is the last one of its writer: a batch that is sent again counts once.
Hours are fields for `HOURS_S`, days for `DAYS_S`; a day has a maximum number of rows, and the rest is added to one row,
`other`.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from cortex.platform.budget import Spent, month
from cortex.platform.record_codec import decode_as, text, words
from cortex.platform.registry import Registry
from cortex.platform.usage import DAY_S, HOUR_S, OTHER, Place, Row, Sums, date, days

HOURS_S, DAYS_S, SPENT_S = 32 * DAY_S, 400 * DAY_S, 62 * DAY_S
BATCH_S = 3600
"""How long a writer's last batch is remembered, and so may be sent again."""
MOST_OF_HOURS, MOST_OF_DAY = 20_000, 2_000
"""Rows of the two hashes of one day. A row is about 150 bytes in Redis."""
_NAMES = Sums.__struct_fields__

_ADD = """
-- KEYS: the hash of the day's hours, that of the day, the writer's last batch, names of keys, what keys spent this
--       month.
-- ARGV: 1 batch; 2 its lifetime in s; 3 and 4 the hashes' lifetimes in s; 5 and 6 their maximum numbers of rows;
--       7 the row for the rest; 8 the lifetime of what was spent in s; then of each row: hour, place, key, its name,
--       the sums as a list, nano-dollars and tokens.
if redis.call('GET', KEYS[3]) == ARGV[1] then return 0 end
local function add(hash, most, prefix, place, sums)
  local field = prefix .. place
  if redis.call('HEXISTS', hash, field) == 0 and redis.call('HLEN', hash) >= tonumber(most) then
    field = prefix .. ARGV[7]
  end
  local stored = redis.call('HGET', hash, field)
  local readable, present = pcall(cjson.decode, stored or '[]')
  if not readable or type(present) ~= 'table' then present = {} end
  local total = {}
  for i, number in ipairs(cjson.decode(sums)) do
    total[i] = string.format('%.0f', number + (tonumber(present[i]) or 0))
  end
  redis.call('HSET', hash, field, '[' .. table.concat(total, ',') .. ']')
end
for i = 9, #ARGV, 7 do
  add(KEYS[1], ARGV[5], ARGV[i], ARGV[i + 1], ARGV[i + 4])
  add(KEYS[2], ARGV[6], '', ARGV[i + 1], ARGV[i + 4])
  if ARGV[i + 3] ~= '' then redis.call('HSET', KEYS[4], ARGV[i + 2], ARGV[i + 3]) end
  redis.call('HINCRBY', KEYS[5], 'nano_usd ' .. ARGV[i + 2], ARGV[i + 5])
  redis.call('HINCRBY', KEYS[5], 'tokens ' .. ARGV[i + 2], ARGV[i + 6])
end
redis.call('EXPIRE', KEYS[5], ARGV[8])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[4], ARGV[4])
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[2])
return 1
"""
_READ = "return redis.call('HGETALL', KEYS[1])"
_DELETE = """
-- KEYS[1] a hash; ARGV: fields.
return redis.call('HDEL', KEYS[1], unpack(ARGV))
"""
AT_ONCE = 500
"""Rows of a batch, and fields of one deletion: Redis serves nothing else while a script runs."""


class Batch(Struct, frozen=True):
    """Rows of one day that are added together, and its number among its writer's."""

    number: int
    day: int
    rows: tuple[Row, ...]


class UsageRecord:
    """Adds, reads and deletes usage. Every call raises RecordUnavailable."""

    def __init__(self, registry: Registry, writer: str) -> None:
        self._add, self._read, self._delete = (registry.script(s) for s in (_ADD, _READ, _DELETE))
        self._names, self._writer = registry.names, writer

    async def add(self, batch: Batch, names: Mapping[str, str]) -> None:
        """Add a batch, unless it was this writer's last one; `names` has those of API keys, by id."""
        names_ = self._names
        keys = [*names_.usage(date(batch.day)), names_.usage_batch(self._writer), names_.usage_names]
        keys.append(names_.usage_spent(month(batch.day)))
        rest = _field(Place(OTHER, OTHER, OTHER))
        args: list[Any] = [batch.number, BATCH_S, HOURS_S, DAYS_S, MOST_OF_HOURS, MOST_OF_DAY, rest, SPENT_S]
        for row in batch.rows:
            sums = msgspec.json.encode([getattr(row.sums, name) for name in _NAMES])
            hour, key = f"{row.at % DAY_S // HOUR_S:02}", row.place.key
            tokens = row.sums.tokens_in + row.sums.tokens_out
            args += [hour, _field(row.place), key, names.get(key, ""), sums, row.sums.nano_usd, tokens]
        await self._add(keys, args)

    async def read(self, since: float, until: float, now: float, key: str = "") -> list[Row]:
        """Return the rows that begin between two times, of one key or of all. A day whose hours have expired is one
        row."""
        rows = []
        for day in days(since, until):
            hours, whole = self._names.usage(date(day))
            has_hours = day > now - HOURS_S + DAY_S
            fields = _pairs(await self._read([hours if has_hours else whole], []))
            for field, value in fields.items():
                row = _row(day, field, value, has_hours=has_hours)
                if row and (not has_hours or since - HOUR_S < row.at <= until) and key in ("", row.place.key):
                    rows.append(row)
        return rows

    async def names(self) -> dict[str, str]:
        """Return the names of keys by id, of revoked ones too."""
        return _pairs(await self._read([self._names.usage_names], []))

    async def spent(self, now: float) -> dict[str, Spent]:
        """Return what keys have spent this month, by their ids. `forget` does not change it."""
        spent: dict[str, dict[str, int]] = {}
        for field, value in _pairs(await self._read([self._names.usage_spent(month(now))], [])).items():
            unit, _, key = field.partition(" ")
            if unit in Spent.__struct_fields__ and value.isdecimal():
                spent.setdefault(key, {})[unit] = int(value)
        return {key: Spent(**units) for key, units in spent.items()}

    async def forget(self, key: str, now: float) -> int:
        """Delete the usage of a key, by its id; return the number of rows."""
        number = 0
        for day in days(now - DAYS_S, now + DAY_S):
            for hash in self._names.usage(date(day)):
                fields = [f for f, v in _pairs(await self._read([hash], [])).items() if _is_of(f, v, key)]
                for i in range(0, len(fields), AT_ONCE):
                    number += int(await self._delete([hash], fields[i : i + AT_ONCE]))
        await self._delete([self._names.usage_names], [key])
        return number


def _field(place: Place) -> str:
    return msgspec.json.encode([place.key, place.function, place.host]).decode()


def _pairs(flat: list[bytes]) -> dict[str, str]:
    return words(dict(zip(map(text, flat[::2]), flat[1::2], strict=True)))


def _row(day: int, field: str, value: str, *, has_hours: bool) -> Row | None:
    hour, place = (field[:2], field[2:]) if has_hours else ("00", field)
    where, sums = decode_as(place, tuple[str, str, str]), decode_as(value, list[int])
    if where is None or sums is None or not hour.isdecimal():
        return None
    at = day + int(hour) * HOUR_S
    return Row(at=at, place=Place(*where), sums=Sums(**dict(zip(_NAMES, sums, strict=False))))


def _is_of(field: str, value: str, key: str) -> bool:
    row = _row(0, field, value, has_hours=not field.startswith("["))
    return row is not None and row.place.key == key
