"""The record's only way in and out of Redis. Values in, values out; no decision is made here.

`record_keys.py` has the keys. The bell carries only the name of what changed: whoever hears it reads the truth again.
Every call is bounded in time and fails with RecordUnavailable, whatever went wrong underneath.

Hosts, routers, overrides and API keys are found through indexes: sets of names. A record and its index are written
together. A name whose record expired is taken out by the next reader, in one step with a look whether the record is
still away, so that a host that registers at this moment stays. Earlier releases wrote no indexes: what their processes
ring the bell for is indexed as it is heard, and what lies there from before is looked for once (`_index_earlier`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
import structlog
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError, ResponseError

from cortex.platform import clock
from cortex.platform.api_keys import ApiKey, Session
from cortex.platform.decisions import DecisionRecord, fields, receipt
from cortex.platform.meter import Snapshot
from cortex.platform.record import Death, Fleet, HostRecord, Namesake, Override, RouterReport
from cortex.platform.record_codec import decoded, host_record, key_fields, names, override_fields, text, words
from cortex.platform.record_codec import key as key_of
from cortex.platform.record_codec import override as override_of
from cortex.platform.record_keys import DEFAULT_PREFIX, RecordKeys
from cortex.platform.record_reader import RecordReader
from cortex.platform.redis_clients import Generation, async_client
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.settings import Settings

log = structlog.get_logger()

ANSWERS_S = 10.0
ROUTER_TTL_S = 10.0
"""A router that does not report this long counts as dead, and what it had in flight as over. Reports come every
second: a router that is merely starved of CPU for a while must not have its requests cut by a drain."""
DECISIONS_KEPT = 5000
EXPIRED_KEPT_S = 30 * 86400
"""How long a key that has expired can still be seen."""
READ_AT_ONCE = 500
SCANNED_AT_ONCE = 10_000
COMPLETE = ""
"""A member of an index that stands for no record: what earlier releases wrote has been looked for."""
WRONG_TYPE = "WRONGTYPE"
"""Redis' code for it, which redis-py's pipelines do not put first."""
KEYS_CHANGED = "key:indexed"
"""The bell for API keys. Earlier releases, which do not index what they write, ring "key:"."""
SILENCE_S = 5.0
"""After so long without a bell a listener rings it: a Redis that hangs, or that is the wrong one by now, looks like
one with nothing to say."""

_RELEASE = """
-- KEYS[1] the claim; ARGV[1] our token. Delete the claim only while it is ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_TAKE = """
-- KEYS[1] a claim or lease; ARGV[1] our token, ARGV[2] for how many ms. One without an end belongs to no process.
if redis.call('PTTL', KEYS[1]) > 0 and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_SETTLE_INDEX = """
-- KEYS[1] an index, the others records; ARGV their names. A name is in the index when its record is there.
local there = 0
for i, name in ipairs(ARGV) do
  local exists = redis.call('EXISTS', KEYS[i + 1])
  redis.call(exists == 1 and 'SADD' or 'SREM', KEYS[1], name)
  there = there + exists
end
return there
"""

_GROUP_KEYS = """
-- KEYS: API keys' records; ARGV: the group, the channel, the message. A record that was deleted is not made anew.
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'group', ARGV[1]) end
end
redis.call('PUBLISH', ARGV[2], ARGV[3])
"""

_OF_ANOTHER_HOME = """
-- A record of a wrong type is as good as none, as everywhere.
local function record_at(key)
  return redis.call('TYPE', key).ok == 'string' and redis.call('GET', key)
end
local function of_another_home(record, home)
  if not record or home == '' then return false end
  local readable, host = pcall(cjson.decode, record)
  local other = readable and type(host) == 'table' and host.home or ''
  return other ~= '' and other ~= home
