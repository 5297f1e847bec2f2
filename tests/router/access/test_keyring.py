"""The table of keys in memory follows the record and stays in use while it is unavailable."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from cortex.platform.api_keys import LOCAL, ApiKey, digest
from cortex.platform.registry import SUBSCRIBED, RecordUnavailable, Registry
from cortex.router.access.keyring import KeyRing, local_key

ONE = ApiKey(digest=digest("one"), id="1", name="one")
TWO = ApiKey(digest=digest("two"), id="2", name="two")


class Record:
    """A record with these keys; None means unavailable."""

    def __init__(self, *stored: ApiKey) -> None:
        self.stored: tuple[ApiKey, ...] | None = stored
        self.api_keys = self
        self.over = asyncio.Event()

    async def all(self) -> list[ApiKey]:
        if self.stored is None:
            raise RecordUnavailable("away")
        return list(self.stored)

    async def bell(self) -> AsyncIterator[str]:
        """Confirm a subscription twice; a key is written just before each, and rings nothing."""
        for key in (ONE, TWO):
            self.stored = (*(self.stored or ()), key)
            yield SUBSCRIBED
        self.over.set()
        await asyncio.Event().wait()


def ring(record: Record, local: str = "") -> KeyRing:
    return KeyRing(cast(Registry, record), local)


async def test_loaded_keys_stay_valid_while_the_record_is_unavailable() -> None:
    record = Record(ONE)
    keys = ring(record)
    await keys.refresh()
    record.stored = None

    with pytest.raises(RecordUnavailable):
        await keys.refresh()

    principal = keys.find("one")
    assert principal is not None
    assert principal.name == "one"
    assert keys.find("two") is None


async def test_a_key_written_before_a_subscription_is_confirmed_is_read() -> None:
    record = Record()
    keys = ring(record)
    following = asyncio.create_task(keys.follow())
    await asyncio.wait_for(record.over.wait(), 10)

    assert [keys.find(secret) is not None for secret in ("one", "two", "three")] == [True, True, False]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_record_that_comes_back_empty_grants_no_anonymous_access() -> None:
    record = Record(ONE)
    keys = ring(record)
    await keys.refresh()
    record.stored = ()
    assert keys.find("one") is keys.find("one") is not None

    await keys.refresh()

    assert keys.find("one") is None
    assert keys.has_keys  # so anonymous requests stay rejected


async def test_before_the_record_is_read_only_the_local_key_is_valid() -> None:
    keys = ring(Record(), "mine")

    assert not keys.loaded
    assert keys.find("mine") == LOCAL
    assert keys.find("one") is None


async def test_an_expired_key_is_invalid_without_another_read() -> None:
    keys = ring(Record(replace(ONE, expires=1.0)))
    await keys.refresh()

    assert keys.find("one") is None


def test_an_unreadable_local_key_is_empty(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" mine\n")

    assert [local_key(str(tmp_path / n)) if n else local_key("") for n in ("key", "none", "")] == ["mine", "", ""]
