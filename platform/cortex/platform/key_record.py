"""API keys and browser sessions in Redis: the part of the record that tells who a caller is. Secrets are digests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from cortex.platform.api_keys import ApiKey, Session
from cortex.platform.record_codec import decode_as, key_fields, text
from cortex.platform.record_codec import key as key_of
from cortex.platform.record_connection import RecordConnection, is_of_wrong_type
from cortex.platform.record_indexes import KEYS_CHANGED, RecordIndexes

EXPIRED_S = 30 * 86400
"""How long a key stays in the record after it has expired."""

_CHANGE_KEYS = """
-- KEYS: API keys' records; ARGV: the channel, the message, then fields and values. A deleted record is not created
-- again.
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, unpack(ARGV, 3)) end
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
"""


class KeyRecord:
    """Reads and writes keys and sessions. Every call raises RecordUnavailable."""

    def __init__(self, connection: RecordConnection, indexes: RecordIndexes) -> None:
        self._names, self._redis, self._bounded = connection.names, connection.redis, connection.bound
        self._indexes, self._change_keys = indexes, connection.script(_CHANGE_KEYS)

    async def all(self) -> list[ApiKey]:
        """Read every API key's record. A key whose record cannot be read is missing, so it is refused."""
        members = await self._indexes.key_digests()
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for digest in members:
                pipe.hgetall(self._names.api_key(digest))
            hashes = await pipe.execute(raise_on_error=False)
        records = [{} if is_of_wrong_type(fields) else fields for fields in hashes]
        await self._indexes.remove_missing(self._names.api_keys, self._names.api_key, members, records)
        keys = (key_of(digest, fields) for digest, fields in zip(members, records, strict=True))
        return [k for k in keys if k is not None]

    async def put(self, *keys: ApiKey) -> None:
        """Write API keys' records, all or none, and ring the bell."""
        async with self._bounded(), self._redis.pipeline(transaction=True) as pipe:
            for key in keys:
                fields: Any = key_fields(key)  # redis-py's dict type is invariant in its keys
                pipe.hset(self._names.api_key(key.digest), mapping=fields)
                pipe.sadd(self._names.api_keys, key.digest)
                if key.expires:
                    pipe.expireat(self._names.api_key(key.digest), round(key.expires + EXPIRED_S))
                else:
                    pipe.persist(self._names.api_key(key.digest))
            pipe.publish(self._names.changed, KEYS_CHANGED)
            await pipe.execute()

    async def change(self, digests: Sequence[str], fields: Mapping[str, Any]) -> None:
        """Change fields of API keys that still exist, and ring the bell."""
        keys = [self._names.api_key(d) for d in digests]
        values = [part for field, value in fields.items() for part in (field, msgspec.json.encode(value))]
        await self._change_keys(keys, [self._names.changed, KEYS_CHANGED, *values])

    async def delete(self, digests: Iterable[str]) -> None:
        """Delete API keys' records and ring the bell."""
        async with self._bounded(), self._redis.pipeline(transaction=True) as pipe:
            for digest in digests:
                pipe.delete(self._names.api_key(digest))
                pipe.srem(self._names.api_keys, digest)
            pipe.publish(self._names.changed, KEYS_CHANGED)
            await pipe.execute()

    # Sessions of browsers, by routers.

    async def sessions(self) -> dict[str, Session]:
        """Read every session, by the digest of its id."""
        async with self._bounded():
            values: Any = await self._redis.hgetall(self._names.sessions)
        return {text(name): session for name, value in values.items() if (session := decode_as(value, Session))}

    async def session(self, name: str) -> Session | None:
        """Read one session."""
        async with self._bounded():
            value: Any = await self._redis.hget(self._names.sessions, name)
        return decode_as(value, Session)

    async def begin_session(self, name: str, session: Session, ended: Iterable[str]) -> None:
        """Write a session, and delete those that have ended."""
        async with self._bounded(), self._redis.pipeline(transaction=True) as pipe:
            for other in ended:
                pipe.hdel(self._names.sessions, other)
            pipe.hset(self._names.sessions, name, msgspec.json.encode(session))
            await pipe.execute()

    async def end_session(self, name: str) -> None:
        """Delete a session."""
        async with self._bounded():
            await self._redis.hdel(self._names.sessions, name)
