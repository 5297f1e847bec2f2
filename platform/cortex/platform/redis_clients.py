"""Connections to the record's Redis, for asyncio and for threads, from one kind of URL.

A Redis that was demoted to a replica keeps its connections open and answers READONLY. Its name or Sentinel may lead to
the new master by then, but only over a new connection. So the first READONLY answer closes its connection, marks all
other connections of the client as outdated, and the command is retried once on a new connection.
"""

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.connection as async_connections
import redis.asyncio.sentinel as async_sentinel
import redis.connection as connections
import redis.sentinel as sync_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from cortex.platform.redis_address import Sentinels, is_sentinel, sentinels

CONNECT_S = 5.0
NO_MASTER = "the Redis there is a replica, or not ready: it accepts no writes"
OUTDATED_CODES = ("READONLY", "UNBLOCKED", "NOREPLICAS")
"""Errors of a former master: on a write, on a blocking call, and after it has lost its replicas."""


class Generation:
    """Counts how often a client's connections turned out to lead to the wrong Redis."""

    def __init__(self) -> None:
        self.number = 0


def is_outdated(error: BaseException | None) -> bool:
    """Return whether an error means that the Redis at the other end is not a master, or not yet."""
    if isinstance(error, ReadOnlyError | MasterDownError | BusyLoadingError):
        return True
    if not isinstance(error, ResponseError):
        return False
    # Redis before 7 wraps errors of scripts: "ERR Error running script (…): -READONLY You can't write …".
    return str(error).startswith(OUTDATED_CODES) or "-READONLY " in str(error)


class _AsyncMasterConnection:
    """A connection that closes when it does not lead to a master, together with its whole generation."""

    def __init__(self, *, generation: Generation, **options: Any) -> None:
        self._generation, self._own_generation = generation, generation.number
        super().__init__(**options)

    async def connect(self) -> None:
        base: Any = super()
        if self._own_generation != self._generation.number:
            await base.disconnect(nowait=True)
        self._own_generation = self._generation.number
        await base.connect()

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        base: Any = super()
        if not base.is_connected:  # a retry: Sentinel's connections look up the master only in connect()
            await self.connect()
        await base.send_packed_command(*args, **options)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        base: Any = super()
        try:
            return await base.read_response(*args, **options)
        except RedisError as error:
            # Sentinel's connections replace READONLY by an error of their own.
            if not is_outdated(error) and not is_outdated(error.__context__):
                raise
            self._generation.number += 1
            await base.disconnect(nowait=True)
            raise ConnectionError(NO_MASTER) from error


class _MasterConnection:
    """The same, for threads."""

    def __init__(self, *, generation: Generation, **options: Any) -> None:
        self._generation, self._own_generation = generation, generation.number
        super().__init__(**options)

    def connect(self) -> None:
        base: Any = super()
        if self._own_generation != self._generation.number:
            base.disconnect()
        self._own_generation = self._generation.number
        base.connect()

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        base: Any = super()
        if not base.is_connected:
            self.connect()
        base.send_packed_command(*args, **options)

    def can_read(self, *args: Any, **options: Any) -> bool:
        """Return whether there is something to read. Raises ConnectionError for an outdated listener."""
        if self._own_generation != self._generation.number:
            raise ConnectionError(NO_MASTER)
        base: Any = super()
        return bool(base.can_read(*args, **options))

    def read_response(self, *args: Any, **options: Any) -> Any:
        base: Any = super()
        try:
            return base.read_response(*args, **options)
        except RedisError as error:
            if not is_outdated(error) and not is_outdated(error.__context__):
                raise
            self._generation.number += 1
            base.disconnect()
            raise ConnectionError(NO_MASTER) from error


class _AsyncTcp(_AsyncMasterConnection, async_connections.Connection):
    pass


class _AsyncTls(_AsyncMasterConnection, async_connections.SSLConnection):
    pass


class _AsyncUnix(_AsyncMasterConnection, async_connections.UnixDomainSocketConnection):
    pass


class _Tcp(_MasterConnection, connections.Connection):
    pass


class _Tls(_MasterConnection, connections.SSLConnection):
    pass


class _Unix(_MasterConnection, connections.UnixDomainSocketConnection):
    pass


class _AsyncBySentinel(_AsyncMasterConnection, async_sentinel.SentinelManagedConnection):
    pass


class _AsyncTlsBySentinel(_AsyncMasterConnection, async_sentinel.SentinelManagedSSLConnection):
    pass


