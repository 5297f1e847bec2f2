"""The indexes of the record: sets of the names of hosts, routers, functions with overrides, and API keys.

A record and its index are written together. The next reader removes a name whose record has expired, and checks in the
same step that the record is still missing, so that a host that registers at this moment stays.

Earlier releases wrote no indexes. A record that the bell names is added to its index when it is in none; older ones are
added once, by a scan.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from cortex.platform.record_codec import names
from cortex.platform.record_connection import RecordConnection, RecordUnavailable

SCAN_COUNT = 10_000
COMPLETE = ""
"""A member of an index that stands for no record: the records of earlier releases are indexed."""
KEYS_CHANGED = "key:indexed"
"""The bell for API keys. Earlier releases, which do not index what they write, ring "key:"."""

_SETTLE = """
-- KEYS[1] an index, the others records; ARGV their names. A name is in the index when its record exists.
local present = 0
for i, name in ipairs(ARGV) do
  local exists = redis.call('EXISTS', KEYS[i + 1])
  redis.call(exists == 1 and 'SADD' or 'SREM', KEYS[1], name)
  present = present + exists
end
return present
"""


class RecordIndexes:
    """The indexes as one process reads and repairs them.

    With `repairs` false it only reads: hosts leave repairs to routers, since their users of Redis may not write the
    names of others.
    """

    def __init__(self, connection: RecordConnection, *, repairs: bool) -> None:
        self._connection, self._repairs = connection, repairs
        self._settle = connection.script(_SETTLE)
        self._members: dict[str, set[str]] = {}
        """By index, its members at the last reading."""
        self._cursors: dict[str, int] = {}
        """By pattern, where a scan that took too long goes on."""
        self._key_index_is_old = False

    async def fleet_names(self, *, with_hosts: bool) -> list[list[str]]:
        """Return the names of hosts (none unless `with_hosts`), of routers, and of functions with overrides."""
        keys = self._connection.names
        indexes = (keys.hosts, keys.routers, keys.overrides) if with_hosts else (keys.routers, keys.overrides)
        for _ in range(2):
            async with self._connection.bound(), self._connection.redis.pipeline(transaction=False) as pipe:
                for index in (*indexes, keys.fleet):
                    pipe.smembers(index)
                *members, marks = await pipe.execute()
            self._connection.check_marks(marks)
            if COMPLETE.encode() in members[-1] or not self._repairs:
                break
            of_kind = {keys.host(""): keys.hosts, keys.router(""): keys.routers, keys.override(""): keys.overrides}
            await self._index_earlier("[hor]*", of_kind, keys.overrides)
        return [*([] if with_hosts else [[]]), *(names(index) for index in members)]

    async def key_digests(self) -> list[str]:
        """Return the digests of all API keys."""
        keys = self._connection.names
        digests = await self._read(keys.api_keys)
        if COMPLETE.encode() in digests and not self._key_index_is_old:
            return names(digests)
        self._key_index_is_old = False
        try:
            await self._index_earlier("key:*", {keys.api_key(""): keys.api_keys}, keys.api_keys)
        except RecordUnavailable:
            self._key_index_is_old = True
            raise
        return names(await self._read(keys.api_keys))

    async def remove_missing(
        self, index: str, key: Callable[[str], str], members: Sequence[str], records: Iterable[object]
    ) -> None:
        """Remove the names from an index whose records are missing."""
        missing = [name for name, record in zip(members, records, strict=True) if not record]
        self._members[index] = set(members).difference(missing)
        if missing and self._repairs:
            await self._settle([index, *map(key, missing)], missing)

    async def add_if_new(self, changed: str) -> None:
        """Add the record that the bell names to its index, when a process of an earlier release wrote it."""
        kind, _, name = changed.partition(":")
        if changed == "key:":
            self._key_index_is_old = True
        keys = self._connection.names
        index, key = {
            "host": (keys.hosts, keys.host),
            "router": (keys.routers, keys.router),
            "override": (keys.overrides, keys.override),
        }.get(kind, ("", None))
        members = self._members.setdefault(index, set())
        if key is None or name in members or not self._repairs:
            return
        if await self._settle([index, key(name)], [name]):
            members.add(name)

    async def _read(self, index: str) -> set[bytes | str]:
        async with self._connection.bound():
            return await self._connection.redis.smembers(index)

    async def _index_earlier(self, pattern: str, indexes: Mapping[str, str], last: str) -> None:
        """Add the records of earlier releases to the indexes, by the beginnings of their keys: the only SCAN.

        Any number of processes may do it at a time. One that takes too long raises RecordUnavailable, and goes on with
        the next call.
        """
        connection = self._connection
        until = time.monotonic() + connection.timeout_s
        cursor = self._cursors.pop(pattern, 0)
        while True:
            async with connection.bound():
                match = f"{connection.names.prefix}:{pattern}"
                cursor, keys = await connection.redis.scan(cursor, match=match, count=SCAN_COUNT)
                async with connection.redis.pipeline(transaction=False) as pipe:
                    for beginning, index in indexes.items():
                        members = [n.removeprefix(beginning) for n in names(keys) if n.startswith(beginning)]
                        if members:
                            pipe.sadd(index, *members)
                    if cursor == 0:
                        pipe.sadd(last, COMPLETE)
                    await pipe.execute()
            if cursor == 0:
                return
            if time.monotonic() > until:
                self._cursors[pattern] = cursor
                raise RecordUnavailable("the record of an earlier release is being indexed; that takes a moment, once")
