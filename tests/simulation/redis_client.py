"""The registry's client of Redis in a simulation: the interface of redis-py, the simulated network, the model.

It fails as redis-py does: a refused connection is tried once more, so a command may be carried out twice; a lost
answer leaves the caller waiting until its own timeout; a restart of Redis breaks every connection.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from random import Random
from types import TracebackType
from typing import Any

from redis.exceptions import ConnectionError, ResponseError

from tests.simulation.network import Cut, Network
from tests.simulation.redis_model import Model
from tests.simulation.virtual_time import VirtualLoop

REDIS = "redis"
SPLIT_SHARE = 0.1
"""The share of pipelines without a transaction in the middle of which another client's commands are carried out."""
Command = tuple[str, tuple[Any, ...]]
OnScript = Callable[[str, str, Sequence[Any], Sequence[Any], Any], None]
"""Called after each script with the place, the script, its keys, its arguments and its result."""


class Server:
    """The one Redis of a simulation, and the subscriptions to its channels."""

    def __init__(self, loop: VirtualLoop, network: Network, random: Random, now: Callable[[], float]) -> None:
        self.loop, self.network, self.random = loop, network, random
        self.model = Model(now, self._publish)
        self.up = True
        self.generation = 0
        """Increases with each restart, which ends all connections."""
        self.emptied_at = float("-inf")
        """When it last lost its data."""
        self.appeared: dict[str, float] = {}
        """By key that SET wrote, when it was written while there was none."""
        self.on_script: OnScript = lambda *_: None
        self._subscribers: list[Subscription] = []

    def stop(self) -> None:
        """Crash: no connection is accepted until `restart`."""
        self.up = False
        self.generation += 1
        for one in self._subscribers:
            one.broken()
        self._subscribers.clear()

    def restart(self, *, empty: bool) -> None:
        """Accept connections again, with or without the data."""
        self.up = True
        if empty:
            self.emptied_at = self.loop.time()
            self.model.clear()

    def carry_out(self, place: str, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands in one step. An error is the result of its command."""
        results: list[Any] = []
        for name, args in commands:
            try:
                if name == "EVAL":
                    script, keys, arguments = args
                    results.append(self.model.run(script, keys, arguments))
                    self.on_script(place, script, keys, arguments, results[-1])
                else:
                    if name == "SET" and not self.model.call("EXISTS", args[0]):
                        self.appeared[str(args[0])] = self.loop.time()
                    results.append(self.model.call(name, *args))
            except ResponseError as error:
                results.append(error)
        return results

    def subscribe(self, subscription: "Subscription") -> None:
        """Add a subscriber."""
        self._subscribers.append(subscription)

    def unsubscribe(self, subscription: "Subscription") -> None:
        """Remove a subscriber."""
        if subscription in self._subscribers:
            self._subscribers.remove(subscription)

    def _publish(self, channel: bytes, message: bytes) -> int:
        for one in self._subscribers:
            one.send(channel, message)
        return len(self._subscribers)


class Client:
    """The part of `redis.asyncio.Redis` that the registry uses, at one place."""

    def __init__(self, server: Server, place: str) -> None:
        self._server, self._place = server, place

    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]:
        """Return a script as a function of `keys` and `args`."""

        async def run(*, keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Any:
            return await self._do("EVAL", script, tuple(keys), tuple(args))

        return run

    def pipeline(self, *, transaction: bool) -> "Pipeline":
        """Return commands that are sent together."""
        return Pipeline(self.send, split=not transaction and self._server.random.random() < SPLIT_SHARE)

    def pubsub(self, **_: Any) -> "Subscription":
        """Return a subscription."""
        return Subscription(self._server, self._place)

    async def aclose(self) -> None:
        """Close the connections."""

    async def _do(self, name: str, *args: Any) -> Any:
        (result,) = await self.send([(name, args)])
        if isinstance(result, Exception):
            raise result
        return result

    def __getattr__(self, name: str) -> Any:
        return partial(_COMMANDS[name], self._do)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return their results. Raises ConnectionError."""
        try:
            return await self._send_once(commands)
        except ConnectionError:
            return await self._send_once(commands)

    async def _send_once(self, commands: Sequence[Command]) -> list[Any]:
        server, place = self._server, self._place
        answer: asyncio.Future[list[Any]] = server.loop.create_future()
        generation = server.generation
        outward = server.network.leg(place, REDIS)
        if outward is Cut.REFUSED or not server.up:
            await asyncio.sleep(0.0005)
            raise ConnectionError("Connection refused")

        def arrive() -> None:
            if not server.up or server.generation != generation:
                fail()
                return
            results = server.carry_out(place, commands)
            back = server.network.leg(REDIS, place)
            if isinstance(back, float):
                server.loop.outside(back, settle, results)
            elif back is Cut.REFUSED:
                fail()

        def settle(results: list[Any]) -> None:
            if not answer.done():
                if server.generation != generation:
                    answer.set_exception(ConnectionError("Connection closed by server."))
                else:
                    answer.set_result(results)

        def fail() -> None:
            if not answer.done():
                answer.set_exception(ConnectionError("Connection closed by server."))

        if isinstance(outward, float):
            server.loop.outside(outward, arrive)
        return await answer


class Pipeline:
    """Commands that are sent together."""

    def __init__(self, send: Callable[[Sequence[Command]], Awaitable[list[Any]]], *, split: bool) -> None:
        self._send, self._split = send, split
        self._commands: list[Command] = []

    async def __aenter__(self) -> "Pipeline":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands = []

    def _add(self, name: str, *args: Any) -> "Pipeline":
        self._commands.append((name, args))
        return self

    def __getattr__(self, name: str) -> Any:
        return partial(_COMMANDS[name], self._add)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send them. A pipeline without a transaction may be interleaved with another client's commands."""
        commands, self._commands = self._commands, []
        if not commands:
            return []
        if self._split and len(commands) > 1:
            middle = len(commands) // 2
            results = await self._send(commands[:middle]) + await self._send(commands[middle:])
        else:
            results = await self._send(commands)
        results = [_as_redis_py(name, r) for (name, _), r in zip(commands, results, strict=True)]
        if raise_on_error:
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results


class Subscription:
    """The part of redis-py's PubSub that the registry uses: one channel, messages in order."""

    def __init__(self, server: Server, place: str) -> None:
        self._server, self._place = server, place
        self._messages: deque[bytes] = deque()
        self._arrives_at = 0.0
        self._confirms = False
        """Whether the subscription's confirmation is the next message."""
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "Subscription":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.unsubscribe(self)

    async def subscribe(self, *_: str) -> None:
        """Subscribe. Raises ConnectionError."""
        await Client(self._server, self._place).send([("PING", ())])
        self._server.subscribe(self)
        self._confirms = True

    async def get_message(self, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109 (redis-py's)
        """Return the next message; None when none comes in time. Raises ConnectionError."""
        if self._confirms:
            self._confirms = False
            return {"type": "subscribe", "data": b"1"}
        if not self._messages and self._error is None:
            self._waiter = self._server.loop.create_future()
            await asyncio.wait((self._waiter,), timeout=timeout)
            self._waiter = None
        if self._error is not None:
            raise self._error
        return {"type": "message", "data": self._messages.popleft()} if self._messages else None

    def send(self, channel: bytes, message: bytes) -> None:
        """Send a message to this subscriber; on one connection none overtakes another."""
        leg = self._server.network.leg(REDIS, self._place)
        if leg is Cut.REFUSED:
            self.broken()
        elif isinstance(leg, float):
            loop = self._server.loop
            self._arrives_at = max(loop.time() + leg, self._arrives_at)
            loop.outside(self._arrives_at - loop.time(), self._arrive, message)

    def broken(self) -> None:
        """The connection is lost."""
        self._error = ConnectionError("Connection closed by server.")
        self._wake()

    def _arrive(self, message: bytes) -> None:
        self._messages.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


Do = Callable[..., Any]


def _set(do: Do, key: Any, value: Any, px: int | None = None) -> Any:
    return do("SET", key, value, *(() if px is None else ("PX", px)))


def _hset(do: Do, key: Any, field: Any = None, value: Any = None, mapping: Mapping[Any, Any] | None = None) -> Any:
    pairs = {field: value} if mapping is None else mapping
    return do("HSET", key, *(word for pair in pairs.items() for word in pair))


def _xadd(do: Do, key: Any, fields: Mapping[Any, Any], **_: Any) -> Any:
    return do("XADD", key, "*", *(word for pair in fields.items() for word in pair))


def _xrevrange(do: Do, key: Any, **_: Any) -> Any:
    return do("XREVRANGE", key, "+", "-")


def _eval(do: Do, script: str, keys: int, *words: Any) -> Any:
    return do("EVAL", script, words[:keys], words[keys:])


def _time(do: Do) -> Any:
    return do("TIME")


async def _scan(do: Do, cursor: int, match: str, count: int) -> Any:
    return _as_redis_py("SCAN", await do("SCAN", cursor, "MATCH", match))


def _mget(do: Do, keys: Sequence[Any]) -> Any:
    return do("MGET", *keys)


def _zrange(do: Do, key: Any, first: int, last: int, withscores: bool) -> Any:
    return do("ZRANGE", key, first, last, "WITHSCORES")


def _plain(name: str) -> Callable[..., Any]:
    return lambda do, *args: do(name, *args)


_COMMANDS: dict[str, Callable[..., Any]] = {
    "set": _set, "hset": _hset, "xadd": _xadd, "time": _time, "eval": _eval, "scan": _scan, "mget": _mget,
    "zrange": _zrange, "xrevrange": _xrevrange,
    "get": _plain("GET"), "sadd": _plain("SADD"), "srem": _plain("SREM"), "smembers": _plain("SMEMBERS"),
    "delete": _plain("DEL"), "hgetall": _plain("HGETALL"), "hdel": _plain("HDEL"), "hget": _plain("HGET"),
    "zrem": _plain("ZREM"), "publish": _plain("PUBLISH"), "pttl": _plain("PTTL"), "pexpire": _plain("PEXPIRE"),
    "ping": _plain("PING"),
}  # fmt: skip


def _as_redis_py(name: str, result: Any) -> Any:
    if name == "TIME":
        return tuple(int(part) for part in result)
    if name == "SCAN":
        return int(result[0]), result[1]
    return result
