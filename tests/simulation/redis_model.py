"""A model of Redis: the commands that the registry uses, on virtual time, with the product's own Lua scripts.

`tests/simulation/test_redis_model.py` runs the same random calls against this model and a real Redis.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from hashlib import sha1
from typing import Any

import msgspec
from lupa import lua51
from redis.exceptions import ResponseError

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"

_LUA: Any = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True)
_SCRIPTS: dict[str, Any] = {}


class Status(str):
    """A status reply, such as that of TYPE."""


class Model:
    """One Redis. `now` is its own wall clock; `publish` is called for each message."""

    def __init__(self, now: Callable[[], float], publish: Callable[[bytes, bytes], int]) -> None:
        self._now, self._publish = now, publish
        self._values: dict[bytes, Any] = {}
        self._ends: dict[bytes, float] = {}
        self._entries = 0
        self._commands: dict[str, Any] = {}
        self.calls = 0

    def clear(self) -> None:
        """Lose everything, as a Redis without a disk does when it restarts."""
        self._values.clear()
        self._ends.clear()

    def call(self, name: str, *args: Any) -> Any:
        """Carry out one command. Returns what Redis does; an error is raised as ResponseError."""
        self.calls += 1
        command = self._commands.get(name)
        if command is None:
            command = self._commands[name] = getattr(self, f"_{name.lower()}")  # PUBLISH is the callback itself
        return command(*[a if type(a) is bytes else _bytes(a) for a in args])

    def run(self, script: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a Lua script, which is one atomic step."""
        self.calls += 1
        function = _SCRIPTS.get(script)
        if function is None:
            head = b"return function(KEYS, ARGV, redis, cjson)\n"
            function = _SCRIPTS[script] = _LUA.execute(head + script.encode() + b"\nend")
        _calling.append(self)
        try:
            result = function(
                _LUA.table_from([_bytes(k) for k in keys]), _LUA.table_from([_bytes(a) for a in args]), _API, _CJSON
            )
        finally:
            _calling.pop()
        return _from_lua_value(result)

    # Keys.

    def _at(self, key: bytes, kind: type | None = None) -> Any:
        end = self._ends.get(key)
        if end is not None and end <= self._now():
            self._values.pop(key, None)
            del self._ends[key]
        value = self._values.get(key)
        if value is not None and kind is not None and type(value) is not kind:
            raise ResponseError(WRONG_TYPE)
        return value

    def _collection(self, key: bytes, kind: type) -> Any:
        value = self._at(key, kind)
        if value is None:
            value = self._values[key] = kind()
        return value

    def _drop_if_empty(self, key: bytes) -> None:
        if not self._values.get(key):
            self._values.pop(key, None)
            self._ends.pop(key, None)

    def _ping(self) -> bytes:
        return b"PONG"

    def _time(self) -> list[bytes]:
        seconds, rest = divmod(self._now(), 1.0)
        return [b"%d" % seconds, b"%d" % (rest * 1e6)]

    def _exists(self, key: bytes) -> int:
        return int(self._at(key) is not None)

    def _type(self, key: bytes) -> Status:
        names: dict[type, str] = {
            bytes: "string",
            Set: "set",
            Hash: "hash",
            Sorted: "zset",
            List: "list",
            Stream: "stream",
        }
        return Status(names.get(type(self._at(key)), "none"))

    def _del(self, *keys: bytes) -> int:
        there = [k for k in keys if self._at(k) is not None]
        for key in there:
            del self._values[key]
            self._ends.pop(key, None)
        return len(there)

    def _pttl(self, key: bytes) -> int:
        if self._at(key) is None:
            return -2
        end = self._ends.get(key)
        return -1 if end is None else round((end - self._now()) * 1000)

    def _pexpire(self, key: bytes, ms: bytes) -> int:
        if self._at(key) is None:
            return 0
        self._ends[key] = self._now() + int(ms) / 1000
        return 1

    def _scan(self, cursor: bytes, *options: bytes) -> list[Any]:
        match = options[options.index(b"MATCH") + 1].decode() if b"MATCH" in options else "*"
        return [b"0", [k for k in sorted(self._values) if self._at(k) is not None and fnmatchcase(k.decode(), match)]]

    # Strings.

    def _get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._at(key, bytes)
        return value

    def _getrange(self, key: bytes, first: bytes, last: bytes) -> bytes:
        assert first == b"0"
        return (self._at(key, bytes) or b"")[: int(last) + 1]

    def _mget(self, *keys: bytes) -> list[bytes | None]:
        return [v if type(v := self._at(k)) is bytes else None for k in keys]

    def _set(self, key: bytes, value: bytes, *options: bytes) -> bytes:
        self._values[key] = value
        self._ends.pop(key, None)
        if options:
            assert options[0] == b"PX"
            self._ends[key] = self._now() + int(options[1]) / 1000
        return b"OK"

    # Sets.

    def _sadd(self, key: bytes, *members: bytes) -> int:
        value = self._collection(key, Set)
        before = len(value)
        value.update(dict.fromkeys(members))
        return len(value) - before

    def _srem(self, key: bytes, *members: bytes) -> int:
        value = self._at(key, Set) or Set()
        gone = sum(value.pop(m, 0) is None for m in members)
        self._drop_if_empty(key)
        return gone

    def _smembers(self, key: bytes) -> list[bytes]:
        return sorted(self._at(key, Set) or ())

    # Hashes.

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        value = self._collection(key, Hash)
        before = len(value)
        value.update(_pairs(pairs))
        return len(value) - before

    def _hget(self, key: bytes, field: bytes) -> bytes | None:
        value: bytes | None = (self._at(key, Hash) or {}).get(field)
        return value

    def _hexists(self, key: bytes, field: bytes) -> int:
        return int(field in (self._at(key, Hash) or ()))

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        value = self._at(key, Hash) or Hash()
        gone = sum(value.pop(f, None) is not None for f in fields)
        self._drop_if_empty(key)
        return gone

    def _hgetall(self, key: bytes) -> dict[bytes, bytes]:
        return dict(self._at(key, Hash) or ())

    # Sorted sets.

    def _zadd(self, key: bytes, *args: bytes) -> int:
        value = self._collection(key, Sorted)
        greater = args[0] == b"GT"
        added = 0
        for score, member in _pairs(args[1:] if greater else args):
            added += member not in value
            if member not in value or not greater or float(score) > value[member]:
                value[member] = float(score)
        return added

    def _zrem(self, key: bytes, *members: bytes) -> int:
        value = self._at(key, Sorted) or Sorted()
        gone = sum(value.pop(m, None) is not None for m in members)
        self._drop_if_empty(key)
        return gone

    def _zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[tuple[bytes, float]]:
        assert (first, last, options) == (b"0", b"-1", (b"WITHSCORES",))
        return sorted((self._at(key, Sorted) or Sorted()).items(), key=lambda one: (one[1], one[0]))

    def _zrangebyscore(self, key: bytes, least: bytes, most: bytes) -> list[bytes]:
        assert least.startswith(b"(") and most == b"+inf"
        above = float(least[1:])
        return [m for m, score in sorted((self._at(key, Sorted) or {}).items(), key=lambda o: o[1]) if score > above]

    # The stream of decisions.

    def _xadd(self, key: bytes, *args: bytes) -> bytes:
        value = self._collection(key, Stream)
        fields = args[args.index(b"*") + 1 :]
        self._entries += 1
        id = b"%d-%d" % (self._now() * 1000, self._entries)
        value.append((id, dict(_pairs(fields))))
        del value[:-5000]
        return id

    def _xrevrange(self, key: bytes, *_: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        return list(reversed(self._at(key, Stream) or ()))


class Set(dict[bytes, None]):
    """A set, in the order of insertion."""


class Hash(dict[bytes, bytes]):
    """A hash."""


class Sorted(dict[bytes, float]):
    """A sorted set."""


class List(list[bytes]):
    """A list."""


class Stream(list[tuple[bytes, dict[bytes, bytes]]]):
    """A stream."""


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, float) and value.is_integer():  # a number that comes from Lua
        return b"%d" % value
    return str(value).encode()


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _to_lua_value(value: Any) -> Any:
    if type(value) is bytes or type(value) is int:
        return value
    if value is None:
        return False
    if isinstance(value, Status):
        return _LUA.table_from({b"ok": value.encode()})
    if isinstance(value, list):
        return _LUA.table_from([_to_lua_value(v) for v in value])
    return value


