"""Browser sessions against a real Redis, shared by two router workers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.platform.api_keys import ApiKey, Scope, digest
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.access import sessions
from cortex.router.access.keyring import KeyRing
from cortex.router.access.sessions import Sessions
from tests.support.stack import free_port, own_redis

SECRET = "sk-cortex-of-an-operator"
KEY = ApiKey(digest=digest(SECRET), id="k", name="ops", scope=Scope.ADMIN)


class Worker:
    """The parts of a router worker that sessions need."""

    def __init__(self, url: str, token: str = "fleet token") -> None:
        self.registry = Registry(url)
        self.ring = KeyRing(self.registry)
        self.sessions = Sessions(self.registry, self.ring, lambda: token)

    def lose_redis(self) -> None:
        """Replace Redis by a port that nothing listens on."""
        self.sessions._registry = Registry(f"redis://127.0.0.1:{free_port()}")


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    with own_redis(tmp_path) as url:
        one, other = Worker(url), Worker(url)
        await one.registry.api_keys.put(KEY)
        for worker in (one, other):
            await worker.ring.refresh()
        yield one, other
        for worker in (one, other):
            await worker.registry.close()


async def test_a_session_is_valid_at_every_worker_and_does_not_contain_its_key(
    workers: tuple[Worker, Worker],
) -> None:
    one, other = workers

    cookie = await one.sessions.begin(SECRET)
    who = await other.sessions.find(cookie)

    assert who is not None
    assert (who.name, who.scope) == ("ops", Scope.ADMIN)
    (stored,) = (await other.registry.api_keys.sessions()).items()
    assert SECRET not in cookie
    assert cookie.partition(".")[0] not in repr(stored)


async def test_a_logout_ends_the_session_at_every_worker(workers: tuple[Worker, Worker]) -> None:
    one, other = workers
    cookie = await one.sessions.begin(SECRET)
    assert await other.sessions.find(cookie)

    await one.sessions.end(cookie)

    assert await one.sessions.find(cookie) is None
    assert await other.sessions.find(cookie) is None


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_a_session_ends_with_its_key(workers: tuple[Worker, Worker], end: str) -> None:
    one, _ = workers
    cookie = await one.sessions.begin(SECRET)

    if end == "revoked":
        await one.registry.api_keys.delete([KEY.digest])
    else:
        await one.registry.api_keys.put(replace(KEY, expires=1.0))
    await one.ring.refresh()

    assert await one.sessions.find(cookie) is None


async def test_a_session_expires(workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = workers
    monkeypatch.setattr(sessions, "SESSION_S", -1)

    cookie = await one.sessions.begin(SECRET)

    assert await one.sessions.find(cookie) is None


@pytest.mark.parametrize("forged", ["", ".", "a.b", SECRET, "é\ud800.x", "x" * 4000])
async def test_a_forged_cookie_is_rejected_without_a_redis_call(workers: tuple[Worker, Worker], forged: str) -> None:
    one, _ = workers
    one.lose_redis()  # a lookup would raise

    assert await one.sessions.find(forged) is None


async def test_a_cookie_sealed_under_another_fleet_token_is_rejected(workers: tuple[Worker, Worker]) -> None:
    one, _ = workers
    cookie = await one.sessions.begin(SECRET)
    stranger = Sessions(one.registry, one.ring, lambda: "another token")

    assert await stranger.find(cookie) is None


async def test_while_redis_is_unavailable_cached_sessions_stay_valid_and_none_begins_or_ends(
    workers: tuple[Worker, Worker],
) -> None:
    one, other = workers
    cookie = await one.sessions.begin(SECRET)
    await one.sessions.find(cookie)
    one.lose_redis()
    other.lose_redis()

    assert await one.sessions.find(cookie) is not None
    assert await other.sessions.find(cookie) is None
    with pytest.raises(RecordUnavailable):
        await one.sessions.end(cookie)
    with pytest.raises(RecordUnavailable):
        await one.sessions.begin(SECRET)


async def test_above_the_session_limit_the_oldest_session_ends(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = workers
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 3)

    cookies = [await one.sessions.begin(SECRET) for _ in range(5)]

    assert [await one.sessions.find(c) is not None for c in cookies] == [False, False, True, True, True]
    assert len(await one.registry.api_keys.sessions()) == 3
