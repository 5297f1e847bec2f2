"""Usage of API keys with limits, counted in Redis for all routers together.

Requests and tokens per minute are token buckets that refill evenly and hold one minute's worth. A request takes an
estimate of its prompt's tokens when it begins; when it ends, the difference to its real usage is settled. After a long
answer a bucket may be in debt, and the key has to wait for its next request.

Concurrent requests are tickets in a sorted set, scored by their expiry; the router that holds one renews it. The
tickets of a router that died expire within `LEASE_S`.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

from cortex.platform.api_keys import Limits
from cortex.platform.registry import Registry

LEASE_S = 15.0

_LEVEL = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- Return the level of a bucket. An unused bucket is full.
local function level(field, size)
  local stored = redis.call('HMGET', KEYS[1], field, field .. '_at')
  if not stored[1] then return size end
  return math.min(size, tonumber(stored[1]) + (now - tonumber(stored[2])) * size / 60000)
end
local function fill(field, size, holds)
  redis.call('HSET', KEYS[1], field, holds, field .. '_at', now)
  -- Expires a minute after it is full again: a full bucket needs no key.
  local ttl = math.ceil((size - holds) * 60000 / size) + 60000
  if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
end
"""

_TAKE = (
    _LEVEL
    + """
-- KEYS[1] the key's buckets; KEYS[2] its tickets.
-- ARGV: 1 a ticket; 2, 3, 4 requests and tokens per minute, concurrent requests (0: no limit); 5 tokens to take;
--       6 a ticket's lifetime in ms; 7 the number of requests that it counts as.
local rpm, tpm, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local need = math.min(tonumber(ARGV[5]), tpm)
local many = tonumber(ARGV[7])
local requests, tokens = level('requests', rpm), level('tokens', tpm)
local short, wait = '', 0
if rpm > 0 and requests < many then
  short, wait = 'requests', (many - requests) * 60000 / rpm
end
if tpm > 0 and tokens < need and (need - tokens) * 60000 / tpm > wait then
  short, wait = 'tokens', (need - tokens) * 60000 / tpm
end
if short == '' and most > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) + many > most then short, wait = 'concurrent', 1000 end
end
if short == '' then
  if rpm > 0 then requests = requests - many; fill('requests', rpm, requests) end
  if tpm > 0 then tokens = tokens - need; fill('tokens', tpm, tokens) end
  if most > 0 then
    for i = 1, many do redis.call('ZADD', KEYS[2], now + ARGV[6], i == 1 and ARGV[1] or ARGV[1] .. '/' .. i) end
    redis.call('PEXPIRE', KEYS[2], ARGV[6])
  end
end
local full_r = rpm > 0 and (rpm - requests) * 60000 / rpm or 0
local full_t = tpm > 0 and (tpm - tokens) * 60000 / tpm or 0
return {short, math.ceil(wait), math.floor(requests), math.floor(tokens), math.ceil(full_r), math.ceil(full_t), need}
"""
)

_SETTLE = (
    _LEVEL
    + """
-- KEYS as above. ARGV: 1 the ticket; 2 tokens per minute; 3 tokens taken; 4 tokens used;
--       5 the number of requests that it counted as.
for i = 1, tonumber(ARGV[5]) do redis.call('ZREM', KEYS[2], i == 1 and ARGV[1] or ARGV[1] .. '/' .. i) end
local tpm = tonumber(ARGV[2])
if tpm > 0 then
  fill('tokens', tpm, math.min(tpm, level('tokens', tpm) + ARGV[3] - ARGV[4]))
end
"""
)

_RENEW = """
-- KEYS[1] a key's tickets; ARGV: their lifetime in ms, and the tickets to renew.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- XX: a ticket that was returned in the meantime is not added again.
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""


class Verdict(Struct, frozen=True, kw_only=True):
    """The result of `take`. `short` names the limit that was exceeded; "" when the request may proceed."""

    short: str = ""
    wait_s: float = 0.0
    requests_left: int = 0
    tokens_left: int = 0
    requests_full_s: float = 0.0
    """Time until the bucket is full again."""
    tokens_full_s: float = 0.0
    taken: int = 0


class Quota:
    """Counts the usage of keys. Every call raises RecordUnavailable."""

    def __init__(self, registry: Registry) -> None:
        self._take, self._settle, self._renew = (registry.script(s) for s in (_TAKE, _SETTLE, _RENEW))
        self._keys = registry.names.quota

    async def take(self, key: str, limits: Limits, ticket: str, tokens: int, answers: int = 1) -> Verdict:
        """Take a request's share of all a key's limits, or of none. Each of its answers counts as a request."""
        lease = round(LEASE_S * 1000)
        short, wait, requests, left, full_r, full_t, taken = await self._take(
            self._keys(key), [ticket, limits.rpm, limits.tpm, limits.concurrent, max(1, tokens), lease, answers]
        )
        return Verdict(
            short=short.decode() if isinstance(short, bytes) else short,
            wait_s=wait / 1000,
            requests_left=max(0, requests),
            tokens_left=max(0, left),
            requests_full_s=full_r / 1000,
            tokens_full_s=full_t / 1000,
            taken=taken,
        )

    async def settle(self, key: str, limits: Limits, ticket: str, taken: int, used: int, answers: int = 1) -> None:
        """Return a ticket, and settle the difference between the tokens taken and used."""
        await self._settle(self._keys(key), [ticket, limits.tpm, taken, used, answers])

    async def renew(self, key: str, tickets: Sequence[str]) -> None:
        """Extend the lifetime of tickets."""
        await self._renew(self._keys(key)[1:], [math.ceil(LEASE_S * 1000), *tickets])


def tickets(ticket: str, answers: int) -> list[str]:
    """Return the names of a request's tickets, one per answer."""
    return [ticket, *(f"{ticket}/{i}" for i in range(2, answers + 1))]
