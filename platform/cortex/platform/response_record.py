"""Stored responses and conversations in Redis: encrypted values with a lifetime, and a bound per owner.

A response is a string. A conversation is a list to which each turn is appended, so that simultaneous turns lose
nothing. An index holds the owner's ids by expiry. A write deletes the oldest values while their total size exceeds the
bound.
"""

from typing import Literal

from cortex.platform.registry import Registry
from cortex.platform.response_cipher import ResponseCipher, Unreadable

LEASE_S = 15
"""How long the lease of a running response outlives its router."""
MOST_TURNS = 1000
"""The most members of one conversation: its head and its turns."""
MOST_DELETED = 1000
"""The most ids of an owner that were deleted while their answers were streamed."""

Write = Literal["set", "replace", "create", "append"]
"""`replace` and `append` change existing values only: a value that was deleted meanwhile stays deleted, and so does one
that was deleted before it was written."""

_WRITE = """
-- KEYS: the value, the index by expiry, the sizes, the ids that were deleted before they were written.
-- ARGV: 1 set, replace, create or append; 2 the id; 3 the value; 4 its lifetime in s; 5 the bound in bytes;
--       6 what precedes an id in the keys of values; 7 the most members of a list.
local now = tonumber(redis.call('TIME')[1])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
end
if redis.call('ZSCORE', KEYS[4], ARGV[2]) then return 0 end
local old = ARGV[1] == 'replace' or ARGV[1] == 'append'
if old and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[1] == 'append' and redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[7]) then return 0 end
if ARGV[1] == 'set' or ARGV[1] == 'replace' then
  redis.call('SET', KEYS[1], ARGV[3])
  redis.call('HSET', KEYS[3], ARGV[2], #ARGV[3])
else
  redis.call('RPUSH', KEYS[1], ARGV[3])
  redis.call('HINCRBY', KEYS[3], ARGV[2], #ARGV[3])
end
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[2])
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[4]) end
local total = 0
for _, size in ipairs(redis.call('HVALS', KEYS[3])) do total = total + size end
while total > tonumber(ARGV[5]) do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest or oldest == ARGV[2] then break end
  total = total - (tonumber(redis.call('HGET', KEYS[3], oldest)) or 0)
  redis.call('DEL', ARGV[6] .. oldest)
  redis.call('ZREM', KEYS[2], oldest)
  redis.call('HDEL', KEYS[3], oldest)
end
return 1
"""
_READ = "return redis.call('GET', KEYS[1])"
_READ_LIST = "return redis.call('LRANGE', KEYS[1], 0, -1)"
_DELETE = """
-- KEYS: as for a write. ARGV: the id, its lifetime in s, the most ids of KEYS[4].
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
if redis.call('DEL', KEYS[1]) == 1 then return 1 end
redis.call('ZADD', KEYS[4], redis.call('TIME')[1], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - ARGV[3])
redis.call('EXPIRE', KEYS[4], ARGV[2])
return 0
"""
_LEASE = """
-- Begin a lease or renew it, also one that Redis has lost, and return its value. The response's own value, if it is
-- there, expires no earlier than half its lifetime from now.
-- KEYS: the lease; the value, the index by expiry, the sizes. ARGV: the lease's lifetime in s, the id, the value's
-- lifetime in s.
local left = redis.call('TTL', KEYS[2])
if left >= 0 and left <= ARGV[3] / 2 then
  redis.call('ZADD', KEYS[3], 'XX', redis.call('TIME')[1] + ARGV[3], ARGV[2])
  for i = 2, 4 do redis.call('EXPIRE', KEYS[i], ARGV[3]) end
end
if redis.call('EXPIRE', KEYS[1], ARGV[1]) == 0 then redis.call('SET', KEYS[1], 'run', 'EX', ARGV[1]) end
return redis.call('GET', KEYS[1])
"""
_CANCEL = """
-- Mark a lease as cancelled; 0 if there is none. ARGV[1]: its lifetime in s.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SET', KEYS[1], 'cancel', 'EX', ARGV[1])
return 1
"""
_END = "return redis.call('DEL', KEYS[1])"


class ResponseRecord:
    """Writes and reads the values of owners. Every call raises RecordUnavailable."""

    def __init__(self, registry: Registry, ttl_s: int, most_bytes: int) -> None:
        self.ttl_s, self.most_bytes = ttl_s, most_bytes
        self._names = registry.names
        self._write, self._read, self._read_list = (registry.script(s) for s in (_WRITE, _READ, _READ_LIST))
        self._delete, self._lease, self._cancel, self._end = (
            registry.script(s) for s in (_DELETE, _LEASE, _CANCEL, _END)
        )

    async def write(self, cipher: ResponseCipher, id: str, value: bytes, how: Write) -> bool:
        """Write a value; False: there is nothing to replace, or the conversation is full."""
        keys = [self._names.response(_name(cipher, id)), *self._names.responses(cipher.owner)]
        prefix = self._names.response(_name(cipher, ""))
        sealed = cipher.encrypt(id, value)
        return bool(await self._write(keys, [how, id, sealed, self.ttl_s, self.most_bytes, prefix, MOST_TURNS]))

    async def read(self, cipher: ResponseCipher, id: str) -> bytes | None:
        """Return a value; None: there is none that this key can read."""
        sealed = await self._read([self._names.response(_name(cipher, id))], [])
        return _open(cipher, id, sealed) if isinstance(sealed, bytes) else None

    async def read_list(self, cipher: ResponseCipher, id: str) -> list[bytes]:
        """Return the members of a list; none: there is none that this key can read."""
        members = await self._read_list([self._names.response(_name(cipher, id))], [])
        values = [_open(cipher, id, member) for member in members]
        return [value for value in values if value is not None]

    async def delete(self, cipher: ResponseCipher, id: str) -> bool:
        """Delete a value; False: there was none, and none is written later."""
        keys = [self._names.response(_name(cipher, id)), *self._names.responses(cipher.owner)]
        return bool(await self._delete(keys, [id, self.ttl_s, MOST_DELETED]))

    async def begin(self, cipher: ResponseCipher, id: str) -> None:
        """Begin the lease of a response in the background."""
        await self._renew(cipher, id)

    async def is_cancelled(self, cipher: ResponseCipher, id: str) -> bool:
        """Renew a lease, and return whether its response was cancelled. A response with a lease does not expire."""
        return await self._renew(cipher, id) == b"cancel"

    async def _renew(self, cipher: ResponseCipher, id: str) -> object:
        name, (index, sizes, _) = _name(cipher, id), self._names.responses(cipher.owner)
        keys = [self._names.response_run(name), self._names.response(name), index, sizes]
        return await self._lease(keys, [LEASE_S, id, self.ttl_s])

    async def runs(self, cipher: ResponseCipher, id: str) -> bool:
        """Whether a response has a lease."""
        return await self._read([self._names.response_run(_name(cipher, id))], []) is not None

    async def cancel(self, cipher: ResponseCipher, id: str) -> bool:
        """Request that the router of a response cancels it; False: no router runs it."""
        return bool(await self._cancel([self._names.response_run(_name(cipher, id))], [LEASE_S]))

    async def end(self, cipher: ResponseCipher, id: str) -> None:
        """End a lease."""
        await self._end([self._names.response_run(_name(cipher, id))], [])


def _name(cipher: ResponseCipher, id: str) -> str:
    return f"{{{cipher.owner}}}:{id}"


def _open(cipher: ResponseCipher, id: str, sealed: bytes) -> bytes | None:
    try:
        return cipher.decrypt(id, sealed)
    except Unreadable:
        return None