end
"""

_PUBLISH_HOST = f"""{_OF_ANOTHER_HOME}
-- KEYS: the host's record; the note of a namesake that may not publish; the index of hosts. ARGV: the record, its
-- home, its lifetime in ms, the note, the channel, the message, the host's name. Write the record, unless a host of
-- this name on another machine is alive: then leave the note and return that host's record.
local present = record_at(KEYS[1])
if of_another_home(present, ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3])
  return present
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('SADD', KEYS[3], ARGV[7])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return false
"""

_REMOVE_HOST = f"""{_OF_ANOTHER_HOME}
-- KEYS: the host's record; the index of hosts. ARGV: home, the channel, the message, the host's name.
-- Delete the record unless it is another machine's.
if of_another_home(record_at(KEYS[1]), ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[4])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
"""

_TOUCH = """
-- KEYS[1] last uses; ARGV: member, its age in seconds, and so on. Note each use by Redis' own clock; an older one
-- never replaces a newer one. What lies in the future is from before a step of Redis' clock backwards: it counts as
-- used now, else no use could be noted until that time has come.
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local function score(at) return string.format('%.6f', at) end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. score(now), '+inf')) do
  redis.call('ZADD', KEYS[1], score(now), member)
end
for i = 1, #ARGV, 2 do redis.call('ZADD', KEYS[1], 'GT', score(now - ARGV[i + 1]), ARGV[i]) end
"""

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
-- KEYS[1] a key; ARGV[1] the type it has to have.
local type = redis.call('TYPE', KEYS[1]).ok
if type == 'none' or type == ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

_LEARN = """
-- KEYS[1] the ledger; ARGV[1] the field; ARGV[2] its entry
-- ARGV[3] "1": unless there is one; "0": unless there is none.
if tostring(redis.call('HEXISTS', KEYS[1], ARGV[1])) == ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


class RecordUnavailable(Exception):
    """Redis does not answer. What is warm goes on from the last snapshot; nothing new is started."""


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
    """The marks of a process's fleet: of its token in use, and of those it accepts beside."""

    def fleet_marks(self) -> list[str]: ...


