"""The connection to the record in Redis: every call is bounded in time, and only the record of this fleet is touched.

Any error of a call, whatever its cause, is RecordUnavailable.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError, ResponseError

from cortex.platform.record_codec import names
from cortex.platform.record_keys import RecordKeys
from cortex.platform.redis_clients import Generation, async_client

log = structlog.get_logger()

WRONG_TYPE = "WRONGTYPE"
"""Redis' error code for a key of another type. In a pipeline's error it is not the first word."""

_JOIN = """
-- KEYS[1] the fleet's marks; ARGV the marks of our tokens, that of the one in use first. Returns 1 when the fleet is
-- ours: it has no mark yet, or one of ours. Then it gets the mark in use, and loses those that are not ours.
local marks = redis.call('SMEMBERS', KEYS[1])
local ours = {}
for _, mark in ipairs(ARGV) do ours[mark] = true end
local is_ours = #marks == 0
for _, mark in ipairs(marks) do is_ours = is_ours or ours[mark] == true end
if not is_ours then return 0 end
for _, mark in ipairs(marks) do if not ours[mark] then redis.call('SREM', KEYS[1], mark) end end
redis.call('SADD', KEYS[1], ARGV[1])
return 1
"""

_DROP_WRONG_TYPE = """
-- KEYS[1] a key; ARGV[1] its type in cortex.
local type = redis.call('TYPE', KEYS[1]).ok
if type == 'none' or type == ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class RecordUnavailable(Exception):
    """Redis does not answer. Ready functions are served from the last snapshot; nothing new is started."""


class ForeignFleet(RecordUnavailable):
    """The record is another fleet's: nothing of it is read or written."""

    def __init__(self, prefix: str) -> None:
        super().__init__(
            f"Redis holds the record of a fleet with another token below '{prefix}:': give this fleet a "
            "`[redis] prefix` of its own, or this machine that fleet's token (`token_file`, or on a host "
            "`[agent] token_file`), or delete the key "
            f"'{prefix}:fleet' when the other fleet is gone for good"
        )


class FleetMarks(Protocol):
    """The marks of a process's fleet: first that of its token in use, then those it also accepts."""

    def fleet_marks(self) -> list[str]: ...


class RecordConnection:
    """A connection to Redis, below one prefix."""

    def __init__(self, url: str, prefix: str, token: FleetMarks | None, timeout_s: float) -> None:
        """Without a token it is not checked whose the record is: for a command that ends in a moment."""
        self.names = RecordKeys(prefix)
        self.timeout_s = timeout_s
        self.generation = Generation()
        self.redis = async_client(url, timeout_s, self.generation)
        self.foreign = ""
        """The error text while the record is another fleet's."""
        self._join = self.redis.register_script(_JOIN)
        self._token, self._is_member = token, token is None

    @asynccontextmanager
    async def bound(self) -> AsyncIterator[None]:
        """Bound a call and map its errors. redis-py's own timeouts are per read and add up over its retries."""
        try:
            async with asyncio.timeout(self.timeout_s):
                if not self._is_member:
                    await self._join_fleet()
                yield
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, ResponseError) and WRONG_TYPE in str(error):
                await self._drop_wrong_types()
            why = "no Sentinel that answers knows a master" if isinstance(error, MasterNotFoundError) else str(error)
            raise RecordUnavailable(f"the record cannot be reached: {why or 'no answer'}") from error

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[Any]], Awaitable[Any]]:
        """Return a Lua script as a function of its keys and arguments, which raises RecordUnavailable."""
        script = self.redis.register_script(text)

        async def run(keys: Sequence[str], args: Sequence[Any]) -> Any:
            async with self.bound():
                return await script(keys=list(keys), args=list(args))

        return run

    def check_marks(self, marks: Iterable[bytes | str]) -> None:
        """Compare the fleet's marks with ours: tokens change at run time, and a Redis that was emptied has none."""
        if self._token is not None:
            ours, theirs = self._token.fleet_marks(), names(marks)
            self._is_member = ours[0] in theirs and set(theirs) <= set(ours)

    async def _join_fleet(self) -> None:
        """Check whose the record is. The first fleet marks it."""
        assert self._token is not None
        self._is_member = bool(await self._join(keys=[self.names.fleet], args=self._token.fleet_marks()))
        if not self._is_member:
            error = ForeignFleet(self.names.prefix)
            self.foreign = str(error)
            raise error
        self.foreign = ""

    async def _drop_wrong_types(self) -> None:
        """Delete keys of ours with a type that cortex does not give them: every call on them would fail."""
        try:
            async with asyncio.timeout(self.timeout_s), self.redis.pipeline(transaction=False) as pipe:
                for key, kind in self.names.types.items():
                    pipe.eval(_DROP_WRONG_TYPE, 1, key, kind)
                numbers = await pipe.execute(raise_on_error=False)  # a host's user of Redis may not touch all of them
        except (RedisError, OSError, TimeoutError):
            return
        for key, number in zip(self.names.types, numbers, strict=True):
            if number == 1:
                log.error("record_key_of_wrong_type", key=key)


def is_of_wrong_type(result: Any) -> bool:
    """Whether a pipeline's result is the error of a key of a wrong type, which counts as missing.

    Raises RecordUnavailable for any other error.
    """
    if not isinstance(result, Exception):
        return False
    if WRONG_TYPE in str(result):
        return True
    raise RecordUnavailable(f"the record cannot be read: {result}") from result
