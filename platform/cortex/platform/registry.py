"""The record's only way in and out of Redis. Values in, values out; no decision is made here.

Keys, their writers and lifetimes are those of the table in ARCHITECTURE.md §5. The bell (`cortex:changed`)
carries only the name of what changed: whoever hears it reads the truth again. Every call is bounded in time
and fails with RecordAway, whatever went wrong underneath.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cortex.platform.api_keys import ApiKey, Session
from cortex.platform.meter import Snapshot
from cortex.platform.receipts import Receipt, fields, receipt
from cortex.platform.record import Fleet, HostRecord, Override, RouterReport
from cortex.platform.record_codec import decoded, key_fields, override_fields, text, words
from cortex.platform.record_codec import key as key_of
from cortex.platform.record_codec import override as override_of
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.settings import Settings

T = TypeVar("T")

HOST, ROUTER, OVERRIDE, CLAIM = "cortex:host:", "cortex:router:", "cortex:override:", "cortex:claim:"
FLEET = "cortex:[hor]*"
"""Hosts, overrides and routers, found in one pass over the keys."""
USED, CORDON, DECISIONS, CHANGED = "cortex:used", "cortex:cordon", "cortex:decisions", "cortex:changed"
SWEEP, LEDGER, KEY = "cortex:sweep", "cortex:ledger", "cortex:key:"
COUNTS, QUESTION, ANSWERS = "cortex:counts:", "cortex:question:", "cortex:answers:"
SESSIONS = "cortex:sessions"
ANSWERS_S = 10.0
ROUTER_TTL_S = 10.0
"""A router that does not report this long counts as dead, and what it had in flight as over. Reports come every
second: a router that is merely starved of CPU for a while must not have its requests cut by a drain."""
DECISIONS_KEPT = 5000
EXPIRED_KEPT_S = 30 * 86400
"""How long a key that has expired can still be seen."""
READ_AT_ONCE = 500

_RELEASE = """
-- KEYS[1] the claim; ARGV[1] our token. Delete the claim only while it is ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class RecordAway(Exception):
    """Redis does not answer. What is warm goes on from the last snapshot; nothing new is started."""