def _from_lua_value(value: Any) -> Any:
    if type(value) is bytes:
        return value
    if value is None or value is False:
        return None
    if value is True:
        return 1
    if isinstance(value, float):
        return int(value)
    if lua51.lua_type(value) == "table":
        return [_from_lua_value(v) for v in value.values()]
    return value


def _decode_json(text: bytes) -> Any:
    value = msgspec.json.decode(text)
    if not isinstance(value, dict):
        return value
    # Scripts read only the fields of the outermost object.
    plain = {
        k.encode(): v.encode() if isinstance(v, str) else v for k, v in value.items() if not isinstance(v, dict | list)
    }
    return _LUA.table_from(plain)


# What scripts call. These functions are never made anew: Lua may free its reference to one that is in use elsewhere.

_calling: list[Model] = []
"""The model whose script runs is the last one."""


def _call(name: bytes, *args: Any) -> Any:
    return _to_lua_value(_calling[-1].call(name.decode(), *args))


def _try(name: bytes, *args: Any) -> Any:
    try:
        return _call(name, *args)
    except ResponseError as error:
        return _LUA.table_from({b"err": str(error).encode()})


def _sha1hex(text: bytes) -> bytes:
    return sha1(text, usedforsecurity=False).hexdigest().encode()


_CJSON = _LUA.table_from({b"decode": _decode_json})
_API = _LUA.table_from({b"call": _call, b"pcall": _try, b"sha1hex": _sha1hex})
