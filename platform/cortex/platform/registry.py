"""Reads and writes the record in Redis. Values in, values out; it decides nothing. `key_record.py`, `usage_record.py`
and `audit_trail.py` have parts of their own, on the same connection.

`record_keys.py` has the keys. The bell carries only the name of what changed: its listeners read that again.
Every call is bounded in time and raises RecordUnavailable (`record_connection.py`). Records are listed by indexes
(`record_indexes.py`).
"""

import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any

import msgspec

from cortex.platform import clock
from cortex.platform.decisions import DecisionRecord, from_fields, to_fields
from cortex.platform.fleet import Fleet
from cortex.platform.key_record import KeyRecord
from cortex.platform.meter import Snapshot
from cortex.platform.record import Death, HostRecord, Namesake, Override, RouterReport
from cortex.platform.record_codec import (
    Beat,
    decode_as,
    host_record,
    names,
    override_fields,
    text,
    words,
)
from cortex.platform.record_codec import override as override_of
from cortex.platform.record_connection import FleetMarks, RecordConnection, is_of_wrong_type
from cortex.platform.record_connection import ForeignFleet as ForeignFleet  # callers of the registry catch these
from cortex.platform.record_connection import RecordUnavailable as RecordUnavailable
from cortex.platform.record_hosts import RecordHosts
from cortex.platform.record_indexes import RecordIndexes
from cortex.platform.record_keys import DEFAULT_PREFIX
from cortex.platform.record_reader import RecordReader
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.settings import Settings

ANSWERS_S = 10.0
ROUTER_TTL_S = 10.0
"""A router that has not reported for this long counts as dead, and its requests as ended. Reports come every second: a
router that lacks CPU for a while must not lose its requests to a drain."""
MOST_DECISIONS = 5000


READ_AT_ONCE = 500
SUBSCRIBED = "subscribed:"
"""From the bell: changes before this moment may not have rung."""
SILENCE_S = 5.0
"""After this long without a bell a listener rings it: a Redis that hangs, or that is no longer the master, is silent
too."""

_RELEASE = """
-- KEYS[1] the claim; ARGV[1] our token. Delete the claim only while it is ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_TAKE = """
-- KEYS[1] a claim or lease; ARGV[1] our token, ARGV[2] its lifetime in ms. One without an expiry has no owner. One
-- that would last longer than any lifetime was taken before Redis' clock was set back: it ends a lifetime from now.
local left = redis.call('PTTL', KEYS[1])
if left > 0 and redis.call('GET', KEYS[1]) ~= ARGV[1] then
  if left > tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


_OF_ANOTHER_HOME = """
-- A record of the wrong type counts as absent, as everywhere.
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
-- this name on another machine is alive: in that case leave the note and return that host's record.
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
-- never replaces a newer one. A time in the future dates from before Redis' clock was set back. It counts as now;
-- otherwise no use could be noted until that time.
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local function score(at) return string.format('%.6f', at) end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. score(now), '+inf')) do
  redis.call('ZADD', KEYS[1], score(now), member)
end
for i = 1, #ARGV, 2 do redis.call('ZADD', KEYS[1], 'GT', score(now - ARGV[i + 1]), ARGV[i]) end
"""