@asynccontextmanager
async def _bounded(timeout_s: float) -> AsyncIterator[None]:
    """Bound a call and map its errors. redis-py's own timeouts are per read and add up over its retries."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise RecordAway(f"the record cannot be reached: {str(error) or 'no answer'}") from error


class Registry:
    """A connection to the record. Make one per process; close it at the end."""

    def __init__(self, url: str, *, timeout_s: float = 2.5) -> None:
        self._timeout_s = timeout_s
        # No health_check_interval: with a Redis that accepts but does not answer, redis-py 8 checks the health of
        # the connection it opens to check the health, and so on without end.
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
            client_name="cortex",
        )
        self._release = self._redis.register_script(_RELEASE)

    @classmethod
    def of(cls, settings: Settings) -> "Registry":
        """Return a connection to the record that these settings name."""
        return cls(settings.redis_url)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[str | int]], Awaitable[Any]]:
        """Return a Lua script as something to call with its keys and arguments. Raises RecordAway when called."""
        script = self._redis.register_script(text)

        async def run(keys: Sequence[str], args: Sequence[str | int]) -> Any:
            async with _bounded(self._timeout_s):
                return await script(keys=list(keys), args=list(args))

        return run

    async def ping(self) -> None:
        """Raise RecordAway unless Redis answers."""
        async with _bounded(self._timeout_s):
            await self._redis.ping()

    # Hosts, by their agents.

    async def publish_host(self, record: HostRecord, ttl_s: float) -> None:
        """Write a host's record and ring the bell."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(HOST + record.name, msgspec.json.encode(record), px=round(ttl_s * 1000))
            pipe.publish(CHANGED, f"host:{record.name}")
            await pipe.execute()

    async def publish_counts(self, host: str, counts: Snapshot, ttl_s: float) -> None:
        """Write what a host's agent has counted."""
        async with _bounded(self._timeout_s):
            await self._redis.set(COUNTS + host, msgspec.json.encode(counts), px=round(ttl_s * 1000))

    async def counted(self, hosts: Iterable[str]) -> list[Snapshot]:
        """Read what the agents of these hosts have counted."""
        keys = [COUNTS + h for h in hosts]
        async with _bounded(self._timeout_s):
            values = await self._redis.mget(keys) if keys else []
        return [s for v in values if (s := decoded(v, Snapshot))]

    async def remove_host(self, name: str) -> None:
        """Take a host out of the record: its agent ends."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(HOST + name)
            pipe.publish(CHANGED, f"host:{name}")
            await pipe.execute()

    async def host(self, name: str) -> HostRecord | None:
        """Read one host's record."""
        async with _bounded(self._timeout_s):
            return decoded(await self._redis.get(HOST + name), HostRecord)

    # Routers, by themselves.

    async def publish_router(self, report: RouterReport) -> None:
        """Write a router's report and ring the bell."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(ROUTER + report.id, msgspec.json.encode(report), px=round(ROUTER_TTL_S * 1000))
            pipe.publish(CHANGED, f"router:{report.id}")
            await pipe.execute()

    async def remove_router(self, router: str) -> None:
        """Take a router out of the record: it ends."""
        async with _bounded(self._timeout_s):
            await self._redis.delete(ROUTER + router)
            await self._redis.publish(CHANGED, f"router:{router}")

    async def router(self, router: str) -> RouterReport | None:
        """Read one router's report."""
        async with _bounded(self._timeout_s):
            return decoded(await self._redis.get(ROUTER + router), RouterReport)

    async def touch(self, used: Mapping[str, float]) -> None:
        """Note last uses; an older time never replaces a newer one."""
        if used:
            async with _bounded(self._timeout_s):
                await self._redis.zadd(USED, dict(used), gt=True)

    async def forget_used(self, members: Iterable[str]) -> None:
        """Drop last uses of what is no more."""
        names = list(members)
        if names:
            async with _bounded(self._timeout_s):
                await self._redis.zrem(USED, *names)

    # Everyone.

    async def fleet(self, now: float) -> Fleet:
        """Read the whole record."""
        async with _bounded(self._timeout_s):
            found = sorted([text(k) async for k in self._redis.scan_iter(match=FLEET, count=1000)])
            host_keys = [k for k in found if k.startswith(HOST)]
            router_keys = [k for k in found if k.startswith(ROUTER)]
            override_keys = [k for k in found if k.startswith(OVERRIDE)]
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in (*host_keys, *router_keys):
                    pipe.get(key)
                for key in override_keys:
                    pipe.hgetall(key)
                pipe.zrange(USED, 0, -1, withscores=True)
                pipe.smembers(CORDON)
                *values, used, cordoned = await pipe.execute()
        hosts = [h for v in values[: len(host_keys)] if (h := decoded(v, HostRecord))]
        reports = values[len(host_keys) : len(host_keys) + len(router_keys)]
        routers = [r for v in reports if (r := decoded(v, RouterReport))]
        overrides = zip(override_keys, values[len(host_keys) + len(router_keys) :], strict=True)
        return Fleet(
            hosts={h.name: h for h in hosts},
            routers={r.id: r for r in routers},
            used={member.decode(): score for member, score in used},
            cordoned=frozenset(c.decode() for c in cordoned),
            overrides={key.removeprefix(OVERRIDE): override_of(kept) for key, kept in overrides},
            at=now,
        )

    async def bell(self) -> AsyncIterator[str]:
        """Yield the names of what changed ("host:…", "router:…"); "" every second in which nothing did.

        A Redis that falls silent looks like one with nothing to say: read something now and then.
        """
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            async with _bounded(self._timeout_s):
                await pubsub.subscribe(CHANGED)
            while True:
                async with _bounded(self._timeout_s):
                    message = await pubsub.get_message(timeout=1.0)
                yield message["data"].decode(errors="replace") if message else ""

    # The right to propose one start, and to sweep.

    async def claim(self, function: str, token: str, ttl_s: float) -> bool:
        """Try to take the claim on a function's next start."""
        async with _bounded(self._timeout_s):
            return bool(await self._redis.set(CLAIM + function, token, nx=True, px=round(ttl_s * 1000)))

    async def release(self, function: str, token: str) -> None:
        """Give a claim back; does nothing once it expired."""
        async with _bounded(self._timeout_s):
            await self._release(keys=[CLAIM + function], args=[token])

    async def lease_sweep(self, router: str, ttl_s: float) -> bool:
        """Take or keep the sweep lease. One router at a time has it."""
        async with _bounded(self._timeout_s):
            if await self._redis.set(SWEEP, router, nx=True, px=round(ttl_s * 1000)):
                return True
            if await self._redis.get(SWEEP) != router.encode():
                return False
            await self._redis.pexpire(SWEEP, round(ttl_s * 1000))
            return True

    # Jobs are RQ's; this only counts them.

    async def jobs(self) -> dict[tuple[str, str], int]:
        """Return how many jobs are in which state, by queue."""
        async with _bounded(self._timeout_s):
            queues = sorted(text(q).removeprefix("rq:queue:") for q in await self._redis.smembers("rq:queues"))
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
        async with _bounded(self._timeout_s):
            raw = await self._redis.hgetall(LEDGER)
        return {text(k): entry for k, v in raw.items() if (entry := decoded(v, Entry))}

    async def learn(self, field: str, entry: Entry) -> None:
        """Write one entry of the ledger."""
        async with _bounded(self._timeout_s):
            await self._redis.hset(LEDGER, field, msgspec.json.encode(entry))

    async def cordon(self, host: str, *, cordoned: bool) -> None:
        """Note that a host takes no new work, or that it does again. It outlives every restart."""
        async with _bounded(self._timeout_s):
            await (self._redis.sadd if cordoned else self._redis.srem)(CORDON, host)
            await self._redis.publish(CHANGED, f"host:{host}")

    # Questions that one router worker asks all of them.

    async def ask(self, token: str, question: bytes) -> None:
        """Put a question and ring the bell for it."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(QUESTION + token, question, px=round(ANSWERS_S * 1000))
            pipe.publish(CHANGED, f"ask:{token}")
            await pipe.execute()

    async def question(self, token: str) -> bytes | None:
        """Read a question."""
        async with _bounded(self._timeout_s):
            found = await self._redis.get(QUESTION + token)
        return found.encode() if isinstance(found, str) else found

    async def answer(self, token: str, answer: bytes) -> None:
        """Answer a question."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            pipe.rpush(ANSWERS + token, answer)
            pipe.pexpire(ANSWERS + token, round(ANSWERS_S * 1000))
            await pipe.execute()

    async def next_answer(self, token: str, timeout_s: float) -> bytes | None:
        """Wait for one answer to a question."""
        async with _bounded(self._timeout_s):
            found: Any = await self._redis.blpop([ANSWERS + token], timeout=timeout_s)
        return found[1] if found else None

    # API keys, by operators.

    async def keys(self) -> list[ApiKey]:
        """Read every API key's record. One that cannot be read is not there: nobody comes in with it."""
        async with _bounded(self._timeout_s):
            names = sorted([k async for k in self._redis.scan_iter(match=KEY + "*", count=1000)])
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(name)
                found = await pipe.execute()
        keys = (key_of(text(n).removeprefix(KEY), fields) for n, fields in zip(names, found, strict=True))
        return [k for k in keys if k is not None]

    async def put_keys(self, *keys: ApiKey) -> None:
        """Write API keys' records, all or none, and ring the bell."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=True) as pipe:
            for key in keys:
                fields: Any = key_fields(key)  # redis-py's dict type is invariant in its keys
                pipe.hset(KEY + key.digest, mapping=fields)
                if key.expires:
                    pipe.expireat(KEY + key.digest, round(key.expires + EXPIRED_KEPT_S))
                else:
                    pipe.persist(KEY + key.digest)
            pipe.publish(CHANGED, "key:")
            await pipe.execute()

    async def drop_keys(self, digests: Iterable[str]) -> None:
        """Delete API keys' records and ring the bell."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=True) as pipe:
            for one in digests:
                pipe.delete(KEY + one)
            pipe.publish(CHANGED, "key:")
            await pipe.execute()

    # Sessions of browsers, by routers.

    async def sessions(self) -> dict[str, Session]:
        """Read every session, by the digest of its id."""
        async with _bounded(self._timeout_s):
            found: Any = await self._redis.hgetall(SESSIONS)
        return {text(name): one for name, value in found.items() if (one := decoded(value, Session))}

    async def session(self, name: str) -> Session | None:
        """Read one session."""
        async with _bounded(self._timeout_s):
            found: Any = await self._redis.hget(SESSIONS, name)
        return decoded(found, Session)

    async def begin_session(self, name: str, session: Session, ended: Iterable[str]) -> None:
        """Write a session, and drop those that are over."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=True) as pipe:
            for one in ended:
                pipe.hdel(SESSIONS, one)
            pipe.hset(SESSIONS, name, msgspec.json.encode(session))
            await pipe.execute()

    async def end_session(self, name: str) -> None:
        """Drop a session."""
        async with _bounded(self._timeout_s):
            await self._redis.hdel(SESSIONS, name)

    async def override(self, function: str, override: Override) -> None:
        """Set what goes for a function over its catalogue entry; nothing set: as the catalogue says."""
        values: Any = override_fields(override)
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(OVERRIDE + function)
            if values:
                pipe.hset(OVERRIDE + function, mapping=values)
            pipe.publish(CHANGED, f"override:{function}")
            await pipe.execute()

    # Receipts.

    async def decided(self, receipts: Iterable[Receipt]) -> None:
        """Append receipts to the stream of decisions."""
        async with _bounded(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            for one in receipts:
                kept: Any = fields(one)
                pipe.xadd(DECISIONS, kept, maxlen=DECISIONS_KEPT, approximate=True)
            await pipe.execute()

    async def decisions(self, wanted: Mapping[str, str], limit: int) -> list[Receipt]:
        """Return receipts with these fields, newest first."""
        found: list[Receipt] = []
        before = "+"
        while len(found) < limit:
            async with _bounded(self._timeout_s):
                entries: Any = await self._redis.xrevrange(DECISIONS, max=before, count=READ_AT_ONCE)
            for id, kept in entries:
                said = words(kept)
                if all(said.get(k) == v for k, v in wanted.items()):
                    found.append(receipt(text(id), said))
            if len(entries) < READ_AT_ONCE:
                break
            before = f"({text(entries[-1][0])}"
        return found[:limit]

    async def decisions_after(self, last: str, timeout_s: float) -> tuple[list[Receipt], str]:
        """Wait for receipts after one; return them and the last one's id. "$" is the end of the stream as it is."""
        async with _bounded(self._timeout_s):
            if last == "$":
                newest: Any = await self._redis.xrevrange(DECISIONS, count=1)
                last = text(newest[0][0]) if newest else "0"
            read: Any = await self._redis.xread({DECISIONS: last}, count=READ_AT_ONCE, block=round(timeout_s * 1000))
        entries = read[0][1] if isinstance(read, list) and read else next(iter(read.values()), [[]])[0] if read else []
        found = [receipt(text(id), words(kept)) for id, kept in entries]
        return found, found[-1].id if found else last