class _BySentinel(_MasterConnection, sync_sentinel.SentinelManagedConnection):
    pass


class _TlsBySentinel(_MasterConnection, sync_sentinel.SentinelManagedSSLConnection):
    pass


class _AsyncSentinelPool(async_sentinel.SentinelConnectionPool):
    """A pool that outdates its connections, those in use included, when Sentinel names another master."""

    async def get_master_address(self) -> Any:
        before = self.master_address
        master = await super().get_master_address()  # type: ignore[no-untyped-call]
        if before not in (None, master):
            self.connection_kwargs["generation"].number += 1
        return master

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


_ASYNC = {"redis": _AsyncTcp, "rediss": _AsyncTls, "unix": _AsyncUnix}
_SYNC = {"redis": _Tcp, "rediss": _Tls, "unix": _Unix}


def async_client(url: str, timeout_s: float, generation: Generation) -> redis.asyncio.Redis:
    """Return a client for asyncio. Health checks stay off: in redis-py 8 a check recurses endlessly."""
    options: dict[str, Any] = {
        "generation": generation,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": AsyncRetry(NoBackoff(), 1),
        "client_name": "cortex",
        # redis-py reads its metadata from disk for each connection otherwise.
        "driver_info": DriverInfo(lib_version=redis.__version__),
    }
    if is_sentinel(url):
        address = sentinels(url)
        manager = async_sentinel.Sentinel(  # type: ignore[no-untyped-call]
            address.hosts, sentinel_kwargs=_to_sentinels(address, timeout_s, AsyncRetry(NoBackoff(), 0))
        )
        options |= _to_master(address)
        options["connection_class"] = _AsyncTlsBySentinel if address.tls else _AsyncBySentinel
        pool: Any = _AsyncSentinelPool(address.master, manager, **options)  # type: ignore[no-untyped-call]
        return redis.asyncio.Redis.from_pool(pool)
    options |= {**async_connections.parse_url(url), "connection_class": _ASYNC[url.partition(":")[0]]}
    return redis.asyncio.Redis.from_pool(async_connections.ConnectionPool(**options))


def client(url: str, timeout_s: float | None = 5.0) -> redis.Redis:
    """Return a client for threads. With `timeout_s` None, its user (RQ's worker) limits the wait for an answer."""
    options: dict[str, Any] = {
        "generation": Generation(),
        "socket_connect_timeout": timeout_s or CONNECT_S,
        "retry": Retry(NoBackoff(), 1),
    }
    if timeout_s is not None:
        options["socket_timeout"] = timeout_s
    if is_sentinel(url):
        address = sentinels(url)
        manager = sync_sentinel.Sentinel(  # type: ignore[no-untyped-call]
            address.hosts, sentinel_kwargs=_to_sentinels(address, timeout_s or CONNECT_S, Retry(NoBackoff(), 0))
        )
        options |= _to_master(address)
        options["connection_class"] = _TlsBySentinel if address.tls else _BySentinel
        pool: Any = sync_sentinel.SentinelConnectionPool(address.master, manager, **options)  # type: ignore[no-untyped-call]
        return redis.Redis.from_pool(pool)
    options |= connections.parse_url(url)  # type: ignore[no-untyped-call]
    options["connection_class"] = _SYNC[url.partition(":")[0]]
    return redis.Redis.from_pool(connections.ConnectionPool(**options))


def _to_master(address: Sentinels) -> dict[str, Any]:
    """Return the connection options for the master."""
    own = {"db": address.db, "username": address.username or None, "password": address.password or None}
    return {**own, **_tls(address)}


def _to_sentinels(address: Sentinels, timeout_s: float, retry: Any) -> dict[str, Any]:
    """Return the connection options for the Sentinels, which are tried in turn within half of the time limit."""
    each_s = timeout_s / 2 / len(address.hosts)
    return {
        "socket_timeout": each_s,
        "socket_connect_timeout": each_s,
        "retry": retry,
        "username": address.sentinel_username or None,
        "password": address.sentinel_password or None,
        **({"ssl": True} if address.tls else {}),
        **_tls(address),
    }


def _tls(address: Sentinels) -> dict[str, Any]:
    options: dict[str, Any] = {name: value for name, value in address.ssl.items() if name != "ssl_check_hostname"}
    if "ssl_check_hostname" in address.ssl:
        options["ssl_check_hostname"] = address.ssl["ssl_check_hostname"].lower() in ("1", "true", "yes")
    return options if address.tls else {}