_LEARN = """
-- KEYS[1] the ledger; ARGV[1] the field; ARGV[2] its entry
-- ARGV[3] "1": only if it has none yet; "0": only if it has one.
if tostring(redis.call('HEXISTS', KEYS[1], ARGV[1])) == ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


class Registry:
    """The record in Redis. Make one per process; close it at the end."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        token: FleetMarks | None = None,
        timeout_s: float = 2.5,
        keeps_indexes: bool = True,
    ) -> None:
        """Without a token the owner of the record is not checked: for a command that ends at once.

        Hosts leave repairs of the indexes to routers (`keeps_indexes`).
        """
        connection = self._connection = RecordConnection(url, prefix, token, timeout_s)
        self.names, self._redis, self._bounded = connection.names, connection.redis, connection.bound
        self.script = connection.script
        self._indexes = RecordIndexes(connection, repairs=keeps_indexes)
        self.api_keys = KeyRecord(connection, self._indexes)
        self._reader = RecordReader()
        self._newest: dict[str, HostRecord] = {}
        """The hosts of the last read of all."""
        self._written: dict[str, str] = {}
        """By host, the `change` of the last record that this process has written."""
        self._hosts = RecordHosts(connection)
        self._release = connection.script(_RELEASE)
        self._take = connection.script(_TAKE)
        self._publish_host = connection.script(_PUBLISH_HOST)
        self._remove_host = connection.script(_REMOVE_HOST)
        self._touch = connection.script(_TOUCH)
        self._learn = connection.script(_LEARN)

    @classmethod
    def of(cls, settings: Settings, token: FleetMarks | None = None, *, keeps_indexes: bool = True) -> "Registry":
        """Return a connection to the record that these settings name."""
        return cls(settings.redis_url, prefix=settings.redis.prefix, token=token, keeps_indexes=keeps_indexes)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @property
    def foreign(self) -> str:
        """The error text while the record is another fleet's; empty while it is ours."""
        return self._connection.foreign

    async def disown(self) -> None:
        """Remove the fleet's mark, so that the next fleet takes the record: for a Redis without another user."""
        async with self._bounded():
            await self._redis.delete(self.names.fleet)

    async def ping(self) -> None:
        """Raise RecordUnavailable unless Redis answers."""
        async with self._bounded():
            await self._redis.ping()

    # Hosts, by their agents.

    async def publish_host(self, record: HostRecord, ttl_s: float) -> HostRecord | None:
        """Write a host's record and ring the bell: `beat:` when only a heartbeat differs from what this process wrote
        before, so that readers need not read the record.

        Where a host of this name on another machine is alive, write only a note for operators, and return that host's
        record.
        """
        note = Namesake(name=record.name, address=record.address, version=record.version, home=record.home)
        keys = [self.names.host(record.name), self.names.namesake(record.name), self.names.hosts]
        written, ttl_ms = msgspec.json.encode(record), round(ttl_s * 1000)
        is_beat = record.change != "" and record.change == self._written.pop(record.name, "")
        beat = Beat(record.sequence, record.at, record.change, record.name)
        bell = (self.names.changed, beat.message() if is_beat else f"host:{record.name}")
        args = [written, record.home, ttl_ms, msgspec.json.encode(note), *bell, record.name]
        holder = decode_as(await self._publish_host(keys, args), HostRecord)
        if holder is None:
            self._written[record.name] = record.change
        return holder

    async def publish_counts(self, host: str, counts: Snapshot, ttl_s: float) -> None:
        """Write the counters of a host's agent."""
        async with self._bounded():
            await self._redis.set(self.names.counts(host), msgspec.json.encode(counts), px=round(ttl_s * 1000))

    async def read_counts(self, hosts: Iterable[str]) -> list[Snapshot]:
        """Read the counters of the agents of these hosts."""
        keys = [self.names.counts(h) for h in hosts]
        async with self._bounded():
            values = await self._redis.mget(keys) if keys else []
        return [s for v in values if (s := decode_as(v, Snapshot))]

    async def remove_host(self, name: str, home: str = "") -> None:
        """Remove a host: its agent has stopped every worker and ends. A host of this name with another home stays.

        The bell rings `removed:`: the workers of a host whose record only expires may still serve.
        """
        keys, bell = [self.names.host(name), self.names.hosts], (self.names.changed, f"removed:{name}")
        await self._remove_host(keys, [home, *bell, name])

    async def host(self, name: str, now: float) -> HostRecord | None:
        """Read one host's record; its times are by the caller's clock, at `now`."""
        began = time.monotonic()
        async with self._bounded():
            (value,) = await self._redis.mget([self.names.host(name)])  # unlike GET, it reads a wrong type as nothing
        read = host_record(value, name)
        return self._reader.host(name, read, now, now + time.monotonic() - began)

    def after(self, beat: Beat, now: float) -> HostRecord | None:
        """Return a host's record after a heartbeat, by the caller's clock, at `now`; None: it has to be read."""
        return self._reader.after(beat, now)

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
        """Remove a router that ends."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(self.names.router(router))
            pipe.srem(self.names.routers, router)
            pipe.publish(self.names.changed, f"router:{router}")
            await pipe.execute()

    async def router(self, router: str) -> RouterReport | None:
        """Read one router's report."""
        async with self._bounded():
            (value,) = await self._redis.mget([self.names.router(router)])
        return decode_as(value, RouterReport)

    async def touch(self, used: Mapping[str, float]) -> None:
        """Write last uses by this process's clock; an older one never replaces a newer one."""
        if used:
            now = clock.now()
            ages = [word for member, at in used.items() for word in (member, f"{max(0.0, now - at):.6f}")]
            await self._touch([self.names.used], ages)

    async def forget_used(self, members: Iterable[str]) -> None:
        """Delete last uses of functions and instances that are gone."""
        old = list(members)
        if old:
            async with self._bounded():
                await self._redis.zrem(self.names.used, *old)

    # Everyone.

    async def fleet(self, now: float, hosts_within_s: float = 0.0) -> Fleet:
        """Read the whole record; all its times are by the caller's clock, at `now`.

        Hosts' records that this process read less than `hosts_within_s` seconds ago are not read again; hosts that have
        left the index since then are left out.
        """
        began = time.monotonic()
        reads_hosts = not self._hosts.is_fresh(hosts_within_s)
        hosts, routers, overrides = await self._indexes.fleet_names(with_hosts=not reads_hosts)
        digests = await self._hosts.digests() if reads_hosts else {}
        changed = self._hosts.outdated(digests)
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for function in overrides:
                pipe.hgetall(self.names.override(function))
            keys = [*map(self.names.host, changed), *map(self.names.router, routers)]
            pipe.mget([*keys, self.names.hosts])  # the last one is of another type, so nothing: MGET needs a key
            pipe.zrange(self.names.used, 0, -1, withscores=True)
            pipe.smembers(self.names.cordon)
            pipe.time()
            *records, values, used, cordoned, (seconds, micros) = await pipe.execute(raise_on_error=False)
            for broken in (values, used, cordoned):
                if isinstance(broken, Exception):
                    raise broken
        ended = now + time.monotonic() - began
        rest = iter(values)
        of_changed = {h: next(rest) for h in changed}
        of_routers = [next(rest) for _ in routers]
        of_overrides = {f: None if is_of_wrong_type(r) else r for f, r in zip(overrides, records, strict=True)}
        newest = {h: self._newest[h] for h in hosts if h in self._newest}
        if reads_hosts:
            of_hosts = self._hosts.take(digests, of_changed)
            await self._indexes.remove_missing(self.names.hosts, self.names.host, [*digests], of_hosts.values())
            newest = self._newest = self._reader.hosts(filter(None, of_hosts.values()), now, ended)
        await self._indexes.remove_missing(self.names.routers, self.names.router, routers, of_routers)
        await self._indexes.remove_missing(self.names.overrides, self.names.override, overrides, of_overrides.values())
        reports = [r for v in of_routers if (r := decode_as(v, RouterReport))]
        return Fleet(
            hosts=newest,
            routers=self._reader.reports(reports, ended, ROUTER_TTL_S),
            used=self._reader.last_uses({text(m): score for m, score in used}, seconds + micros / 1e6, ended),
            cordoned=frozenset(text(c) for c in cordoned),
            overrides={function: override_of(values) for function, values in of_overrides.items() if values},
            namesakes={n.name: n for n in self._hosts.namesakes if n.name in newest and n.home != newest[n.name].home},
            at=now,
        )

    async def bell(self) -> AsyncIterator[str]:
        """Yield the names of what changed ("host:…", "router:…"), and heartbeats ("beat:…", see `Beat`); SUBSCRIBED
        when Redis has confirmed the subscription, first and after every reconnect: read everything then, since only
        later changes ring; and "" every second in which nothing changed.

        Raises RecordUnavailable also when Redis is no longer the master: listen again.
        """
        async with self._redis.pubsub() as pubsub:
            async with self._bounded():
                await pubsub.subscribe(self.names.changed)
            generation, last_ring, is_probing = self._connection.generation.number, time.monotonic(), False
            while True:
                async with self._bounded():
                    message = await pubsub.get_message(timeout=1.0)
                is_ring = message is not None and message["type"] == "message"
                if is_ring:
                    last_ring, is_probing = time.monotonic(), False
                silent_s = time.monotonic() - last_ring
                if silent_s > SILENCE_S and not is_probing:
                    async with self._bounded():
                        await self._redis.publish(self.names.changed, "listening:")
                    is_probing = True
                if generation != self._connection.generation.number:
                    raise RecordUnavailable("the record has moved to another Redis")
                if is_probing and silent_s > SILENCE_S + self._connection.timeout_s:
                    raise RecordUnavailable("the bell of the record does not ring at this Redis")
                changed = text(message["data"]) if is_ring else SUBSCRIBED if message else ""
                await self._indexes.add_if_new(changed)
                yield changed

    # The right to propose one start, and to sweep.

    async def claim(self, function: str, token: str, ttl_s: float) -> bool:
        """Try to take the claim on a function's next start."""
        return bool(await self._take([self.names.claim(function)], [token, round(ttl_s * 1000)]))

    async def release(self, function: str, token: str) -> None:
        """Release a claim; does nothing once it has expired."""
        await self._release([self.names.claim(function)], [token])

    async def lease_sweep(self, router: str, ttl_s: float) -> bool:
        """Take or renew the sweep lease. One router at a time has it."""
        return bool(await self._take([self.names.sweep], [router, round(ttl_s * 1000)]))

    # Jobs are RQ's.

    async def jobs(self) -> dict[tuple[str, str], int]:
        """Return the number of jobs by queue and state."""
        async with self._bounded():
            all_queues = [n.removeprefix("rq:queue:") for n in names(await self._redis.smembers("rq:queues"))]
            queues = [q for q in all_queues if q.startswith(self.names.queue(""))]  # others use RQ, too
            async with self._redis.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.llen(f"rq:queue:{queue}")
                    for job_registry in ("wip", "failed", "finished"):
                        pipe.zcard(f"rq:{job_registry}:{queue}")
                numbers = await pipe.execute()
        states = [(q, s) for q in queues for s in ("queued", "started", "failed", "finished")]
        return dict(zip(states, numbers, strict=True))

    # The ledger, by agents; cordons, by operators.

    async def ledger(self) -> dict[str, Entry]:
        """Read the whole ledger."""
        async with self._bounded():
            raw = await self._redis.hgetall(self.names.ledger)
        return {text(k): entry for k, v in raw.items() if (entry := decode_as(v, Entry))}

    async def learn(self, field: str, entry: Entry, *, new: bool | None = None) -> bool:
        """Write one entry of the ledger; return whether it was written.

        `new`: only while there is none; False: only while there is one, so that an agent with an earlier reading of the
        ledger restores no entry that was deleted since. By default always.
        """
        unless = "" if new is None else str(int(new))
        return bool(await self._learn([self.names.ledger], [field, msgspec.json.encode(entry), unless]))

    async def unlearn(self, fields: Iterable[str]) -> None:
        """Delete entries of the ledger."""
        names = list(fields)
        if names:
            async with self._bounded():
                await self._redis.hdel(self.names.ledger, *names)

    async def cordon(self, host: str, *, cordoned: bool) -> None:
        """Cordon a host, or open it again. A cordon survives restarts."""
        async with self._bounded():
            await (self._redis.sadd if cordoned else self._redis.srem)(self.names.cordon, host)
            await self._redis.publish(self.names.changed, f"cordon:{host}")

    # Questions that one router worker asks all of them.

    async def ask(self, token: str, question: bytes) -> None:
        """Write a question and ring the bell for it."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self.names.question(token), question, px=round(ANSWERS_S * 1000))
            pipe.publish(self.names.changed, f"ask:{token}")
            await pipe.execute()

    async def question(self, token: str) -> bytes | None:
        """Read a question."""
        async with self._bounded():
            value = await self._redis.get(self.names.question(token))
        return value.encode() if isinstance(value, str) else value

    async def share_death(self, token: str, death: Death) -> None:
        """Tell the other routers which request was in flight on a worker that died."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self.names.death(token), msgspec.json.encode(death), px=round(ANSWERS_S * 1000))
            pipe.publish(self.names.changed, f"death:{token}")
            await pipe.execute()

    async def death(self, token: str) -> Death | None:
        """Return a router's message about a death; None when it has expired."""
        async with self._bounded():
            return decode_as(await self._redis.get(self.names.death(token)), Death)

    async def answer(self, token: str, answer: bytes) -> None:
        """Answer a question."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.rpush(self.names.answers(token), answer)
            pipe.pexpire(self.names.answers(token), round(ANSWERS_S * 1000))
            await pipe.execute()

    async def next_answer(self, token: str, timeout_s: float) -> bytes | None:
        """Wait for one answer to a question."""
        async with self._bounded():
            popped: Any = await self._redis.blpop([self.names.answers(token)], timeout=timeout_s)
        return popped[1] if popped else None

    # Overrides, by operators.

    async def override(self, function: str, override: Override) -> None:
        """Set a function's settings over those of its catalogue entry; an empty override removes them."""
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

    # Decisions.

    async def log_decisions(self, decisions: Iterable[DecisionRecord]) -> None:
        """Append decisions to their stream."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for decision in decisions:
                values: Any = to_fields(decision)
                pipe.xadd(self.names.decisions, values, maxlen=MOST_DECISIONS, approximate=True)
            await pipe.execute()

    async def decisions(self, filters: Mapping[str, Collection[str]], limit: int) -> list[DecisionRecord]:
        """Return decisions with one of these values in each of these fields, newest first."""
        decisions: list[DecisionRecord] = []
        before = "+"
        while len(decisions) < limit:
            async with self._bounded():
                entries: Any = await self._redis.xrevrange(self.names.decisions, max=before, count=READ_AT_ONCE)
            for id, values in entries:
                entry = words(values)
                if all(entry.get(field) in values for field, values in filters.items()):
                    decisions.append(from_fields(text(id), entry))
            if len(entries) < READ_AT_ONCE:
                break
            before = f"({text(entries[-1][0])}"
        return decisions[:limit]

    async def decisions_after(self, last: str, timeout_s: float) -> tuple[list[DecisionRecord], str]:
        """Wait for decisions after one; return them and the last one's id. "$" is the present end of the stream."""
        async with self._bounded():
            if last == "$":
                newest: Any = await self._redis.xrevrange(self.names.decisions, count=1)
                last = text(newest[0][0]) if newest else "0"
            read: Any = await self._redis.xread(
                {self.names.decisions: last}, count=READ_AT_ONCE, block=round(timeout_s * 1000)
            )
        entries = read[0][1] if isinstance(read, list) and read else next(iter(read.values()), [[]])[0] if read else []
        decisions = [from_fields(text(id), words(values)) for id, values in entries]
        return decisions, decisions[-1].id if decisions else last