class Registry:
    """A connection to the record. Make one per process; close it at the end."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        token: FleetMarks | None = None,
        timeout_s: float = 2.5,
        keeps_indexes: bool = True,
    ) -> None:
        """Without a token it is not looked whose the record is: for a command that is over in a moment.

        Hosts leave the indexes to routers (`keeps_indexes`): their users of Redis may not write others' names.
        """
        self._keeps_indexes = keeps_indexes
        self.names = RecordKeys(prefix)
        self._timeout_s = timeout_s
        self._generation = Generation()
        self._redis = async_client(url, timeout_s, self._generation)
        self._release = self._redis.register_script(_RELEASE)
        self._take = self._redis.register_script(_TAKE)
        self._settle = self._redis.register_script(_SETTLE_INDEX)
        self._publish_host = self._redis.register_script(_PUBLISH_HOST)
        self._remove_host = self._redis.register_script(_REMOVE_HOST)
        self._touch = self._redis.register_script(_TOUCH)
        self._learn = self._redis.register_script(_LEARN)
        self._reader = RecordReader()
        self._join = self._redis.register_script(_JOIN)
        self._group_keys = self._redis.register_script(_GROUP_KEYS)
        self._token, self._is_member = token, token is None
        self.foreign = ""
        """What to say when the record is another fleet's."""
        self._in_index: dict[str, set[str]] = {}
        self._cursors: dict[str, int] = {}
        self._key_index_is_old = False

    @classmethod
    def of(cls, settings: Settings, token: FleetMarks | None = None, *, keeps_indexes: bool = True) -> "Registry":
        """Return a connection to the record that these settings name."""
        return cls(settings.redis_url, prefix=settings.redis.prefix, token=token, keeps_indexes=keeps_indexes)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Bound a call and map its errors. redis-py's own timeouts are per read and add up over its retries."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if not self._is_member:
                    await self._join_fleet()
                yield
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, ResponseError) and WRONG_TYPE in str(error):
                await self._drop_wrong_types()
            why = "no Sentinel that answers knows a master" if isinstance(error, MasterNotFoundError) else str(error)
            raise RecordUnavailable(f"the record cannot be reached: {why or 'no answer'}") from error

    async def _join_fleet(self) -> None:
        """See whose the record is. The first fleet that comes marks it."""
        assert self._token is not None
        self._is_member = bool(await self._join(keys=[self.names.fleet], args=self._token.fleet_marks()))
        if not self._is_member:
            error = ForeignFleet(self.names.prefix)
            self.foreign = str(error)
            raise error
        self.foreign = ""

    async def disown(self) -> None:
        """Let the record be marked anew: for a Redis that has no other user."""
        async with self._bounded():
            await self._redis.delete(self.names.fleet)

    def _see_marks(self, marks: Iterable[bytes | str]) -> None:
        """Compare the record's marks with ours: tokens change while all run, and a Redis that was emptied has none."""
        if self._token is not None:
            ours, theirs = self._token.fleet_marks(), names(marks)
            self._is_member = ours[0] in theirs and set(theirs) <= set(ours)

    async def _drop_wrong_types(self) -> None:
        """Delete keys of ours that hold what no cortex wrote: every call on them would fail."""
        try:
            async with asyncio.timeout(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
                for key, kind in self.names.types.items():
                    pipe.eval(_DROP_WRONG_TYPE, 1, key, kind)
                numbers = await pipe.execute(raise_on_error=False)  # a host's user of Redis may not touch all of them
        except (RedisError, OSError, TimeoutError):
            return
        for key, number in zip(self.names.types, numbers, strict=True):
            if number == 1:
                log.error("record_key_of_wrong_type", key=key)

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[str | int]], Awaitable[Any]]:
        """Return a Lua script as a function of its keys and arguments, which raises RecordUnavailable."""
        script = self._redis.register_script(text)

        async def run(keys: Sequence[str], args: Sequence[str | int]) -> Any:
            async with self._bounded():
                return await script(keys=list(keys), args=list(args))

        return run

    async def ping(self) -> None:
        """Raise RecordUnavailable unless Redis answers."""
        async with self._bounded():
            await self._redis.ping()

    # Hosts, by their agents.

    async def publish_host(self, record: HostRecord, ttl_s: float) -> HostRecord | None:
        """Write a host's record and ring the bell.

        Where a host of this name on another machine is alive, write nothing but a note for whoever looks, and return
        that host's record.
        """
        note = Namesake(name=record.name, address=record.address, version=record.version, home=record.home)
        async with self._bounded():
            holder = await self._publish_host(
                keys=[self.names.host(record.name), self.names.namesake(record.name), self.names.hosts],
                args=[
                    msgspec.json.encode(record),
                    record.home,
                    round(ttl_s * 1000),
                    msgspec.json.encode(note),
                    self.names.changed,
                    f"host:{record.name}",
                    record.name,
                ],
            )
        return decoded(holder, HostRecord)

    async def publish_counts(self, host: str, counts: Snapshot, ttl_s: float) -> None:
        """Write what a host's agent has counted."""
        async with self._bounded():
            await self._redis.set(self.names.counts(host), msgspec.json.encode(counts), px=round(ttl_s * 1000))

    async def counted(self, hosts: Iterable[str]) -> list[Snapshot]:
        """Read what the agents of these hosts have counted."""
        keys = [self.names.counts(h) for h in hosts]
        async with self._bounded():
            values = await self._redis.mget(keys) if keys else []
        return [s for v in values if (s := decoded(v, Snapshot))]

    async def remove_host(self, name: str, home: str = "") -> None:
        """Take a host out of the record: its agent has stopped every worker and ends. A host of this name with another
        home stays.

        The bell says so: a record that only expires leaves a host whose workers may be well.
        """
        async with self._bounded():
            await self._remove_host(
                keys=[self.names.host(name), self.names.hosts], args=[home, self.names.changed, f"removed:{name}", name]
            )

    async def host(self, name: str, now: float) -> HostRecord | None:
        """Read one host's record; its times are by the caller's clock, which says `now`."""
        began = time.monotonic()
        async with self._bounded():
            (value,) = await self._redis.mget([self.names.host(name)])  # unlike GET, it reads a wrong type as nothing
        read = host_record(value, name)
        return self._reader.host(name, read, now, now + time.monotonic() - began)

    async def host_left_s(self, name: str) -> float:
        """Return for how long a host's record stays in Redis unless its agent publishes it again; 0: it is gone."""
        async with self._bounded():
            return max(0.0, await self._redis.pttl(self.names.host(name)) / 1000)

    # Routers, by themselves.

    async def publish_router(self, report: RouterReport) -> None:
        """Write a router's report and ring the bell."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self.names.router(report.id), msgspec.json.encode(report), px=round(ROUTER_TTL_S * 1000))
            pipe.sadd(self.names.routers, report.id)
            pipe.publish(self.names.changed, f"router:{report.id}")
            await pipe.execute()

    async def remove_router(self, router: str) -> None:
        """Take a router out of the record: it ends."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(self.names.router(router))
            pipe.srem(self.names.routers, router)
            pipe.publish(self.names.changed, f"router:{router}")
            await pipe.execute()

    async def router(self, router: str) -> RouterReport | None:
        """Read one router's report."""
        async with self._bounded():
            (value,) = await self._redis.mget([self.names.router(router)])
        return decoded(value, RouterReport)

    async def touch(self, used: Mapping[str, float]) -> None:
        """Note last uses, whose times are by this process's clock; an older one never replaces a newer one."""
        if used:
            now = clock.now()
            ages = [word for member, at in used.items() for word in (member, f"{max(0.0, now - at):.6f}")]
            async with self._bounded():
                await self._touch(keys=[self.names.used], args=ages)

    async def forget_used(self, members: Iterable[str]) -> None:
        """Drop last uses of what is no more."""
        old = list(members)
        if old:
            async with self._bounded():
                await self._redis.zrem(self.names.used, *old)

    # Everyone.

    async def fleet(self, now: float) -> Fleet:
        """Read the whole record, in two round trips; all its times are by the caller's clock, which says `now`."""
        began = time.monotonic()
        hosts, routers, overrides = await self._indexed_names()
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for host in hosts:
                pipe.get(self.names.host(host))
            for host in hosts:
                pipe.get(self.names.namesake(host))
            for router in routers:
                pipe.get(self.names.router(router))
            for function in overrides:
                pipe.hgetall(self.names.override(function))
            pipe.zrange(self.names.used, 0, -1, withscores=True)
            pipe.smembers(self.names.cordon)
            pipe.time()
            *records, used, cordoned, (seconds, micros) = await pipe.execute(raise_on_error=False)
            for broken in (used, cordoned):
                if isinstance(broken, Exception):
                    raise broken
        ended = now + time.monotonic() - began
        rest = iter([None if _of_wrong_type(r) else r for r in records])
        of_hosts, of_namesakes = ([next(rest) for _ in hosts] for _ in range(2))
        of_routers, of_overrides = [next(rest) for _ in routers], {function: next(rest) for function in overrides}
        await self._keep_index(self.names.hosts, self.names.host, hosts, of_hosts)
        await self._keep_index(self.names.routers, self.names.router, routers, of_routers)
        await self._keep_index(self.names.overrides, self.names.override, overrides, of_overrides.values())
        read = [h for name, v in zip(hosts, of_hosts, strict=True) if (h := host_record(v, name))]
        newest = self._reader.hosts(read, now, ended)
        namesakes = [n for v in of_namesakes if (n := decoded(v, Namesake))]
        reports = [r for v in of_routers if (r := decoded(v, RouterReport))]
        return Fleet(
            hosts=newest,
            routers={r.id: r for r in reports},
            used=self._reader.used({text(m): score for m, score in used}, seconds + micros / 1e6, ended),
            cordoned=frozenset(text(c) for c in cordoned),
            overrides={function: override_of(values) for function, values in of_overrides.items() if values},
            namesakes={n.name: n for n in namesakes if n.name in newest and n.home != newest[n.name].home},
            at=now,
        )

    async def _indexed_names(self) -> list[list[str]]:
        """Return the names of hosts, routers and functions with overrides."""
        indexes = (self.names.hosts, self.names.routers, self.names.overrides)
        for _ in range(2):
            async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
                for index in (*indexes, self.names.fleet):
                    pipe.smembers(index)
                *members, marks = await pipe.execute()
            self._see_marks(marks)
            if COMPLETE.encode() in members[2] or not self._keeps_indexes:
                break
            of_kind = {self.names.host(""): indexes[0], self.names.router(""): indexes[1]}
            await self._index_earlier("[hor]*", {**of_kind, self.names.override(""): indexes[2]}, self.names.overrides)
        return [names(index) for index in members]

    async def _keep_index(
        self, index: str, key: Callable[[str], str], members: Sequence[str], values: Iterable[object]
    ) -> None:
        """Take names out of an index whose records are gone."""
        without = [name for name, value in zip(members, values, strict=True) if not value]
        self._in_index[index] = set(members).difference(without)
        if without and self._keeps_indexes:
            async with self._bounded():
                await self._settle(keys=[index, *map(key, without)], args=without)

    async def _index_earlier(self, pattern: str, indexes: Mapping[str, str], last: str) -> None:
        """Put what an earlier release wrote into the indexes, by the beginnings of its keys: the one SCAN there is.

        Any number of processes may do it at a time. One that takes too long goes on with the next call.
        """
        until = time.monotonic() + self._timeout_s
        cursor = self._cursors.pop(pattern, 0)
        while True:
            async with self._bounded():
                match = f"{self.names.prefix}:{pattern}"
                cursor, keys = await self._redis.scan(cursor, match=match, count=SCANNED_AT_ONCE)
                async with self._redis.pipeline(transaction=False) as pipe:
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

    async def bell(self) -> AsyncIterator[str]:
        """Yield the names of what changed ("host:…", "router:…"); "" every second in which nothing did.

        Raises RecordUnavailable also when Redis turns out to be no master any more: then read anew, and listen anew.
        """
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            async with self._bounded():
                await pubsub.subscribe(self.names.changed)
            generation, last_ring, is_probing = self._generation.number, time.monotonic(), False
            while True:
                async with self._bounded():
                    message = await pubsub.get_message(timeout=1.0)
                if message is not None:
                    last_ring, is_probing = time.monotonic(), False
                silent_s = time.monotonic() - last_ring
                if silent_s > SILENCE_S and not is_probing:
                    async with self._bounded():
                        await self._redis.publish(self.names.changed, "listening:")
                    is_probing = True
                if generation != self._generation.number:
                    raise RecordUnavailable("the record has moved to another Redis")
                if is_probing and silent_s > SILENCE_S + self._timeout_s:
                    raise RecordUnavailable("the bell of the record does not ring here any more")
                changed = text(message["data"]) if message else ""
                await self._index_if_new(changed)
                yield changed

    async def _index_if_new(self, changed: str) -> None:
        """Put what the bell rings for into its index when it is in none: a process of an earlier release wrote it."""
        kind, _, name = changed.partition(":")
        if changed == "key:":
            self._key_index_is_old = True
        index, key = {
            "host": (self.names.hosts, self.names.host),
            "router": (self.names.routers, self.names.router),
            "override": (self.names.overrides, self.names.override),
        }.get(kind, ("", None))
        members = self._in_index.setdefault(index, set())
        if key is not None and name not in members and self._keeps_indexes:
            async with self._bounded():
                if await self._settle(keys=[index, key(name)], args=[name]):
                    members.add(name)

    # The right to propose one start, and to sweep.

    async def claim(self, function: str, token: str, ttl_s: float) -> bool:
        """Try to take the claim on a function's next start."""
        async with self._bounded():
            return bool(await self._take(keys=[self.names.claim(function)], args=[token, round(ttl_s * 1000)]))

    async def release(self, function: str, token: str) -> None:
        """Give a claim back; does nothing once it expired."""
        async with self._bounded():
            await self._release(keys=[self.names.claim(function)], args=[token])

    async def lease_sweep(self, router: str, ttl_s: float) -> bool:
        """Take or keep the sweep lease. One router at a time has it."""
        async with self._bounded():
            return bool(await self._take(keys=[self.names.sweep], args=[router, round(ttl_s * 1000)]))

    # Jobs are RQ's; this only counts them.

    async def jobs(self) -> dict[tuple[str, str], int]:
        """Return how many jobs are in which state, by queue."""
        async with self._bounded():
            all_queues = [n.removeprefix("rq:queue:") for n in names(await self._redis.smembers("rq:queues"))]
            queues = [q for q in all_queues if q.startswith(self.names.queue(""))]  # others use RQ, too
            async with self._redis.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.llen(f"rq:queue:{queue}")
                    for kept in ("wip", "failed", "finished"):
                        pipe.zcard(f"rq:{kept}:{queue}")
                numbers = await pipe.execute()
        states = [(q, s) for q in queues for s in ("queued", "started", "failed", "finished")]
        return dict(zip(states, numbers, strict=True))

    # The ledger, by agents; cordons, by operators.

    async def ledger(self) -> dict[str, Entry]:
        """Read the whole ledger."""
        async with self._bounded():
            raw = await self._redis.hgetall(self.names.ledger)
        return {text(k): entry for k, v in raw.items() if (entry := decoded(v, Entry))}

    async def learn(self, field: str, entry: Entry, *, new: bool | None = None) -> bool:
        """Write one entry of the ledger; return whether it was written.

        With `new` only while there is none, without only while there is one: whoever goes by an earlier reading of
        the ledger brings back nothing that was forgotten since. By default always.
        """
        unless = "" if new is None else str(int(new))
        async with self._bounded():
            return bool(await self._learn(keys=[self.names.ledger], args=[field, msgspec.json.encode(entry), unless]))

    async def unlearn(self, fields: Iterable[str]) -> None:
        """Delete entries of the ledger."""
        names = list(fields)
        if names:
            async with self._bounded():
                await self._redis.hdel(self.names.ledger, *names)

    async def cordon(self, host: str, *, cordoned: bool) -> None:
        """Note that a host takes no new work, or that it does again. It outlives every restart."""
        async with self._bounded():
            await (self._redis.sadd if cordoned else self._redis.srem)(self.names.cordon, host)
            await self._redis.publish(self.names.changed, f"host:{host}")

    # Questions that one router worker asks all of them.

    async def ask(self, token: str, question: bytes) -> None:
        """Put a question and ring the bell for it."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self.names.question(token), question, px=round(ANSWERS_S * 1000))
            pipe.publish(self.names.changed, f"ask:{token}")
            await pipe.execute()

    async def question(self, token: str) -> bytes | None:
        """Read a question."""
        async with self._bounded():
            found = await self._redis.get(self.names.question(token))
        return found.encode() if isinstance(found, str) else found

    async def share_death(self, token: str, death: Death) -> None:
        """Tell the other routers of a request that was aboard a death."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self.names.death(token), msgspec.json.encode(death), px=round(ANSWERS_S * 1000))
            pipe.publish(self.names.changed, f"death:{token}")
            await pipe.execute()

    async def death(self, token: str) -> Death | None:
        """Return what a router told of a death; None when it has expired."""
        async with self._bounded():
            return decoded(await self._redis.get(self.names.death(token)), Death)

    async def answer(self, token: str, answer: bytes) -> None:
        """Answer a question."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.rpush(self.names.answers(token), answer)
            pipe.pexpire(self.names.answers(token), round(ANSWERS_S * 1000))
            await pipe.execute()

    async def next_answer(self, token: str, timeout_s: float) -> bytes | None:
        """Wait for one answer to a question."""
        async with self._bounded():
            found: Any = await self._redis.blpop([self.names.answers(token)], timeout=timeout_s)
        return found[1] if found else None

    # API keys, by operators.

    async def keys(self) -> list[ApiKey]:
        """Read every API key's record. One that cannot be read is not there: nobody comes in with it."""
        async with self._bounded():
            digests = await self._redis.smembers(self.names.api_keys)
        if COMPLETE.encode() not in digests or self._key_index_is_old:
            self._key_index_is_old = False
            try:
                await self._index_earlier("key:*", {self.names.api_key(""): self.names.api_keys}, self.names.api_keys)
            except RecordUnavailable:
                self._key_index_is_old = True
                raise
            async with self._bounded():
                digests = await self._redis.smembers(self.names.api_keys)
        members = names(digests)
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for digest in members:
                pipe.hgetall(self.names.api_key(digest))
            hashes = await pipe.execute(raise_on_error=False)
        records = [{} if _of_wrong_type(fields) else fields for fields in hashes]
        await self._keep_index(self.names.api_keys, self.names.api_key, members, records)
        keys = (key_of(digest, fields) for digest, fields in zip(members, records, strict=True))
        return [k for k in keys if k is not None]

    async def put_keys(self, *keys: ApiKey) -> None:
        """Write API keys' records, all or none, and ring the bell."""
        async with self._bounded(), self._redis.pipeline(transaction=True) as pipe:
            for key in keys:
                fields: Any = key_fields(key)  # redis-py's dict type is invariant in its keys
                pipe.hset(self.names.api_key(key.digest), mapping=fields)
                pipe.sadd(self.names.api_keys, key.digest)
                if key.expires:
                    pipe.expireat(self.names.api_key(key.digest), round(key.expires + EXPIRED_KEPT_S))
                else:
                    pipe.persist(self.names.api_key(key.digest))
            pipe.publish(self.names.changed, KEYS_CHANGED)
            await pipe.execute()

    async def group_keys(self, digests: Sequence[str], group: str) -> None:
        """Put API keys that still exist into a group, or with "" into none, and ring the bell."""
        async with self._bounded():
            await self._group_keys(
                keys=[self.names.api_key(d) for d in digests],
                args=[msgspec.json.encode(group), self.names.changed, KEYS_CHANGED],
            )

    async def drop_keys(self, digests: Iterable[str]) -> None:
        """Delete API keys' records and ring the bell."""
        async with self._bounded(), self._redis.pipeline(transaction=True) as pipe:
            for one in digests:
                pipe.delete(self.names.api_key(one))
                pipe.srem(self.names.api_keys, one)
            pipe.publish(self.names.changed, KEYS_CHANGED)
            await pipe.execute()

    # Sessions of browsers, by routers.

    async def sessions(self) -> dict[str, Session]:
        """Read every session, by the digest of its id."""
        async with self._bounded():
            found: Any = await self._redis.hgetall(self.names.sessions)
        return {text(name): one for name, value in found.items() if (one := decoded(value, Session))}

    async def session(self, name: str) -> Session | None:
        """Read one session."""
        async with self._bounded():
            found: Any = await self._redis.hget(self.names.sessions, name)
        return decoded(found, Session)

    async def begin_session(self, name: str, session: Session, ended: Iterable[str]) -> None:
        """Write a session, and drop those that are over."""
        async with self._bounded(), self._redis.pipeline(transaction=True) as pipe:
            for one in ended:
                pipe.hdel(self.names.sessions, one)
            pipe.hset(self.names.sessions, name, msgspec.json.encode(session))
            await pipe.execute()

    async def end_session(self, name: str) -> None:
        """Drop a session."""
        async with self._bounded():
            await self._redis.hdel(self.names.sessions, name)

    async def override(self, function: str, override: Override) -> None:
        """Set what goes for a function over its catalogue entry; nothing set: as the catalogue says."""
        values: Any = override_fields(override)
        async with self._bounded(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self.names.override(function))
            if values:
                pipe.hset(self.names.override(function), mapping=values)
                pipe.sadd(self.names.overrides, function)
            else:
                pipe.srem(self.names.overrides, function)
            pipe.publish(self.names.changed, f"override:{function}")
            await pipe.execute()

    # Receipts.

    async def decided(self, receipts: Iterable[DecisionRecord]) -> None:
        """Append receipts to the stream of decisions."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for one in receipts:
                kept: Any = fields(one)
                pipe.xadd(self.names.decisions, kept, maxlen=DECISIONS_KEPT, approximate=True)
            await pipe.execute()

    async def decisions(self, wanted: Mapping[str, str], limit: int) -> list[DecisionRecord]:
        """Return receipts with these fields, newest first."""
        found: list[DecisionRecord] = []
        before = "+"
        while len(found) < limit:
            async with self._bounded():
                entries: Any = await self._redis.xrevrange(self.names.decisions, max=before, count=READ_AT_ONCE)
            for id, kept in entries:
                said = words(kept)
                if all(said.get(k) == v for k, v in wanted.items()):
                    found.append(receipt(text(id), said))
            if len(entries) < READ_AT_ONCE:
                break
            before = f"({text(entries[-1][0])}"
        return found[:limit]

    async def decisions_after(self, last: str, timeout_s: float) -> tuple[list[DecisionRecord], str]:
        """Wait for receipts after one; return them and the last one's id. "$" is the end of the stream as it is."""
        async with self._bounded():
            if last == "$":
                newest: Any = await self._redis.xrevrange(self.names.decisions, count=1)
                last = text(newest[0][0]) if newest else "0"
            read: Any = await self._redis.xread(
                {self.names.decisions: last}, count=READ_AT_ONCE, block=round(timeout_s * 1000)
            )
        entries = read[0][1] if isinstance(read, list) and read else next(iter(read.values()), [[]])[0] if read else []
        found = [receipt(text(id), words(kept)) for id, kept in entries]
        return found, found[-1].id if found else last


def _of_wrong_type(result: Any) -> bool:
    """Whether a key holds what no cortex wrote: then it is as good as none. Raises any other error that was read."""
    if not isinstance(result, Exception):
        return False
    if WRONG_TYPE in str(result):
        return True
    raise RecordUnavailable(f"the record cannot be read: {result}") from result
